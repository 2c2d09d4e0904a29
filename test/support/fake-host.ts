/**
 * A host in memory: PCI with SR-IOV, mediated devices, devlink and VFIO, as the kernel behaves where the drivers meet it, errnos included. It
 * counts every call and fails the one it is told to: no device, only the rules.
 */
import { TowlineError } from '#towline/errors.js';
import type {
  DevlinkAttributes,
  DevlinkPort,
  HostKernel,
  HostPort,
  MdevParent,
  OpenVfio,
  PciFunction,
  VfioOptions,
} from '#towline/drivers/host/port.js';
import type { NvmeAdmin } from '#towline/drivers/nvme.js';
import { MemoryDevice } from './memory-device.js';

const ERRNO = {
  EPERM: 1,
  ENOENT: 2,
  EBUSY: 16,
  EEXIST: 17,
  ENODEV: 19,
  EINVAL: 22,
  ENOSPC: 28,
  ERANGE: 34,
  EOPNOTSUPP: 95,
};
type Errno = keyof typeof ERRNO;

/** As the native part tells a failed system call. */
export function systemError(what: string, errno: Errno): TowlineError {
  return new TowlineError('ERR_TOWLINE_SYSTEM', `${what}: ${errno}`, { errno: ERRNO[errno], syscall: 'write' });
}

/** The least that a PCI function is described by. */
export function pci(address: string, more: Partial<PciFunction> = {}): PciFunction {
  const vendor = more.vendor ?? 0x15b3;
  const device = more.device ?? 0x101e;
  const id = (n: number): string => n.toString(16).toUpperCase().padStart(8, '0');
  return {
    address,
    vendor,
    device,
    subsystemVendor: vendor,
    subsystemDevice: 1,
    class: 0x020000,
    revision: 0,
    modalias: `pci:v${id(vendor)}d${id(device)}sv${id(vendor)}sd00000001bc02sc00i00`,
    driver: null,
    driverOverride: null,
    iommuGroup: 1,
    numaNode: null,
    sriov: null,
    virtfns: [],
    physfn: null,
    vfIndex: null,
    vfMsixCount: null,
    resetMethods: ['flr'],
    vfioDevice: null,
    bars: [{ index: 0, sizeBytes: '4096', flags: 0x40200 }],
    nvme: null,
    vfioState: null,
    ...more,
  };
}

/** A PF with VFs like those of mlx5, which have a variant driver. */
export function mlx5Pf(address = '0000:01:00.0', totalVfs = 3): PciFunction {
  return pci(address, {
    device: 0x101d,
    driver: 'mlx5_core',
    sriov: { totalVfs, numVfs: 0, driversAutoprobe: true, offset: 1, stride: 1, vfDevice: 0x101e, vfTotalMsix: 100 },
  });
}

export class FakeHost implements HostPort {
  readonly log: string[] = [];
  /** Fails the call with this index (from 0), once. */
  failAt = -1;
  functions = new Map<string, PciFunction>();
  parents: MdevParent[] = [];
  devlink: { bus: string; device: string; mode: string }[] = [];
  ports: DevlinkPort[] = [];
  /** What devlink of the device can do. */
  portOps = { hwAddr: true, state: true, migratable: true, new: true };
  /** Kernel drivers by the device that they take. */
  kernelDrivers = new Map<number, string>([[0x101e, 'mlx5_core']]);
  /** Nobody tells what its devices write. */
  untracked = false;
  /** VFIO drivers whose probe fails. */
  refusing = new Set<string>();
  nvme: (NvmeAdmin & { close(): void }) | undefined;
  /** The driver of the PF makes at most as many VFs, and then fails. */
  mostVfs = Infinity;
  /** Called with the address of what is reset. */
  onReset: (address: string) => void = () => undefined;
  onNumVfs: (address: string, count: number) => void = () => undefined;
  /** Files of /dev that another process has open. */
  readonly opened = new Map<string, number>();
  readonly devices = new Map<string, MemoryDevice>();
  /** VFIO devices that this process has open. */
  readonly open = new Set<string>();
  kernelFacts: HostKernel = {
    release: '7.3.4',
    iommu: true,
    container: true,
    cdev: true,
    iommufd: true,
    pciDrivers: ['vfio-pci', 'mlx5_vfio_pci', 'mlx5_core', 'nvme'],
    mdev: true,
    vfioDebugfs: true,
    vfioAliases: [
      { pattern: 'vfio_pci:v*d*sv*sd*bc*sc*i*', module: 'vfio_pci', driver: 'vfio-pci' },
      { pattern: 'vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*', module: 'mlx5_vfio_pci', driver: null },
    ],
  };

  constructor(...functions: PciFunction[]) {
    for (const fn of functions) this.functions.set(fn.address, structuredClone(fn));
  }

  /** Everything that a call may change. */
  snapshot(): unknown {
    return structuredClone({
      functions: [...this.functions.values()],
      parents: this.parents,
      ports: this.ports,
      open: [...this.open],
    });
  }

  get calls(): number {
    return this.log.length;
  }

  /** Counts a call of a device behind this host, and fails it where it is its turn. */
  protected command(what: string): void {
    this.#call(what);
  }

  #call(what: string): void {
    const index = this.log.push(what) - 1;
    if (index === this.failAt) throw new TowlineError('ERR_TOWLINE_DEVICE', `${what} fails on purpose`, { errno: 5 });
  }

  #function(address: string): PciFunction {
    const found = this.functions.get(address);
    if (found === undefined) throw systemError(address, 'ENOENT');
    return found;
  }

  async kernel(): Promise<HostKernel> {
    this.#call('kernel');
    return structuredClone(this.kernelFacts);
  }

  async pciFunction(address: string): Promise<PciFunction | null> {
    return (await this.pci()).find((f) => f.address === address) ?? null;
  }

  async pci(): Promise<readonly PciFunction[]> {
    this.#call('pci');
    return structuredClone([...this.functions.values()]);
  }

  async mdev(): Promise<readonly MdevParent[]> {
    this.#call('mdev');
    return structuredClone(this.parents);
  }

  async setNumVfs(address: string, count: number): Promise<void> {
    this.#call(`numvfs ${address} ${count}`);
    const pf = this.#function(address);
    if (pf.sriov === null || pf.driver === null) throw systemError('sriov_numvfs', 'ENOENT');
    if (count > pf.sriov.totalVfs) throw systemError('sriov_numvfs', 'ERANGE');
    if (count > 0 && pf.sriov.numVfs > 0 && count !== pf.sriov.numVfs) throw systemError('sriov_numvfs', 'EBUSY');
    for (const vf of pf.virtfns) this.functions.delete(vf);
    pf.virtfns = [];
    const made = Math.min(count, this.mostVfs);
    pf.sriov.numVfs = made;
    for (let n = 0; n < made; n += 1) {
      const vf = pci(address.replace(/0$/, String(n + 1)), {
        vendor: pf.vendor,
        device: pf.sriov.vfDevice,
        physfn: address,
        vfIndex: n,
        iommuGroup: 10 + n,
        vfMsixCount: pf.sriov.vfTotalMsix === null ? null : 8,
      });
      this.functions.set(vf.address, vf);
      pf.virtfns.push(vf.address);
      // vfio_pci_bus_notifier: the VFs of a PF on vfio-pci are vfio-pci's, autoprobe or not.
      if (pf.driver === 'vfio-pci') vf.driverOverride = 'vfio-pci';
      if (pf.sriov.driversAutoprobe || vf.driverOverride !== null) this.#bind(vf);
    }
    this.onNumVfs(address, made);
    if (made < count) {
      throw new TowlineError('ERR_TOWLINE_DEVICE', `${address} has ${made} VFs, and ${count} were asked for`);
    }
  }

  async setAutoprobe(address: string, on: boolean): Promise<void> {
    this.#call(`autoprobe ${address} ${on}`);
    const { sriov } = this.#function(address);
    if (sriov === null) throw systemError('sriov_drivers_autoprobe', 'ENOENT');
    sriov.driversAutoprobe = on;
  }

  async setVfMsix(address: string, count: number): Promise<void> {
    this.#call(`msix ${address} ${count}`);
    const vf = this.#function(address);
    if (vf.vfMsixCount === null) throw systemError('sriov_vf_msix_count', 'EOPNOTSUPP');
    if (vf.driver !== null) throw systemError('sriov_vf_msix_count', 'EBUSY');
    const { sriov } = this.#function(vf.physfn ?? '');
    if (count > (sriov?.vfTotalMsix ?? 0)) throw systemError('sriov_vf_msix_count', 'EINVAL');
    vf.vfMsixCount = count === 0 ? 8 : count;
  }

  async setDriverOverride(address: string, driver: string | null): Promise<void> {
    this.#call(`override ${address} ${driver}`);
    this.#function(address).driverOverride = driver;
  }

  async unbind(address: string): Promise<void> {
    this.#call(`unbind ${address}`);
    const fn = this.#function(address);
    if (fn.driver === null) throw systemError('unbind', 'ENODEV');
    Object.assign(fn, { driver: null, vfioDevice: null, vfioState: null, nvme: null });
  }

  async probe(address: string): Promise<void> {
    this.#call(`probe ${address}`);
    this.#bind(this.#function(address));
  }

  /** `pci_device_can_probe`: a VF is given no driver while its PF has autoprobe off, but by override. */
  #bind(fn: PciFunction): void {
    if (fn.driver !== null) return;
    const pf = fn.physfn === null ? undefined : this.functions.get(fn.physfn);
    if (fn.driverOverride === null && pf?.sriov?.driversAutoprobe === false) return;
    const driver = fn.driverOverride ?? this.kernelDrivers.get(fn.device) ?? null;
    if (driver === null || this.refusing.has(driver)) return;
    if (!this.kernelFacts.pciDrivers.includes(driver) && !this.kernelDrivers.has(fn.device)) return;
    fn.driver = driver;
    if (!driver.includes('vfio')) return;
    fn.vfioDevice = `vfio${fn.vfIndex ?? 0}`;
    fn.vfioState = driver === 'vfio-pci' ? null : 'RUNNING';
  }

  async reset(address: string): Promise<void> {
    this.#call(`reset ${address}`);
    this.#function(address);
    this.onReset(address);
  }

  async mdevCreate(parentPath: string, type: string, uuid: string): Promise<void> {
    this.#call(`create ${type} ${uuid}`);
    const parent = this.parents.find((p) => p.path === parentPath);
    const found = parent?.types.find((t) => t.id === type);
    if (parent === undefined || found === undefined) throw systemError('create', 'ENOENT');
    if (parent.devices.some((d) => d.uuid === uuid)) throw systemError('create', 'EEXIST');
    if (found.availableInstances === 0) throw systemError('create', 'ENOSPC');
    for (const t of parent.types) t.availableInstances -= 1;
    const n = parent.devices.length;
    parent.devices.push({
      uuid,
      type,
      driver: 'vfio_mdev',
      iommuGroup: n,
      vfioDevice: `vfio${n}`,
      vfioState: 'RUNNING',
    });
  }

  async mdevRemove(uuid: string): Promise<void> {
    this.#call(`remove ${uuid}`);
    const parent = this.parents.find((p) => p.devices.some((d) => d.uuid === uuid));
    if (parent === undefined) throw systemError('remove', 'ENOENT');
    // The kernel waits for whoever has it open; a test would wait for ever.
    if (this.open.has(uuid)) throw new Error(`${uuid} is removed while it is open here`);
    parent.devices = parent.devices.filter((d) => d.uuid !== uuid);
    for (const t of parent.types) t.availableInstances += 1;
  }

  async devlinkDevices(): Promise<readonly { bus: string; device: string }[]> {
    this.#call('devlink devices');
    return this.devlink.map(({ bus, device }) => ({ bus, device }));
  }

  async devlinkPorts(): Promise<readonly DevlinkPort[]> {
    this.#call('devlink ports');
    return structuredClone(this.ports);
  }

  async devlinkEswitchMode(bus: string, device: string): Promise<string> {
    this.#call('devlink mode');
    return this.devlink.find((d) => d.bus === bus && d.device === device)?.mode ?? 'legacy';
  }

  async devlinkSetPort(bus: string, device: string, index: number, wanted: DevlinkAttributes): Promise<void> {
    this.#call(`port ${bus}/${device}/${index} ${JSON.stringify(wanted)}`);
    const port = this.ports.find((p) => p.bus === bus && p.device === device && p.index === index);
    if (!port?.function) throw systemError('DEVLINK_CMD_PORT_SET', 'EOPNOTSUPP');
    for (const key of ['hwAddr', 'migratable', 'state'] as const) {
      if (wanted[key] === undefined) continue;
      if (!this.portOps[key]) throw systemError('DEVLINK_CMD_PORT_SET', 'EOPNOTSUPP');
      const vf = port.vf === null ? undefined : this.functions.get(this.functions.get(device)?.virtfns[port.vf] ?? '');
      if (key === 'migratable' && (vf?.driver ?? null) !== null) throw systemError('DEVLINK_CMD_PORT_SET', 'EBUSY');
      Object.assign(port.function, { [key]: wanted[key] });
      if (key === 'state') port.function.opstate = wanted.state === 'active' ? 'attached' : 'detached';
    }
  }

  async devlinkNewPort(bus: string, device: string, wanted: { pf: number }): Promise<DevlinkPort> {
    this.#call(`new port ${bus}/${device}`);
    if (!this.portOps.new) throw systemError('DEVLINK_CMD_PORT_NEW', 'EOPNOTSUPP');
    const index = 32_768 + this.ports.length;
    const port = devlinkPort(bus, device, index, { flavour: 'pci-sf', pf: wanted.pf, sf: 88 });
    this.ports.push(port);
    return structuredClone(port);
  }

  async devlinkDeletePort(bus: string, device: string, index: number): Promise<void> {
    this.#call(`delete port ${bus}/${device}/${index}`);
    const at = this.ports.findIndex((p) => p.bus === bus && p.device === device && p.index === index);
    if (at < 0) throw systemError('DEVLINK_CMD_PORT_DEL', 'ENODEV');
    this.ports.splice(at, 1);
  }

  async openNvme(path: string): Promise<NvmeAdmin & { close(): void }> {
    this.#call(`open ${path}`);
    if (this.nvme === undefined) throw systemError(path, 'ENOENT');
    return this.nvme;
  }

  async openVfio({ name }: VfioOptions, fd: number | null): Promise<OpenVfio> {
    this.#call(`open vfio ${name}${fd === null ? '' : ` by ${fd}`}`);
    const fn = this.functions.get(name);
    const mdev = this.parents.flatMap((p) => p.devices).find((d) => d.uuid === name);
    const vfio = fn?.vfioDevice ?? mdev?.vfioDevice;
    if (!vfio) throw systemError(`/dev/vfio of ${name}`, 'ENODEV');
    if (this.open.has(name) || (fd === null && this.opened.has(`/dev/vfio/devices/${vfio}`))) {
      throw systemError(`/dev/vfio/devices/${vfio}`, 'EBUSY');
    }
    this.open.add(name);
    const device = this.devices.get(name) ?? new MemoryDevice();
    this.devices.set(name, device);
    return {
      info: {
        name,
        by: fd === null ? 'cdev' : 'fd',
        flags: 0,
        regions: [],
        irqs: [{ index: 2, count: fn?.vfMsixCount ?? 1, flags: 0 }],
        migration: fn?.driver === 'vfio-pci' ? 0 : 7,
        features: [],
        dirty: this.untracked ? 'none' : 'device',
        format: `vfio:fake:${name}`,
      },
      channel: device.channel,
      source: this.untracked ? null : device.source,
      mapMemory: async () => this.#call(`map ${name}`),
      unmapMemory: async () => this.#call(`unmap ${name}`),
      close: async () => void this.open.delete(name),
    };
  }

  async openers(paths: readonly string[]): Promise<readonly number[]> {
    this.#call('openers');
    return paths.flatMap((path) => this.opened.get(path) ?? []);
  }
}

/** A devlink port with all attributes. */
export function devlinkPort(bus: string, device: string, index: number, more: Partial<DevlinkPort> = {}): DevlinkPort {
  return {
    bus,
    device,
    index,
    flavour: 'pci-vf',
    netdev: null,
    controller: null,
    pf: 0,
    vf: null,
    sf: null,
    function: { hwAddr: '00:00:00:00:00:00', state: 'inactive', opstate: 'detached', migratable: false, roce: true },
    ...more,
  };
}

/** The parent of the kernel's mtty sample, made small. */
export function mttyParent(instances = 4): MdevParent {
  const type = (id: string): MdevParent['types'][number] => ({
    id,
    name: id,
    deviceApi: 'vfio-pci',
    availableInstances: instances,
    description: null,
  });
  return { path: 'devices/virtual/mtty/mtty', name: 'mtty', types: [type('mtty-1'), type('mtty-2')], devices: [] };
}
