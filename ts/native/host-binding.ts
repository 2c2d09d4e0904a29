/**
 * The private surface of the native addon that touches this host's devices: PCI and mdev in sysfs, VFIO, NVMe passthrough, devlink,
 * vfio-user sockets. The conventions are those of `binding.ts`.
 */
import type { NativeAdmin, NativeDirtySource, NativeGuestMemory, NativeStateChannel } from './binding.js';

/** One PCI function as sysfs tells. Addresses are `0000:01:00.0`, lower case. 64-bit numbers are decimal strings. */
export interface NativePciFunction {
  address: string;
  vendor: number;
  device: number;
  subsystemVendor: number;
  subsystemDevice: number;
  /** 24 bits: class, subclass, programming interface. */
  class: number;
  revision: number;
  modalias: string;
  /** Bound kernel driver. */
  driver: string | null;
  driverOverride: string | null;
  iommuGroup: number | null;
  numaNode: number | null;
  /** `null` for what is no SR-IOV PF. */
  sriov: null | {
    totalVfs: number;
    numVfs: number;
    driversAutoprobe: boolean;
    offset: number;
    stride: number;
    vfDevice: number;
    vfTotalMsix: number | null;
  };
  /** Addresses of its VFs by index. */
  virtfns: string[];
  /** Of a VF: its PF. */
  physfn: string | null;
  /** Of a VF: its index, from 0. */
  vfIndex: number | null;
  /** `sriov_vf_msix_count`, where the driver of the PF has it. */
  vfMsixCount: number | null;
  resetMethods: string[];
  /** `vfio2` for `/dev/vfio/devices/vfio2`. */
  vfioDevice: string | null;
  bars: { index: number; sizeBytes: string; flags: number }[];
  /** Of an NVMe controller that the kernel's driver has: its name, `nvme0`, and what its class device tells. */
  nvme: null | { name: string; cntlid: number | null; subsystemNqn: string | null; state: string | null };
  /** State by the kernel's debugfs (`vfio/<device>/migration/state`), where there is one and it may be read. */
  vfioState: string | null;
}

/** Parents of mediated devices, with their types and devices. */
export interface NativeMdevParent {
  /** Path below the root of sysfs: `devices/virtual/mtty/mtty`. */
  path: string;
  /** Last part of the path. */
  name: string;
  types: {
    /** `mtty-1` */
    id: string;
    name: string | null;
    deviceApi: string;
    availableInstances: number;
    description: string | null;
  }[];
  devices: {
    uuid: string;
    type: string;
    driver: string | null;
    iommuGroup: number | null;
    vfioDevice: string | null;
    vfioState: string | null;
  }[];
}

/** What this kernel has for VFIO. */
export interface NativeHostKernel {
  /** `uname -r` */
  release: string;
  /** IOMMU groups exist. */
  iommu: boolean;
  /** `/dev/vfio/vfio` */
  container: boolean;
  /** `/dev/vfio/devices` */
  cdev: boolean;
  /** `/dev/iommu` */
  iommufd: boolean;
  /** Names of PCI drivers that are there: `vfio-pci`, `mlx5_vfio_pci`, `nvme`. */
  pciDrivers: string[];
  /** `/sys/bus/mdev` */
  mdev: boolean;
  /** `vfio` in debugfs, readable. */
  vfioDebugfs: boolean;
  /** Variant drivers by PCI module aliases (`vfio_pci:v…` in modules.alias): alias pattern → module. */
  vfioAliases: {
    pattern: string;
    module: string;
    /** The PCI driver of that module, for `driver_override`, where it is loaded: `hisi_acc_vfio_pci` has `hisi-acc-vfio-pci`. */
    driver: string | null;
  }[];
}

/** One devlink port. */
export interface NativeDevlinkPort {
  bus: string;
  device: string;
  index: number;
  flavour: 'physical' | 'cpu' | 'dsa' | 'pci-pf' | 'pci-vf' | 'virtual' | 'unused' | 'pci-sf' | 'other';
  netdev: string | null;
  controller: number | null;
  pf: number | null;
  vf: number | null;
  sf: number | null;
  function: null | {
    hwAddr: string | null;
    state: 'inactive' | 'active' | null;
    opstate: 'detached' | 'attached' | null;
    migratable: boolean | null;
    roce: boolean | null;
  };
}

/** How a VFIO device is opened. */
export interface NativeVfioOptions {
  /** PCI address or UUID of a mediated device. */
  name: string;
  /** `auto`: cdev where there is one, the group otherwise. Default `auto`. */
  by?: 'auto' | 'group' | 'cdev';
  /** UUID of the VF token, where the PF is on vfio-pci. */
  token?: string;
  /** Iommufd with dirty tracking, where it is opened by cdev and the IOMMU can. Default true. */
  dirtyTracking?: boolean;
}

/** What an open VFIO device is and can do. 64-bit numbers are decimal strings. */
export interface NativeVfioInfo {
  name: string;
  by: 'group' | 'cdev' | 'fd';
  /** `VFIO_DEVICE_FLAGS_*` */
  flags: number;
  regions: {
    index: number;
    sizeBytes: string;
    offset: string;
    read: boolean;
    write: boolean;
    mmap: { offset: string; sizeBytes: string }[];
  }[];
  irqs: { index: number; count: number; flags: number }[];
  /** Migration flags (bit 0 STOP_COPY, 1 P2P, 2 PRE_COPY); 0 for a device that doesn't migrate. */
  migration: number;
  /** Feature numbers that probe as there (`VFIO_DEVICE_FEATURE_*`). */
  features: number[];
  /** Who tells which pages it wrote: its own DMA log, the IOMMU, or nobody. */
  dirty: 'device' | 'iommufd' | 'type1' | 'none';
  /** What its state bytes are, for the offer: see `StateChannel::format`. */
  format: string | null;
}

/** An open VFIO device. It owns its descriptors until it is closed. */
export interface NativeVfioDevice {
  /** {@link NativeVfioInfo} */
  info(): string;
  /** Maps guest memory for its DMA, IOVA = guest address, as the regions are now. */
  mapMemory(memory: NativeGuestMemory): Promise<void>;
  /** Unmaps what {@link mapMemory} mapped. */
  unmapMemory(): Promise<void>;
  /** The one channel of its state. */
  stateChannel(): NativeStateChannel;
  /** The best there is of `dirty` in {@link NativeVfioInfo}, or `null`. */
  dirtySource(): NativeDirtySource | null;
  readRegion(index: number, offset: bigint, length: number): Promise<Uint8Array>;
  writeRegion(index: number, offset: bigint, data: Uint8Array): Promise<void>;
  /** Wires eventfds to vectors from `start` on; -1 leaves one out. An empty list disables the index. The descriptors stay the caller's. */
  setIrqs(index: number, start: number, eventfds: number[]): Promise<void>;
  /**
   * The exposure's own section of a stopped PCI function: `PCI_COMMAND`, BARs, control of MSI and MSI-X, and which vectors of `index`
   * (0 INTx, 1 MSI, 2 MSI-X; `null`: none) are wired. Eventfds don't travel.
   */
  saveExposure(index: number | null, wired: boolean[]): Promise<Uint8Array>;
  /**
   * Puts a section back, with an eventfd for each vector in order. After the guest's interrupt controller and the device's state, before
   * `running`. The descriptors stay the caller's.
   */
  restoreExposure(section: Uint8Array, index: number | null, eventfds: number[]): Promise<void>;
  reset(): Promise<void>;
  close(): void;
}

/** Options of a vfio-user socket. */
export interface NativeVfioUserOptions {
  /** Compiled BAR filter for BAR 0 (see `compileBarPolicy`), or none: everything is served by messages. */
  filter?: Uint8Array;
  /** Let the client map doorbells, where the policy lets them through. Default false: they are trapped. */
  mapDoorbells?: boolean;
  /** Map guest memory whose file could shrink, rather than reach it by messages: who can shrink it can end this process. Default false. */
  mapShrinkable?: boolean;
}

/** A vfio-user server on its way to another process. */
export interface NativeHandover {
  fds: number[];
  bytes: Uint8Array;
}

/** A function that waits for its vfio-user socket. */
export interface NativeVfioUserVacancy {
  /** As that of the server that it will be. */
  sectionFormat(): string | null;
  /**
   * Takes over what `detach` of another process's server gave; the descriptors are duplicated. Before the function's section is restored. Nothing is
   * read before `resume`. Where it fails the function waits still, and is as after a reset.
   */
  adopt(fds: readonly number[], bytes: Uint8Array): Promise<NativeVfioUserServer>;
  /** Nothing waits any more, unless a socket came. Idempotent. */
  close(): void;
}

/** A vfio-user socket that serves one function. */
export interface NativeVfioUserServer {
  /** {path, connected, clients, dmaRegions, messageRegions, interrupts, messages, lastError} */
  status(): string;
  /** The mapped part of guest memory as its client gives it now (`messageRegions` are not in it); `null` without a client. */
  memory(): NativeGuestMemory | null;
  /** What identifies the function to a guest; `null` where its exposure has no section of its own. */
  sectionFormat(): string | null;
  /** The exposure's section of a function that was stopped, before its state is read. From here on nothing that its client does changes the state. */
  saveSection(): Promise<Uint8Array>;
  /** Puts a section in place, after the function's state was loaded and before it runs. */
  restoreSection(section: Uint8Array): Promise<void>;
  /** Undoes `restoreSection`. */
  forgetSection(): Promise<void>;
  /** Stops reading, for another process to go on. The descriptors are the caller's to close. The function has stopped, its section was not taken yet. */
  detach(): Promise<NativeHandover>;
  /** Goes on after `detach`, or begins after `adopt`. */
  resume(): Promise<void>;
  /** Another process has it: nothing of it is left here. */
  surrender(): Promise<void>;
  /** Takes the socket away, ends the client's connection, drains. Idempotent. */
  close(): Promise<void>;
}

/**
 * The part of the native addon that touches this host. `sysfs` is the root of sysfs, for tests; `null`: `/sys`. What else belongs to
 * the host is looked for beside it: `TREE/sys` goes with `TREE/dev`, `TREE/proc` and `TREE/lib/modules`.
 *
 * A fault of these calls has `details: {what, errnoName, meaning, mend, kernel}`: what was written where, the name of the errno, what it
 * means for that file, what to do, and the kernel's own words where there are some (each but the first two `''` or `null`).
 */
export interface NativeHost {
  /** {@link NativeHostKernel} */
  hostKernel(sysfs: string | null): Promise<string>;
  /** {@link NativePciFunction}[]: what is of interest to us (every function with SR-IOV, VFs, NVMe, VFIO, or all with `all`). */
  hostPci(sysfs: string | null, all: boolean): Promise<string>;
  /** {@link NativePciFunction}, or `null` where there is none at `address`. */
  hostPciFunction(sysfs: string | null, address: string): Promise<string>;
  /** {@link NativeMdevParent}[] */
  hostMdev(sysfs: string | null): Promise<string>;
  /** {@link NativeDevlinkPort}[]; {@link devlinkDevices} is a list of `{bus, device}` */
  devlinkPorts(): Promise<string>;
  devlinkDevices(): Promise<string>;
  /** `functionJson`: {hwAddr?, state?, migratable?, roce?}, what is left out stays; state is applied last. */
  devlinkSetPort(bus: string, device: string, index: number, functionJson: string): Promise<void>;
  /** {flavour:'pci-sf', pf, sf?, controller?} → {@link NativeDevlinkPort} */
  devlinkNewPort(bus: string, device: string, json: string): Promise<string>;
  devlinkDeletePort(bus: string, device: string, index: number): Promise<void>;
  /** 'legacy' | 'switchdev' */
  devlinkEswitchMode(bus: string, device: string): Promise<string>;
  devlinkSetEswitchMode(bus: string, device: string, mode: string): Promise<void>;

  /** Each writes one file of sysfs; the errno and its meaning for that file are in the fault. */
  pciSetNumVfs(sysfs: string | null, address: string, count: number): Promise<void>;
  pciSetAutoprobe(sysfs: string | null, address: string, on: boolean): Promise<void>;
  pciSetVfMsix(sysfs: string | null, address: string, count: number): Promise<void>;
  /** `null` clears it. */
  pciSetDriverOverride(sysfs: string | null, address: string, driver: string | null): Promise<void>;
  pciUnbind(sysfs: string | null, address: string): Promise<void>;
  /** Binds by `drivers_probe`, which heeds `driver_override`. */
  pciProbe(sysfs: string | null, address: string): Promise<void>;
  pciReset(sysfs: string | null, address: string): Promise<void>;
  mdevCreate(sysfs: string | null, parentPath: string, type: string, uuid: string): Promise<void>;
  mdevRemove(sysfs: string | null, uuid: string): Promise<void>;

  /** Admin commands by passthrough: `/dev/nvme0`. */
  openNvme(path: string): Promise<NativeAdmin>;
  /** {@link NativeVfioOptions}. `deviceFd`, where somebody else (a VMM) has opened it: it is duplicated. */
  openVfio(optionsJson: string, deviceFd: number | null): Promise<NativeVfioDevice>;
}
