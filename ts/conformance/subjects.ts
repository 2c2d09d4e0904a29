/**
 * What the kit needs of an implementation under test. What is optional and missing makes checks `not-exercised`, never passed.
 */
import type { DirtySource, MemoryRange, StateChannel } from '../function/channel.js';
import type { ExposureState } from '../function/types.js';

/** One device and its channel, running and used by nobody else. */
export interface ChannelInstance {
  readonly channel: StateChannel;
  /** Changes something that the device state holds; different seeds change it differently. In `running` only. */
  stimulate?(seed: number): Promise<void>;
  /** What the device does, as text: equal where two instances behave the same. In `running` only. */
  observe?(): Promise<string>;
  /** Brings the device into `error`. */
  fail?(): Promise<void>;
  /** Throws the device away. Idempotent. */
  close(): Promise<void>;
}

/** A state channel under test. */
export interface ChannelSubject {
  /**
   * A new instance, or one as good as new: in `running`. At most two are open at once, and both are alike enough that one takes
   * the state of the other.
   */
  open(): Promise<ChannelInstance>;
  /** More than so many bytes of state are taken for a channel that never ends. Default: 64 MiB. */
  readonly maxStateBytes?: number | undefined;
  /** How long one check may take, in milliseconds; after one that takes longer the rest is not exercised. Default: 30000. */
  readonly checkTimeoutMs?: number | undefined;
}

/** One writer and its dirty source. */
export interface DirtyInstance {
  readonly source: DirtySource;
  /** Ranges that can be tracked. */
  readonly ranges: readonly MemoryRange[];
  /** Page size to ask for, in bytes. */
  readonly pageSizeBytes: number;
  /** Lets the writer write `len` bytes at `gpa`, inside of the ranges; settles once they are written. */
  write?(gpa: bigint, len: number): Promise<void>;
  /** Throws the writer away. Idempotent. */
  close(): Promise<void>;
}

/** A dirty source under test. */
export interface DirtySubject {
  /** A fresh writer and its source. */
  open(): Promise<DirtyInstance>;
  /** How long one check may take, in milliseconds; after one that takes longer the rest is not exercised. Default: 30000. */
  readonly checkTimeoutMs?: number | undefined;
}

/** One function that is exposed, and what its exposure keeps; running at first. */
export interface ExposureInstance {
  readonly state: ExposureState;
  /** Stops the function, as a session does. Idempotent. */
  stop(): Promise<void>;
  /** Lets it run. */
  run(): Promise<void>;
  /** Changes something that the exposure keeps, as a guest does; different seeds change it differently. While it runs. */
  change?(seed: number): Promise<void>;
  /** What the exposure keeps, as text: equal where two instances are the same to a guest. */
  observe?(): Promise<string>;
  /** Throws the function away. Idempotent. */
  close(): Promise<void>;
}

/** What an exposure keeps, under test. */
export interface ExposureSubject {
  /** A new instance, exposed. At most two are open at once, and both are alike. */
  open(): Promise<ExposureInstance>;
  /** How long one check may take, in milliseconds; after one that takes longer the rest is not exercised. Default: 30000. */
  readonly checkTimeoutMs?: number | undefined;
}

/** A check by name, with what it shows when it passes. */
export type Check = readonly [name: string, passed: string, work: () => Promise<void>];

/** Opens an instance for `work` and closes it whatever happens. */
export async function withInstance<T>(
  subject: ChannelSubject,
  work: (instance: ChannelInstance) => Promise<T>,
): Promise<T> {
  const instance = await subject.open();
  try {
    return await work(instance);
  } finally {
    await instance.close();
  }
}
