import test from 'ava';

import { caught, mustBeCaught, mustBeGood } from './demo-vm-report.mjs';

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
