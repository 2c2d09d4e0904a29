/**
 * Native state channels and dirty sources as the interfaces show them. A session takes the native handle under `kNative`
 * and none of these methods is called; the conformance kit and people with a device at hand call them.
 */
import { throwIfAborted, withSignal, type WaitOptions } from '../abort.js';
import { native, nativeSync, TowlineError } from '../errors.js';
import type { NativeDirtySource, NativeStateChannel } from '../native/binding.js';
import {
  kNative,
  type DirtySource,
  type MemoryRange,
  type PendingState,
  type ReadResult,
  type StateChannel,
} from './channel.js';
import { flagsFromBits, stateFromNumber, stateNumber, type DeviceState, type MigrationFlags } from './state.js';

/** Calls in order, one at a time, each under its signal. */
class CallQueue {
  readonly #what: string;
  #tail: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(what: string) {
    this.#what = what;
  }

  async run<T>(call: () => Promise<T>, options: WaitOptions | undefined): Promise<T> {
    throwIfAborted(options?.signal);
    if (this.#closed) throw new TowlineError('ERR_TOWLINE_CLOSED', `the ${this.#what} is closed`);
    // A call that was cancelled while it waited its turn is not made at all.
    const turn = this.#tail.then(() => {
      throwIfAborted(options?.signal);
      return native(call);
    });
    this.#tail = turn.catch(() => undefined);
    return withSignal(turn, options?.signal);
  }

  /** Waits for what is under way; `true` the first time. */
  async close(): Promise<boolean> {
    if (this.#closed) {
      await this.#tail;
      return false;
    }
    this.#closed = true;
    await this.#tail;
    return true;
  }
}

/** A native state channel. */
export class NativeChannel implements StateChannel {
  readonly flags: MigrationFlags;
  readonly format: string | undefined;
  readonly verifies: boolean;
  readonly [kNative]: NativeStateChannel;
  readonly #queue = new CallQueue('state channel');

  constructor(handle: NativeStateChannel) {
    this[kNative] = handle;
    this.flags = flagsFromBits(nativeSync(() => handle.flags()));
    this.format = nativeSync(() => handle.format()) ?? undefined;
    this.verifies = nativeSync(() => handle.verifies());
  }

  state(options?: WaitOptions): Promise<DeviceState> {
    return this.#queue.run(async () => stateFromNumber(await this[kNative].state()), options);
  }

  setState(to: DeviceState, options?: WaitOptions): Promise<void> {
    return this.#queue.run(() => this[kNative].setState(stateNumber(to)), options);
  }

  read(maxBytes: number, options?: WaitOptions): Promise<ReadResult> {
    return this.#queue.run(async () => {
      const { kind, bytes } = await this[kNative].read(maxBytes);
      if (kind !== 'bytes') return { kind };
      if (bytes === undefined)
        throw new TowlineError('ERR_TOWLINE_INTERNAL', 'the native channel announced bytes and gave none');
      return { kind, bytes };
    }, options);
  }

  write(data: Uint8Array, options?: WaitOptions): Promise<void> {
    return this.#queue.run(() => this[kNative].write(data), options);
  }

  pending(options?: WaitOptions): Promise<PendingState> {
    return this.#queue.run(async () => {
      const { initialBytes, dirtyBytes, stopCopyBytes } = await this[kNative].pending();
      return { initialBytes, dirtyBytes, stopCopyBytes: stopCopyBytes ?? undefined };
    }, options);
  }

  reset(options?: WaitOptions): Promise<void> {
    return this.#queue.run(() => this[kNative].reset(), options);
  }

  async close(): Promise<void> {
    if (await this.#queue.close()) nativeSync(() => this[kNative].close());
  }
}

/** A native dirty source. */
export class NativeSource implements DirtySource {
  readonly [kNative]: NativeDirtySource;
  readonly name: string | undefined;
  readonly #queue = new CallQueue('dirty source');

  constructor(handle: NativeDirtySource, name?: string) {
    this.name = name;
    this[kNative] = handle;
  }

  start(ranges: readonly MemoryRange[], pageSizeBytes: number, options?: WaitOptions): Promise<number> {
    return this.#queue.run(() => this[kNative].start([...ranges], pageSizeBytes), options);
  }

  harvest(options?: WaitOptions): Promise<readonly MemoryRange[]> {
    return this.#queue.run(() => this[kNative].harvest(), options);
  }

  stop(options?: WaitOptions): Promise<void> {
    return this.#queue.run(() => this[kNative].stop(), options);
  }

  /** For what a source has besides: in turn with the other calls. */
  protected queued<T>(call: () => Promise<T>, options?: WaitOptions): Promise<T> {
    return this.#queue.run(call, options);
  }

  async close(): Promise<void> {
    if (await this.#queue.close()) nativeSync(() => this[kNative].close());
  }
}
