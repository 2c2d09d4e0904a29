/**
 * Makes a migration converge by the means that its policy allows, as far as it takes: watches the rounds, samples who dirties how much, takes a
 * step, samples what it did, and takes everything back at the end, however that is.
 */
import { native, TowlineError, unwrapFault } from '../errors.js';
import type { MigratableFunction } from '../function/types.js';
import type { NativeSourceSession } from '../native/binding.js';
import { dirtyWriter, type Count, type Forecast, type Forecaster } from './forecast.js';
import { hook } from './hook.js';
import {
  nextStep,
  NO_MEANS,
  type CompleteConvergePolicy,
  type DirtyRates,
  type Means,
  type MeansState,
} from './means.js';
import { decide, type CompletePolicy, type SoFar } from './policy.js';
import type { EventQueue } from './progress.js';
import type { DirtySample, RoundStats } from './steps.js';
import { ratesOf, type SourceNames } from './writers.js';

/** How long a sample takes, in milliseconds. */
const SAMPLE_MS = 50;
/** A round helps where a stop after it would take less than this share of the best before. */
const PROGRESS = 0.9;

/** One step that was taken. Rates in bytes a second, measured right before it and right after. */
export interface ConvergeStep {
  /** After this many passes. */
  readonly round: number;
  readonly means: Means;
  /** What vCPUs are throttled by from then on; 0 where they are not. */
  readonly throttlePercent: number;
  /** What the functions are limited to together; `null` where they are not. */
  readonly deviceBytesPerSecond: number | null;
  readonly why: string;
  readonly before: DirtyRates;
  readonly after: DirtyRates;
}

/** What was done so that it converges. */
export interface ConvergeReport {
  readonly steps: readonly ConvergeStep[];
  /** Means of the policy that could not be used, each with why. */
  readonly unavailable: readonly { readonly means: Means; readonly why: string }[];
  /** What could not be taken back; empty where all was. */
  readonly notLifted: readonly string[];
}

/** What {@link Converge} works with. */
export interface ConvergeInput {
  readonly session: string;
  readonly functions: readonly MigratableFunction[];
  readonly policy: CompleteConvergePolicy;
  readonly throttle: ((percent: number) => void | Promise<void>) | undefined;
  readonly names: SourceNames;
  readonly events: EventQueue;
}

/** See the file's comment. */
export class Converge {
  readonly #steps: ConvergeStep[] = [];
  readonly #unavailable: { means: Means; why: string }[] = [];
  readonly #notLifted: string[] = [];
  readonly #limited = new Set<MigratableFunction>();
  #usable: Means[] | undefined;
  #state: MeansState = NO_MEANS;
  /** Rounds in a row that did not help. */
  #stalled = 0;
  #best = Infinity;
  #throttled = false;

  constructor(private readonly input: ConvergeInput) {}

  /** What was done; `undefined` where the policy allows nothing. */
  report(): ConvergeReport | undefined {
    if (this.input.policy.means.length === 0) return undefined;
    return { steps: this.#steps, unavailable: this.#unavailable, notLifted: this.#notLifted };
  }

  /** What is in force. */
  get state(): MeansState {
    return this.#state;
  }

  /** A round after which it goes on: samples where the rounds don't help, and takes a step where one may be taken. */
  async afterRound(
    session: NativeSourceSession,
    forecaster: Forecaster,
    round: { number: number; stats: RoundStats; intervalMs: number; downtimeMs: number; forecast: Forecast },
  ): Promise<{ sampled: boolean }> {
    const progress = round.downtimeMs < PROGRESS * this.#best;
    this.#best = Math.min(this.#best, round.downtimeMs);
    this.#stalled = progress && round.forecast.converges ? 0 : this.#stalled + 1;
    if (this.#stalled < this.input.policy.patienceRounds) return { sampled: false };
    this.#stalled = 0;
    const before = await this.#sample(session);
    this.#learn(forecaster, before, round);
    const usable = (this.#usable ??= await this.#findUsable());
    const rates = ratesOf(this.input.names.counts(before));
    const { needs } = forecaster.forecast();
    const step = nextStep(this.input.policy, usable, this.#state, rates, needs);
    if (step === undefined) return { sampled: true };
    if (step.throttlePercent !== undefined) await this.#throttle(step.throttlePercent, step.why);
    if (step.deviceBytesPerSecond !== undefined) await this.#limit(step.deviceBytesPerSecond, before, step.why);
    const after = await this.#sample(session);
    const counts = this.input.names.counts(after);
    forecaster.observePace({ others: whole(counts.others), devices: whole(counts.devices) });
    const measured = { before: rates, after: ratesOf(counts), why: step.why, round: round.number, ...this.#state };
    if (step.throttlePercent !== undefined) this.#steps.push({ means: 'throttle', ...measured });
    if (step.deviceBytesPerSecond !== undefined) this.#steps.push({ means: 'device-limit', ...measured });
    this.#best = Infinity;
    return { sampled: true };
  }

  /** Takes everything back. What fails is in the report; nothing is thrown. Idempotent. */
  async lift(): Promise<void> {
    const attempt = async (what: string, work: () => void | Promise<void>): Promise<void> => {
      try {
        await work();
      } catch (error) {
        this.#notLifted.push(`${what}: ${unwrapFault(error).message}`);
      }
    };
    const why = 'the migration ends';
    if (this.#throttled) {
      this.#throttled = false;
      await attempt('the throttle', () => this.input.throttle?.(0));
      this.#tell({ action: 'throttle', percent: 0, why });
    }
    for (const fn of this.#limited) {
      await attempt(`the limit of ${fn.name}`, () => fn.rateLimit?.(null));
      this.#tell({ action: 'rate-limit', function: fn.uuid, bytesPerSecond: null, why });
    }
    this.#limited.clear();
    this.#state = NO_MEANS;
  }

  #tell(
    event:
      | { action: 'throttle'; percent: number; why: string }
      | { action: 'rate-limit'; function: string; bytesPerSecond: number | null; why: string },
  ): void {
    this.input.events.push({ type: 'converge', session: this.input.session, ...event });
  }

  async #sample(session: NativeSourceSession): Promise<DirtySample> {
    return JSON.parse(await native(() => session.sampleDirty(SAMPLE_MS))) as DirtySample;
  }

  /** The sample and the last round, which was at the same pace, tell of times of different lengths. */
  #learn(forecaster: Forecaster, sample: DirtySample, round: { stats: RoundStats; intervalMs: number }): void {
    const { names } = this.input;
    const counts = names.counts(sample);
    const bytes = round.stats.dirtyPagesAfter * round.stats.pageSizeBytes;
    const share = names.deviceShare(round.stats.dirtyBySource);
    const of = (list: readonly Count[], part: number) =>
      dirtyWriter([...list, { ms: round.intervalMs, bytes: bytes * part }].sort((a, b) => a.ms - b.ms));
    forecaster.observeWriters({
      others: of(counts.others, 1 - share),
      devices: of(counts.devices, share),
      ms: sample.ms,
    });
  }

  async #findUsable(): Promise<Means[]> {
    const usable: Means[] = [];
    for (const means of this.input.policy.means) {
      const why = means === 'throttle' ? this.#noThrottle() : await this.#noLimit();
      if (why === undefined) usable.push(means);
      else this.#unavailable.push({ means, why });
    }
    return usable;
  }

  #noThrottle(): string | undefined {
    return this.input.throttle === undefined ? 'there is no throttle hook' : undefined;
  }

  /** A function that can't be limited would go on as before, whatever the others are limited to. */
  async #noLimit(): Promise<string | undefined> {
    for (const fn of this.input.functions) {
      if (fn.rateLimit === undefined) return `${fn.name} can't be limited`;
      const why = await fn.cannotRateLimit?.();
      if (why !== undefined) return `${fn.name} can't be limited: ${why}`;
    }
    return undefined;
  }

  async #throttle(percent: number, why: string): Promise<void> {
    const { throttle } = this.input;
    if (throttle === undefined) return;
    // Whatever it does before it fails is taken back as well.
    this.#throttled = true;
    await hook('throttle', () => throttle(percent));
    this.#state = { ...this.#state, throttlePercent: percent };
    this.#tell({ action: 'throttle', percent, why });
  }

  /** Shared out by what each function dirties; who dirties nothing now gets an equal part of a twentieth. */
  async #limit(total: number, sample: DirtySample, why: string): Promise<void> {
    const { functions, names } = this.input;
    const by = names.byFunction(sample);
    const all = functions.reduce((sum, fn) => sum + (by.get(fn.uuid) ?? 0), 0);
    for (const fn of functions) {
      const equal = 1 / functions.length;
      const share = all > 0 ? 0.95 * ((by.get(fn.uuid) ?? 0) / all) + 0.05 * equal : equal;
      const bytesPerSecond = Math.max(1, Math.floor(total * share));
      this.#limited.add(fn);
      await fn.rateLimit?.({ bytesPerSecond: BigInt(bytesPerSecond) });
      this.#tell({ action: 'rate-limit', function: fn.uuid, bytesPerSecond, why });
    }
    this.#state = { ...this.#state, deviceBytesPerSecond: total };
  }
}

/** The longest of the counts. */
function whole(counts: readonly Count[]): Count {
  return counts.at(-1) ?? { ms: 0, bytes: 0 };
}

/** Why it is given up, with what it would take. */
export function notConverging(
  policy: CompletePolicy,
  soFar: SoFar,
  forecaster: Forecaster,
  report: ConvergeReport | undefined,
): TowlineError {
  const forecast = forecaster.forecast();
  // What an attempt from the start needs: this one has used up its rounds.
  const again = forecaster.forecastAgain();
  const { why } = decide(policy, soFar, again.needs === null ? forecast : again);
  const used = report !== undefined && report.steps.length > 0 ? `; ${usedWords(report)}` : '';
  const needs = again.needs ?? forecast.needs;
  return new TowlineError('ERR_TOWLINE_NOT_CONVERGING', `${why}${used}`, {
    details: { forecast, needs, ...(report === undefined ? {} : { converge: report }) },
  });
}

function usedWords({ steps }: ConvergeReport): string {
  const last = steps.at(-1);
  const parts = [
    last && last.throttlePercent > 0 ? `vCPUs throttled by ${last.throttlePercent} %` : undefined,
    last && last.deviceBytesPerSecond !== null
      ? `devices limited to ${(last.deviceBytesPerSecond / (1 << 20)).toFixed(1)} MiB/s`
      : undefined,
  ].filter((part) => part !== undefined);
  return `that was with ${parts.join(' and ')}`;
}
