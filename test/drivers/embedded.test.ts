import test from 'ava';
import { EmbeddedDriver } from '#towline/drivers/embedded.js';
import { embedded } from '#towline/rehearsal/index.js';

test('a PF has as much of its own as the model gives it, and no more', async (t) => {
  const subsystem = await embedded.open();
  t.teardown(() => subsystem.close());
  const pf = subsystem.controlling.modelControllers().find((c) => c.kind === 'pf' && !c.controlling);
  // The admin queue is counted there, and not here.
  const [queues, vectors] = [(pf?.queues ?? 0) - 1, pf?.vectors ?? 0];
  t.true(queues > 0 && vectors > 0);
  for (const more of [{ queues: queues + 1 }, { vectors: vectors + 1 }]) {
    await t.throwsAsync(subsystem.provision({ kind: 'pf', ...more }), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  }
  t.like((await subsystem.provision({ kind: 'pf', queues, vectors })).spec, { queues, vectors });
});

test('the model says what a VF was given', async (t) => {
  const subsystem = await embedded.open();
  t.teardown(() => subsystem.close());
  await subsystem.provision({ kind: 'vf', queues: 3, vectors: 2 });
  const vf = subsystem.controlling.modelControllers().find((c) => c.kind === 'vf' && c.online);
  t.like(vf, { queues: 4, vectors: 2 });
});

test('a subsystem that was closed can be opened again, and one that is open can not', async (t) => {
  const driver = new EmbeddedDriver([{ name: 'again' }]);
  for (let round = 0; round < 2; round += 1) {
    const controlling = await driver.open('embedded:again');
    await t.throwsAsync(driver.open('embedded:again'), { code: 'ERR_TOWLINE_BUSY' });
    await controlling.close();
  }
  t.deepEqual((await driver.discover())[0]?.reasons, []);
});
