/**
 * What the drivers ask of this host: its buses, VFIO, devlink and NVMe devices. The native part answers; tests put a host of their own here.
 */
import { readdir, readlink } from 'node:fs/promises';
import { native } from '../../errors.js';
import type { DirtySource, StateChannel } from '../../function/channel.js';
import { wrapDirtySource, wrapStateChannel } from '../../function/bridge.js';
import type { GuestMemory } from '../../migration/memory.js';
import { binding } from '../../native/api.js';
import type {
  NativeDevlinkPort,
  NativeHost,
  NativeHostKernel,
  NativeMdevParent,
  NativePciFunction,
  NativeVfioInfo,
  NativeVfioOptions,
} from '../../native/host-binding.js';
import { NativeNvmeAdmin, type NvmeAdmin } from '../nvme/admin.js';

export type PciFunction = NativePciFunction;
export type MdevParent = NativeMdevParent;
export type HostKernel = NativeHostKernel;
export type DevlinkPort = NativeDevlinkPort;
export type VfioInfo = NativeVfioInfo;
export type VfioOptions = NativeVfioOptions;

/** What `devlinkSetPort` sets; what is left out stays, and the state is applied last. */
export interface DevlinkAttributes {
  hwAddr?: string;
  state?: 'inactive' | 'active';
  migratable?: boolean;
}

/** What of an open PCI device is not in its device state: config space, and the wiring of its interrupts. */
export interface VfioConfig {
  /** The section of a stopped device. `index`: 0 INTx, 1 MSI, 2 MSI-X, `null` where nothing is wired; `wired`: which of its vectors are. */
  save(index: number | null, wired: readonly boolean[]): Promise<Uint8Array>;
  /** Puts a section back. `index`: which is wired here, `null` for none; an eventfd for each of its vectors in order, -1 where there is none. */
  restore(section: Uint8Array, index: number | null, eventfds: readonly number[]): Promise<void>;
  /** Wires eventfds to the vectors of `index` from 0 on; -1 leaves one out, an empty list disables the index. */
  setIrqs(index: number, eventfds: readonly number[]): Promise<void>;
}

/** An open VFIO device. */
export interface OpenVfio {
  readonly info: VfioInfo;
  readonly channel: StateChannel;
  /** `null` where nobody can tell what it wrote. */
  readonly source: DirtySource | null;
  /** `undefined` for a device without config space. */
  readonly config?: VfioConfig | undefined;
  mapMemory(memory: GuestMemory): Promise<void>;
  unmapMemory(): Promise<void>;
  /** Idempotent. */
  close(): Promise<void>;
}

/** See the file's comment. Everything that writes rejects with a `TowlineError` that has the errno and what it means there. */
export interface HostPort {
  /** The same object for all that look at the same host. Default: it looks at one of its own. */
  readonly identity?: object | undefined;
  kernel(): Promise<HostKernel>;
  /** What is of interest to us, or every PCI function. */
  pci(all?: boolean): Promise<readonly PciFunction[]>;
  /** The function at `address`; `null` where there is none. Reads nothing of the others: a host may have hundreds. */
  pciFunction(address: string): Promise<PciFunction | null>;
  mdev(): Promise<readonly MdevParent[]>;
  devlinkDevices(): Promise<readonly { bus: string; device: string }[]>;
  devlinkPorts(): Promise<readonly DevlinkPort[]>;
  devlinkEswitchMode(bus: string, device: string): Promise<string>;
  devlinkSetPort(bus: string, device: string, index: number, fn: DevlinkAttributes): Promise<void>;
  devlinkNewPort(
    bus: string,
    device: string,
    port: { flavour: 'pci-sf'; pf: number; sf?: number },
  ): Promise<DevlinkPort>;
  devlinkDeletePort(bus: string, device: string, index: number): Promise<void>;
  setNumVfs(address: string, count: number): Promise<void>;
  setAutoprobe(address: string, on: boolean): Promise<void>;
  setVfMsix(address: string, count: number): Promise<void>;
  setDriverOverride(address: string, driver: string | null): Promise<void>;
  unbind(address: string): Promise<void>;
  probe(address: string): Promise<void>;
  reset(address: string): Promise<void>;
  mdevCreate(parentPath: string, type: string, uuid: string): Promise<void>;
  mdevRemove(uuid: string): Promise<void>;
  openNvme(path: string): Promise<NvmeAdmin & { close(): void }>;
  openVfio(options: VfioOptions, deviceFd: number | null): Promise<OpenVfio>;
  /**
   * Processes other than this one that have one of these files of /dev open, as far as this user may see.
   * @returns process identifiers.
   */
  openers(paths: readonly string[]): Promise<readonly number[]>;
}

/** `VFIO_PCI_CONFIG_REGION_INDEX` */
const CONFIG_REGION = 7;

/** Finds who has a file open by the links in /proc; processes of others are skipped where they may not be looked into. */
async function openersOf(paths: readonly string[]): Promise<number[]> {
  const wanted = new Set(paths);
  const found: number[] = [];
  for (const entry of await readdir('/proc').catch(() => [])) {
    const pid = Number(entry);
    if (!Number.isSafeInteger(pid) || pid === process.pid) continue;
    for (const fd of await readdir(`/proc/${pid}/fd`).catch(() => [])) {
      const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => '');
      if (!wanted.has(target)) continue;
      found.push(pid);
      break;
    }
  }
  return found;
}

/** Identities of hosts, by the root of their sysfs. */
const hosts = new Map<string, object>();

/** {@link HostPort} over the native part. */
export class NativeHostPort implements HostPort {
  readonly identity: object;
  readonly #sysfs: string | null;

  /** @param sysfs - Root of sysfs; `null`: `/sys`. */
  constructor(sysfs: string | null = null) {
    this.#sysfs = sysfs;
    this.identity = hosts.get(sysfs ?? '/sys') ?? {};
    hosts.set(sysfs ?? '/sys', this.identity);
  }

  /** Native code made the JSON; its shape is part of the private native surface. */
  async #json<T>(call: (host: NativeHost) => Promise<string>): Promise<T> {
    return JSON.parse(await this.#call(call)) as T;
  }

  #call<T>(call: (host: NativeHost) => Promise<T>): Promise<T> {
    return native(() => call(binding()));
  }

  kernel(): Promise<HostKernel> {
    return this.#json((h) => h.hostKernel(this.#sysfs));
  }

  pci(all = false): Promise<readonly PciFunction[]> {
    return this.#json((h) => h.hostPci(this.#sysfs, all));
  }

  pciFunction(address: string): Promise<PciFunction | null> {
    return this.#json((h) => h.hostPciFunction(this.#sysfs, address));
  }

  mdev(): Promise<readonly MdevParent[]> {
    return this.#json((h) => h.hostMdev(this.#sysfs));
  }

  devlinkDevices(): Promise<readonly { bus: string; device: string }[]> {
    return this.#json((h) => h.devlinkDevices());
  }

  devlinkPorts(): Promise<readonly DevlinkPort[]> {
    return this.#json((h) => h.devlinkPorts());
  }

  devlinkEswitchMode(bus: string, device: string): Promise<string> {
    return this.#call((h) => h.devlinkEswitchMode(bus, device));
  }

  devlinkSetPort(bus: string, device: string, index: number, fn: DevlinkAttributes): Promise<void> {
    return this.#call((h) => h.devlinkSetPort(bus, device, index, JSON.stringify(fn)));
  }

  devlinkNewPort(
    bus: string,
    device: string,
    port: { flavour: 'pci-sf'; pf: number; sf?: number },
  ): Promise<DevlinkPort> {
    return this.#json((h) => h.devlinkNewPort(bus, device, JSON.stringify(port)));
  }

  devlinkDeletePort(bus: string, device: string, index: number): Promise<void> {
    return this.#call((h) => h.devlinkDeletePort(bus, device, index));
  }

  setNumVfs(address: string, count: number): Promise<void> {
    return this.#call((h) => h.pciSetNumVfs(this.#sysfs, address, count));
  }

  setAutoprobe(address: string, on: boolean): Promise<void> {
    return this.#call((h) => h.pciSetAutoprobe(this.#sysfs, address, on));
  }

  setVfMsix(address: string, count: number): Promise<void> {
    return this.#call((h) => h.pciSetVfMsix(this.#sysfs, address, count));
  }

  setDriverOverride(address: string, driver: string | null): Promise<void> {
    return this.#call((h) => h.pciSetDriverOverride(this.#sysfs, address, driver));
  }

  unbind(address: string): Promise<void> {
    return this.#call((h) => h.pciUnbind(this.#sysfs, address));
  }

  probe(address: string): Promise<void> {
    return this.#call((h) => h.pciProbe(this.#sysfs, address));
  }

  reset(address: string): Promise<void> {
    return this.#call((h) => h.pciReset(this.#sysfs, address));
  }

  mdevCreate(parentPath: string, type: string, uuid: string): Promise<void> {
    return this.#call((h) => h.mdevCreate(this.#sysfs, parentPath, type, uuid));
  }

  mdevRemove(uuid: string): Promise<void> {
    return this.#call((h) => h.mdevRemove(this.#sysfs, uuid));
  }

  async openNvme(path: string): Promise<NativeNvmeAdmin> {
    return new NativeNvmeAdmin(await this.#call((h) => h.openNvme(path)));
  }

  async openVfio(options: VfioOptions, deviceFd: number | null): Promise<OpenVfio> {
    const device = await this.#call((h) => h.openVfio(JSON.stringify(options), deviceFd));
    try {
      const handle = device.dirtySource();
      const source = handle === null ? null : wrapDirtySource(handle);
      const channel = wrapStateChannel(device.stateChannel());
      const info = JSON.parse(device.info()) as VfioInfo;
      return {
        info,
        channel,
        source,
        config: info.regions.some((region) => region.index === CONFIG_REGION)
          ? {
              save: (index, wired) => native(() => device.saveExposure(index, [...wired])),
              restore: (section, index, eventfds) =>
                native(() => device.restoreExposure(section, index, [...eventfds])),
              setIrqs: (index, eventfds) => native(() => device.setIrqs(index, 0, [...eventfds])),
            }
          : undefined,
        mapMemory: (memory) => native(() => device.mapMemory(memory.native())),
        unmapMemory: () => native(() => device.unmapMemory()),
        close: async () => {
          // Each of them keeps the device open, and a device that is open can't be removed.
          await channel.close();
          await source?.close();
          await native(() => device.close());
        },
      };
    } catch (error) {
      device.close();
      throw error;
    }
  }

  openers(paths: readonly string[]): Promise<readonly number[]> {
    return openersOf(paths);
  }
}
