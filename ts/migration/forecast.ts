import { nativeSync } from '../errors.js';
import { binding } from '../native/api.js';
import type { NativeForecaster } from '../native/binding.js';

/** What a forecast is made from. Rates are in bytes per second, sizes in bytes, times in milliseconds. */
export interface ForecastInput {
  /** Guest memory that the first pass has to send; holes are not among it. */
  memoryBytes: number;
  /** The most that can be dirty at once, where it is known. */
  workingSetBytes?: number;
  /** Measured samples of pages that are written anew. */
  dirtyBytesPerSecond: readonly number[];
  /** Measured samples of what the link carries. */
  bandwidthBytesPerSecond: readonly number[];
  /** Device state that is sent after the stop. */
  stateBytes: number;
  /** What the functions need to save and to load their state. */
  saveMs: number;
  loadMs: number;
  /** Stopping and starting the functions. */
  stopMs: number;
  rttMs: number;
  /** Round trips within the downtime. */
  roundTrips: number;
  /** One journal sync, and how many of them are within the downtime. */
  journalSyncMs: number;
  journalSyncs: number;
  /** What each pass costs besides its bytes. */
  roundOverheadMs: number;
  maxDowntimeMs: number;
  maxRounds: number;
  maxTotalMs: number;
}

/** A downtime in milliseconds: as likely exceeded as not, and exceeded one time in twenty. */
export interface ForecastDowntime {
  p50: number;
  p95: number;
}

/** Why a migration does not converge. */
export type Obstacle = 'no-bandwidth' | 'stop-cost' | 'dirty-rate' | 'round-limit' | 'time-limit';

/** What is expected. `rounds` counts memory passes before the stop, the full one included. */
export interface Forecast {
  totalMs: number;
  downtimeMs: ForecastDowntime;
  rounds: number;
  /** Bytes of memory that are sent, in the downtime too. */
  memoryBytes: number;
  converges: boolean;
  obstacle: Obstacle | null;
  /** What would make it converge, each by itself; `null` where that alone can't. */
  needs: {
    bandwidthBytesPerSecond: number | null;
    dirtyBytesPerSecond: number | null;
    maxDowntimeMs: number | null;
  } | null;
  /** The same in a sentence. */
  why: string;
}

/** One memory pass, as measured. */
export interface ObservedRound {
  bytes: number;
  ms: number;
  /** Bytes of pages that were dirtied between two harvests, which lie `intervalMs` apart. */
  dirtiedBytes: number;
  intervalMs: number;
}

const REASONS: Readonly<Record<Obstacle, string>> = {
  'no-bandwidth': 'the link carries nothing',
  'stop-cost': 'a stop alone takes longer than the downtime limit',
  'dirty-rate': 'memory is written faster than the link carries it',
  'round-limit': 'it would take more passes than allowed',
  'time-limit': 'it would take longer than allowed',
};

const mibPerSecond = (bytes: number) => `${(bytes / (1 << 20)).toFixed(1)} MiB/s`;

function why(f: Omit<Forecast, 'why'>): string {
  if (f.obstacle === null) return `it converges after ${f.rounds} pass(es)`;
  const needs = [
    f.needs?.bandwidthBytesPerSecond ? `a bandwidth of ${mibPerSecond(f.needs.bandwidthBytesPerSecond)}` : undefined,
    f.needs?.dirtyBytesPerSecond ? `a dirty rate below ${mibPerSecond(f.needs.dirtyBytesPerSecond)}` : undefined,
    f.needs?.maxDowntimeMs ? `a downtime limit of ${f.needs.maxDowntimeMs.toFixed(1)} ms` : undefined,
  ].filter((need) => need !== undefined);
  return `${REASONS[f.obstacle]}; ${needs.length > 0 ? `it would take ${needs.join(', or ')}` : 'no single change mends it'}`;
}

/** Forecasts a migration, and corrects itself while it runs (crates/core `forecast`). */
export class Forecaster {
  readonly #native: NativeForecaster;

  constructor(input: ForecastInput) {
    this.#native = nativeSync(() => new (binding().Forecaster)(JSON.stringify(input)));
  }

  /** A memory pass has ended. */
  observeRound(round: ObservedRound): void {
    nativeSync(() => this.#native.observeRound(JSON.stringify(round)));
  }

  /** The size of the device state is known better now. */
  observeStateBytes(bytes: number): void {
    this.#native.observeStateBytes(bytes);
  }

  /** The forecast of the whole, what has passed included. */
  forecast(): Forecast {
    const f = JSON.parse(this.#native.forecast()) as Omit<Forecast, 'why'>;
    return { ...f, why: why(f) };
  }

  /** The downtime if the functions were stopped now. */
  downtimeNow(): ForecastDowntime {
    return JSON.parse(this.#native.downtimeNow()) as ForecastDowntime;
  }
}

/** One forecast from measured figures, before anything is sent. */
export function forecast(input: ForecastInput): Forecast {
  return new Forecaster(input).forecast();
}
