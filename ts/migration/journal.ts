import { mkdirSync } from 'node:fs';
import { nativeSync, TowlineError } from '../errors.js';
import { binding } from '../native/api.js';
import type { FenceRecord, Role } from './fence.js';
import type { NativeJournal } from '../native/binding.js';

/**
 * What the records of one side of a session mean.
 *
 * - `resume-source`: the source owns the functions and may run them.
 * - `in-doubt`: source: stopped and fenced until the destination answers, or is declared dead.
 * - `released`: source: the destination owns them.
 * - `run-destination`: destination: it owns them.
 * - `refuse`: destination: it does not own them and never will by this session.
 */
export type Verdict = 'resume-source' | 'in-doubt' | 'released' | 'run-destination' | 'refuse';

/** One session as a journal knows it. */
export interface JournalSession {
  session: string;
  role: Role;
  functions: string[];
  /** Decimal. */
  epoch: string;
  /** The last record; `damaged` where the file can't be believed: the session is in doubt then, and a person decides. */
  state: FenceRecord['record'] | 'unknown' | 'damaged';
  verdict: Verdict;
}

/**
 * The default fence: a directory with one file a session, appended and fsync'd. One process owns it at a time.
 */
export class Journal {
  readonly directory: string;
  #native: NativeJournal | undefined;

  /**
   * Opens or makes `directory` (mode 0700).
   *
   * @throws TowlineError `ERR_TOWLINE_JOURNAL` where it is not writable, `ERR_TOWLINE_JOURNAL_OWNED` where another process owns it.
   */
  constructor(directory: string) {
    this.directory = directory;
    mkdirSync(directory, { recursive: true, mode: 0o700 });
    this.#native = nativeSync(() => binding().openJournal(directory));
  }

  /** Every session on record. */
  sessions(): JournalSession[] {
    return JSON.parse(nativeSync(() => this.native().sessions())) as JournalSession[];
  }

  /**
   * Frees the source of a session in doubt without an answer: only for a destination that will never run again. It is logged in the journal.
   */
  declareDestinationDead(session: string, reason: string): void {
    nativeSync(() => this.native().declareDestinationDead(session, reason));
  }

  /** The native object, for the rest of towline. */
  native(): NativeJournal {
    if (!this.#native) throw new TowlineError('ERR_TOWLINE_CLOSED', 'this journal is closed');
    return this.#native;
  }

  /** Lets another process own it. Idempotent. */
  close(): void {
    this.#native?.close();
    this.#native = undefined;
  }

  /** As {@link Journal.close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}
