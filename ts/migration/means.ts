/**
 * Which means to take next so that a migration converges. Only arithmetic: what is decided here is carried out in converge.ts.
 */
import { TowlineError } from '../errors.js';
import type { ForecastNeeds } from './forecast.js';

/**
 * A means to make a migration converge: `throttle` slows the vCPUs down by the caller's hook, `device-limit` has the controlling function
 * limit what the functions do.
 */
export type Means = 'throttle' | 'device-limit';

/** The means, for checking a word from outside. */
export const means = ['throttle', 'device-limit'] as const satisfies readonly Means[];

/** What may be done to a guest that writes faster than the link carries, and how far. */
export interface ConvergePolicy {
  /** Which means may be used, in this order. Default: `throttle` where there is a `throttle` hook, nothing otherwise. */
  means?: readonly Means[];
  /** So many rounds in a row that don't help are waited for before each step. Default 2. */
  patienceRounds?: number;
  /** By how many percent vCPUs are throttled at first (default 20), by how many more each time (10), and at most (99). */
  throttle?: { fromPercent?: number; stepPercent?: number; maxPercent?: number };
  /** The least that all functions together are limited to, in bytes a second. Default 1 MiB. */
  deviceLimit?: { leastBytesPerSecond?: number };
}

/** A policy with nothing left out. */
export interface CompleteConvergePolicy {
  readonly means: readonly Means[];
  readonly patienceRounds: number;
  readonly throttle: { readonly fromPercent: number; readonly stepPercent: number; readonly maxPercent: number };
  readonly deviceLimit: { readonly leastBytesPerSecond: number };
}

const number = (name: string, value: number, least: number, most: number): number => {
  if (Number.isFinite(value) && value >= least && value <= most) return value;
  throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${name} is ${value}; it has to be ${least} to ${most}`);
};

/** Fills in the defaults. */
export function completeConverge(policy: ConvergePolicy = {}, hasHook = false): CompleteConvergePolicy {
  const list = policy.means ?? (hasHook ? (['throttle'] as const) : []);
  if (new Set(list).size !== list.length || !list.every((m) => means.includes(m))) {
    throw new TowlineError(
      'ERR_TOWLINE_INVALID_ARGUMENT',
      `converge.means is ${list.join(', ')}; each of ${means.join(', ')} once`,
    );
  }
  const { fromPercent = 20, stepPercent = 10, maxPercent = 99 } = policy.throttle ?? {};
  return {
    means: list,
    patienceRounds: number('converge.patienceRounds', policy.patienceRounds ?? 2, 1, 10_000),
    throttle: {
      fromPercent: number('converge.throttle.fromPercent', fromPercent, 1, 99),
      stepPercent: number('converge.throttle.stepPercent', stepPercent, 1, 99),
      maxPercent: number('converge.throttle.maxPercent', maxPercent, 1, 99),
    },
    deviceLimit: {
      leastBytesPerSecond: number(
        'converge.deviceLimit.leastBytesPerSecond',
        policy.deviceLimit?.leastBytesPerSecond ?? 1 << 20,
        1,
        Number.MAX_SAFE_INTEGER,
      ),
    },
  };
}

/** What is in force. */
export interface MeansState {
  /** 0 for none. */
  readonly throttlePercent: number;
  /** Of all functions together; `null` for none. */
  readonly deviceBytesPerSecond: number | null;
}

/** Nothing is in force. */
export const NO_MEANS: MeansState = { throttlePercent: 0, deviceBytesPerSecond: null };

/** What is dirtied now, in bytes a second. */
export interface DirtyRates {
  /** By the functions. */
  readonly devices: number;
  /** By all others: vCPUs. */
  readonly others: number;
}

/** What to put in force, and why; what is left out stays. */
export interface MeansStep {
  readonly throttlePercent?: number;
  readonly deviceBytesPerSecond?: number;
  readonly why: string;
}

/** A throttle on top of another one. */
export function throttledBoth(percent: number, more: number): number {
  return 100 * (1 - (1 - percent / 100) * (1 - more / 100));
}

/** The least step of the policy that is at least `wanted` and more than what is in force; `undefined` where that is above the limit. */
function throttleStep(policy: CompleteConvergePolicy, now: MeansState, wanted: number): number | undefined {
  const { fromPercent, stepPercent, maxPercent } = policy.throttle;
  if (now.throttlePercent >= maxPercent || wanted > maxPercent) return undefined;
  let percent = Math.min(fromPercent, maxPercent);
  while (percent < maxPercent && (percent < wanted || percent <= now.throttlePercent)) percent += stepPercent;
  return Math.min(percent, maxPercent);
}

/**
 * The limit by which devices dirty at most `wanted` bytes a second; `undefined` where that is below the least. What a device dirties for
 * each byte that it moves is known once a limit is in force; before that it is taken for one. Each limit is at most half of the one before.
 */
function deviceStep(
  policy: CompleteConvergePolicy,
  now: MeansState,
  rates: DirtyRates,
  wanted: number,
): number | undefined {
  const least = policy.deviceLimit.leastBytesPerSecond;
  const before = now.deviceBytesPerSecond;
  if (before !== null && before <= least) return undefined;
  const dirtyPerByte = before === null ? 1 : Math.max(1e-3, rates.devices / before);
  const limit = Math.floor(Math.min(wanted / dirtyPerByte, before === null ? Infinity : before / 2));
  return limit >= least ? limit : undefined;
}

const mib = (bytes: number): string => `${(bytes / (1 << 20)).toFixed(1)} MiB/s`;

/**
 * The least that makes it converge, by what the forecast needs at the rates of now: the first means, in their order, that is enough by
 * itself; else both together; else as far as the policy lets go. `undefined` where nothing more may be done, or nothing of it would help.
 * With `needs` of `null` the forecast sees no obstacle, though nothing gets better: then it is one small step.
 */
export function nextStep(
  policy: CompleteConvergePolicy,
  usable: readonly Means[],
  now: MeansState,
  rates: DirtyRates,
  needs: ForecastNeeds | null,
): MeansStep | undefined {
  const has = (m: Means): boolean => usable.includes(m);
  const throttle = (wanted: number | undefined): number | undefined =>
    has('throttle') && wanted !== undefined ? throttleStep(policy, now, wanted) : undefined;
  const limit = (wanted: number | undefined): number | undefined =>
    has('device-limit') && wanted !== undefined ? deviceStep(policy, now, rates, wanted) : undefined;

  for (const m of usable) {
    if (m === 'throttle') {
      const more = needs === null ? 0 : (needs.throttlePercent ?? undefined);
      const percent = throttle(more === undefined ? undefined : throttledBoth(now.throttlePercent, more));
      if (percent === undefined) continue;
      const why =
        needs === null
          ? 'nothing gets better, though the forecast sees no obstacle'
          : `vCPUs throttled by ${throttledBoth(now.throttlePercent, needs.throttlePercent ?? 0).toFixed(0)} % would do`;
      return { throttlePercent: percent, why };
    }
    const wanted = needs === null ? rates.devices / 2 : (needs.deviceDirtyBytesPerSecond ?? undefined);
    const bytes = limit(wanted);
    if (bytes === undefined || wanted === undefined) continue;
    const why =
      needs === null
        ? 'nothing gets better, though the forecast sees no obstacle'
        : `devices that dirty ${mib(wanted)} would do, they dirty ${mib(rates.devices)}`;
    return { deviceBytesPerSecond: bytes, why };
  }
  // Where no dirty rate at all would do, slowing the guest down is in vain.
  if (needs === null || needs.dirtyBytesPerSecond === null) return undefined;
  const all = rates.others + rates.devices;
  const share = all > 0 ? Math.min(1, needs.dirtyBytesPerSecond / all) : 1;
  const wantedPercent = throttledBoth(now.throttlePercent, 100 * (1 - share));
  const { maxPercent } = policy.throttle;
  const least = policy.deviceLimit.leastBytesPerSecond;
  const percent = throttle(Math.min(wantedPercent, maxPercent));
  const canLimit = has('device-limit') && rates.devices > 0;
  const strongest = now.deviceBytesPerSecond === null || now.deviceBytesPerSecond > least ? least : undefined;
  const bytes = canLimit ? (limit(share * rates.devices) ?? strongest) : undefined;
  if (percent === undefined && bytes === undefined) return undefined;
  const why = `no single means is enough; all that is dirtied has to go down from ${mib(all)} to ${mib(share * all)}`;
  return {
    ...(percent === undefined ? {} : { throttlePercent: percent }),
    ...(bytes === undefined ? {} : { deviceBytesPerSecond: bytes }),
    why,
  };
}
