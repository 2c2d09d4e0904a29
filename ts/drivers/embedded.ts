/**
 * The driver `embedded`: starts an NVMe subsystem in this process and gives the `nvme` driver its transport. Nothing else is
 * different from hardware: the same commands go to the admin queue of its controlling function.
 */
import { resolve } from 'node:path';
import { throwIfAborted, type WaitOptions } from '../abort.js';
import { native, nativeSync, TowlineError } from '../errors.js';
import type { ControlledFunction, ExposeOptions } from '../function/types.js';
import type { GuestMemory } from '../migration/memory.js';
import { binding } from '../native/api.js';
import type { EmbeddedController, NativeSubsystem } from '../native/binding.js';
import type { ControllingDriver, DiscoveredController } from './driver.js';
import { EmbeddedBackend } from './embedded/backend.js';
import { checkName, completeConfig, type EmbeddedOptions } from './embedded/config.js';
import { NvmeControllingFunction, NvmeFunction } from './nvme.js';

export type { EmbeddedNamespace, EmbeddedOptions } from './embedded/config.js';
export { identityOf, identityPath, type NamespaceIdentity } from './embedded/namespace-file.js';

/** Under this symbol the rehearsal parts reach the native subsystem. */
export const kSubsystem: unique symbol = Symbol('towline.subsystem');

/** The controlling function of a subsystem in this process, and what only such a one can do. */
export class EmbeddedControllingFunction extends NvmeControllingFunction {
  readonly [kSubsystem]: NativeSubsystem;

  private constructor(backend: EmbeddedBackend, subsystem: NativeSubsystem) {
    super(backend, 'embedded');
    this[kSubsystem] = subsystem;
  }

  /**
   * Starts a subsystem. Missing namespace files are created, sparse.
   * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` or `ERR_TOWLINE_CONFIG` names the option that can't work;
   * `ERR_TOWLINE_FILE` or `ERR_TOWLINE_SYSTEM` the file.
   * @param onClosed - Called once it is closed, or could not be.
   */
  static async start(
    options: EmbeddedOptions,
    onClosed: () => void = () => undefined,
  ): Promise<EmbeddedControllingFunction> {
    const config = await completeConfig(options);
    const subsystem = await native(() => binding().openSubsystem(JSON.stringify(config)));
    const limits = { vf: config.maxVfs, siov: config.maxSiov };
    const close = async (): Promise<void> => {
      try {
        await native(() => subsystem.close());
      } finally {
        onClosed();
      }
    };
    try {
      const backend = new EmbeddedBackend(`embedded:${options.name}`, subsystem, limits, close);
      return new EmbeddedControllingFunction(backend, subsystem);
    } catch (error) {
      // Its admin queue could not be made: the subsystem is nobody's then.
      await close().catch(() => undefined);
      throw error;
    }
  }

  /** Gives a function the guest memory that its DMA goes to. It keeps it until it is detached or closed. */
  attachMemory(fn: ControlledFunction, memory: GuestMemory): void {
    const { cntlid } = this.#mine(fn);
    nativeSync(() => this[kSubsystem].attachMemory(cntlid, memory.native()), { function: fn.uuid });
  }

  /** Takes the guest memory away again, after the DMA that is under way has ended. */
  async detachMemory(fn: ControlledFunction): Promise<void> {
    const { cntlid } = this.#mine(fn);
    await native(() => this[kSubsystem].detachMemory(cntlid), { function: fn.uuid });
  }

  /** Function level reset, as the guest would do it. */
  async functionReset(fn: ControlledFunction): Promise<void> {
    const { cntlid } = this.#mine(fn);
    await native(() => this[kSubsystem].flr(cntlid), { function: fn.uuid });
  }

  /**
   * Serves the controlling function itself on a vfio-user socket. Its admin queue is the client's from then on: every call of this object and its
   * functions that commands the device fails with `ERR_TOWLINE_GONE`, and only closing is left to do. Each reset of it, of which a VMM makes one at
   * its start, takes all VFs and SIOV-like functions offline (NVMe Base 2.1, 8.2.6): they are provisioned by the client.
   * @returns Takes the socket away again; so does {@link close}.
   * @throws TowlineError `ERR_TOWLINE_EXISTS` where something is at the path.
   */
  async exposeControlling({
    socketPath,
    filter,
  }: ExposeOptions & { socketPath: string }): Promise<() => Promise<void>> {
    const self = this.modelControllers().find(({ controlling }) => controlling);
    if (self === undefined) throw new TowlineError('ERR_TOWLINE_CLOSED', `${this.address} is closed`);
    const options = filter === undefined ? {} : { filter: filter.toBytes() };
    const server = await native(() => this[kSubsystem].exposeVfioUser(self.cntlid, resolve(socketPath), options));
    return () => native(() => server.close());
  }

  /** Every controller as the model sees it; for rehearsals and tests. */
  modelControllers(): readonly EmbeddedController[] {
    return JSON.parse(nativeSync(() => this[kSubsystem].controllers())) as EmbeddedController[];
  }

  #mine(fn: ControlledFunction): NvmeFunction {
    if (fn instanceof NvmeFunction) return fn;
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${fn.name} is no function of ${this.address}`, {
      function: fn.uuid,
    });
  }
}

/** Starts subsystems by name. */
export class EmbeddedDriver implements ControllingDriver {
  readonly name = 'embedded';
  readonly #options: ReadonlyMap<string, EmbeddedOptions>;
  readonly #open = new Set<string>();

  /** @param subsystems - What {@link EmbeddedDriver.discover} finds. Nothing is started yet. */
  constructor(subsystems: readonly EmbeddedOptions[]) {
    this.#options = new Map(subsystems.map((s) => [`embedded:${checkName(s.name)}`, s]));
    if (this.#options.size !== subsystems.length) {
      throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', 'two subsystems have the same name');
    }
  }

  async discover(): Promise<readonly DiscoveredController[]> {
    return [...this.#options].map(([address, o]) => ({
      address,
      description: `NVMe subsystem in this process, ${o.namespaces?.length ?? 0} namespaces`,
      reasons: this.#open.has(address)
        ? [{ code: 'other', message: `${address} is open already`, mend: 'use the one that is open' } as const]
        : [],
    }));
  }

  async open(address: string, options: WaitOptions = {}): Promise<EmbeddedControllingFunction> {
    throwIfAborted(options.signal);
    const subsystem = this.#options.get(address);
    if (subsystem === undefined) {
      const known = [...this.#options.keys()].join(', ') || 'none';
      throw new TowlineError('ERR_TOWLINE_NOT_FOUND', `there is no ${address}; there is: ${known}`);
    }
    if (this.#open.has(address)) throw new TowlineError('ERR_TOWLINE_BUSY', `${address} is open already`);
    this.#open.add(address);
    try {
      return await EmbeddedControllingFunction.start(subsystem, () => this.#open.delete(address));
    } catch (error) {
      this.#open.delete(address);
      throw error;
    }
  }
}
