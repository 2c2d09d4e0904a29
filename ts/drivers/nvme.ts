/**
 * The driver `nvme`: provisions, configures and migrates NVMe functions by commands to their controlling function
 * (NVMe Base 2.1, Host Managed Live Migration and Virtualization Enhancements).
 */
import { throwIfAborted, type WaitOptions } from '../abort.js';
import { TowlineError } from '../errors.js';
import type { ControlledFunction, FunctionConfig, FunctionSpec, Reason } from '../function/types.js';
import { BaseControllingFunction, derivedUuid } from './controlling.js';
import type { ControllingDriver, DiscoveredController, KindCapacity, RateLimit } from './driver.js';
import { NativeHostPort } from './host/port.js';
import { refuseConfig } from './host/words.js';
import type { NvmeBackend } from './nvme/backend.js';
import { explainController } from './nvme/explain.js';
import { NvmeFunction } from './nvme/function.js';
import { findNvme, HardwareBackend, nvmeControllers, type NvmeOptions } from './nvme/hardware.js';
import { limitRate, whyNoRateLimit } from './nvme/limit.js';
import { claim, configure, unclaim } from './nvme/provision.js';

export type {
  NvmeAdmin,
  NvmeIdentify,
  NvmeNamespace,
  NvmePrimaryCaps,
  NvmeResource,
  NvmeSecondary,
  NvmeStateFormats,
} from './nvme/admin.js';
export type { NvmeBackend, NvmeControllerInfo, NvmeWanted } from './nvme/backend.js';
export { NvmeFunction } from './nvme/function.js';
export type { NvmeOptions } from './nvme/hardware.js';

/** An NVMe controlling function over any {@link NvmeBackend}. */
export class NvmeControllingFunction extends BaseControllingFunction<NvmeFunction> {
  readonly #backend: NvmeBackend;

  constructor(backend: NvmeBackend, driver = 'nvme') {
    super(driver, backend.address, backend.claims);
    this.#backend = backend;
    backend.guardPool?.(this.poolGuard());
  }

  async capacity(): Promise<readonly KindCapacity[]> {
    this.checkOpen();
    const controllers = (await this.#backend.controllers()).filter((c) => !c.controlling);
    const secondaries = await this.#backend.admin.secondaries();
    // What others have set up is as little free as what this process has.
    const used = new Set(secondaries.filter((s) => s.online || s.vq > 0 || s.vi > 0).map((s) => s.cntlid));
    const taken = (kind: string): number =>
      this.known().filter((f) => f.kind === kind).length +
      controllers.filter((c) => c.kind === kind && used.has(c.cntlid) && !this.#knows(c.cntlid)).length;
    const { vf, siov } = this.#backend.limits;
    const pf = controllers.filter((c) => c.kind === 'pf').length;
    return [
      { kind: 'pf', total: pf, free: pf - taken('pf') },
      { kind: 'vf', total: vf, free: vf - taken('vf') },
      { kind: 'siov', total: siov, free: siov - taken('siov') },
    ];
  }

  /**
   * The functions that this process provisioned, and those that it found online: these have a UUID made from the subsystem and the
   * controller identifier.
   */
  protected async refresh(): Promise<void> {
    const { admin } = this.#backend;
    const secondaries = await admin.secondaries();
    const controllers = await this.#backend.controllers();
    for (const fn of this.known()) {
      if (controllers.some((c) => c.cntlid === fn.cntlid)) continue;
      this.lose(fn);
      // What is left open of a device that is gone keeps the kernel from letting go of it.
      await fn.close().catch(() => undefined);
    }
    const found = secondaries.filter((s) => s.online && !this.#knows(s.cntlid) && !this.#isOthers(s.cntlid));
    // Asked only where something is found: it takes several commands.
    const namespaces = found.length === 0 ? [] : await admin.namespaces();
    for (const s of found) {
      const info = controllers.find((c) => c.cntlid === s.cntlid);
      if (info === undefined) continue;
      const { subnqn } = await admin.identify();
      const identity = { uuid: derivedUuid(`towline ${subnqn} ${s.cntlid}`), name: `${info.kind}-${s.cntlid}` };
      const fn = new NvmeFunction(this, this.#backend, s.cntlid, identity, {
        kind: info.kind,
        migration: false,
        queues: s.vq - 1,
        vectors: s.vi,
        // Who changes one thing gives the rest of the spec along: without these, its disks would be detached.
        namespaces: namespaces.filter((n) => n.attached.includes(s.cntlid)).map((n) => n.nsid),
      });
      fn.advance('provisioned');
      fn.advance('configured');
      const expose = await this.#backend.exposure?.(s.cntlid);
      if (expose !== undefined && expose !== 'none') fn.advance('exposed', { expose });
      this.add(fn);
    }
  }

  protected override sorted(functions: readonly NvmeFunction[]): readonly NvmeFunction[] {
    return [...functions].sort((a, b) => a.cntlid - b.cntlid);
  }

  protected async claim(
    spec: FunctionSpec,
    identity: { uuid: string; name: string | undefined },
    options: WaitOptions,
  ): Promise<NvmeFunction> {
    const { kind } = spec;
    const cntlid = await claim(this.#backend, spec, new Set(this.known().map((f) => f.cntlid)), options);
    const own = { uuid: identity.uuid, name: identity.name ?? `${kind}-${cntlid}` };
    return new NvmeFunction(this, this.#backend, cntlid, own, { kind, migration: false, expose: 'none' });
  }

  protected give(fn: NvmeFunction, config: FunctionConfig, options: WaitOptions): Promise<Partial<FunctionSpec>> {
    refuseConfig(fn.name, config, ['hwAddress'], 'an NVMe function has none');
    return configure(this.#backend, fn.cntlid, config, options);
  }

  protected async enable(fn: NvmeFunction, options: WaitOptions): Promise<void> {
    const [first, ...more] = await this.#cannotMigrate(fn);
    if (first !== undefined) {
      throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `migration of ${fn.name} can't be enabled: ${first.message}`, {
        function: fn.uuid,
        details: { reasons: [first, ...more] },
      });
    }
    // The first thing that a migration would do: a device that refuses it now would refuse it then.
    if (this.#backend.migratesBy?.(fn.cntlid) === undefined) await fn.channel().state(options);
  }

  protected withdraw(fn: NvmeFunction): Promise<void> {
    return unclaim(this.#backend, fn.cntlid, fn.kind);
  }

  async explain(): Promise<readonly Reason[]> {
    this.checkOpen();
    return this.#explain();
  }

  /**
   * Limits the I/O of a function: commands wait, none fails. It ends when the function is released, and is no part of what migrates.
   * @throws TowlineError `ERR_TOWLINE_UNSUPPORTED` on any device but the embedded subsystem: NVMe has no command for it.
   */
  async rateLimit(fn: ControlledFunction, limit: RateLimit | null, options: WaitOptions = {}): Promise<void> {
    throwIfAborted(options.signal);
    this.checkOpen();
    await limitRate(this.#backend.admin, this.own(fn), limit);
  }

  /** The limit of a function, as the device has it; `null` where it has none. */
  async rateLimitOf(fn: ControlledFunction): Promise<RateLimit | null> {
    this.checkOpen();
    const { cntlid } = this.own(fn);
    const limit = await this.#backend.admin.rateLimit?.(cntlid);
    if (limit === undefined || (limit.bytesPerSecond === 0n && limit.commandsPerSecond === 0)) return null;
    return {
      ...(limit.bytesPerSecond === 0n ? {} : { bytesPerSecond: limit.bytesPerSecond }),
      ...(limit.commandsPerSecond === 0 ? {} : { operationsPerSecond: limit.commandsPerSecond }),
    };
  }

  /** Why functions can't be limited: on any device but the embedded subsystem, NVMe having no command for it. */
  async cannotRateLimit(): Promise<string | undefined> {
    this.checkOpen();
    return whyNoRateLimit(this.#backend.admin);
  }

  protected override holds(fn: NvmeFunction): boolean {
    return this.#backend.migratesBy?.(fn.cntlid)?.current !== undefined;
  }

  protected end(): Promise<void> {
    return this.#backend.close();
  }

  async #explain(): Promise<Reason[]> {
    const { admin } = this.#backend;
    return explainController(await admin.identify(), await admin.stateFormats());
  }

  /** What its controlling function lacks does not matter to a function that its VFIO driver migrates. */
  async #cannotMigrate(fn: NvmeFunction): Promise<Reason[]> {
    const reasons = await this.#explain();
    return this.#backend.migratesBy?.(fn.cntlid) === undefined || !(await this.#backend.hasVariantDriver?.(fn.cntlid))
      ? reasons
      : [];
  }

  /** Whether another driver of this process has it. */
  #isOthers(cntlid: number): boolean {
    const at = this.#backend.location?.(cntlid);
    return at?.bus === 'pci' && this.#backend.claims?.hasOther(at.address) === true;
  }

  #knows(cntlid: number): boolean {
    return this.known().some((f) => f.cntlid === cntlid);
  }
}

/** NVMe controllers that the kernel's own driver has, by passthrough of admin commands. */
export class NvmeDriver implements ControllingDriver {
  readonly name = 'nvme';
  readonly #options: NvmeOptions;

  /** @param options - For every controller that it opens. */
  constructor(options: NvmeOptions = {}) {
    this.#options = { ...options, host: options.host ?? new NativeHostPort() };
  }

  async discover(): Promise<readonly DiscoveredController[]> {
    return nvmeControllers(this.#options.host ?? new NativeHostPort());
  }

  /**
   * Opens a controller.
   * @param address - `/dev/nvme0`, `nvme0`, or its PCI address.
   * @throws TowlineError `ERR_TOWLINE_NOT_FOUND` where there is none, `ERR_TOWLINE_PERMISSION` without CAP_SYS_ADMIN: the kernel lets
   * nobody else send admin commands.
   */
  async open(address: string, options: WaitOptions = {}): Promise<NvmeControllingFunction> {
    throwIfAborted(options.signal);
    const host = this.#options.host ?? new NativeHostPort();
    const found = await findNvme(host, address);
    return new NvmeControllingFunction(await HardwareBackend.open(host, found, this.#options));
  }
}
