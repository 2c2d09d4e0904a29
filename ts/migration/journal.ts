import { mkdirSync } from 'node:fs';
import { nativeSync, TowlineError } from '../errors.js';
import { binding } from '../native/api.js';
import type { NativeJournal } from '../native/binding.js';

/** One session as a journal knows it. */
export interface JournalSession {
  session: string;
  role: 'source' | 'destination';
  functions: string[];
  /** Decimal. */
  epoch: string;
  /** The last record: what is true of the session now. */
  state: 'open' | 'intent' | 'committed' | 'refused' | 'released' | 'aborted' | 'declared-dead';
  /** Whether `recover` has something to settle. */
  open: boolean;
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
   * @throws TowlineError `ERR_TOWLINE_JOURNAL` where it is not writable, `ERR_TOWLINE_BUSY` where another process owns it.
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

  [Symbol.dispose](): void {
    this.close();
  }
}

