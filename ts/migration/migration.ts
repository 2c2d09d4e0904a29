import type { MigrationEvent } from './progress.js';
import type { EventQueue } from './progress.js';
import type { MigrationReport } from './report.js';

/**
 * A migration under way, on either side. Iterate it for progress, await {@link Migration.result} for the end; neither needs the
 * other.
 *
 * ```ts
 * const migration = migrate(fn, options);
 * for await (const event of migration) console.log(event.type);
 * const report = await migration.result;
 * ```
 */
export class Migration implements AsyncIterable<MigrationEvent> {
  /** The session's UUID; empty at a destination until the offer is read. */
  readonly session: string;
  /**
   * The report. A migration that was rolled back or is in doubt rejects with `ERR_TOWLINE_ROLLED_BACK` (or the caller's abort) or
   * `ERR_TOWLINE_IN_DOUBT`, whose `details.report` is the report.
   */
  readonly result: Promise<MigrationReport>;
  readonly #events: EventQueue;

  /** @internal */
  constructor(session: string, events: EventQueue, result: Promise<MigrationReport>) {
    this.session = session;
    this.#events = events;
    this.result = result;
    // Whoever only iterates must not be ended by an unhandled rejection; whoever awaits still gets it.
    result.catch(() => undefined);
  }

  /** Progress, for one reader; ends with the migration. */
  [Symbol.asyncIterator](): AsyncIterator<MigrationEvent> {
    return this.#events[Symbol.asyncIterator]();
  }
}
