/**
 * A holder that writes a checkpoint, or restores one, loses its power at every named point. Then everybody recovers, and whoever owns the
 * function has every write that its tenant was told is done: the source, or the first that restores the file, and nobody after it.
 */
import test from 'ava';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { checkpointPoints, faultPoints } from '#towline/rehearsal/index.js';
import { HolderGone } from './holder-process.js';
import { limited } from './limited.js';
import { Stage, type Side } from './stage.js';

/** Behind these the file owns the function. */
const IN_THE_FILE = new Set(['checkpoint:renamed', 'checkpoint:durable', 'source:released']);

/** A migration passes them, a move to a file does not: a dialogue that it has not, and failures. */
const NOT_PASSED = new Set([
  'source:commit-sent',
  'source:committed',
  'source:running',
  'source:aborting',
  'source:aborted',
  'checkpoint:resumed',
]);

/** Those that a restore passes before the file is read, while it is, and with its commit. */
const RESTORING = [
  'restore:checked',
  'destination:offered',
  'destination:answered',
  'destination:memory-pass',
  'destination:state-loading',
  'destination:loaded',
  'destination:prepared',
  'destination:opened',
  'restore:claimed',
  'destination:commit-received',
  'destination:commit-durable',
  'restore:consumed',
  'destination:committed-sent',
  'destination:resumed',
  'destination:running',
  'restore:emptied',
];

/** From here on the restore has committed. */
const COMMITTED = new Set(RESTORING.slice(RESTORING.indexOf('destination:commit-durable')));

/** Whether it was killed, as it should be. */
async function killed(side: Side, call: Promise<unknown>): Promise<boolean> {
  try {
    await call;
    return false;
  } catch (error) {
    if (!(error instanceof HolderGone)) throw error;
    return (await side.holder.gone) === 'SIGKILL';
  }
}

async function verdict(side: Side): Promise<string | undefined> {
  await side.holder.call('recover', {});
  return (await side.holder.call('sessions'))[0]?.verdict;
}

async function onStage(work: (stage: Stage, path: string) => Promise<void>): Promise<void> {
  const stage = new Stage();
  try {
    await stage.begin();
    await work(stage, join(stage.directory, 'guest'));
  } finally {
    await stage.close();
  }
}

/** The tenant goes on where it is, and the witness has the last word. */
async function finish(stage: Stage, owner: Side | undefined) {
  if (owner !== undefined) {
    await owner.holder.call('work', { commands: 100 });
    await owner.holder.call('drain');
  }
  await Promise.all([stage.source.holder.call('close'), stage.destination.holder.call('close')]);
  return stage.witness.finish(owner === undefined ? 'lost' : 'drained');
}

const intact = { io: { lost: 0, duplicated: 0, corrupted: 0 }, owners: 1 };

for (const point of [...faultPoints(), ...checkpointPoints()]) {
  if (point.startsWith('destination:') || point.startsWith('restore:') || NOT_PASSED.has(point)) continue;
  test(`a source killed at ${point} of a move`, (t) =>
    limited(t, () =>
      onStage(async (stage, path) => {
        const { source, destination } = stage;
        t.true(await killed(source, source.holder.call('checkpoint', { path, killAt: point })));
        await source.restart();
        const owns = (await verdict(source)) ?? 'resume-source';
        const inFile = IN_THE_FILE.has(point);
        t.is(owns, inFile ? 'released' : 'resume-source');
        // Nothing half: with its name it is whole.
        t.is(readdirSync(stage.directory).includes('guest'), inFile);
        const restored = await destination.holder.call('restore', { path });
        t.is(restored.outcome, inFile ? 'committed' : 'rolled-back');
        t.like(await finish(stage, inFile ? destination : undefined), intact);
      }),
    ));
}

for (const point of RESTORING) {
  test(`a restore killed at ${point}`, (t) =>
    limited(t, () =>
      onStage(async (stage, path) => {
        const { source, destination } = stage;
        t.is((await source.holder.call('checkpoint', { path })).outcome, 'committed');
        t.true(await killed(destination, destination.holder.call('restore', { path, killAt: point })));
        await destination.restart();
        const committed = COMMITTED.has(point);
        t.is(
          await verdict(destination),
          committed
            ? 'run-destination'
            : point === 'destination:opened' || point === 'restore:claimed' || point === 'destination:commit-received'
              ? 'refuse'
              : undefined,
        );
        t.false(readdirSync(stage.directory).some((name) => name.endsWith('.claimed')));
        // Restorable if and only if nobody has it.
        const again = await destination.holder.call('restore', { path });
        t.is(again.outcome, committed ? 'rolled-back' : 'committed');
        t.like(await finish(stage, committed ? undefined : destination), intact);
      }),
    ));
}

test('a move out of a process that goes on, into a new one', (t) =>
  limited(t, () =>
    onStage(async (stage, path) => {
      const { source, destination } = stage;
      await source.holder.call('checkpoint', { path });
      t.like(await source.holder.call('look'), { tenantRuns: false, device: 'released' });
      t.is((await destination.holder.call('restore', { path })).outcome, 'committed');
      t.is((await destination.holder.call('restore', { path })).code, 'ERR_TOWLINE_ROLLED_BACK');
      t.like(await finish(stage, destination), { ...intact, ranOn: true });
    }),
  ));

test('that a write is missing in what was restored is noticed', (t) =>
  limited(t, () =>
    onStage(async (stage, path) => {
      const { source, destination } = stage;
      await source.holder.call('checkpoint', { path });
      await destination.holder.call('restore', { path });
      await destination.holder.call('work', { commands: 100 });
      await destination.holder.call('drain');
      await Promise.all([source.holder.call('close'), destination.holder.call('close')]);
      stage.loseWrite();
      t.like((await stage.witness.finish('drained')).io, { lost: 1 });
    }),
  ));
