/**
 * The interface of a driver: the code for one technology of controlling function. Third parties implement it in plain
 * TypeScript; the conformance kit tests an implementation.
 */
import type { WaitOptions } from '../abort.js';
import type {
  ControlledFunction,
  ExposeOptions,
  ExposureName,
  FunctionConfig,
  FunctionKind,
  FunctionSpec,
  Reason,
} from '../function/types.js';
import type { GuestMemory } from '../migration/memory.js';

/** A controlling function that a driver found. */
export interface DiscoveredController {
  /** What {@link ControllingDriver.open} takes: a PCI address, a device path, a name. */
  readonly address: string;
  /** For people. */
  readonly description: string;
  /** Why it could not be opened now; empty where it can. */
  readonly reasons: readonly Reason[];
}

/** How much of one kind a controlling function can still provision. */
export interface KindCapacity {
  readonly kind: FunctionKind;
  /** How many there can be at most. */
  readonly total: number;
  /** How many are free. */
  readonly free: number;
}

/** A rate limit on what a function may do, set by its controlling function. At least one of the two. */
export interface RateLimit {
  /** Commands a second, 1 or more; no limit where left out. */
  operationsPerSecond?: number | undefined;
  /** Bytes of data a second, read and written, 1 or more; no limit where left out. */
  bytesPerSecond?: bigint | undefined;
}

/** The code for one technology of controlling function. */
export interface ControllingDriver {
  /** `nvme`, `sriov`, `mdev`, `devlink`, `embedded`, or one's own. */
  readonly name: string;
  /** What there is on this host. Empty where the technology is absent. */
  discover(options?: WaitOptions): Promise<readonly DiscoveredController[]>;
  /** Opens the controlling function at `address`. */
  open(address: string, options?: WaitOptions): Promise<ControllingFunction>;
}

/**
 * An open controlling function. Each step is whole or not at all: where it fails, what it did is undone in reverse order.
 * Call them through {@link provisionFunction} to have the steps undone among each other as well.
 */
export interface ControllingFunction {
  /** The name of its driver. */
  readonly driver: string;
  /** Where it is. */
  readonly address: string;

  /** How much of each kind there is. */
  capacity(options?: WaitOptions): Promise<readonly KindCapacity[]>;
  /** Every controlled function that exists now. */
  list(options?: WaitOptions): Promise<readonly ControlledFunction[]>;
  /**
   * Makes a function exist, with nothing assigned and visible to nobody: state `provisioned`. Only `kind`, `uuid`, `name` and
   * `type` of `spec` are looked at.
   */
  provision(spec: FunctionSpec, options?: WaitOptions): Promise<ControlledFunction>;
  /** Gives it its resources: state `configured`. */
  configure(fn: ControlledFunction, config: FunctionConfig, options?: WaitOptions): Promise<void>;
  /** Enables live migration: state `migration-enabled`. */
  enableMigration(fn: ControlledFunction, options?: WaitOptions): Promise<void>;
  /** Makes it visible: state `exposed`. `none` hides it again. */
  expose(fn: ControlledFunction, exposure: ExposureName, options?: ExposeOptions): Promise<void>;
  /** Undoes all of it: state `released`. Idempotent. */
  release(fn: ControlledFunction, options?: WaitOptions): Promise<void>;
  /** Every reason why this controlling function can't migrate anything; empty where it can. */
  explain(options?: WaitOptions): Promise<readonly Reason[]>;
  /**
   * Gives a function the guest memory that its DMA goes to, where this process is the one that does. It keeps it until it is detached or
   * closed.
   */
  attachMemory?(fn: ControlledFunction, memory: GuestMemory): void | Promise<void>;
  /** Takes the guest memory away again, after the DMA that is under way has ended. */
  detachMemory?(fn: ControlledFunction): Promise<void>;
  /**
   * Limits what a function may do, so that a migration converges: what it does is delayed, never failed. `null` lifts the limit, also
   * where there is none. A fact of this host: it is not migrated, and does not outlive the function.
   * @throws TowlineError `ERR_TOWLINE_UNSUPPORTED` where {@link ControllingFunction.cannotRateLimit} has a reason.
   */
  rateLimit?(fn: ControlledFunction, limit: RateLimit | null, options?: WaitOptions): Promise<void>;
  /** The limit of a function, as the device has it; `null` where it has none. */
  rateLimitOf?(fn: ControlledFunction): Promise<RateLimit | null>;
  /** Why a function can't be limited, in one sentence; `undefined` where it can. Left out: what has {@link ControllingFunction.rateLimit} can. */
  cannotRateLimit?(fn: ControlledFunction): Promise<string | undefined>;
  /** Closes it and every function object that came from it. The functions stay where they outlive the process. Idempotent. */
  close(): Promise<void>;
  /** As {@link ControllingFunction.close}. */
  [Symbol.asyncDispose](): Promise<void>;
}
