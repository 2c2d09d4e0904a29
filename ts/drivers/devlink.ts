/**
 * The driver `devlink`: functions behind the ports of a device's switch, set up through the kernel's devlink interface before anybody sees
 * them (net/devlink/port.c): VFs, and subfunctions (SF).
 */
import { hostname } from 'node:os';
import { throwIfAborted, type WaitOptions } from '../abort.js';
import { TowlineError, unwrapFault } from '../errors.js';
import type { ControlledFunction, FunctionConfig, FunctionKind, FunctionSpec, Reason } from '../function/types.js';
import { withUndo } from '../function/undo.js';
import type { GuestMemory } from '../migration/memory.js';
import { BaseControllingFunction, derivedUuid } from './controlling.js';
import { DevlinkFunction, portName } from './devlink/function.js';
import type { ControllingDriver, DiscoveredController, KindCapacity } from './driver.js';
import { Claims } from './host/claims.js';
import {
  NativeHostPort,
  type DevlinkAttributes,
  type DevlinkPort,
  type HostPort,
  type PciFunction,
} from './host/port.js';
import { refuseConfig, reworded } from './host/words.js';
import { VfPool, type UndoPool, type VfPoolOptions } from './pool.js';
import { kernelReasons } from '../host/vfio-reasons.js';
import { VfioHandle, type VfioOpenOptions } from './vfio/handle.js';
import { isVfioDriver } from './vfio/variant.js';

export { DevlinkFunction } from './devlink/function.js';

/** Options of {@link DevlinkDriver}. */
export interface DevlinkOptions extends VfPoolOptions {
  /** SFs that are made at most: devlink does not tell how many the device can have. Default: as many as it gives. */
  sfs?: number | undefined;
  /** Number of the PF whose SFs are made. Default: 0. */
  pf?: number | undefined;
  /** How VFIO devices are opened. */
  vfio?: VfioOpenOptions | undefined;
  /** @internal For tests. */
  host?: HostPort | undefined;
}

/** EOPNOTSUPP on Linux (asm-generic/errno.h): the driver of the device has no such operation. */
const EOPNOTSUPP = 95;

/** A devlink instance. */
export class DevlinkControllingFunction extends BaseControllingFunction<DevlinkFunction> {
  readonly #host: HostPort;
  readonly #claims: Claims;
  readonly #bus: string;
  readonly #device: string;
  readonly #options: DevlinkOptions;
  readonly #pool: VfPool;

  /** @internal */
  constructor(host: HostPort, bus: string, device: string, options: DevlinkOptions) {
    const claims = new Claims(host);
    super('devlink', `${bus}/${device}`, claims);
    this.#host = host;
    this.#claims = claims;
    this.#bus = bus;
    this.#device = device;
    this.#options = options;
    this.#pool = new VfPool(host, device, options);
    this.#pool.guard = this.poolGuard();
  }

  async capacity(): Promise<readonly KindCapacity[]> {
    this.checkOpen();
    const { ports, pf, pci } = await this.#read();
    const vfs = ports.filter((p) => p.flavour === 'pci-vf');
    const total = pf === undefined || vfs.length > 0 ? vfs.length : this.#pool.size(pf);
    const taken = vfs.filter((p) => !this.#isFree(p, pf, pci)).length;
    const sfs = ports.filter((p) => p.flavour === 'pci-sf').length;
    const most = Math.max(this.#options.sfs ?? 0, sfs);
    return [
      { kind: 'vf', total, free: total - taken },
      { kind: 'siov', total: most, free: most - sfs },
    ];
  }

  /** No limit that devlink has holds back what a function writes. */
  async cannotRateLimit(): Promise<string> {
    return "devlink's rate objects (tx_max) limit what a function sends, and sending dirties no memory";
  }

  async explain(): Promise<readonly Reason[]> {
    this.checkOpen();
    const { ports } = await this.#read();
    const reasons = kernelReasons(await this.#host.kernel(), true);
    if (!ports.some((p) => p.flavour === 'pci-vf')) reasons.push(await this.#noVfPorts());
    return reasons;
  }

  /** Maps guest memory for its DMA, from when it is opened. */
  async attachMemory(fn: ControlledFunction, memory: GuestMemory): Promise<void> {
    return this.own(fn).attachMemory(memory);
  }

  /** Takes the guest memory away again. */
  async detachMemory(fn: ControlledFunction): Promise<void> {
    return this.own(fn).detachMemory();
  }

  /** VFs that a driver has, and SFs that somebody has made. */
  protected async refresh(): Promise<void> {
    const { ports, pf, pci } = await this.#read();
    const kernel = await this.#host.kernel();
    for (const fn of this.known()) if (!ports.some((p) => portName(p) === fn.port)) this.lose(fn);
    for (const port of ports) {
      const kind = kindOf(port);
      if (kind === undefined || this.#knows(port) || this.#isFree(port, pf, pci)) continue;
      const address = vfAddress(port, pf);
      const vf = pci.find((f) => f.address === address);
      // Nobody's yet, if kept for a driver; or another controlling function's.
      if (vf?.driver === null || (address !== undefined && this.#claims.hasOther(address))) continue;
      const identity = { uuid: derivedUuid(`towline ${hostname()} ${portName(port)}`), name: portName(port) };
      const migration = port.function?.migratable === true;
      const fn = this.#make(port, pf, identity, { kind, migration });
      fn.advance('provisioned');
      fn.advance('configured');
      if (migration) fn.advance('migration-enabled');
      const driver = pci.find((f) => f.address === fn.pciAddress)?.driver;
      if (kind === 'siov') {
        if (port.function?.state === 'active') fn.advance('exposed', { expose: 'kernel' });
      } else fn.advance('exposed', { expose: isVfioDriver(driver ?? null, kernel) ? 'vfio' : 'kernel' });
      this.add(fn);
    }
  }

  protected async claim(
    spec: FunctionSpec,
    identity: { uuid: string; name: string | undefined },
  ): Promise<DevlinkFunction> {
    if (spec.kind === 'pf') {
      throw new TowlineError(
        'ERR_TOWLINE_NO_RESOURCES',
        'devlink has ports of VFs (vf) and of subfunctions (siov), and no PF',
      );
    }
    return spec.kind === 'siov' ? this.#makeSf(identity) : this.#claimVf(identity);
  }

  async #claimVf(identity: { uuid: string; name: string | undefined }): Promise<DevlinkFunction> {
    return withUndo(async (steps) => {
      const first = await this.#read();
      if (!first.ports.some((p) => p.flavour === 'pci-vf') && (first.pf?.sriov ?? null) !== null) {
        const size = (): Promise<UndoPool> => this.#pool.ensure();
        await steps.do('size the pool of VFs', size, (undo) => undo());
      }
      const { ports, pf, pci } = await this.#read();
      const vfs = ports.filter((p) => p.flavour === 'pci-vf');
      if (vfs.length === 0) {
        const { message, mend } = await this.#noVfPorts();
        throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `${message}: ${mend}`);
      }
      const free = vfs.find((p) => this.#isFree(p, pf, pci));
      if (free === undefined) {
        throw new TowlineError(
          'ERR_TOWLINE_NO_RESOURCES',
          `${this.address} has no free VF: each of its ${vfs.length} is bound to a driver, or kept for one (driver_override), active or provisioned`,
        );
      }
      const address = vfAddress(free, pf);
      if (address !== undefined) {
        const take = async (): Promise<boolean> => this.#claims.take(address);
        // Nothing came between: it is taken before anybody else looks.
        await steps.do(`take ${address}`, take, async () => this.#claims.drop(address));
      }
      const own = { uuid: identity.uuid, name: identity.name ?? portName(free) };
      return this.#make(free, pf, own, { kind: 'vf', migration: false, expose: 'none' });
    });
  }

  async #makeSf(identity: { uuid: string; name: string | undefined }): Promise<DevlinkFunction> {
    const { ports, pf } = await this.#read();
    const most = this.#options.sfs;
    if (most !== undefined && ports.filter((p) => p.flavour === 'pci-sf').length >= most) {
      throw new TowlineError(
        'ERR_TOWLINE_NO_RESOURCES',
        `${this.address} has ${most} SFs, and no more are to be made (sfs)`,
      );
    }
    const request = { flavour: 'pci-sf', pf: this.#options.pf ?? 0 } as const;
    const port = await this.#supported('subfunctions can not be made', () =>
      this.#host.devlinkNewPort(this.#bus, this.#device, request),
    );
    const own = { uuid: identity.uuid, name: identity.name ?? portName(port) };
    return this.#make(port, pf, own, { kind: 'siov', migration: false, expose: 'none' });
  }

  protected async give(fn: DevlinkFunction, config: FunctionConfig): Promise<Partial<FunctionSpec>> {
    refuseConfig(
      fn.name,
      config,
      ['queues', 'vectors', 'namespaces'],
      'devlink has no such attribute of a port function',
    );
    const { hwAddress } = config;
    if (hwAddress === undefined) return {};
    await this.#set(fn, { hwAddr: hwAddress.toLowerCase() }, 'the hardware address of its function can not be set');
    return { hwAddress: hwAddress.toLowerCase() };
  }

  protected async enable(fn: DevlinkFunction): Promise<void> {
    if (fn.kind !== 'vf') {
      throw new TowlineError(
        'ERR_TOWLINE_UNSUPPORTED',
        `${fn.name} is a subfunction, and devlink makes only VFs migratable`,
        {
          function: fn.uuid,
        },
      );
    }
    if ((await fn.portNow())?.function?.migratable === true) return;
    if (fn.exposure !== 'none') {
      throw new TowlineError(
        'ERR_TOWLINE_STATE',
        `${fn.name} is visible (${fn.exposure}): a VF is made migratable before a driver has it; hide it first`,
        { function: fn.uuid, state: fn.state },
      );
    }
    await this.#set(fn, { migratable: true }, 'its function can not be made migratable');
  }

  protected async withdraw(fn: DevlinkFunction): Promise<void> {
    const port = await fn.portNow();
    // Who is gone has nothing.
    if (port === undefined) return;
    if (fn.kind === 'siov') return this.#host.devlinkDeletePort(this.#bus, this.#device, fn.portIndex);
    const vf = (await this.#host.pci(true)).find((f) => f.address === fn.pciAddress);
    // Nothing of its tenant stays in it.
    if (vf !== undefined && vf.resetMethods.length > 0) await this.#host.reset(vf.address);
    const { hwAddr, migratable } = fn.before;
    const back: DevlinkAttributes = {};
    if (hwAddr !== null && port.function?.hwAddr !== hwAddr) back.hwAddr = hwAddr;
    if (migratable !== null && port.function?.migratable !== migratable) back.migratable = migratable;
    if (Object.keys(back).length > 0) await this.#set(fn, back, 'what its function had can not be restored');
  }

  protected override holds(fn: DevlinkFunction): boolean {
    return fn.handle.current !== undefined;
  }

  protected async end(): Promise<void> {
    // Nothing of the instance is held.
  }

  async #set(fn: DevlinkFunction, attributes: DevlinkAttributes, what: string): Promise<void> {
    await this.#supported(`${fn.port}: ${what}`, () =>
      this.#host.devlinkSetPort(this.#bus, this.#device, fn.portIndex, attributes),
    );
  }

  /** EOPNOTSUPP in words: it is the driver of the device that lacks the operation, whatever the kernel has. */
  async #supported<T>(what: string, call: () => Promise<T>): Promise<T> {
    try {
      return await call();
    } catch (thrown) {
      const error = unwrapFault(thrown);
      if (error.errno !== EOPNOTSUPP) throw error;
      throw reworded(
        error,
        'ERR_TOWLINE_UNSUPPORTED',
        `${what}: the driver of ${this.address} has no such operation (EOPNOTSUPP: ${error.message})`,
      );
    }
  }

  async #noVfPorts(): Promise<Reason> {
    const mode = await this.#host.devlinkEswitchMode(this.#bus, this.#device).catch(() => 'unknown');
    return {
      code: 'other',
      message: `${this.address} has no port of a VF (its switch is in the mode ${mode})`,
      mend:
        mode === 'switchdev'
          ? 'make VFs: sriov_numvfs of the PF'
          : `ports of VFs exist in the mode switchdev only: devlink dev eswitch set ${this.address} mode switchdev`,
    };
  }

  #make(
    port: DevlinkPort,
    pf: PciFunction | undefined,
    identity: { uuid: string; name: string },
    spec: FunctionSpec,
  ): DevlinkFunction {
    const host = this.#host;
    const pciAddress = vfAddress(port, pf);
    const handle = new VfioHandle(host, pciAddress ?? portName(port), this.#options.vfio);
    return new DevlinkFunction(this, identity, spec, { host, port, pciAddress, handle });
  }

  #knows(port: DevlinkPort): boolean {
    return this.known().some((fn) => fn.port === portName(port));
  }

  /** An SF is never free: whoever made it has it. */
  #isFree(port: DevlinkPort, pf: PciFunction | undefined, pci: readonly PciFunction[]): boolean {
    if (port.flavour !== 'pci-vf' || this.#knows(port)) return false;
    const vf = pci.find((f) => f.address === vfAddress(port, pf));
    if (vf === undefined) return port.function?.state !== 'active';
    return vf.driver === null && vf.driverOverride === null && !this.#claims.hasOther(vf.address);
  }

  async #read(): Promise<{ ports: DevlinkPort[]; pf: PciFunction | undefined; pci: readonly PciFunction[] }> {
    const pci = this.#bus === 'pci' ? await this.#host.pci(true) : [];
    const all = await this.#host.devlinkPorts();
    return {
      ports: all.filter((p) => p.bus === this.#bus && p.device === this.#device),
      pf: pci.find((f) => f.address === this.#device),
      pci,
    };
  }
}

function kindOf(port: DevlinkPort): FunctionKind | undefined {
  return port.flavour === 'pci-vf' ? 'vf' : port.flavour === 'pci-sf' ? 'siov' : undefined;
}

/** A port names its VF by number, counted from 0 for PF 0 of this host; one of another controller is of another host. */
function vfAddress(port: DevlinkPort, pf: PciFunction | undefined): string | undefined {
  if (port.flavour !== 'pci-vf' || port.vf === null || (port.controller ?? 0) !== 0) return undefined;
  return pf?.virtfns[port.vf];
}

/** Devices with devlink. */
export class DevlinkDriver implements ControllingDriver {
  readonly name = 'devlink';
  readonly #options: DevlinkOptions;
  readonly #host: HostPort;

  /** @param options - For every instance that it opens. */
  constructor(options: DevlinkOptions = {}) {
    this.#options = options;
    this.#host = options.host ?? new NativeHostPort();
  }

  async discover(): Promise<readonly DiscoveredController[]> {
    const ports = await this.#host.devlinkPorts();
    return (await this.#host.devlinkDevices()).map(({ bus, device }) => ({
      address: `${bus}/${device}`,
      description: `devlink instance with ${ports.filter((p) => p.bus === bus && p.device === device).length} ports`,
      reasons: [],
    }));
  }

  /**
   * Opens a devlink instance.
   * @param address - As devlink names it: `pci/0000:01:00.0`.
   * @throws TowlineError `ERR_TOWLINE_NOT_FOUND` where there is none.
   */
  async open(address: string, options: WaitOptions = {}): Promise<DevlinkControllingFunction> {
    throwIfAborted(options.signal);
    const devices = await this.#host.devlinkDevices();
    const found = devices.find((d) => `${d.bus}/${d.device}` === address);
    if (found === undefined) {
      const known = devices.map((d) => `${d.bus}/${d.device}`).join(', ') || 'none';
      throw new TowlineError('ERR_TOWLINE_NOT_FOUND', `there is no devlink instance ${address}; there is: ${known}`);
    }
    return new DevlinkControllingFunction(this.#host, found.bus, found.device, this.#options);
  }
}
