import { nativeSync } from '../errors.js';
import { binding } from '../native/api.js';

/** What a forecast is made from. Rates are in bytes per second, sizes in bytes, times in milliseconds. */
export interface ForecastInput {
  /** Bytes of guest memory that the first pass has to send; holes are not among them. */
  memoryBytes: number;
  /** Bytes of pages that are written anew per second. */
  dirtyBytesPerSecond: number;
  /** The most that can be dirty at once (the working set); `memoryBytes` where it isn't known. */
  workingSetBytes: number;
  /** What the link carries. */
  bandwidthBytesPerSecond: number;
  /** Device state that is sent after the stop. */
  stateBytes: number;
  /** Time that the functions need to save and to load their state. */
  saveMs: number;
  loadMs: number;
  /** Round trip of the link. */
  rttMs: number;
  /** One journal sync. */
  journalSyncMs: number;
  maxDowntimeMs: number;
  maxRounds: number;
  maxTotalMs: number;
}

/** What is expected. `rounds` counts memory passes before the stop, the full one included. */
export interface Forecast {
  totalMs: number;
  downtimeMs: { p50: number; p95: number };
  rounds: number;
  converges: boolean;
  /** Why it converges or not, in a sentence. */
  why: string;
  /** What it would take, where it does not converge: any one of these. */
  needs?: { bandwidthBytesPerSecond?: number; dirtyBytesPerSecond?: number; maxDowntimeMs?: number };
}

/** Forecasts a migration from measured figures (crates/core `forecast`). */
export function forecast(input: ForecastInput): Forecast {
  return JSON.parse(nativeSync(() => binding().forecast(JSON.stringify(input)))) as Forecast;
}
