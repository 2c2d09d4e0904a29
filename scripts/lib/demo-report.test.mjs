import test from 'ava';

import { mustBeAllKinds, mustBeCaught, mustBeGood } from './demo-report.mjs';

const good = () => ({
  kind: 'vf',
  verified: true,
  outcome: 'committed',
  io: { completed: 9, lost: 0, duplicated: 0, corrupted: 0 },
  stalePages: 0,
  owners: 1,
  downtimeMs: 1.5,
  tenantPauseMs: 2,
  totalMs: 90,
  rounds: 2,
  bytes: { memory: 4096, deviceState: 512, wire: 5000 },
  phases: [{ name: 'offer', ms: 1 }],
  forecast: { downtimeMs: { p50: 1, p95: 2 }, totalMs: 80 },
});

test('a good line is good, and only with its own outcome', (t) => {
  t.notThrows(() => mustBeGood(good(), 'committed'));
  t.throws(() => mustBeGood(good(), 'rolled-back'));
});

test('each kind of damage, and each missing field, is noticed', (t) => {
  for (const broken of [
    { verified: false },
    { outcome: 'in-doubt' },
    { io: { completed: 9, lost: 1, duplicated: 0, corrupted: 0 } },
    { io: { completed: 0, lost: 0, duplicated: 0, corrupted: 0 } },
    { io: { completed: 9 } },
    { stalePages: 1 },
    { owners: 2 },
    { owners: 0 },
    { rounds: 0 },
    { downtimeMs: Number.NaN },
    { phases: [] },
    { forecast: {} },
  ]) {
    t.throws(() => mustBeGood({ ...good(), ...broken }, 'committed'), undefined, JSON.stringify(broken));
  }
});

test('a sabotage is caught by its own counter alone', (t) => {
  const seen = { ...good(), verified: false, stalePages: 3 };
  t.notThrows(() => mustBeCaught(seen, 'stalePages'));
  t.throws(() => mustBeCaught(seen, 'lost'));
  t.throws(() => mustBeCaught({ ...seen, owners: 2 }, 'stalePages'));
  t.throws(() => mustBeCaught({ ...seen, verified: true }, 'stalePages'));
  t.throws(() => mustBeCaught({ ...seen, stalePages: 0 }, 'stalePages'));
});

test('every kind is there, once', (t) => {
  const lines = ['siov', 'pf', 'vf'].map((kind) => ({ kind }));
  t.notThrows(() => mustBeAllKinds(lines));
  t.throws(() => mustBeAllKinds(lines.slice(1)));
  t.throws(() => mustBeAllKinds([...lines, { kind: 'vf' }]));
});
