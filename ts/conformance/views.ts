/**
 * Views of a channel and of a source that a function keeps: closing a view leaves them open.
 */
import { TowlineError } from '../errors.js';
import type { DirtySource, StateChannel } from '../function/channel.js';

/** A view of a channel that can be closed and used again: the function keeps its one channel. */
export function view(channel: StateChannel): StateChannel {
  let closed = false;
  const open = async <T>(call: () => Promise<T>): Promise<T> => {
    if (closed) throw new TowlineError('ERR_TOWLINE_CLOSED', 'the state channel is closed');
    return call();
  };
  return {
    get flags() {
      return channel.flags;
    },
    get format() {
      return channel.format;
    },
    get verifies() {
      return channel.verifies;
    },
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

/** A view of a dirty source that can be closed and used again, and stops tracking where a check ended in its middle. */
export function sourceView(source: DirtySource): DirtySource {
  let closed = false;
  const open = async <T>(call: () => Promise<T>): Promise<T> => {
    if (closed) throw new TowlineError('ERR_TOWLINE_CLOSED', 'the dirty source is closed');
    return call();
  };
  return {
    start: (ranges, pageSizeBytes, o) => open(() => source.start(ranges, pageSizeBytes, o)),
    harvest: (o) => open(() => source.harvest(o)),
    stop: (o) => open(() => source.stop(o)),
    close: async () => {
      if (closed) return;
      closed = true;
      await source.stop();
    },
  };
}
