/**
 * The two interfaces that carry every migration, as TypeScript: a {@link StateChannel} brings a function's device state out
 * and in, a {@link DirtySource} tells which guest pages were written. Implement them for a device of your own; the
 * conformance kit (`towline/conformance`) tests an implementation.
 */
import type { WaitOptions } from '../abort.js';
import type { NativeDirtySource, NativeStateChannel } from '../native/binding.js';
import type { DeviceState, MigrationFlags } from './state.js';

/**
 * Under this symbol an implementation in native code hands over its native handle, so that no byte of it passes
 * through JavaScript. An implementation in plain TypeScript leaves it out.
 */
export const kNative: unique symbol = Symbol('towline.native');

/** A range of guest-physical addresses, in bytes. */
export interface MemoryRange {
  /** First guest-physical address. */
  readonly gpa: bigint;
  /** Length in bytes, more than 0. */
  readonly len: bigint;
}

/** What one read gave. `empty-for-now` comes only in the pre-copy states, `end` only in `stop-copy`. */
export type ReadResult =
  | { readonly kind: 'bytes'; readonly bytes: Uint8Array }
  | { readonly kind: 'empty-for-now' }
  | { readonly kind: 'end' };

/** What a channel still has to give, in bytes. Estimates: nothing is allocated by them. */
export interface PendingState {
  /** Has to be moved before pre-copy is worth ending. */
  readonly initialBytes: bigint;
  /** Changed since. */
  readonly dirtyBytes: bigint;
  /** Expected in `stop-copy`, with what pre-copy would leave; `undefined` where nobody can tell. */
  readonly stopCopyBytes: bigint | undefined;
}

/**
 * Carries the device state of one function. Calls come one at a time, each after the one before has settled.
 *
 * Errors are `TowlineError`s: `ERR_TOWLINE_STATE` where there is no arc, `ERR_TOWLINE_BAD_STATE` where written state is not
 * acceptable, `ERR_TOWLINE_DEVICE`, `ERR_TOWLINE_GONE`, `ERR_TOWLINE_UNSUPPORTED`.
 */
export interface StateChannel {
  /** Which arcs exist. Never changes. */
  readonly flags: MigrationFlags;
  /**
   * What the state bytes are, where that is known: `vfio:<driver>:<vendor>:<device>`, say. Never changes. It is offered as the fact
   * `state-format`, so that a destination of another format refuses before anything stops.
   */
  readonly format?: string | undefined;
  /**
   * Whether leaving `resuming` refuses whatever is not a whole valid state. `false` for devices that take a state which was cut or
   * damaged, as several of the kernel's drivers do: then only the stream's manifest finds that. Never changes. Default: true.
   */
  readonly verifies?: boolean | undefined;
  /** Present where the implementation is native. */
  readonly [kNative]?: NativeStateChannel | undefined;

  /** The state the function is in now, asked from the device where it can be asked. */
  state(options?: WaitOptions): Promise<DeviceState>;
  /**
   * Brings the function into `to`, through every state on the way. Leaving `resuming` commits what was written, and fails with
   * `ERR_TOWLINE_BAD_STATE` where the device finds that it is not a whole valid state; one that {@link StateChannel.verifies} finds
   * all of that. After a failure {@link StateChannel.state} tells the truth.
   */
  setState(to: DeviceState, options?: WaitOptions): Promise<void>;
  /** Reads 1 to `maxBytes` bytes of device state, in `pre-copy`, `pre-copy-p2p` and `stop-copy`. */
  read(maxBytes: number, options?: WaitOptions): Promise<ReadResult>;
  /** Writes device state, in `resuming`. Order counts; where the bytes are cut does not. After an error: reset, start again. */
  write(data: Uint8Array, options?: WaitOptions): Promise<void>;
  /** What is left to read. */
  pending(options?: WaitOptions): Promise<PendingState>;
  /** Resets the function: from any state, `error` included, to `running`. */
  reset(options?: WaitOptions): Promise<void>;
  /** Lets go of the channel, not of the function. Idempotent. */
  close(): Promise<void>;
}

/** Tells which guest pages one writer wrote: a device, vCPUs, a process. */
export interface DirtySource {
  /** What events and reports call the writer it tells of: `kvm`, say. Default: `other`, with a number. */
  readonly name?: string | undefined;
  /** Present where the implementation is native. */
  readonly [kNative]?: NativeDirtySource | undefined;

  /**
   * Starts tracking `ranges`: everything written after this has settled is in some later harvest.
   * @returns the granularity in bytes, a power of two, which may be coarser than asked.
   */
  start(ranges: readonly MemoryRange[], pageSizeBytes: number, options?: WaitOptions): Promise<number>;
  /** Everything written since the last harvest, and forgets it. After an error assume that every page is dirty. */
  harvest(options?: WaitOptions): Promise<readonly MemoryRange[]>;
  /** Stops tracking. Idempotent. */
  stop(options?: WaitOptions): Promise<void>;
  /** Lets go of the source. Idempotent. */
  close(): Promise<void>;
}
