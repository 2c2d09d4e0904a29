import test from 'ava';
import type { Forecast } from '#towline/migration/forecast.js';
import { completePolicy, decide } from '#towline/migration/policy.js';

const forecast: Forecast = {
  totalMs: 0,
  downtimeMs: { p50: 0, p95: 0 },
  rounds: 1,
  memoryBytes: 0,
  converges: false,
  obstacle: 'dirty-rate',
  needs: null,
  why: 'the guest writes too fast',
};
const now = { rounds: 1, elapsedMs: 100, downtimeMs: 50, initialBytesLeft: 0 };

test('stops as soon as a stop fits the limit', (t) => {
  t.is(decide(completePolicy({ maxDowntimeMs: 60 }), now, forecast).action, 'stop');
});

test('goes on while a stop would be too long', (t) => {
  t.is(decide(completePolicy({ maxDowntimeMs: 10 }), now, forecast).action, 'continue');
});

test('goes on while a function has initial state to move', (t) => {
  const policy = completePolicy({ maxDowntimeMs: 60 });
  const decision = decide(policy, { ...now, initialBytesLeft: 7 }, forecast);
  t.is(decision.action, 'continue');
  t.regex(decision.why, /7 bytes of initial/);
});

test('limits that mean nothing are refused', (t) => {
  for (const policy of [
    { maxDowntimeMs: -1 },
    { maxRounds: 0 },
    { maxTotalMs: Number.NaN },
    { bandwidthBytesPerSecond: 0 },
    { stopMs: [1, -1] },
    { stopMs: [Infinity] },
  ]) {
    t.throws(() => completePolicy(policy), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
  }
});

test('does not go on where only the cost of the stop is left', (t) => {
  const policy = completePolicy({ maxDowntimeMs: 10 });
  const stopCost: Forecast = { ...forecast, obstacle: 'stop-cost', why: 'a stop alone takes longer' };
  t.is(decide(policy, now, stopCost).action, 'continue');
  t.is(decide(policy, { ...now, rounds: 2 }, stopCost).action, 'give-up');
});

test('gives up at the limits, with the reason, or stops where that was asked for', (t) => {
  for (const spent of [{ rounds: 30 }, { elapsedMs: 700_000 }]) {
    const decision = decide(completePolicy({ maxDowntimeMs: 10 }), { ...now, ...spent }, forecast);
    t.is(decision.action, 'give-up');
    t.regex(decision.why, /50\.0 ms.*limit is 10 ms.*writes too fast/);
    t.is(
      decide(completePolicy({ maxDowntimeMs: 10, onNoConvergence: 'stop' }), { ...now, ...spent }, forecast).action,
      'stop',
    );
  }
});
