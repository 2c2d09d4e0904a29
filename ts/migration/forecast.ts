import { nativeSync } from '../errors.js';
import { binding } from '../native/api.js';
import type { NativeForecaster } from '../native/binding.js';

/** What a forecast is made from. Rates are in bytes per second, sizes in bytes, times in milliseconds. */
export interface ForecastInput {
  /** Guest memory that the first pass has to send; holes are not among it. */
  memoryBytes: number;
  /** The most that can be dirty at once, where it is known. */
  workingSetBytes?: number;
  /** Measured samples of pages that are written anew, by all but devices. */
  dirtyBytesPerSecond: readonly number[];
  /** Pages that all but devices write all the time, beside these: `hotBytes` and `hotBytesPerSecond` of it. */
  hot?: DirtyWriter;
  /** Measured samples of pages that devices write anew, on top of the others. */
  deviceDirtyBytesPerSecond?: readonly number[];
  /** The most that devices can have dirty at once, where it is known. */
  deviceWorkingSetBytes?: number;
  /** Pages that devices write all the time. */
  deviceHot?: DirtyWriter;
  /** Measured samples of what the link carries. */
  bandwidthBytesPerSecond: readonly number[];
  /** Device state that is sent after the stop. */
  stateBytes: number;
  /** What the functions need to save and to load their state. */
  saveMs: number;
  loadMs: number;
  /** Stopping and starting the functions, and what the caller has beside them: samples. None where nothing is known. */
  stopMs: readonly number[];
  rttMs: number;
  /** Round trips within the downtime. */
  roundTrips: number;
  /** One journal sync, and how many of them are within the downtime. */
  journalSyncMs: number;
  journalSyncs: number;
  /** What each pass costs besides its bytes. */
  roundOverheadMs: number;
  /** What had passed when the first pass began; it counts in the total. Default 0. */
  elapsedMs?: number;
  maxDowntimeMs: number;
  maxRounds: number;
  maxTotalMs: number;
}

/** Distinct bytes of pages that were dirtied in a time. */
export interface Count {
  ms: number;
  bytes: number;
}

/** How somebody writes: a stream, over all of memory or a working set, and a few pages all the time. Rates are in bytes of pages a second. */
export interface DirtyWriter {
  bytesPerSecond: number;
  /** What the stream goes over again and again; `null` where nothing tells. */
  workingSetBytes: number | null;
  /** Bytes of pages that are written all the time. */
  hotBytes: number;
  hotBytesPerSecond: number;
}

/**
 * What would make it converge, each by itself with everything else as it is; `null` where that alone can't. With a quarter of headroom: the
 * figures that it is made from vary.
 */
export interface ForecastNeeds {
  /** At least this bandwidth. */
  bandwidthBytesPerSecond: number | null;
  /** At most this much dirtied by all together. */
  dirtyBytesPerSecond: number | null;
  /** At least this downtime limit. */
  maxDowntimeMs: number | null;
  /** vCPUs throttled by this, 1 to 99. */
  throttlePercent: number | null;
  /** At most this much dirtied by devices. */
  deviceDirtyBytesPerSecond: number | null;
}

/**
 * A downtime in milliseconds: as likely exceeded as not, and exceeded one time in twenty. `p95` is the limit at least where the stop may come
 * rounds earlier than expected, as nothing is known of how much memory is written over and over.
 */
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
  /** What it would take; `null` where it converges. */
  needs: ForecastNeeds | null;
  /** The same in a sentence. */
  why: string;
}

/** One memory pass, as measured. */
export interface ObservedRound {
  bytes: number;
  ms: number;
  /** Bytes of pages that were dirtied between two harvests, which lie `intervalMs` apart. */
  dirtiedBytes: number;
  /** How many of these were dirtied by devices. Default 0. */
  deviceDirtiedBytes?: number;
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
    f.needs?.throttlePercent ? `vCPUs throttled by ${f.needs.throttlePercent} %` : undefined,
    f.needs?.deviceDirtyBytesPerSecond
      ? `devices limited to ${mibPerSecond(f.needs.deviceDirtyBytesPerSecond)}`
      : undefined,
  ].filter((need) => need !== undefined);
  return `${REASONS[f.obstacle]}; ${needs.length > 0 ? `it would take ${needs.join(', or ')}` : 'no single change mends it'}`;
}

/** So much more than the model asks for. */
const HEADROOM = 1.25;

function withHeadroom(needs: ForecastNeeds): ForecastNeeds {
  const more = (value: number | null): number | null => (value === null ? null : value * HEADROOM);
  const less = (value: number | null): number | null => (value === null ? null : value / HEADROOM);
  const percent =
    needs.throttlePercent === null ? null : Math.ceil(100 * (1 - (1 - needs.throttlePercent / 100) / HEADROOM));
  return {
    bandwidthBytesPerSecond: more(needs.bandwidthBytesPerSecond),
    dirtyBytesPerSecond: less(needs.dirtyBytesPerSecond),
    maxDowntimeMs: more(needs.maxDowntimeMs),
    throttlePercent: percent === null || percent > 99 ? null : Math.max(1, percent),
    deviceDirtyBytesPerSecond: less(needs.deviceDirtyBytesPerSecond),
  };
}

function parse(json: string): Forecast {
  const raw = JSON.parse(json) as Omit<Forecast, 'why'>;
  const f = { ...raw, needs: raw.needs === null ? null : withHeadroom(raw.needs) };
  return { ...f, why: why(f) };
}

/** The writer that counts of different lengths show, ascending, at one pace (crates/core `forecast::Writer`). */
export function dirtyWriter(counts: readonly Count[]): DirtyWriter {
  return JSON.parse(nativeSync(() => binding().dirtyWriter(JSON.stringify(counts)))) as DirtyWriter;
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

  /** So many bytes are to be sent next. */
  observePending(bytes: number): void {
    this.#native.observePending(bytes);
  }

  /** The size of the device state is known better now. */
  observeStateBytes(bytes: number): void {
    this.#native.observeStateBytes(bytes);
  }

  /** The forecast of the whole, what has passed included. */
  forecast(): Forecast {
    return parse(this.#native.forecast());
  }

  /** The forecast of another attempt from the start, by what was learned in this one. */
  forecastAgain(): Forecast {
    return parse(this.#native.forecastAgain());
  }

  /** They were measured by themselves for `ms`: they are these from now on. */
  observeWriters(writers: { others: DirtyWriter; devices: DirtyWriter; ms: number }): void {
    nativeSync(() => this.#native.observeWriters(JSON.stringify(writers)));
  }

  /** The same writers, at the pace that was counted. */
  observePace(counts: { others: Count; devices: Count }): void {
    nativeSync(() => this.#native.observePace(JSON.stringify(counts)));
  }

  /** The writers as they are believed to be. */
  writers(): { others: DirtyWriter; devices: DirtyWriter } {
    return JSON.parse(this.#native.writers()) as { others: DirtyWriter; devices: DirtyWriter };
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
