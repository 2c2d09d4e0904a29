/** The judge of moves between two kernels is judged itself: each rule has a breach that it notices. */
import test from 'ava';
import type { JournalSession } from '#towline/index.js';
import { disagreements, owner, type FoundBoth } from './guest/agreement.js';
import { written } from './guest/mtty.js';

const guest = written(1);
const blank = guest.map(() => 0);
const session = (role: JournalSession['role'], verdict: JournalSession['verdict']): JournalSession => ({
  session: 's',
  role,
  functions: ['f'],
  epoch: '1',
  state: 'opened',
  verdict,
});

/** It moved, and everybody knows. */
const moved = (): FoundBoth => ({
  source: { session: session('source', 'released'), state: 'absent', registers: undefined },
  destination: { session: session('destination', 'run-destination'), state: 'running', registers: guest },
  guest,
  destinationReset: false,
});
/** It stayed. */
const stayed = (): FoundBoth => ({
  source: { session: session('source', 'resume-source'), state: 'running', registers: guest },
  destination: { session: session('destination', 'refuse'), state: 'running', registers: blank },
  guest,
  destinationReset: false,
});
/** Nobody knows. */
const inDoubt = (): FoundBoth => ({
  ...stayed(),
  source: { session: session('source', 'in-doubt'), state: 'stop-copy', registers: guest },
});

test('what keeps every rule', (t) => {
  for (const [found, who] of [
    [moved(), 'destination'],
    [stayed(), 'source'],
    [inDoubt(), 'nobody-knows'],
    // mtty keeps its registers over a reset, which is told.
    [{ ...stayed(), destination: { ...stayed().destination, registers: guest }, destinationReset: true }, 'source'],
  ] as const) {
    t.is(owner(found), who);
    t.deepEqual(disagreements(found, true), []);
  }
});

test('what is not settled yet may be stopped', (t) => {
  const found = moved();
  found.source.state = 'stop-copy';
  found.destination.state = 'stop';
  t.deepEqual(disagreements(found, false), []);
  t.is(disagreements(found, true).length, 2);
});

const breaches: readonly [string, RegExp, FoundBoth, (found: FoundBoth) => void][] = [
  ['both own it', /contradict/, moved(), (f) => (f.source.session = session('source', 'resume-source'))],
  ['nobody owns it', /contradict/, moved(), (f) => (f.destination.session = undefined)],
  ['both execute it', /in both kernels/, moved(), (f) => (f.source.state = 'running')],
  ['the source goes on in pre-copy', /executes at the source/, moved(), (f) => (f.source.state = 'pre-copy')],
  ['the source goes on in doubt', /executes at the source/, inDoubt(), (f) => (f.source.state = 'running')],
  [
    'the destination runs what it was refused',
    /executes at the destination/,
    stayed(),
    (f) => (f.destination.registers = guest),
  ],
  ['the destination does not run it', /has it in stop/, moved(), (f) => (f.destination.state = 'stop')],
  ['the source does not run it', /has it in stop-copy/, stayed(), (f) => (f.source.state = 'stop-copy')],
  ['it was reset on its way', /with the registers/, moved(), (f) => (f.destination.registers = blank)],
  [
    'one bit is another',
    /with the registers/,
    moved(),
    (f) => (f.destination.registers = guest.map((v, n) => (n === 3 ? v ^ 1 : v))),
  ],
  ['the source keeps what moved away', /still at the source/, moved(), (f) => (f.source.state = 'stop-copy')],
  ['half of it stays', /keeps what it was refused/, stayed(), (f) => (f.destination.state = 'resuming')],
];
for (const [name, words, found, change] of breaches) {
  test(`a breach is noticed: ${name}`, (t) => {
    t.deepEqual(disagreements(found, true), []);
    change(found);
    t.true(
      disagreements(found, true).some((broken) => words.test(broken)),
      disagreements(found, true).join('; '),
    );
  });
}
