import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import test from 'ava';
import { PhaseClock } from '#towline/migration/phases.js';
import { DIAGNOSTICS_CHANNEL, EventQueue, type MigrationEvent } from '#towline/migration/progress.js';

const pages = (round: number): MigrationEvent => ({
  type: 'pages',
  session: 's',
  round,
  sentPages: 0,
  totalPages: 0,
  wireBytes: 0,
});
const phase: MigrationEvent = { type: 'phase', session: 's', phase: 'offer' };

test('a slow reader loses page counts only', async (t) => {
  const queue = new EventQueue();
  queue.push(phase);
  for (let i = 0; i < 3000; i++) queue.push(pages(i));
  queue.push(phase);
  queue.end();
  const seen: MigrationEvent[] = [];
  for await (const event of queue) seen.push(event);
  t.is(seen.filter((e) => e.type === 'phase').length, 2);
  t.true(seen.length <= 1100);
  // The newest are kept.
  t.true(seen.some((e) => e.type === 'pages' && e.round === 2999));
});

test('events are published on the diagnostics channel', (t) => {
  const seen: unknown[] = [];
  const listener = (message: unknown) => seen.push(message);
  subscribe(DIAGNOSTICS_CHANNEL, listener);
  new EventQueue().push(phase);
  unsubscribe(DIAGNOSTICS_CHANNEL, listener);
  t.deepEqual(seen, [phase]);
});

test('phases are listed in their order, with times that failures keep', async (t) => {
  const clock = new PhaseClock();
  await t.throwsAsync(
    clock.during('commit', async () => {
      throw new Error('no');
    }),
  );
  clock.add('offer', 2);
  clock.add('offer', 3);
  t.deepEqual(
    clock.list().map((p) => p.name),
    ['offer', 'commit'],
  );
  t.is(clock.ms('offer'), 5);
});
