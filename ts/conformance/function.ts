/**
 * The kit against a function that exists: its channel, with a second function of the same kind as the other instance.
 */
import type { ControllingFunction } from '../drivers/driver.js';
import { TowlineError } from '../errors.js';
import { provisionFunction } from '../function/lifecycle.js';
import type { StateChannel } from '../function/channel.js';
import type { ControlledFunction } from '../function/types.js';
import { conformStateChannel } from './channel.js';
import type { CheckResult } from './check.js';
import type { ChannelInstance, ChannelSubject } from './subjects.js';

/** Options of {@link conformFunction}. */
export interface ConformFunctionOptions {
  /** The checks reset the function and write its state: without this they are refused. */
  destructive: boolean;
}

/** A view of a channel that can be closed and used again: the function keeps its one channel. */
function view(channel: StateChannel): StateChannel {
  let closed = false;
  const open = async <T>(call: () => Promise<T>): Promise<T> => {
    if (closed) throw new TowlineError('ERR_TOWLINE_CLOSED', 'the state channel is closed');
    return call();
  };
  return {
    flags: channel.flags,
    state: (o) => open(() => channel.state(o)),
    setState: (to, o) => open(() => channel.setState(to, o)),
    read: (n, o) => open(() => channel.read(n, o)),
    write: (d, o) => open(() => channel.write(d, o)),
    pending: (o) => open(() => channel.pending(o)),
    reset: (o) => open(() => channel.reset(o)),
    close: async () => {
      closed = true;
    },
  };
}

/**
 * Runs the checks of a state channel against `fn`. A second function of its kind and resources is provisioned for as long as it
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
  if (fn.exposure !== 'none' || (await fn.inUse?.())) {
    throw new TowlineError('ERR_TOWLINE_BUSY', `${fn.name} is in use`, { function: fn.uuid });
  }
  const { kind, queues, vectors, namespaces } = fn.spec;
  const second = await provisionFunction(controlling, { kind, queues, vectors, namespaces });
  try {
    const free = [fn.channel(), second.channel()];
    const subject: ChannelSubject = {
      open: async (): Promise<ChannelInstance> => {
        const channel = free.shift();
        if (channel === undefined)
          throw new TowlineError('ERR_TOWLINE_NO_RESOURCES', 'the kit opened more than two instances');
        await channel.reset();
        const instance = view(channel);
        let closed = false;
        return {
          channel: instance,
          close: async () => {
            if (closed) return;
            closed = true;
            await instance.close();
            // The one that was used last comes last, so that checks with one instance at a time meet both.
            free.push(channel);
          },
        };
      },
    };
    yield* conformStateChannel(subject);
    await fn.channel().reset();
  } finally {
    await second.release();
  }
}
