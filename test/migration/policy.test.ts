import test from 'ava';
import type { Forecast } from '#towline/migration/forecast.js';
import { completePolicy, decide } from '#towline/migration/policy.js';

const forecast: Forecast = { totalMs: 0, downtimeMs: { p50: 0, p95: 0 }, rounds: 1, memoryBytes: 0, converges: false, obstacle: 'dirty-rate', needs: null, why: 'the guest writes too fast' };
const now = { rounds: 1, elapsedMs: 100, downtimeMs: 50, residualBytes: 1 << 20, previousResidualBytes: undefined };

test('stops as soon as a stop fits the limit and another pass saves little', (t) => {
  t.is(decide(completePolicy({ maxDowntimeMs: 60 }), now, forecast).action, 'stop');
});

test('goes on while a stop would be too long', (t) => {
  t.is(decide(completePolicy({ maxDowntimeMs: 10 }), now, forecast).action, 'continue');
});

test('goes on below the limit while passes still halve a large residual', (t) => {
  const policy = completePolicy({ maxDowntimeMs: 60 });
  t.is(decide(policy, { ...now, residualBytes: 64 << 20 }, forecast).action, 'continue');
  t.is(decide(policy, { ...now, rounds: 2, residualBytes: 60 << 20, previousResidualBytes: 64 << 20 }, forecast).action, 'stop');
});

test('gives up at the limits, with the reason, or stops where that was asked for', (t) => {
  for (const spent of [{ rounds: 30 }, { elapsedMs: 700_000 }]) {
    const decision = decide(completePolicy({ maxDowntimeMs: 10 }), { ...now, ...spent }, forecast);
    t.is(decision.action, 'give-up');
    t.regex(decision.why, /50\.0 ms.*limit is 10 ms.*writes too fast/);
    t.is(decide(completePolicy({ maxDowntimeMs: 10, onNoConvergence: 'stop' }), { ...now, ...spent }, forecast).action, 'stop');
  }
});
