/**
 * What every controlling function of this package has in common: calls that change something run one after another, a UUID is given once,
 * and a step that fails is undone. A driver writes only what is its own.
 */
import { createHash, randomUUID } from 'node:crypto';
import { throwIfAborted, type WaitOptions } from '../abort.js';
import { TowlineError } from '../errors.js';
import { exposureFor } from '../exposure/exposure.js';
import type { BaseFunction } from '../function/controlled.js';
import { checkConfig, checkSpec } from '../function/spec.js';
import type {
  ControlledFunction,
  ExposeOptions,
  ExposureName,
  FunctionConfig,
  FunctionIdentity,
  FunctionSpec,
  Reason,
} from '../function/types.js';
import { withUndo } from '../function/undo.js';
import type { ControllingFunction, KindCapacity } from './driver.js';
import type { Claims } from './host/claims.js';
import type { PoolGuard } from './pool.js';

/** A UUID of version 8 (RFC 9562): the same one as long as `text` is the same. */
export function derivedUuid(text: string): string {
  const hash = createHash('sha256').update(text).digest();
  hash[6] = ((hash[6] ?? 0) & 0x0f) | 0x80;
  hash[8] = ((hash[8] ?? 0) & 0x3f) | 0x80;
  const hex = hash.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join('-');
}

/** Base class of controlling functions. `F` is what its functions are. */
export abstract class BaseControllingFunction<F extends BaseFunction> implements ControllingFunction {
  readonly driver: string;
  readonly address: string;
  readonly #functions = new Set<F>();
  /** Those that were made visible here, and not found so. */
  readonly #shown = new WeakSet<F>();
  readonly #claims: Claims | undefined;
  #tail: Promise<unknown> = Promise.resolve();
  #closed = false;

  /** @param claims - What it has of the PCI functions of this host; what it takes itself is given back here. */
  protected constructor(driver: string, address: string, claims?: Claims) {
    this.driver = driver;
    this.address = address;
    this.#claims = claims;
  }

  abstract capacity(options?: WaitOptions): Promise<readonly KindCapacity[]>;
  abstract explain(options?: WaitOptions): Promise<readonly Reason[]>;
  /** Adds what exists and is not known yet by {@link BaseControllingFunction.add}, and tells of what is gone by {@link BaseControllingFunction.lose}. */
  protected abstract refresh(options: WaitOptions): Promise<void>;
  /** Finds or makes a function that nobody has. Whole or not at all. */
  protected abstract claim(
    spec: FunctionSpec,
    identity: { uuid: string; name: string | undefined },
    options: WaitOptions,
  ): Promise<F>;
  /** Gives it resources, whole or not at all, and says what it got. */
  protected abstract give(fn: F, config: FunctionConfig, options: WaitOptions): Promise<Partial<FunctionSpec>>;
  /** Enables migration, or refuses with `ERR_TOWLINE_UNSUPPORTED`. */
  protected abstract enable(fn: F, options: WaitOptions): Promise<void>;
  /** Takes everything from a hidden and closed function. */
  protected abstract withdraw(fn: F, options: WaitOptions): Promise<void>;
  /** Closes the controlling function itself. */
  protected abstract end(): Promise<void>;

  /** The functions that are known, in the order in which they came. */
  protected known(): readonly F[] {
    return [...this.#functions];
  }

  /** For {@link BaseControllingFunction.refresh}. */
  protected add(fn: F): void {
    this.#functions.add(fn);
  }

  /** For {@link BaseControllingFunction.refresh}: the device of `fn` does not exist any more. */
  protected lose(fn: F): void {
    fn.advance('lost');
    this.#forget(fn);
  }

  #forget(fn: F): void {
    this.#functions.delete(fn);
    const { location }: ControlledFunction = fn;
    if (location?.bus === 'pci') this.#claims?.drop(location.address);
  }

  /** Whether this process has the device of `fn` open. */
  protected holds(_fn: F): boolean {
    return false;
  }

  /** @internal For a pool of VFs that may be destroyed: what was found in use by others goes with `force`, what is used here does not. */
  protected poolGuard(): PoolGuard {
    const vfs = (): F[] => this.known().filter((fn) => fn.kind === 'vf');
    const busy = (what: string, why: string): never => {
      throw new TowlineError(
        'ERR_TOWLINE_BUSY',
        `the VFs of ${this.address} can't be destroyed to have another number: ${what} is ${why}; release it first`,
      );
    };
    return {
      check: (addresses) => {
        for (const fn of vfs()) {
          if (this.holds(fn)) busy(fn.name, 'open in this process');
          if (this.#shown.has(fn)) busy(fn.name, `exposed by this process (${fn.exposure})`);
        }
        for (const address of addresses) {
          if (this.#claims?.hasOther(address) === true) busy(address, 'provisioned by another driver of this process');
        }
      },
      destroyed: () => {
        for (const fn of vfs()) this.lose(fn);
      },
    };
  }

  async list(options: WaitOptions = {}): Promise<readonly ControlledFunction[]> {
    return this.exclusive(options, async () => {
      await this.refresh(options);
      return this.sorted(this.known());
    });
  }

  /** The order in which {@link BaseControllingFunction.list} shows them. */
  protected sorted(functions: readonly F[]): readonly F[] {
    return functions;
  }

  async provision(spec: FunctionSpec, options: WaitOptions = {}): Promise<ControlledFunction> {
    checkSpec(spec);
    return this.exclusive(options, async () => {
      const uuid = spec.uuid?.toLowerCase() ?? randomUUID();
      this.#checkNew({ uuid, name: spec.name ?? '' });
      const fn = await this.claim(spec, { uuid, name: spec.name }, options);
      fn.advance('provisioned');
      this.#functions.add(fn);
      return fn;
    });
  }

  #checkNew({ uuid, name }: FunctionIdentity): void {
    for (const other of this.#functions) {
      if (other.uuid === uuid) {
        throw new TowlineError('ERR_TOWLINE_EXISTS', `${other.name} has the UUID ${uuid} already`, { function: uuid });
      }
      if (other.name === name) {
        throw new TowlineError('ERR_TOWLINE_EXISTS', `there is a function ${name} already`, { function: other.uuid });
      }
    }
  }

  async configure(fn: ControlledFunction, config: FunctionConfig, options: WaitOptions = {}): Promise<void> {
    checkConfig(config);
    const own = this.own(fn);
    await this.exclusive(options, async () => {
      own.checkArc('configured');
      if (own.exposure !== 'none') {
        throw new TowlineError(
          'ERR_TOWLINE_STATE',
          `${own.name} is visible (${own.exposure}), so what it has can't be changed: hide it first (expose none)`,
          { function: own.uuid, state: own.state },
        );
      }
      const granted = await this.give(own, config, options);
      const enabled = own.state === 'migration-enabled';
      own.advance('configured', granted);
      if (enabled) own.advance('migration-enabled');
    });
  }

  async enableMigration(fn: ControlledFunction, options: WaitOptions = {}): Promise<void> {
    const own = this.own(fn);
    await this.exclusive(options, async () => {
      own.checkArc('migration-enabled');
      const visible = own.state === 'exposed';
      await this.enable(own, options);
      own.advance('migration-enabled', { migration: true });
      if (visible) own.advance('exposed');
    });
  }

  async expose(fn: ControlledFunction, exposure: ExposureName, options: ExposeOptions = {}): Promise<void> {
    const own = this.own(fn);
    await this.exclusive(options, async () => {
      if (own.exposure === exposure) {
        // Somebody may have unbound it meanwhile; what is open here is bound. Showing what is visible changes nothing.
        const bound = exposure === 'kernel' || exposure === 'vfio';
        if (bound && !this.holds(own)) await exposureFor(exposure, own).show(own, options);
        return;
      }
      const next = exposureFor(exposure, own);
      const before = exposureFor(own.exposure, own);
      const hidden = own.spec.migration === true ? 'migration-enabled' : 'configured';
      const to = exposure === 'none' ? hidden : 'exposed';
      own.checkArc(to);
      await withUndo(async (steps) => {
        await steps.do(
          `hide it from ${before.name}`,
          () => before.hide(own, options),
          () => before.show(own),
        );
        throwIfAborted(options.signal);
        await next.show(own, options);
      });
      own.advance(to, { expose: exposure });
      if (exposure === 'none') this.#shown.delete(own);
      else this.#shown.add(own);
    });
  }

  async release(fn: ControlledFunction, options: WaitOptions = {}): Promise<void> {
    if (fn.state === 'released') return;
    if (fn.state === 'lost') return;
    const own = this.own(fn);
    await this.exclusive(options, async () => {
      if (own.state === 'released') return;
      // What it holds of the device goes first: a device that is open can be neither unbound nor removed.
      await own.close();
      await exposureFor(own.exposure, own).hide(own, options);
      await this.withdraw(own, options);
      own.advance('released', { expose: 'none' });
      this.#forget(own);
    });
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#tail;
    const failures: unknown[] = [];
    // A function that does not close keeps neither the others nor the device open.
    for (const close of [...[...this.#functions].map((fn) => () => fn.close()), () => this.end()]) {
      try {
        await close();
      } catch (error) {
        failures.push(error);
      }
    }
    this.#claims?.dropAll();
    if (failures.length > 0) throw failures[0];
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** `fn` as one of this driver's own, or an error. */
  protected own(fn: ControlledFunction): F {
    for (const known of this.#functions) if (known === fn) return known;
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${fn.name} is no function of ${this.address}`, {
      function: fn.uuid,
    });
  }

  /** Refuses what comes after {@link BaseControllingFunction.close}. */
  protected checkOpen(): void {
    if (this.#closed) throw new TowlineError('ERR_TOWLINE_CLOSED', `${this.address} is closed`);
  }

  /** Runs `work` after everything that was asked before: two at once would race for the same free function. */
  protected exclusive<T>(options: WaitOptions, work: () => Promise<T>): Promise<T> {
    this.checkOpen();
    const turn = this.#tail.then(() => {
      throwIfAborted(options.signal);
      return work();
    });
    this.#tail = turn.catch(() => undefined);
    return turn;
  }
}
