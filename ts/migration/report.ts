import type { ConvergeReport } from './converge.js';
import type { CheckpointMode } from './checkpoint-options.js';
import type { Forecast } from './forecast.js';
import type { Mismatch } from './offer.js';
import type { PhaseTime } from './phases.js';
import type { ReleaseFailure } from './release.js';

/**
 * How a migration ended.
 *
 * - `committed`: the destination owns the functions and runs them; at the source of a checkpoint: the file owns them.
 * - `copied`: a copy of them is in the file, and they go on here.
 * - `rolled-back`: nothing moved; the source runs on.
 * - `in-doubt`: the link broke after COMMIT-INTENT: the source is fenced and stopped until `recover` settles it.
 * - `dry-run`: it ended after the forecast, as asked.
 */
export type Outcome = 'committed' | 'copied' | 'rolled-back' | 'in-doubt' | 'dry-run';

/** What a migration was, at its end. All times in milliseconds. */
export interface MigrationReport {
  session: string;
  role: 'source' | 'destination';
  outcome: Outcome;
  /** Why it was rolled back or is in doubt. */
  why?: string;
  epoch: string;
  functions: { uuid: string; name: string }[];
  mismatches: Mismatch[];
  /**
   * From the instant the function may no longer execute at the source to the instant that the source learns it may at the
   * destination, the hold left out: an upper bound, which holds the time of that message. 0 where it never stopped; after a
   * rollback, and of a copy, until it ran again at the source. Of a checkpoint that moves, until the file was durable.
   */
  downtimeMs: number;
  totalMs: number;
  /**
   * What of the downtime was no sending of pages and state, by the bandwidth of the passes before: for `policy.stopMs` of later migrations.
   * Missing at the destination, and where it did not move or no page was sent.
   */
  stopMs?: number;
  /** Memory passes before the stop, the full one included. */
  rounds: number;
  /** How guest memory went: its pages were sent, its files were passed, or the session had none. */
  memoryTransfer: 'copy' | 'pass' | 'none';
  /** What was sent. Of memory nothing where it was passed. */
  bytes: { memory: number; deviceState: number; wire: number };
  pages: { sent: number; zero: number; hole: number };
  phases: PhaseTime[];
  /** The one frozen before pre-copy; missing where it ended earlier. */
  forecast?: Forecast;
  /** What was done so that it converges; missing where the policy allowed nothing. */
  converge?: ConvergeReport;
  /** The file, where it was a checkpoint; its bytes are 0 as long as it is none. */
  checkpoint?: { path: string; mode: CheckpointMode; bytes: number };
  /** Functions that the destination runs, and that the source could not give back; missing where there is none. */
  releaseFailures?: ReleaseFailure[];
}

/** The report of a migration that has not begun. */
export function emptyReport(
  role: MigrationReport['role'],
  session: string,
  functions: readonly { uuid: string; name: string }[],
): MigrationReport {
  return {
    session,
    role,
    outcome: 'rolled-back',
    epoch: '0',
    functions: functions.map((f) => ({ uuid: f.uuid, name: f.name })),
    mismatches: [],
    downtimeMs: 0,
    totalMs: 0,
    rounds: 0,
    memoryTransfer: 'none',
    bytes: { memory: 0, deviceState: 0, wire: 0 },
    pages: { sent: 0, zero: 0, hole: 0 },
    phases: [],
  };
}
