import test from 'ava';

import { caught, mustBeCaught, mustBeGood, mustHaveGivenUp, mustHaveSteps } from './demo-vm-report.mjs';

const good = () => ({
  kind: 'vf',
  mode: 'migrate',
  verified: true,
  outcome: 'committed',
  io: { completed: 5, lost: 0, duplicated: 0, corrupted: 0 },
  stalePages: 0,
  owners: 1,
  guest: { memoryErrors: 0, vcpuErrors: 0, lostInterrupts: 0, ioErrors: 0 },
  downtimeMs: 3.5,
  tenantPauseMs: 4,
  guestPauseMs: 4.5,
  heartbeatGapMs: 4.6,
  totalMs: 900,
  rounds: 3,
  bytes: { memory: 1, deviceState: 1, wire: 2 },
  dirty: { kvm: 7, device: 2 },
  doorbells: 'ioeventfd',
  vcpus: 2,
  phases: [{ name: 'stop', ms: 1 }],
  forecast: null,
  converge: { steps: [], unavailable: [], notLifted: [], needs: null },
});

test('a good line is good, and any damage is seen', (t) => {
  t.notThrows(() => mustBeGood(good()));
  for (const change of [
    { verified: false },
    { outcome: 'rolled-back' },
    { owners: 2 },
    { stalePages: 1 },
    { mode: 'session' },
    { dirty: { kvm: 0, device: 2 } },
    { dirty: { kvm: 7, device: 0 } },
    { guestPauseMs: 0 },
    { guest: { ...good().guest, lostInterrupts: 1 } },
    { guest: {} },
    { io: { ...good().io, lost: 1 } },
  ])
    t.throws(() => mustBeGood({ ...good(), ...change }), undefined, JSON.stringify(change));
});

test('a sabotage is caught by its own counter alone', (t) => {
  const damaged = {
    stalePages: { stalePages: 3 },
    owners: { owners: 2 },
    vcpuErrors: { guest: { ...good().guest, vcpuErrors: 2 } },
    lostInterrupts: { guest: { ...good().guest, lostInterrupts: 1 } },
  };
  for (const counter of Object.values(caught)) {
    const line = { ...good(), verified: false, ...damaged[/** @type {keyof typeof damaged} */ (counter)] };
    t.notThrows(() => mustBeCaught(line, counter));
    t.throws(() => mustBeCaught({ ...line, verified: true }, counter));
    t.throws(() => mustBeCaught({ ...good(), verified: false }, counter));
    t.throws(() => mustBeCaught({ ...line, io: { ...line.io, corrupted: 1 } }, counter));
  }
});

test('what was done to converge has to have helped, by the means that was asked for', (t) => {
  const step = { means: 'throttle', before: { others: 9, devices: 1 }, after: { others: 4, devices: 2 } };
  const line = (/** @type {object[]} */ ...steps) => ({ ...good(), converge: { ...good().converge, steps } });
  t.notThrows(() => mustHaveSteps(line(step), 'throttle'));
  t.throws(() => mustHaveSteps({ ...line(step), rounds: 30 }, 'throttle'));
  t.throws(() => mustHaveSteps(line(), 'throttle'));
  t.throws(() => mustHaveSteps(line(step), 'device-limit'));
  t.throws(() => mustHaveSteps(line({ ...step, after: { others: 9, devices: 0 } }), 'throttle'));
  t.throws(() => mustHaveSteps(line({ ...step, means: 'device-limit' }), 'device-limit'));
});

test('giving up means to stay, unharmed, and to tell what it would take', (t) => {
  const line = {
    ...good(),
    outcome: 'rolled-back',
    why: 'after 8 passes …; it would take a bandwidth of …',
    converge: { ...good().converge, needs: { bandwidthBytesPerSecond: 33 } },
  };
  t.notThrows(() => mustHaveGivenUp(line, 32));
  for (const change of [
    { outcome: 'committed' },
    { verified: false },
    { stalePages: 1 },
    { why: 'after 8 passes' },
    { converge: good().converge },
    { converge: { ...good().converge, needs: { bandwidthBytesPerSecond: 32 } } },
  ])
    t.throws(() => mustHaveGivenUp({ ...line, ...change }, 32), undefined, JSON.stringify(change));
});
