/**
 * A function of which nobody knows whether it belongs here: COMMIT may have reached the destination.
 */
import { unwrapFault } from '../errors.js';
import type { MigratableFunction, Reason } from '../function/types.js';
import type { Fence } from './fence.js';
import { Journal, type Verdict } from './journal.js';

/** See {@link MigratableFunction.doubt}. */
export interface Doubt {
  /** The session that left it so. */
  readonly session: string;
  /** Its exposure's connection was passed on: `recover` resumes it here, or leaves it to the destination. */
  readonly detached?: boolean;
  /** Whether the fence says otherwise by now. A fence that can't be read has settled nothing. */
  settled(): Promise<boolean>;
}

/** The doubt that a session left, as its own fence tells it. */
export function doubtOf(session: string, fence: Fence | Journal, detached = false): Doubt {
  return {
    session,
    detached,
    settled: async () => {
      try {
        if (fence instanceof Journal) {
          const own = fence.sessions().find((s) => s.session === session && s.role === 'source');
          return own !== undefined && own.verdict !== 'in-doubt';
        }
        const last = (await fence.records(session, 'source')).at(-1);
        return last !== undefined && last.record !== 'intent';
      } catch {
        return false;
      }
    },
  };
}

/** Why a function in doubt can't be migrated. */
export function inDoubtReason(name: string, session: string): Reason {
  return {
    code: 'in-doubt',
    message: `${name} is stopped: session ${session} ended in doubt, and the destination may own it by now`,
    mend: 'ask the destination: towline recover --peer ADDRESS, or recover({ peer, functions })',
  };
}

/** What became of a function that was held in doubt here. */
export interface Settled {
  /** Its UUID. */
  function: string;
  /**
   * - `resumed`: it belongs here and runs again.
   * - `released`: it belongs to the destination; what was left of it here was given back.
   * - `reset`: it does not belong here; what a migration had left in it is gone.
   * - `kept-stopped`: nobody knows yet.
   * - `failed`: it should run, or be released, and could not be; recover this session again by its name.
   */
  action: 'resumed' | 'released' | 'reset' | 'kept-stopped' | 'failed';
  /** Why it failed. */
  why?: string;
}

/** Does with a function what the verdict about its session says. */
export async function settle(fn: MigratableFunction, verdict: Verdict): Promise<Settled> {
  const done = (action: Settled['action'], why?: string): Settled => ({
    function: fn.uuid,
    action,
    ...(why === undefined ? {} : { why }),
  });
  try {
    if (verdict === 'resume-source') {
      // First: a function that runs may wait for its client.
      if (fn.doubt?.detached === true) await fn.resumeExposure?.();
      await fn.channel().setState('running');
      // Tracking that goes on costs the function speed. Where it can't be stopped, the next start says so.
      for (const source of fn.dirtySources()) await source.stop().catch(() => undefined);
      fn.setDoubt?.(undefined);
      return done('resumed');
    }
    if (verdict === 'released') {
      if (fn.doubt?.detached === true) await fn.surrenderExposure?.();
      await fn.release?.();
      fn.setDoubt?.(undefined);
      return done('released');
    }
    return done('kept-stopped');
  } catch (error) {
    return done('failed', unwrapFault(error).message);
  }
}
