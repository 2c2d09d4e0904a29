import { functionList, type Functions } from './options.js';
import { DestinationSession } from './session-destination.js';
import type { DestinationSessionOptions, SourceSessionOptions } from './session-options.js';
import { SourceSession } from './session-source.js';

/**
 * A migration of functions inside of the caller's own migration of a guest: a VMM that moves its memory by itself and owns its connection.
 * The same engine and the same handoff as `migrate` and `receive`, no hidden transport.
 *
 * Source: `offer`, `startTracking`, then `harvest`, `dirtyRuns` and `precopyState` as often as wished; vCPUs stop; `stop`, the last
 * `dirtyRuns`, `saveState`, `prepare`. Destination: `readOffer`, `answer`, `receive`, `prepared`. Then one of:
 *
 * - `commit: 'session'`: the source's `commit` and `waitRunning` meet the destination's `waitCommit`, `resume` and `running`.
 * - `commit: 'caller'`: the source's `intent`, then the caller's own message, then the destination's `commit(epoch)`, then the caller's
 *   own answer. The only way over a one-way stream.
 *
 * And `release` at the source. An `abort` before the intent lets the functions run at the source; a process that dies in between is
 * settled by `recover`.
 */
export const MigrationSession = {
  /**
   * The side that gives the functions away. Touches nothing yet.
   *
   * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` for `commit: 'session'` over a one-way stream; `ERR_TOWLINE_CONFIG` for functions whose
   * state can't be read.
   */
  source(functions: Functions, options: SourceSessionOptions): SourceSession {
    return new SourceSession(functionList(functions), options);
  },

  /** The side that takes them: provisioned alike, and not running anything. Touches nothing yet. */
  destination(functions: Functions, options: DestinationSessionOptions): DestinationSession {
    return new DestinationSession(functionList(functions), options);
  },
} as const;
