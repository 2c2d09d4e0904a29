/**
 * Functions that outlived the process that held them: the kernel keeps a device as that process left it, stopped half-way through a migration,
 * say. What the journal says of their last session is done with them when somebody recovers.
 */
import type { WaitOptions } from '../abort.js';
import { heldElsewhere, vfioHandle, withoutKeeping } from '../drivers/vfio/held.js';
import { isTowlineError, unwrapFault } from '../errors.js';
import { doubtOf, type Settled } from '../migration/doubt.js';
import type { JournalSession } from '../migration/journal.js';
import { ADVICE, type Recovered } from '../migration/recover.js';
import type { HeldFunction, Host } from './host.js';

/** States in which the function does what it is told: nothing has to be done with it. */
const RUNNING = 'running';

/** The last session that names a function: epochs only grow. One that can't be read is in doubt, whatever was later. */
function lastOf(sessions: readonly JournalSession[], uuid: string): JournalSession | undefined {
  const named = sessions.filter((s) => s.functions.includes(uuid));
  const damaged = named.find((s) => s.state === 'damaged');
  if (damaged !== undefined) return damaged;
  return named.toSorted((a, b) => (BigInt(a.epoch) < BigInt(b.epoch) ? -1 : 1)).at(-1);
}

/** Does with one that does not run what its last session says; nothing where it runs. */
async function settleOne(
  host: Host,
  held: HeldFunction,
  session: JournalSession,
  options: WaitOptions,
): Promise<Settled | undefined> {
  const { fn } = held;
  const done = (action: Settled['action'], why?: string): Settled => ({
    function: fn.uuid,
    action,
    ...(why === undefined ? {} : { why }),
  });
  const work = async (): Promise<Settled | undefined> => {
    const handle = vfioHandle(fn);
    // One that another process has open can't be opened here; what is known of its state is what the kernel shows of it.
    const elsewhere =
      handle === undefined || handle.current !== undefined || handle.borrowed
        ? undefined
        : await heldElsewhere(handle.host, handle.name);
    if (elsewhere !== undefined) {
      if (elsewhere.state === undefined || elsewhere.state === RUNNING) return undefined;
      if (session.verdict === 'in-doubt') {
        fn.setDoubt?.(doubtOf(session.session, host.journal));
        return done('kept-stopped');
      }
      return done(
        'failed',
        `process ${elsewhere.pids.join(', ')} has its VFIO device open, in the state ${elsewhere.state}: recover again once it is closed`,
      );
    }
    const channel = fn.channel();
    if ((await channel.state(options)) === RUNNING) return undefined;
    switch (session.verdict) {
      case 'resume-source':
      case 'run-destination':
        await channel.setState('running', options);
        return done('resumed');
      case 'released':
        await host.release(held);
        return done('released');
      case 'refuse':
        await channel.reset(options);
        return done('reset');
      case 'in-doubt':
        fn.setDoubt?.(doubtOf(session.session, host.journal));
        return done('kept-stopped');
    }
  };
  try {
    return await withoutKeeping(fn, work);
  } catch (error) {
    return done('failed', unwrapFault(error).message);
  }
}

/**
 * Settles those of this host that `recovered` has not settled: found here after their holder ended, stopped, and with a session in the
 * journal. A function that runs is left alone, as are those that somebody works on, and those that were never in a session.
 */
export async function settleOutlived(
  host: Host,
  recovered: readonly Recovered[],
  options: WaitOptions & { session?: string | undefined },
): Promise<Recovered[]> {
  const all = recovered.map((r) => ({ ...r, settled: [...r.settled] }));
  const settled = new Set(all.flatMap((r) => r.settled.map((s) => s.function)));
  const sessions = host.journal.sessions();
  for (const held of await host.functions()) {
    const { fn } = held;
    const last = settled.has(fn.uuid) || fn.doubt !== undefined ? undefined : lastOf(sessions, fn.uuid);
    if (last === undefined || (options.session !== undefined && last.session !== options.session)) continue;
    try {
      const one = await host.exclusively([held], { inDoubt: 'allowed' }, () => settleOne(host, held, last, options));
      if (one === undefined) continue;
      const known = all.find((r) => r.session === last.session);
      if (known !== undefined) known.settled.push(one);
      else {
        const { session, role, functions, verdict } = last;
        all.push({ session, role, functions, verdict, answer: null, advice: ADVICE[verdict], settled: [one] });
      }
    } catch (error) {
      // Whoever works on it settles it.
      if (!isTowlineError(error, 'ERR_TOWLINE_BUSY')) throw error;
    }
  }
  return all;
}
