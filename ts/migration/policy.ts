import { TowlineError } from '../errors.js';
import type { Forecast } from './forecast.js';
import { completeConverge, type CompleteConvergePolicy, type ConvergePolicy } from './means.js';

/** When to stop, and what to do when the guest writes faster than the link carries. */
export interface MigrationPolicy {
  /** The most downtime that is acceptable, in milliseconds. Default 300. */
  maxDowntimeMs?: number;
  /** The most memory passes before the stop, the full one included. Default 30. */
  maxRounds?: number;
  /** The most time before the stop, in milliseconds. Default 600000. */
  maxTotalMs?: number;
  /**
   * What the stops of earlier migrations took besides sending, in milliseconds: the `stopMs` of their reports. Forecasts know nothing else of the
   * hooks and sections of the caller and of how its disks and functions vary. Default: none; then only round trips and journal syncs count.
   */
  stopMs?: readonly number[];
  /** The most bandwidth to use, in bytes per second. Default: no limit. */
  bandwidthBytesPerSecond?: number;
  /**
   * What to do when the limits are met and the downtime would still be too long: `give-up` rolls back (the default), `stop`
   * stops anyway.
   */
  onNoConvergence?: 'give-up' | 'stop';
  /** What may be done before that to the guest and its functions, so that it converges. */
  converge?: ConvergePolicy;
}

/** A policy with nothing left out. */
export type CompletePolicy = Required<Omit<MigrationPolicy, 'bandwidthBytesPerSecond' | 'converge' | 'stopMs'>> &
  Pick<MigrationPolicy, 'bandwidthBytesPerSecond' | 'stopMs'> & { readonly converge: CompleteConvergePolicy };

/** Fills in the defaults. `hasThrottle`: there is a hook that throttles vCPUs. */
export function completePolicy(policy: MigrationPolicy = {}, hasThrottle = false): CompletePolicy {
  for (const name of ['maxDowntimeMs', 'maxRounds', 'maxTotalMs', 'bandwidthBytesPerSecond'] as const) {
    const value = policy[name];
    const least = name === 'maxDowntimeMs' ? 0 : 1;
    if (value === undefined || (Number.isFinite(value) && value >= least)) continue;
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${name} is ${value}; it has to be ${least} or more`);
  }
  const wrong = policy.stopMs?.find((ms) => !(Number.isFinite(ms) && ms >= 0));
  if (wrong !== undefined) {
    throw new TowlineError(
      'ERR_TOWLINE_INVALID_ARGUMENT',
      `stopMs has ${wrong}; each has to be 0 or more milliseconds`,
    );
  }
  const converge = completeConverge(policy.converge, hasThrottle);
  return { maxDowntimeMs: 300, maxRounds: 30, maxTotalMs: 600_000, onNoConvergence: 'give-up', ...policy, converge };
}

/** What to do after a round. */
export type Decision = { action: 'continue' | 'stop' | 'give-up'; why: string };

/** How far a migration is. */
export interface SoFar {
  /** Memory passes, the full one included. */
  rounds: number;
  elapsedMs: number;
  /** What a stop now would take. */
  downtimeMs: number;
  initialBytesLeft: number;
}

/** Decides after each memory pass: stops as soon as a stop made now fits the downtime limit, which is what the forecast expects too. */
export function decide(policy: CompletePolicy, now: SoFar, forecast: Forecast): Decision {
  const expected = `a stop now would take ${now.downtimeMs.toFixed(1)} ms, the limit is ${policy.maxDowntimeMs} ms`;
  // A function says that stopping before these have moved makes its downtime long, whatever the memory is like.
  const initial =
    now.initialBytesLeft > 0 ? `, and ${now.initialBytesLeft} bytes of initial device state are left` : '';
  if (now.downtimeMs <= policy.maxDowntimeMs && initial === '') return { action: 'stop', why: expected };
  const spent =
    // More passes make the residual smaller, not the cost of a stop.
    forecast.obstacle === 'stop-cost' && now.rounds >= 2
      ? `after ${now.rounds} passes`
      : now.rounds >= policy.maxRounds
        ? `after ${now.rounds} passes`
        : now.elapsedMs >= policy.maxTotalMs
          ? `after ${Math.round(now.elapsedMs)} ms`
          : undefined;
  if (spent === undefined) return { action: 'continue', why: `${expected}${initial}` };
  return {
    action: policy.onNoConvergence === 'stop' ? 'stop' : 'give-up',
    why: `${spent} ${expected}${initial}; ${forecast.why}`,
  };
}
