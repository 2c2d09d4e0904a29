/**
 * What a VMM that owns its migration's loop is told, so that it decides by itself: who dirties how much, what is to be expected, and what would
 * make it converge.
 */
import { TowlineError } from '../errors.js';
import { dirtyWriter, Forecaster, type Forecast } from './forecast.js';
import {
  completeConverge,
  nextStep,
  NO_MEANS,
  type ConvergePolicy,
  type DirtyRates,
  type MeansState,
} from './means.js';
import type { DirtySample } from './steps.js';
import { ratesOf, type SourceNames } from './writers.js';

/** What one sample showed. Rates in bytes of pages a second. */
export interface SessionSample extends DirtyRates {
  /** How long it took, in milliseconds. */
  readonly ms: number;
  /** By who told of them: `device:UUID`, `marked`, or the name of a source. */
  readonly bySource: Readonly<Record<string, number>>;
}

/** What only the caller knows, whose connection it is. */
export interface SessionLimits {
  /** What its connection carries, in bytes a second; samples, where it varies. */
  bandwidthBytesPerSecond: number | readonly number[];
  /** The most downtime that is acceptable, in milliseconds. */
  maxDowntimeMs: number;
  /** The most rounds from now on. Default 30. */
  maxRounds?: number;
  /** The most time from now on, in milliseconds. Default 600000. */
  maxTotalMs?: number;
  /** Device state and sections that are moved in the downtime, in bytes. Default 0. */
  stateBytes?: number;
  /** What the downtime holds besides bytes, in milliseconds: stopping, starting, the commit; samples, where it varies. Default 0. */
  stopMs?: number | readonly number[];
}

/** What may be done, and what is in force already; for {@link MeansState} see {@link SessionAdvice}. */
export interface SessionMeans extends ConvergePolicy {
  /** What the caller has put in force. Default: nothing. */
  inForce?: Partial<MeansState>;
}

/**
 * What to do now.
 *
 * - `stop`: a stop now fits the limit.
 * - `continue`: it is going to.
 * - `slow-down`: throttle the vCPUs by `throttlePercent`, limit the functions to `deviceBytesPerSecond` together, or both.
 * - `give-up`: nothing that may be done is enough; `forecast.needs` says what it would take.
 */
export type SessionAdvice =
  | { action: 'stop' | 'continue' | 'give-up'; why: string; forecast: Forecast }
  | {
      action: 'slow-down';
      throttlePercent?: number;
      deviceBytesPerSecond?: number;
      why: string;
      forecast: Forecast;
    };

/** Remembers what a session was told of its guest's writes. */
export class SessionAdvisor {
  #sample: DirtySample | undefined;
  #pendingBytes = 0;

  constructor(
    private readonly names: SourceNames,
    private readonly memoryBytes: () => number,
  ) {}

  /** A harvest left so many bytes of dirty pages. */
  pending(bytes: number): void {
    this.#pendingBytes = bytes;
  }

  sampled(sample: DirtySample): SessionSample {
    this.#sample = sample;
    const bySource: Record<string, number> = {};
    for (const { source, windowBytes } of sample.sources) {
      const name = this.names.of(source);
      bySource[name] = (bySource[name] ?? 0) + (windowBytes * 1000) / Math.max(1, sample.ms);
    }
    return { ms: sample.ms, ...ratesOf(this.names.counts(sample)), bySource };
  }

  #forecaster(limits: SessionLimits): Forecaster {
    if (this.#sample === undefined) {
      throw new TowlineError('ERR_TOWLINE_MISUSE', 'a forecast needs a sample of the writes first: sampleDirty');
    }
    const { maxDowntimeMs, maxRounds = 30, maxTotalMs = 600_000 } = limits;
    const counts = this.names.counts(this.#sample);
    const forecaster = new Forecaster({
      memoryBytes: this.memoryBytes(),
      dirtyBytesPerSecond: [],
      bandwidthBytesPerSecond: [limits.bandwidthBytesPerSecond].flat(),
      stateBytes: limits.stateBytes ?? 0,
      saveMs: 0,
      loadMs: 0,
      stopMs: [limits.stopMs ?? []].flat(),
      rttMs: 0,
      roundTrips: 0,
      journalSyncMs: 0,
      journalSyncs: 0,
      roundOverheadMs: 0,
      maxDowntimeMs,
      maxRounds,
      maxTotalMs,
    });
    const writers = { others: dirtyWriter(counts.others), devices: dirtyWriter(counts.devices), ms: this.#sample.ms };
    forecaster.observeWriters(writers);
    forecaster.observePending(this.#pendingBytes);
    return forecaster;
  }

  forecast(limits: SessionLimits): Forecast {
    return this.#forecaster(limits).forecast();
  }

  advice(limits: SessionLimits, may: SessionMeans = {}): SessionAdvice {
    const forecaster = this.#forecaster(limits);
    const forecast = forecaster.forecast();
    const { p95 } = forecaster.downtimeNow();
    const expected = `a stop now would take ${p95.toFixed(1)} ms, the limit is ${limits.maxDowntimeMs} ms`;
    if (p95 <= limits.maxDowntimeMs) return { action: 'stop', why: expected, forecast };
    if (forecast.converges) return { action: 'continue', why: `${expected}; ${forecast.why}`, forecast };
    const policy = completeConverge(may);
    const rates = ratesOf(this.names.counts(this.#sample as DirtySample));
    const step = nextStep(policy, policy.means, { ...NO_MEANS, ...may.inForce }, rates, forecast.needs);
    if (step === undefined) return { action: 'give-up', why: `${expected}; ${forecast.why}`, forecast };
    return { action: 'slow-down', ...step, forecast };
  }
}
