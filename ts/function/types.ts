/**
 * Controlled functions: what is provisioned, exposed and migrated. The calls are the same for every kind.
 */
import type { WaitOptions } from '../abort.js';
import type { BarFilter } from '../bar/filter.js';
import type { RateLimit } from '../drivers/driver.js';
import type { Doubt } from '../migration/doubt.js';
import type { Migration } from '../migration/migration.js';
import type { MigrateOptions } from '../migration/options.js';
import type { DirtySource, StateChannel } from './channel.js';

/** What a controlled function is on the bus. Nothing above the drivers branches on it. */
export type FunctionKind = 'pf' | 'vf' | 'siov';

/** The kinds, for checking a word from outside. */
export const functionKinds = ['pf', 'vf', 'siov'] as const satisfies readonly FunctionKind[];

/** How a controlled function is made visible. */
export type ExposureName = 'none' | 'kernel' | 'vfio' | 'vfio-user';

/** The exposures, for checking a word from outside. */
export const exposureNames = ['none', 'kernel', 'vfio', 'vfio-user'] as const satisfies readonly ExposureName[];

/**
 * Where a controlled function is in its life: `absent → provisioned → configured → migration-enabled → exposed → released`.
 * Migration may be left out. `lost`: it went with its holder.
 */
export type LifecycleState =
  | 'absent'
  | 'provisioned'
  | 'configured'
  | 'migration-enabled'
  | 'exposed'
  | 'released'
  | 'lost';

/** What a function is to be given. What is left out is the driver's default. */
export interface FunctionConfig {
  /** I/O queue pairs, the admin queue not counted. 1 to 65535. */
  queues?: number | undefined;
  /** Interrupt vectors, the admin queue's included. 1 to 2048. */
  vectors?: number | undefined;
  /** Namespace identifiers to attach, each 1 or more. */
  namespaces?: readonly number[] | undefined;
  /** Hardware address of the port, six bytes as `02:00:00:00:00:01`; driver `devlink`. */
  hwAddress?: string | undefined;
}

/** What to provision, and how far to bring it. */
export interface FunctionSpec extends FunctionConfig {
  /** Which kind. */
  kind: FunctionKind;
  /** Kept through migrations; a random one where it is left out. */
  uuid?: string | undefined;
  /** For people; the UUID where it is left out. At most 64 characters. */
  name?: string | undefined;
  /** Enable live migration before the function is visible. Default: true. */
  migration?: boolean | undefined;
  /** How to make it visible. Default: `none`. */
  expose?: ExposureName | undefined;
  /** Type of a mediated device, `mtty-2` say; driver `mdev`. Default: the only one that has instances left. */
  type?: string | undefined;
}

/**
 * Stable codes of the reasons why a function can't be migrated, or why a controlling function can't migrate anything.
 */
export type ReasonCode =
  | 'controlling-function-cannot-migrate'
  | 'function-is-controlling'
  | 'function-offline'
  | 'function-failed'
  | 'migration-not-enabled'
  | 'no-state-format'
  | 'no-dirty-tracking'
  | 'namespace-not-shared'
  | 'namespace-shared'
  | 'namespace-without-identity'
  | 'no-guest-memory'
  | 'exposure-not-transferable'
  | 'kernel-without-vfio'
  | 'kernel-without-iommu'
  | 'no-iommu-group'
  | 'iommu-group-shared'
  | 'no-driver'
  | 'wrong-driver'
  | 'no-variant-driver'
  | 'driver-cannot-migrate'
  | 'in-use'
  | 'vf-token-needed'
  | 'not-permitted'
  | 'function-released'
  | 'function-lost'
  | 'in-doubt'
  | 'other';

/** One reason, and what would mend it. */
export interface Reason {
  /** Stable. */
  readonly code: ReasonCode;
  /** What is the matter, in one sentence. */
  readonly message: string;
  /** What would mend it, in one sentence. */
  readonly mend: string;
}

/** How the destination's fact has to relate to the source's. */
export type FactRule = 'equal' | 'at-least' | 'superset' | 'intersects';

/** A fact's value: plain JSON. 64-bit numbers are decimal strings. */
export type FactValue = string | number | boolean | readonly (string | number)[];

/** One fact of the offer. */
export interface Fact {
  readonly value: FactValue;
  /**
   * `equal`: the same value. `at-least`: the destination's number is not smaller. `superset`: the destination has every
   * element. `intersects`: at least one element is common.
   */
  readonly rule: FactRule;
  /** Why it matters, for the message of a mismatch. */
  readonly why: string;
}

/** The facts of a function that its destination must match, by name. */
export type FunctionDescriptor = Readonly<Record<string, Fact>>;

/** What a function keeps through migrations. */
export interface FunctionIdentity {
  /** Lower-case with dashes. */
  readonly uuid: string;
  readonly name: string;
}

/**
 * What the exposure of a function keeps of it, outside of the device's state: config space and interrupts that are not delivered, say. A migration
 * carries it as a section of its own, `towline:exposure:<uuid>`. Bytes are the implementation's own, with a version; whoever reads them
 * trusts none of them.
 */
export interface ExposureState {
  /**
   * What the bytes are, and what the guest has seen of the function that can't change: a destination of another format refuses before anything
   * stops. Offered as the fact `exposure-format`. At most 255 printable characters.
   */
  readonly format: string;
  /**
   * Whether its connection can go to another process of this host: `possible` where {@link MigratableFunction.detachExposure} gives it, `awaited`
   * where it was exposed for one to come, by {@link MigratableFunction.adoptExposure}. Left out where neither.
   */
  readonly handover?: 'possible' | 'awaited' | undefined;
  /**
   * The section, of a function that has stopped, before its device state is read. What the guest asked of it before is part of the device
   * state then; what it asks from here on waits until the function runs again, and is lost with one that does not. At most 1 MiB.
   * @throws TowlineError `ERR_TOWLINE_STATE` where the function has not stopped.
   */
  save(options?: WaitOptions): Promise<Uint8Array>;
  /**
   * Puts a section in place: after the device state was loaded and the caller's own sections were restored, its interrupt controller among them,
   * and before the function runs. Whole or not at all. No interrupt is raised before the function runs.
   * @throws TowlineError `ERR_TOWLINE_BAD_STATE` for bytes that are damaged, of another version or another function's.
   */
  restore(section: Uint8Array, options?: WaitOptions): Promise<void>;
  /**
   * Undoes {@link ExposureState.restore}: the migration was rolled back. A connection that was awaited, came and was not resumed is let go of,
   * without a word to its client, and the next one is awaited. Idempotent, also where nothing was restored.
   */
  forget(): Promise<void>;
}

/** What is asked of `explain()`. */
export interface ExplainOptions extends WaitOptions {
  /** Why it can't be copied by a checkpoint, in place of why it can't be migrated. Default: false. */
  copy?: boolean | undefined;
}

/** What a migration needs of a function; the least that a driver implements. */
export interface MigratableFunction {
  /** Kept through migrations; lower-case with dashes. */
  readonly uuid: string;
  /** For people. */
  readonly name: string;
  readonly kind: FunctionKind;
  /**
   * Opens what {@link MigratableFunction.channel} and {@link MigratableFunction.dirtySources} need, where that has a single owner, as a
   * VFIO device has. Called after `explain()` found nothing, before anything else is asked. Idempotent. Left out where there is
   * nothing to open.
   */
  open?(options?: WaitOptions): Promise<void>;
  /** The one channel of its device state. The same object every time. */
  channel(): StateChannel;
  /** Who tells which pages this function wrote. The same objects every time. */
  dirtySources(): readonly DirtySource[];
  /**
   * What its exposure keeps of it, as it is exposed now; left out or `undefined` where that is nothing. Settled before a session is made, and
   * the same until its end.
   */
  readonly exposureState?: ExposureState | undefined;
  /**
   * Makes the exposure ready to be passed to another process of this host: nothing is read from its client any more, what the client sends waits.
   * The function has stopped, and its {@link ExposureState.save} comes after this. Whatever fails leaves the client served here.
   * @throws TowlineError `ERR_TOWLINE_EXPOSURE` where it can't be passed on, `ERR_TOWLINE_STATE` for a function that runs, `ERR_TOWLINE_BUSY` for a
   * client in the middle of a message.
   */
  detachExposure?(): Promise<ExposureHandover>;
  /**
   * Takes the connection over for which the function was exposed, before {@link ExposureState.restore}. Its client is not served yet: see
   * {@link MigratableFunction.resumeExposure}. The descriptors are duplicated. Where it fails the next one is awaited.
   * @throws TowlineError `ERR_TOWLINE_EXPOSURE` where none is awaited, `ERR_TOWLINE_BAD_STATE` for one that is damaged or of another function.
   */
  adoptExposure?(handover: ExposureHandover): Promise<void>;
  /**
   * Serves the client again after {@link MigratableFunction.detachExposure}; or from now on after `expose` with a `handover`, or after
   * {@link MigratableFunction.adoptExposure}, once the function runs.
   */
  resumeExposure?(): Promise<void>;
  /** The other process serves the client: here the function is visible no more. */
  surrenderExposure?(): Promise<void>;
  /** What a destination must match. */
  descriptor(options?: WaitOptions): Promise<FunctionDescriptor>;
  /** Every reason why it can't be migrated now, or copied where that is asked; empty where it can. */
  explain(options?: ExplainOptions): Promise<readonly Reason[]>;
  /** Whether somebody drives it now, as far as that can be told. */
  inUse?(): Promise<boolean>;
  /** Set while nobody knows whether it belongs here: it is stopped, and stays so until `recover` knows. */
  readonly doubt?: Doubt | undefined;
  /** Told by `migrate` where it ends in doubt, and by `recover`, with `undefined`, where that is settled. */
  setDoubt?(doubt: Doubt | undefined): void;
  /**
   * Has its controlling function limit what it does, so that a migration converges; `null` lifts the limit. Left out where nothing limits
   * it.
   */
  rateLimit?(limit: RateLimit | null, options?: WaitOptions): Promise<void>;
  /** Why it can't be limited, in one sentence; `undefined` where it can. */
  cannotRateLimit?(): Promise<string | undefined>;
  /** Gives it back after it was migrated away. Idempotent. */
  release?(options?: WaitOptions): Promise<void>;
}

/** Where a function is on this host. */
export interface FunctionLocation {
  readonly bus: 'pci' | 'mdev' | 'devlink';
  /** PCI address, UUID of the mediated device, or `pci/0000:01:00.0/98304` for a devlink port. */
  readonly address: string;
}

/**
 * An exposure on its way to another process of this host: its live connection. The descriptors (sockets, guest memory, eventfds) are passed in this
 * order, by `SCM_RIGHTS` say, and closed by whoever got this object; `bytes` say what they are.
 */
export interface ExposureHandover {
  readonly fds: readonly number[];
  readonly bytes: Uint8Array;
}

/** Options of making a function visible. */
export interface ExposeOptions extends WaitOptions {
  /** Path of the UNIX socket that `vfio-user` serves on; nothing may be there. */
  socketPath?: string | undefined;
  /** Stands before BAR 0 on a `vfio-user` socket; its BAR has to be as long as the function's, 8 KiB but for a controlling PF. */
  filter?: BarFilter | undefined;
  /**
   * Takes a `vfio-user` socket and its client over from another process, in place of making one. The client is not served yet: its function's
   * state is loaded and what the exposure keeps restored, then {@link MigratableFunction.resumeExposure}. The descriptors are duplicated.
   * `awaited`: it comes later, by {@link MigratableFunction.adoptExposure}, as `receive` does where the source has `exposureTransfer: 'pass'`.
   */
  handover?: ExposureHandover | 'awaited' | undefined;
}

/** How one exposure shows and hides one function. The driver that made the function knows. */
export interface Visibility {
  /** Makes it visible, whole or not at all; nothing where it is. */
  show(options?: ExposeOptions): Promise<void>;
  /** Hides it again. Idempotent. */
  hide(options?: WaitOptions): Promise<void>;
  /** See {@link MigratableFunction.detachExposure}. Left out, with the three below, where the exposure can't be passed on. */
  detach?(): Promise<ExposureHandover>;
  /** See {@link MigratableFunction.adoptExposure}. */
  adopt?(handover: ExposureHandover): Promise<void>;
  /** See {@link MigratableFunction.resumeExposure}. */
  resume?(): Promise<void>;
  /** See {@link MigratableFunction.surrenderExposure}. */
  surrender?(): Promise<void>;
}

/** A controlled function, from the moment it is provisioned until it is released. */
export interface ControlledFunction extends MigratableFunction {
  /** Where it is in its life. */
  readonly state: LifecycleState;
  /** What it was given, as the device granted it. */
  readonly spec: Readonly<FunctionSpec>;
  /** How it is visible now; `none` where it is not. */
  readonly exposure: ExposureName;
  /** Where it is on this host; left out where nothing on this host's buses is it. */
  readonly location?: FunctionLocation | undefined;
  /** The exposures that it has, each with how it is done, or in one sentence why not. Those left out do not exist for it. */
  readonly visibility?: Readonly<Partial<Record<ExposureName, Visibility | string>>> | undefined;
  /** Gives it other resources; only before it is exposed. */
  configure(config: FunctionConfig, options?: WaitOptions): Promise<void>;
  /** Makes it visible, or hides it again by `none`. */
  expose(exposure: ExposureName, options?: ExposeOptions): Promise<void>;
  /** Migrates it, and the guest memory in `options`, to where `options.to` says. As `migrate(fn, options)`. */
  migrate(options: MigrateOptions): Migration;
  /** Gives it back to the controlling function. Idempotent. */
  release(options?: WaitOptions): Promise<void>;
  /** Lets go of this object; the function stays. Idempotent. */
  close(): Promise<void>;
  /** As {@link ControlledFunction.close}. */
  [Symbol.asyncDispose](): Promise<void>;
}
