/**
 * Runs what a migration runs, so that it has run before it counts: the first time in a process code is compiled on its way, which takes some
 * milliseconds of the downtime.
 */
import { randomUUID } from 'node:crypto';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';

import { throwIfAborted, type WaitOptions } from '../abort.js';
import { TowlineError } from '../errors.js';
import type { PendingState, ReadResult, StateChannel } from '../function/channel.js';
import type { DeviceState } from '../function/state.js';
import type { ExposureState, FunctionDescriptor, MigratableFunction } from '../function/types.js';
import { receiveQuietly } from './destination.js';
import type { Fence, FenceRecord } from './fence.js';
import { GuestMemory } from './memory.js';
import type { Migration } from './migration.js';
import { migrateQuietly } from './source.js';

const MEMORY_BYTES = 1n << 16n;
const STATE_BYTES = 64;

/**
 * Migrates nothing from this process to itself, once by copy and once by passing memory. Call it when a process starts that will migrate or
 * receive: the stop of its first migration is as short then as that of any other (on two processors some 4 ms shorter). Takes some 300 ms,
 * writes no journal, and is told by no event. What the caller's own hooks run is not run.
 *
 * @throws TowlineError `ERR_TOWLINE_ABORTED` by the signal; what else stands in the way of any migration in this process.
 */
export async function warmUp(options: WaitOptions = {}): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), 'towline-warm-up-'));
  try {
    for (const memoryTransfer of ['copy', 'pass'] as const) {
      throwIfAborted(options.signal);
      await once(join(directory, memoryTransfer), memoryTransfer, options);
    }
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function once(path: string, memoryTransfer: 'copy' | 'pass', { signal }: WaitOptions): Promise<void> {
  const uuid = randomUUID();
  const memory = GuestMemory.anonymous('warm-up', MEMORY_BYTES);
  const taken: GuestMemory[] = [];
  const there = memoryTransfer === 'copy' ? GuestMemory.anonymous('warm-up', MEMORY_BYTES) : undefined;
  if (there !== undefined) taken.push(there);
  try {
    memory.write(0n, new Uint8Array(4096).fill(1));
    const receiving = await new Promise<Migration>((resolve, reject) => {
      const migration: Migration = receiveQuietly(new Nothing(uuid, 'stop'), {
        from: `unix://${path}`,
        memory: there ?? 'passed',
        onMemory: (passed) => void taken.push(passed),
        fence: new ForgetfulFence(),
        restoreSections: () => undefined,
        resume: () => undefined,
        onListening: () => resolve(migration),
        ...(signal === undefined ? {} : { signal }),
      });
      migration.result.catch(reject);
    });
    const migrating = migrateQuietly(new Nothing(uuid, 'running'), {
      to: `unix://${path}`,
      memory,
      memoryTransfer,
      fence: new ForgetfulFence(),
      policy: { onNoConvergence: 'stop', maxRounds: 2 },
      pause: () => undefined,
      sections: { names: ['a', 'b'], take: () => ({ a: new Uint8Array(16), b: new Uint8Array(16) }) },
      ...(signal === undefined ? {} : { signal }),
    });
    const [left, came] = await Promise.allSettled([migrating.result, receiving.result]);
    for (const side of [left, came]) if (side.status === 'rejected') throw side.reason;
  } finally {
    for (const each of [memory, ...taken]) each.close();
  }
}

/** A function that has a state of some bytes, and does nothing. */
class Nothing implements MigratableFunction, StateChannel {
  readonly name = 'warm-up';
  readonly kind = 'siov';
  readonly flags = { stopCopy: true, p2p: false, preCopy: false };
  #left = STATE_BYTES;

  constructor(
    readonly uuid: string,
    private now: DeviceState,
  ) {}

  readonly exposureState: ExposureState = {
    format: 'warm-up',
    save: async () => new Uint8Array(STATE_BYTES),
    restore: async () => undefined,
    forget: async () => undefined,
  };

  channel(): StateChannel {
    return this;
  }

  dirtySources(): readonly [] {
    return [];
  }

  async descriptor(): Promise<FunctionDescriptor> {
    return {};
  }

  async explain(): Promise<readonly []> {
    return [];
  }

  async state(): Promise<DeviceState> {
    return this.now;
  }

  async setState(to: DeviceState): Promise<void> {
    this.now = to;
  }

  async read(): Promise<ReadResult> {
    if (this.#left === 0) return { kind: 'end' };
    this.#left = 0;
    return { kind: 'bytes', bytes: new Uint8Array(STATE_BYTES) };
  }

  async write(): Promise<void> {}

  async pending(): Promise<PendingState> {
    return { initialBytes: 0n, dirtyBytes: 0n, stopCopyBytes: BigInt(this.#left) };
  }

  async reset(): Promise<void> {
    this.now = 'running';
  }

  async close(): Promise<void> {}
}

/** Of one session, as long as the process lives: nothing here is owned by anybody. */
class ForgetfulFence implements Fence {
  readonly #records = new Map<string, FenceRecord[]>();

  async highestEpoch(): Promise<number> {
    return 0;
  }

  async append(session: string, role: 'source' | 'destination', record: FenceRecord, expected: number): Promise<void> {
    const list = await this.records(session, role);
    if (list.length !== expected)
      throw new TowlineError('ERR_TOWLINE_FENCED', `record ${expected} of ${session} is there already`);
    this.#records.set(`${session} ${role}`, [...list, record]);
  }

  async records(session: string, role: 'source' | 'destination'): Promise<FenceRecord[]> {
    return this.#records.get(`${session} ${role}`) ?? [];
  }

  async sessions(): Promise<{ session: string; role: 'source' | 'destination' }[]> {
    return [...this.#records.keys()].map((key) => {
      const [session = '', role] = key.split(' ');
      return { session, role: role === 'source' ? 'source' : 'destination' };
    });
  }
}
