/** A source in doubt: what it may not do, and the two ways out. */
import test, { type ExecutionContext } from 'ava';
import { limited } from './limited.js';
import { Stage } from './stage.js';

/** A source whose destination dies with COMMIT in its hands. */
async function inDoubt(t: ExecutionContext, work: (stage: Stage, session: string) => Promise<void>): Promise<void> {
  await limited(t, async () => {
    const stage = new Stage();
    try {
      await stage.begin();
      const { source, destination } = stage;
      const to = await destination.holder.call('receive', { killAt: 'destination:commit-received' });
      const { code, report } = await source.holder.call('migrate', { to });
      if (code !== 'ERR_TOWLINE_IN_DOUBT') throw new Error(`it ended by ${code}`);
      await destination.holder.gone;
      await work(stage, report.session);
    } finally {
      await stage.close();
    }
  });
}

test('nobody answers: the doubt stays, and nothing runs', async (t) => {
  await inDoubt(t, async ({ source }, session) => {
    // A port that was just closed.
    const peer = await source.holder.call('receive', {});
    await source.holder.call('hangUp');
    for (const options of [{}, { peer, timeoutMs: 200 }]) {
      const recovered = await source.holder.call('recover', options);
      t.like(recovered, [{ session, verdict: 'in-doubt', answer: null }]);
      t.deepEqual(await source.holder.call('look'), { device: 'stop-copy', tenantRuns: false });
    }
  });
});

test('a function in doubt does not migrate, and the attempt does not let it run', async (t) => {
  await inDoubt(t, async ({ source, destination }, session) => {
    await destination.restart();
    const to = await destination.holder.call('receive', {});
    const { code, outcome } = await source.holder.call('migrate', { to });
    t.is(code, 'ERR_TOWLINE_IN_DOUBT');
    t.is(outcome, 'rolled-back');
    t.deepEqual(await source.holder.call('look'), { device: 'stop-copy', tenantRuns: false });
    t.like(await source.holder.call('recover', {}), [{ session, verdict: 'in-doubt' }]);
    // The doubt is still that of the first session, so settling it resumes the function.
    const recovered = await source.holder.call('recover', { peer: to });
    t.like(recovered, [{ session, verdict: 'resume-source', settled: [{ action: 'resumed' }] }]);
    t.deepEqual(await source.holder.call('look'), { device: 'running', tenantRuns: false });
  });
});

test('a destination that is declared dead frees the source, and is refused when it comes back', async (t) => {
  await inDoubt(t, async (stage, session) => {
    const { source, destination, witness } = stage;
    await source.holder.call('declareDestinationDead', { session });
    t.like(await source.holder.call('sessions'), [{ session, state: 'declared-dead', verdict: 'resume-source' }]);
    await source.holder.call('runAgain');
    await source.holder.call('work', { commands: 100 });
    await destination.restart();
    t.like(await destination.holder.call('recover', {}), [{ session, verdict: 'refuse' }]);
    await source.holder.call('drain');
    await Promise.all([source.holder.call('close'), destination.holder.call('close')]);
    const { io, owners } = await witness.finish();
    t.like(io, { lost: 0, duplicated: 0, corrupted: 0 });
    t.is(owners, 1);
  });
});

test('a destination is declared dead only where the source is in doubt', async (t) => {
  await inDoubt(t, async ({ source, destination }, session) => {
    await destination.restart();
    const peer = await destination.holder.call('receive', {});
    t.like(await source.holder.call('recover', { peer }), [{ session, verdict: 'resume-source', answer: 'refused' }]);
    await t.throwsAsync(source.holder.call('declareDestinationDead', { session }), { code: 'ERR_TOWLINE_FENCED' });
  });
});

test('a function that came back out of doubt migrates again', async (t) => {
  await inDoubt(t, async ({ source, destination, witness }) => {
    await destination.restart();
    const peer = await destination.holder.call('receive', {});
    await source.holder.call('recover', { peer });
    await source.holder.call('runAgain');
    await source.holder.call('work', { commands: 100 });
    // The one that answered still waits for a migration.
    const { outcome } = await source.holder.call('migrate', { to: peer });
    t.is(outcome, 'committed');
    await destination.holder.call('received');
    await destination.holder.call('work', { commands: 100 });
    await destination.holder.call('drain');
    await Promise.all([source.holder.call('close'), destination.holder.call('close')]);
    const { io, owners } = await witness.finish();
    t.like(io, { lost: 0, duplicated: 0, corrupted: 0 });
    t.is(owners, 1);
  });
});
