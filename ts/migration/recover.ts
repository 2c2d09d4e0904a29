import { withSignal, type WaitOptions } from '../abort.js';
import { native, TowlineError, unwrapFault } from '../errors.js';
import type { MigratableFunction } from '../function/types.js';
import { settle, type Settled } from './doubt.js';
import { connectLink, type Link, type OpenLink } from './link.js';
import { CallerStream } from './session-stream.js';
import type { Journal, JournalSession, Verdict } from './journal.js';

/** How to recover. */
export interface RecoverOptions extends WaitOptions {
  /** The journal of this side. */
  journal: Journal;
  /** Only this session; every one that has something to settle by default. */
  session?: string;
  /** Where the destination answers; needed for sessions in doubt. */
  peer?: string | Link;
  /**
   * The functions that this process holds. Those that a session left in doubt are resumed here where that is the verdict, or released.
   * The guest is not: its CPUs are the caller's.
   */
  functions?: readonly MigratableFunction[];
  /** How long to try to reach the peer, in milliseconds. Default 10000. */
  timeoutMs?: number;
}

/** One session after recovery. */
export interface Recovered {
  session: string;
  role: JournalSession['role'];
  functions: string[];
  verdict: Verdict;
  /** What the destination said, where it was asked. */
  answer: 'committed' | 'refused' | 'unknown' | null;
  /** What to do now, in a sentence. */
  advice: string;
  /** What was done with those of its functions that were held in doubt. */
  settled: Settled[];
}

/** What to do, by verdict. */
export const ADVICE: Readonly<Record<Verdict, string>> = {
  'resume-source': 'the functions belong here: run them',
  'in-doubt': 'keep the functions stopped: the destination has to be asked, or declared dead',
  released: 'the functions belong to the destination: release what is left of them here',
  'run-destination': 'the functions belong here: run them',
  refuse: 'the functions do not belong here: reset or release them',
};

/** Sessions that are over: nothing more can become of them. */
const SETTLED: ReadonlySet<string> = new Set(['released', 'aborted', 'refused', 'declared-dead']);

/**
 * Settles what a crash or a broken link left open: reads the journal, asks the destination where a session is in doubt, and makes
 * the outcome durable. Of functions it runs or releases only those that it is given.
 *
 * @throws TowlineError `ERR_TOWLINE_NOT_FOUND` for a session that is not on record. A peer that can't be reached is no error: the
 * session stays in doubt and says so.
 */
export async function recover(options: RecoverOptions): Promise<Recovered[]> {
  const { journal, session, peer, signal } = options;
  const sessions = journal
    .sessions()
    .filter((s) => (session === undefined ? !SETTLED.has(s.state) : s.session === session));
  if (session !== undefined && sessions.length === 0) {
    throw new TowlineError('ERR_TOWLINE_NOT_FOUND', `there is no session ${session} in ${journal.directory}`);
  }
  const recovered: Recovered[] = [];
  for (const s of sessions) {
    const asks = s.verdict === 'in-doubt' && peer !== undefined;
    const link = asks ? await reach(peer, options.timeoutMs ?? 10_000, signal) : null;
    const settled = native(() => journal.native().recover(s.session, s.role, link?.native ?? null));
    let result: Pick<Recovered, 'verdict' | 'answer'>;
    try {
      result = JSON.parse(await withSignal(settled, signal, () => link?.cancel())) as typeof result;
    } catch (error) {
      // A peer that goes away while it is asked has not answered.
      if (link === null || !unwrapFault(error).code.startsWith('ERR_TOWLINE_LINK')) throw error;
      result = { verdict: 'in-doubt', answer: null };
    } finally {
      link?.end();
    }
    const held = s.role === 'source' ? (options.functions ?? []).filter((fn) => fn.doubt?.session === s.session) : [];
    const done: Settled[] = [];
    for (const fn of held) done.push(await settle(fn, result.verdict));
    // A limit that a migration had put on a function outlives this process where the device outlives it.
    if (s.role === 'source') await liftLimits(options.functions ?? [], s.functions);
    recovered.push({
      session: s.session,
      role: s.role,
      functions: s.functions,
      verdict: result.verdict,
      answer: result.answer,
      advice: ADVICE[result.verdict],
      settled: done,
    });
  }
  return recovered;
}

/** Lifts what limits a migration that died has left, where functions can be limited. What can't be reached is `settle`'s to tell. */
async function liftLimits(functions: readonly MigratableFunction[], uuids: readonly string[]): Promise<void> {
  for (const fn of functions) {
    if (!uuids.includes(fn.uuid) || fn.rateLimit === undefined) continue;
    if ((await fn.cannotRateLimit?.().catch(() => '')) === undefined) await fn.rateLimit(null).catch(() => undefined);
  }
}

/** A link to the peer, or nothing where it can't be reached now. */
async function reach(
  peer: string | Link,
  timeoutMs: number,
  signal: AbortSignal | undefined,
): Promise<OpenLink | null> {
  if (typeof peer !== 'string') return new CallerStream(peer);
  const deadline = performance.now() + timeoutMs;
  for (;;) {
    try {
      return await withSignal(connectLink(peer, timeoutMs), signal);
    } catch (error) {
      const code = error instanceof TowlineError ? error.code : undefined;
      // A wrong address is the caller's mistake; a peer that is not there yet may come.
      if (code === 'ERR_TOWLINE_ABORTED' || code === 'ERR_TOWLINE_ADDRESS' || code === 'ERR_TOWLINE_INVALID_ARGUMENT')
        throw error;
      if (performance.now() > deadline) return null;
      await new Promise((resolve) => {
        setTimeout(resolve, 100);
      });
    }
  }
}
