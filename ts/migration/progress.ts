import { channel } from 'node:diagnostics_channel';
import type { Forecast } from './forecast.js';
import type { Phase } from './phases.js';
import type { MigrationReport } from './report.js';
import type { Mismatch } from './offer.js';
import type { DirtyBySource } from './writers.js';

/**
 * What a migration tells while it is under way; `checked` is how far a checkpoint was read before anything is touched. A discriminated union over `type`; new members may be added in minor
 * versions, so switch with a default.
 */
export type MigrationEvent =
  | { type: 'phase'; session: string; phase: Phase }
  | { type: 'mismatch'; session: string; mismatches: Mismatch[] }
  | { type: 'forecast'; session: string; forecast: Forecast; frozen: boolean }
  | { type: 'pages'; session: string; round: number; sentPages: number; totalPages: number; wireBytes: number }
  | {
      type: 'round';
      session: string;
      round: number;
      pages: number;
      wireBytes: number;
      ms: number;
      dirtyPagesAfter: number;
      /**
       * Pages that became dirty since the round before, by who told of them: `device:UUID`, `marked`, or the name of a source. What several
       * told of counts for the first.
       */
      dirtyBySource: DirtyBySource;
    }
  | {
      type: 'converge';
      session: string;
      action: 'continue' | 'stop' | 'give-up';
      why: string;
    }
  /** vCPUs are throttled by so many percent from now on; 0: not any more. */
  | { type: 'converge'; session: string; action: 'throttle'; percent: number; why: string }
  /** Its controlling function limits a function to so many bytes a second from now on; `null`: not any more. */
  | {
      type: 'converge';
      session: string;
      action: 'rate-limit';
      function: string;
      bytesPerSecond: number | null;
      why: string;
    }
  | { type: 'checked'; session: string; bytes: number; totalBytes: number }
  | { type: 'in-doubt'; session: string; why: string }
  | { type: 'report'; session: string; report: MigrationReport };

/** `node:diagnostics_channel` on which every event of every migration in this process is published as well. */
export const DIAGNOSTICS_CHANNEL = 'towline:migration';

const diagnostics = channel(DIAGNOSTICS_CHANNEL);

/** How many events wait for a slow reader; past it the oldest `pages` events are dropped, never another kind. */
const MOST_WAITING = 1024;

/** Hands events to one reader, in order. */
export class EventQueue implements AsyncIterable<MigrationEvent> {
  readonly #waiting: MigrationEvent[] = [];
  #wake: (() => void) | undefined;
  #ended = false;

  /** @param isQuiet of what nobody who watches migrations is to hear. */
  constructor(private readonly isQuiet = false) {}

  /** Adds an event and publishes it. */
  push(event: MigrationEvent): void {
    if (!this.isQuiet && diagnostics.hasSubscribers) diagnostics.publish(event);
    if (this.#ended) return;
    if (this.#waiting.length >= MOST_WAITING) {
      const oldest = this.#waiting.findIndex((e) => e.type === 'pages');
      if (oldest >= 0) this.#waiting.splice(oldest, 1);
    }
    this.#waiting.push(event);
    this.#wake?.();
  }

  /** No more events come. */
  end(): void {
    this.#ended = true;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<MigrationEvent, void, void> {
    for (;;) {
      const event = this.#waiting.shift();
      if (event !== undefined) {
        yield event;
        continue;
      }
      if (this.#ended) return;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      this.#wake = undefined;
    }
  }
}
