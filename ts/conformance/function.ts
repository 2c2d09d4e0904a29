/**
 * The kit against a function that exists: its channel, with a second function of the same kind as the other instance, and its dirty
 * sources.
 */
import type { ControllingFunction } from '../drivers/driver.js';
import { vfioHandle } from '../drivers/vfio/held.js';
import { TowlineError } from '../errors.js';
import { provisionFunction } from '../function/lifecycle.js';
import type { DirtySource, MemoryRange } from '../function/channel.js';
import type { ControlledFunction } from '../function/types.js';
import { channelChecks } from './channel.js';
import { CheckRun, type CheckResult } from './check.js';
import { dirtyChecks } from './dirty.js';
import type { ChannelInstance, ChannelSubject, DirtySubject } from './subjects.js';
import { sourceView, view } from './views.js';

/** Options of {@link conformFunction}. */
export interface ConformFunctionOptions {
  /** The checks reset the function and write its state: without this they are refused. */
  destructive: boolean;
  /** Guest memory in which its writes are tracked. Default: 4 MiB from 0. */
  memory?: readonly MemoryRange[] | undefined;
  /** Page size to track with, in bytes. Default: 4096. */
  pageSizeBytes?: number | undefined;
  /**
   * Lets `fn` itself write at least `len` bytes at `gpa`, inside of `memory`; settles once they are written and it is quiet again. It
   * was reset before the first call. Where it is missing, what needs writes is `not-exercised`.
   */
  write?: ((gpa: bigint, len: number) => Promise<void>) | undefined;
  /** See {@link ChannelInstance.stimulate}; of `fn` or of the second function. */
  stimulate?: ((fn: ControlledFunction, seed: number) => Promise<void>) | undefined;
  /** See {@link ChannelInstance.observe}; of `fn` or of the second function. */
  observe?: ((fn: ControlledFunction) => Promise<string>) | undefined;
  /** How long one check may take, in milliseconds; after one that takes longer the rest is not exercised. Default: 30000. */
  checkTimeoutMs?: number | undefined;
}

const DEFAULT_MEMORY: readonly MemoryRange[] = [{ gpa: 0n, len: 4n << 20n }];

function dirtySubject(source: DirtySource, options: ConformFunctionOptions): DirtySubject {
  const { memory = DEFAULT_MEMORY, pageSizeBytes = 4096, write } = options;
  return {
    open: async () => {
      const instance = sourceView(source);
      const close = (): Promise<void> => instance.close();
      return { source: instance, ranges: memory, pageSizeBytes, close, ...(write === undefined ? {} : { write }) };
    },
  };
}

async function* dirtySourceChecks(
  fn: ControlledFunction,
  options: ConformFunctionOptions,
  run: CheckRun,
): AsyncGenerator<CheckResult, void, void> {
  const sources = fn.dirtySources();
  if (sources.length === 0) {
    const why = 'the function has no dirty source: its writes have to be told by the caller';
    yield { check: 'dirty/source', outcome: 'not-exercised', why };
  }
  for (const source of sources) yield* dirtyChecks(dirtySubject(source, options), run);
}

/**
 * Runs the checks of a state channel and of dirty sources against `fn`. A second function of its kind and resources is provisioned for as long as it
 * takes, where there is one.
 * @throws TowlineError `ERR_TOWLINE_BUSY` where somebody uses the function, `ERR_TOWLINE_REFUSED` without `destructive`.
 */
export async function* conformFunction(
  controlling: ControllingFunction,
  fn: ControlledFunction,
  options: ConformFunctionOptions,
): AsyncGenerator<CheckResult, void, void> {
  if (!options.destructive) {
    throw new TowlineError(
      'ERR_TOWLINE_REFUSED',
      'the checks reset the function and overwrite its state: say so by destructive (--destructive)',
      {
        function: fn.uuid,
      },
    );
  }
  // A function on VFIO belongs to whoever opens it, so that being visible is no use yet; it can be checked in no other way.
  if ((fn.exposure !== 'none' && fn.exposure !== 'vfio') || (await fn.inUse?.())) {
    throw new TowlineError('ERR_TOWLINE_BUSY', `${fn.name} is in use`, { function: fn.uuid });
  }
  const { kind, queues, vectors, namespaces, type } = fn.spec;
  const alike = { kind, queues, vectors, namespaces, type, expose: fn.exposure };
  const second = await provisionFunction(controlling, alike);
  const handle = vfioHandle(fn);
  const wasOpen = handle?.current !== undefined;
  const run = new CheckRun(options.checkTimeoutMs);
  const { stimulate, observe } = options;
  try {
    const free = [fn, second];
    const subject: ChannelSubject = {
      open: async (): Promise<ChannelInstance> => {
        const used = free.shift();
        if (used === undefined)
          throw new TowlineError('ERR_TOWLINE_NO_RESOURCES', 'the kit opened more than two instances');
        const channel = used.channel();
        await used.open?.();
        await channel.reset();
        const instance = view(channel);
        let closed = false;
        return {
          channel: instance,
          ...(stimulate === undefined ? {} : { stimulate: (seed: number) => stimulate(used, seed) }),
          ...(observe === undefined ? {} : { observe: () => observe(used) }),
          close: async () => {
            if (closed) return;
            closed = true;
            await instance.close();
            // The one that was used last comes last, so that checks with one instance at a time meet both.
            free.push(used);
          },
        };
      },
    };
    yield* channelChecks(subject, run);
    if (run.hung === undefined) await fn.channel().reset();
    yield* dirtySourceChecks(fn, options, run);
    if (run.hung === undefined) await fn.channel().reset();
  } finally {
    // Its VFIO device has a single owner: left open, nobody else could have it.
    const closed = wasOpen ? Promise.resolve() : Promise.resolve(handle?.close());
    const released = Promise.all([closed, second.release()]);
    // A device that hangs may hang in this as well: then it is released whenever it answers.
    if (run.hung === undefined) await released;
    else released.catch(() => undefined);
  }
}
