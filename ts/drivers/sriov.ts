/**
 * The driver `sriov`: VFs of any PF, by the kernel's own means and no command of the device. What migrates them is their VFIO driver.
 */
import { hostname } from 'node:os';
import { throwIfAborted, type WaitOptions } from '../abort.js';
import { TowlineError } from '../errors.js';
import type { ControlledFunction, FunctionConfig, FunctionSpec, Reason } from '../function/types.js';
import { withUndo } from '../function/undo.js';
import type { GuestMemory } from '../migration/memory.js';
import { BaseControllingFunction, derivedUuid } from './controlling.js';
import type { ControllingDriver, DiscoveredController, KindCapacity } from './driver.js';
import { Claims } from './host/claims.js';
import { NativeHostPort, type HostPort, type PciFunction } from './host/port.js';
import { pciAddress, pciFunction, refuseConfig } from './host/words.js';
import { VfPool, type UndoPool, type VfPoolOptions } from './pool.js';
import { SriovFunction } from './sriov/function.js';
import { kernelReasons } from '../host/vfio-reasons.js';
import { VfioHandle, type VfioOpenOptions } from './vfio/handle.js';
import { isVfioDriver, variantDriver } from './vfio/variant.js';

export { SriovFunction } from './sriov/function.js';
export type { VfPoolOptions } from './pool.js';
export type { VfioOpenOptions } from './vfio/handle.js';

/** Options of {@link SriovDriver}. */
export interface SriovOptions extends VfPoolOptions {
  /** How VFIO devices are opened. */
  vfio?: VfioOpenOptions | undefined;
  /** @internal For tests. */
  host?: HostPort | undefined;
}

/** A PF and the pool of its VFs. */
export class SriovControllingFunction extends BaseControllingFunction<SriovFunction> {
  readonly #host: HostPort;
  readonly #claims: Claims;
  readonly #pool: VfPool;
  readonly #vfio: VfioOpenOptions;

  /** @internal */
  constructor(host: HostPort, address: string, options: SriovOptions) {
    const claims = new Claims(host);
    super('sriov', address, claims);
    this.#host = host;
    this.#claims = claims;
    this.#pool = new VfPool(host, address, options);
    this.#pool.guard = this.poolGuard();
    this.#vfio = options.vfio ?? {};
  }

  async capacity(): Promise<readonly KindCapacity[]> {
    this.checkOpen();
    const { pf, vfs } = await this.#read();
    const total = this.#pool.size(pf);
    // VFs of another number than the pool's are about to be destroyed.
    const now = this.#pool.needsSizing(pf) ? [] : vfs;
    const taken = now.filter((vf) => !this.#isFree(vf)).length;
    return [{ kind: 'vf', total, free: total - taken }];
  }

  /** No limit that the kernel has for VFs holds back what they write. */
  async cannotRateLimit(): Promise<string> {
    return 'the only limit that the kernel has for VFs, max_tx_rate of network cards, is of what they send, and sending dirties no memory';
  }

  async explain(): Promise<readonly Reason[]> {
    this.checkOpen();
    const { pf } = await this.#read();
    return explainPf(pf, kernelReasons(await this.#host.kernel(), true));
  }

  /** Maps guest memory for its DMA, from when it is opened. */
  async attachMemory(fn: ControlledFunction, memory: GuestMemory): Promise<void> {
    return this.own(fn).attachMemory(memory);
  }

  /** Takes the guest memory away again. */
  async detachMemory(fn: ControlledFunction): Promise<void> {
    return this.own(fn).detachMemory();
  }

  /** VFs that are bound to a driver have an owner; that of this process is in a list already. */
  protected async refresh(): Promise<void> {
    const { vfs } = await this.#read();
    const kernel = await this.#host.kernel();
    for (const fn of this.known()) {
      if (!vfs.some((vf) => vf.address === fn.location.address)) this.lose(fn);
    }
    for (const vf of vfs) {
      if (vf.driver === null || this.#knows(vf) || this.#claims.hasOther(vf.address)) continue;
      const identity = { uuid: derivedUuid(`towline ${hostname()} ${vf.address}`), name: `vf-${vf.address}` };
      const fn = this.#make(vf, identity, { kind: 'vf', migration: variantDriver(vf, kernel) !== undefined });
      fn.advance('provisioned');
      fn.advance('configured');
      if (fn.spec.migration === true) fn.advance('migration-enabled');
      fn.advance('exposed', { expose: isVfioDriver(vf.driver, kernel) ? 'vfio' : 'kernel' });
      this.add(fn);
    }
  }

  protected override sorted(functions: readonly SriovFunction[]): readonly SriovFunction[] {
    return [...functions].sort((a, b) => a.index - b.index);
  }

  protected async claim(
    spec: FunctionSpec,
    identity: { uuid: string; name: string | undefined },
  ): Promise<SriovFunction> {
    if (spec.kind !== 'vf') {
      throw new TowlineError(
        'ERR_TOWLINE_NO_RESOURCES',
        `the driver sriov has VFs only, and a ${spec.kind} was asked for`,
      );
    }
    return withUndo(async (steps) => {
      const size = (): Promise<UndoPool> => this.#pool.ensure();
      await steps.do('size the pool of VFs', size, (undo) => undo());
      const { vfs } = await this.#read();
      const free = vfs.find((vf) => this.#isFree(vf));
      if (free !== undefined) {
        const { address } = free;
        const take = async (): Promise<boolean> => this.#claims.take(address);
        // Nothing came between: it is taken before anybody else looks.
        await steps.do(`take ${address}`, take, async () => this.#claims.drop(address));
        const own = { uuid: identity.uuid, name: identity.name ?? `vf-${free.address}` };
        return this.#make(free, own, { kind: 'vf', migration: false, expose: 'none' });
      }
      throw new TowlineError(
        'ERR_TOWLINE_NO_RESOURCES',
        `${this.address} has no free VF: each of its ${vfs.length} is bound to a driver, or kept for one (driver_override), or provisioned; ` +
          'their number changes only by destroying them all (option force, --force)',
      );
    });
  }

  protected async give(fn: SriovFunction, config: FunctionConfig): Promise<Partial<FunctionSpec>> {
    const { address } = fn.location;
    refuseConfig(
      fn.name,
      config,
      ['queues', 'namespaces', 'hwAddress'],
      'the driver sriov knows no commands of the device',
    );
    if (config.vectors === undefined) return {};
    const { pf } = await this.#read();
    const vf = await pciFunction(this.#host, address);
    if (vf.vfMsixCount === null || (pf.sriov?.vfTotalMsix ?? 0) === 0) {
      throw new TowlineError(
        'ERR_TOWLINE_UNSUPPORTED',
        `the vectors of ${address} can't be set: the driver of ${pf.address} (${pf.driver ?? 'none'}) has no sriov_vf_msix_count`,
        { function: fn.uuid },
      );
    }
    await this.#host.setVfMsix(address, config.vectors);
    return { vectors: config.vectors };
  }

  protected async enable(fn: SriovFunction): Promise<void> {
    const kernel = await this.#host.kernel();
    const pci = await pciFunction(this.#host, fn.location.address);
    if (variantDriver(pci, kernel) !== undefined || pci.vfioState !== null) return;
    throw new TowlineError(
      'ERR_TOWLINE_UNSUPPORTED',
      `migration of ${fn.name} can't be enabled: no VFIO driver of this kernel migrates ${pci.modalias}; ` +
        'provision it without (migration false, --migration off)',
      { function: fn.uuid },
    );
  }

  protected async withdraw(fn: SriovFunction): Promise<void> {
    const vf = (await this.#host.pci(true)).find((f) => f.address === fn.location.address);
    if (vf === undefined) return;
    // Nothing of its tenant stays in it.
    if (vf.resetMethods.length > 0) await this.#host.reset(vf.address);
    // 0 is the default of the device.
    if (fn.spec.vectors !== undefined && vf.vfMsixCount !== null) await this.#host.setVfMsix(vf.address, 0);
  }

  protected override holds(fn: SriovFunction): boolean {
    return fn.handle.current !== undefined;
  }

  protected async end(): Promise<void> {
    // Nothing of the PF is held.
  }

  #make(pci: PciFunction, identity: { uuid: string; name: string }, spec: FunctionSpec): SriovFunction {
    const handle = new VfioHandle(this.#host, pci.address, this.#vfio);
    return new SriovFunction(this, this.#host, pci, identity, spec, handle);
  }

  /** One with an override is kept for a driver by whoever wrote it. */
  #isFree(vf: PciFunction): boolean {
    return vf.driver === null && vf.driverOverride === null && !this.#knows(vf) && !this.#claims.hasOther(vf.address);
  }

  #knows(vf: PciFunction): boolean {
    return this.known().some((fn) => fn.location.address === vf.address);
  }

  async #read(): Promise<{ pf: PciFunction; vfs: readonly PciFunction[] }> {
    const all = await this.#host.pci(true);
    const pf = all.find((f) => f.address === this.address);
    if (pf === undefined)
      throw new TowlineError('ERR_TOWLINE_GONE', `there is no PCI function ${this.address} any more`);
    const vfs = pf.virtfns.flatMap((address) => all.filter((f) => f.address === address));
    return { pf, vfs };
  }
}

function explainPf(pf: PciFunction, reasons: Reason[]): Reason[] {
  if (pf.driver === null && (pf.sriov?.numVfs ?? 0) === 0) {
    reasons.push({
      code: 'no-driver',
      message: `${pf.address} is bound to no driver, and only its driver can make VFs (sriov_numvfs gives ENOENT)`,
      mend: 'load and bind the driver of the PF',
    });
  }
  return reasons;
}

/** VFs of PFs with SR-IOV, whatever they are. */
export class SriovDriver implements ControllingDriver {
  readonly name = 'sriov';
  readonly #options: SriovOptions;
  readonly #host: HostPort;

  /** @param options - For every PF that it opens. */
  constructor(options: SriovOptions = {}) {
    this.#options = options;
    this.#host = options.host ?? new NativeHostPort();
  }

  async discover(): Promise<readonly DiscoveredController[]> {
    const found = (await this.#host.pci()).filter((f) => f.sriov !== null);
    return found.map((pf) => ({
      address: pf.address,
      description: `PF ${pf.modalias} with ${pf.sriov?.numVfs ?? 0} of ${pf.sriov?.totalVfs ?? 0} VFs, driver ${pf.driver ?? 'none'}`,
      reasons: explainPf(pf, []),
    }));
  }

  /**
   * Opens a PF.
   * @param address - PCI address, `0000:01:00.0` or `01:00.0`.
   * @throws TowlineError `ERR_TOWLINE_NOT_FOUND` where there is none, `ERR_TOWLINE_UNSUPPORTED` where it has no SR-IOV.
   */
  async open(address: string, options: WaitOptions = {}): Promise<SriovControllingFunction> {
    throwIfAborted(options.signal);
    const wanted = pciAddress(address);
    if (wanted === undefined) {
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        `${JSON.stringify(address.slice(0, 80))} is no PCI address (0000:01:00.0)`,
      );
    }
    const pf = (await this.#host.pci(true)).find((f) => f.address === wanted);
    if (pf === undefined) throw new TowlineError('ERR_TOWLINE_NOT_FOUND', `there is no PCI function ${wanted}`);
    if (pf.sriov === null) {
      const why = pf.physfn === null ? 'it has no SR-IOV' : `it is a VF of ${pf.physfn}`;
      throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `${wanted} is no PF with VFs: ${why}`);
    }
    return new SriovControllingFunction(this.#host, wanted, this.#options);
  }
}
