import * as fc from 'fast-check';
import test from 'ava';
import type { ForecastNeeds } from '#towline/migration/forecast.js';
import {
  completeConverge,
  nextStep,
  NO_MEANS,
  throttledBoth,
  type CompleteConvergePolicy,
  type ConvergePolicy,
  type Means,
  type MeansState,
} from '#towline/migration/means.js';

const MIB = 1 << 20;
const NOTHING: ForecastNeeds = {
  bandwidthBytesPerSecond: 1e9,
  dirtyBytesPerSecond: null,
  maxDowntimeMs: null,
  throttlePercent: null,
  deviceDirtyBytesPerSecond: null,
};
const both: readonly Means[] = ['throttle', 'device-limit'];
const rates = { devices: 40 * MIB, others: 60 * MIB };

test('the first means that is enough by itself is taken, as far as it takes', (t) => {
  const policy = completeConverge({ means: both });
  const needs = { ...NOTHING, dirtyBytesPerSecond: MIB, throttlePercent: 47, deviceDirtyBytesPerSecond: 5 * MIB };
  const first = nextStep(policy, both, NO_MEANS, rates, needs);
  t.deepEqual([first?.throttlePercent, first?.deviceBytesPerSecond], [50, undefined], 'from 20 by 10');
  t.regex(first?.why ?? '', /47 %/);
  const other = nextStep(policy, ['device-limit', 'throttle'], NO_MEANS, rates, needs);
  t.deepEqual([other?.throttlePercent, other?.deviceBytesPerSecond], [undefined, 5 * MIB]);
  // One that is not enough is passed over.
  const second = nextStep(policy, both, NO_MEANS, rates, { ...needs, throttlePercent: null });
  t.deepEqual([second?.throttlePercent, second?.deviceBytesPerSecond], [undefined, 5 * MIB]);
});

test('what is in force already counts', (t) => {
  const policy = completeConverge({ means: both });
  const needs = { ...NOTHING, dirtyBytesPerSecond: MIB, throttlePercent: 50, deviceDirtyBytesPerSecond: 10 * MIB };
  const now: MeansState = { throttlePercent: 50, deviceBytesPerSecond: 16 * MIB };
  // Half of a half.
  t.is(throttledBoth(50, 50), 75);
  t.is(nextStep(policy, ['throttle'], now, rates, needs)?.throttlePercent, 80);
  // It dirties 40 MiB/s for 16 MiB/s that it moves: 10 are reached with 4.
  t.is(nextStep(policy, ['device-limit'], now, rates, needs)?.deviceBytesPerSecond, 4 * MIB);
});

test('where no single means is enough both are taken, and where nothing is, as far as the policy lets go', (t) => {
  const policy = completeConverge({ means: both, throttle: { maxPercent: 80 } });
  const half = { ...NOTHING, dirtyBytesPerSecond: 50 * MIB };
  const step = nextStep(policy, both, NO_MEANS, rates, half);
  t.deepEqual([step?.throttlePercent, step?.deviceBytesPerSecond], [50, 20 * MIB]);
  const far = nextStep(policy, both, NO_MEANS, rates, { ...NOTHING, dirtyBytesPerSecond: 1 });
  t.deepEqual([far?.throttlePercent, far?.deviceBytesPerSecond], [80, MIB]);
  const state: MeansState = { throttlePercent: 80, deviceBytesPerSecond: MIB };
  t.is(nextStep(policy, both, state, rates, { ...NOTHING, dirtyBytesPerSecond: 1 }), undefined);
});

test('a guest is not slowed down in vain', (t) => {
  const policy = completeConverge({ means: both });
  t.is(nextStep(policy, both, NO_MEANS, rates, NOTHING), undefined, 'no dirty rate would do');
  t.is(nextStep(policy, [], NO_MEANS, rates, { ...NOTHING, dirtyBytesPerSecond: MIB, throttlePercent: 50 }), undefined);
  const small = nextStep(policy, both, NO_MEANS, rates, null);
  t.is(small?.throttlePercent, 20, 'the forecast sees no obstacle: the smallest step');
});

test('policies that mean nothing are refused', (t) => {
  const bad: ConvergePolicy[] = [
    { means: ['throttle', 'throttle'] },
    { means: ['prayer' as Means] },
    { patienceRounds: 0 },
    { throttle: { fromPercent: 0 } },
    { throttle: { stepPercent: 0 } },
    { throttle: { maxPercent: 100 } },
    { deviceLimit: { leastBytesPerSecond: 0 } },
    { deviceLimit: { leastBytesPerSecond: Number.NaN } },
  ];
  for (const policy of bad) t.throws(() => completeConverge(policy), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
  t.deepEqual(completeConverge({}, true).means, ['throttle']);
  t.deepEqual(completeConverge({}, false).means, []);
});

const percent = fc.integer({ min: 1, max: 99 });
const policies = fc
  .record({
    means: fc.shuffledSubarray([...both]),
    throttle: fc.record({ fromPercent: percent, stepPercent: percent, maxPercent: percent }),
    deviceLimit: fc.record({ leastBytesPerSecond: fc.integer({ min: 1, max: 64 * MIB }) }),
  })
  .map((policy): CompleteConvergePolicy => completeConverge(policy));
const rate = fc.oneof(fc.constant(0), fc.double({ min: 0, max: 1e12, noNaN: true }));
const maybe = <T>(of: fc.Arbitrary<T>) => fc.option(of, { nil: null });
const situation = fc.record({
  rates: fc.record({ devices: rate, others: rate }),
  needs: maybe(
    fc.record({
      bandwidthBytesPerSecond: maybe(rate),
      dirtyBytesPerSecond: maybe(rate),
      maxDowntimeMs: maybe(rate),
      throttlePercent: maybe(percent),
      deviceDirtyBytesPerSecond: maybe(rate),
    }),
  ),
});

/** What is wrong with a step; nothing where it is right. */
function wrong(policy: CompleteConvergePolicy, now: MeansState, next: MeansState): string | undefined {
  const { throttlePercent: t, deviceBytesPerSecond: d } = next;
  if (t > policy.throttle.maxPercent) return 'above the cap';
  if (t < now.throttlePercent) return 'a throttle that goes down';
  if (t > 0 && !policy.means.includes('throttle')) return 'a throttle that the policy does not allow';
  if (d !== null && !policy.means.includes('device-limit')) return 'a limit that the policy does not allow';
  if (d !== null && d < policy.deviceLimit.leastBytesPerSecond) return 'below the least';
  if (d !== null && !Number.isSafeInteger(d)) return 'not a whole number';
  if (now.deviceBytesPerSecond !== null && (d === null || d > now.deviceBytesPerSecond)) return 'a limit that goes up';
  return t === now.throttlePercent && d === now.deviceBytesPerSecond ? 'nothing' : undefined;
}

test('whatever happens, steps stay within the policy, each does something, and they end', (t) => {
  fc.assert(
    fc.property(policies, fc.array(situation, { minLength: 200, maxLength: 200 }), (policy, situations) => {
      let now = NO_MEANS;
      let steps = 0;
      for (const { rates: measured, needs } of situations) {
        const step = nextStep(policy, policy.means, now, measured, needs);
        if (step === undefined) continue;
        const { why, ...change } = step;
        if (why === '') throw new Error('no reason');
        const next = { ...now, ...change };
        const bad = wrong(policy, now, next);
        if (bad !== undefined) throw new Error(`${bad}: ${JSON.stringify({ now, step })}`);
        now = next;
        steps += 1;
      }
      // At most 99 throttles, and a limit that is halved each time from some terabytes.
      if (steps > 99 + 64) throw new Error(`${steps} steps`);
    }),
    { numRuns: 60 },
  );
  t.pass();
});

test('the check of steps is able to fail', (t) => {
  const policy = completeConverge({ means: ['throttle'], throttle: { maxPercent: 50 } });
  const at = (throttlePercent: number, deviceBytesPerSecond: number | null = null): MeansState => ({
    throttlePercent,
    deviceBytesPerSecond,
  });
  t.is(wrong(policy, at(20), at(60)), 'above the cap');
  t.is(wrong(policy, at(20), at(20)), 'nothing');
  t.is(wrong(policy, at(30), at(20)), 'a throttle that goes down');
  t.is(wrong(policy, at(0), at(0, MIB)), 'a limit that the policy does not allow');
});
