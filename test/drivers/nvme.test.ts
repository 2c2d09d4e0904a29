import test from 'ava';
import { NvmeControllingFunction } from '#towline/drivers/nvme.js';
import { TowlineError } from '#towline/errors.js';
import { provisionFunction } from '#towline/function/lifecycle.js';
import type { FunctionKind, FunctionSpec } from '#towline/function/types.js';
import { FakeNvme } from '../support/fake-nvme.js';

const kinds: FunctionKind[] = ['pf', 'vf', 'siov'];
const spec = (kind: FunctionKind): FunctionSpec => ({
  kind,
  queues: 4,
  vectors: 5,
  namespaces: [1],
  migration: true,
  expose: 'none',
});

async function prepared(): Promise<{ fake: FakeNvme; controlling: NvmeControllingFunction }> {
  const fake = new FakeNvme();
  // The pool of VFs is sized once and stays: it is no part of what a failure undoes.
  await fake.ensureVfs();
  return { fake, controlling: new NvmeControllingFunction(fake) };
}

test('a VF gets its resources offline and is set online last', async (t) => {
  const { fake, controlling } = await prepared();
  const fn = await provisionFunction(controlling, spec('vf'));
  t.deepEqual(fake.log, [
    'offline 11',
    'offline 11',
    'assign 11 vi 5',
    'assign 11 vq 5',
    'reset 11',
    'attach 1 11',
    'online 11',
  ]);
  t.like(fn, { state: 'migration-enabled', kind: 'vf', exposure: 'none' });
  t.like(fn.spec, { queues: 4, vectors: 5, namespaces: [1], migration: true });
  t.deepEqual(await fn.explain(), []);
});

for (const kind of kinds) {
  test(`a ${kind} comes and goes and leaves nothing behind`, async (t) => {
    const { fake, controlling } = await prepared();
    const before = fake.snapshot();
    const fn = await provisionFunction(controlling, spec(kind));
    t.notDeepEqual(fake.snapshot(), before);
    t.is((await controlling.list()).length, 1);
    await fn.release();
    await fn.release();
    t.deepEqual(fake.snapshot(), before);
    t.is(fn.state, 'released');
    t.deepEqual(
      (await fn.explain()).map((r) => r.code),
      ['function-released'],
    );
  });

  test(`a ${kind}: a failure at any step leaves nothing half done`, async (t) => {
    const count = await (async () => {
      const { fake, controlling } = await prepared();
      await provisionFunction(controlling, spec(kind));
      return fake.changes;
    })();
    t.true(count >= 2);
    for (let failAt = 0; failAt < count; failAt += 1) {
      const { fake, controlling } = await prepared();
      const before = fake.snapshot();
      fake.failAt = failAt;
      const error = await t.throwsAsync(provisionFunction(controlling, spec(kind)), { instanceOf: TowlineError });
      t.is((error as TowlineError).code, 'ERR_TOWLINE_DEVICE', `step ${failAt}: ${error?.message}`);
      t.is((error as TowlineError).nvmeStatus, 0x0006);
      t.deepEqual(fake.snapshot(), before, `step ${failAt} (${fake.log[failAt]}): ${fake.log.join(', ')}`);
      t.deepEqual(await controlling.list(), []);
      // And the same function can be provisioned afterwards.
      fake.failAt = -1;
      await provisionFunction(controlling, spec(kind));
    }
  });
}

test('the comparison above notices what is left behind', async (t) => {
  const { fake } = await prepared();
  const before = fake.snapshot();
  await fake.attachNamespace(1, 11);
  t.notDeepEqual(fake.snapshot(), before);
});

test('a step that cannot be undone is named, and the others are undone', async (t) => {
  const { fake, controlling } = await prepared();
  // The assignment of VQ fails, and the offline that would free the VI fails once more.
  fake.failAt = 3;
  const assign = fake.assign.bind(fake);
  fake.assign = async (cntlid, resource, count) => {
    if (count === 0) throw new TowlineError('ERR_TOWLINE_DEVICE', 'no way back');
    return assign(cntlid, resource, count);
  };
  const error = await t.throwsAsync(provisionFunction(controlling, spec('vf')));
  t.regex(error?.message ?? '', /not undone: assign 5 vi \(no way back\)/);
  t.deepEqual(await controlling.list(), []);
});

test('fewer resources than asked are refused and given back', async (t) => {
  const { fake, controlling } = await prepared();
  const before = fake.snapshot();
  fake.short = 1;
  await t.throwsAsync(provisionFunction(controlling, spec('vf')), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  t.deepEqual(fake.snapshot(), before);
});

test('a disk of an earlier tenant is detached', async (t) => {
  const { fake, controlling } = await prepared();
  await fake.attachNamespace(2, 11);
  await provisionFunction(controlling, spec('vf'));
  t.true(fake.log.includes('detach 2 11'));
});

test('a reconfiguration that fails gives back what was there', async (t) => {
  const { fake, controlling } = await prepared();
  const fn = await provisionFunction(controlling, spec('vf'));
  const before = fake.snapshot();
  await t.throwsAsync(fn.configure({ queues: 4, vectors: 5, namespaces: [9] }), { code: 'ERR_TOWLINE_NOT_FOUND' });
  t.deepEqual(fake.snapshot(), before);
  t.is(fn.state, 'migration-enabled');
});

test('reasons are stable and each has a mend', async (t) => {
  const { fake, controlling } = await prepared();
  const fn = await provisionFunction(controlling, { ...spec('vf'), migration: false });
  const codes = async (): Promise<string[]> => (await fn.explain()).map((r) => r.code);
  t.deepEqual(await codes(), ['migration-not-enabled']);
  fake.hmlms = false;
  fake.trackMemory = false;
  t.deepEqual(await codes(), ['controlling-function-cannot-migrate', 'no-dirty-tracking', 'migration-not-enabled']);
  await t.throwsAsync(controlling.enableMigration(fn), { code: 'ERR_TOWLINE_UNSUPPORTED' });
  fake.hmlms = true;
  fake.trackMemory = true;
  fake.fatal = true;
  t.deepEqual(await codes(), ['function-failed', 'migration-not-enabled']);
  fake.fatal = false;
  await fake.offline(11);
  t.deepEqual(await codes(), ['function-offline', 'migration-not-enabled']);
  for (const reason of await fn.explain()) t.true(reason.mend.length > 0);
});

test('exposures that do not exist refuse with the reason, and nothing is left', async (t) => {
  for (const expose of ['kernel', 'vfio', 'vfio-user'] as const) {
    const { fake, controlling } = await prepared();
    const before = fake.snapshot();
    await t.throwsAsync(provisionFunction(controlling, { ...spec('vf'), expose }), {
      code: 'ERR_TOWLINE_EXPOSURE',
    });
    t.deepEqual(fake.snapshot(), before);
  }
});

test('two at once get two functions, and a third one none', async (t) => {
  const { controlling } = await prepared();
  const [a, b] = await Promise.all([
    provisionFunction(controlling, { kind: 'vf' }),
    provisionFunction(controlling, { kind: 'vf' }),
  ]);
  t.not(a.uuid, b.uuid);
  await t.throwsAsync(provisionFunction(controlling, { kind: 'vf' }), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  t.deepEqual(
    (await controlling.capacity()).map((c) => c.free),
    [1, 0, 2],
  );
});

test('a fired signal leaves nothing', async (t) => {
  const { fake, controlling } = await prepared();
  const before = fake.snapshot();
  const controller = new AbortController();
  const online = fake.online.bind(fake);
  fake.online = async (cntlid) => {
    await online(cntlid);
    controller.abort();
  };
  await t.throwsAsync(provisionFunction(controlling, spec('vf'), { signal: controller.signal }), {
    code: 'ERR_TOWLINE_ABORTED',
  });
  t.deepEqual(fake.snapshot(), before);
});

test('arguments are checked before anything is touched', async (t) => {
  const { fake, controlling } = await prepared();
  const bad: Partial<FunctionSpec>[] = [
    { queues: 0 },
    { queues: 1.5 },
    { vectors: 2049 },
    { namespaces: [0] },
    { namespaces: [1, 1] },
    { uuid: 'no' },
    { name: '' },
    { kind: 'xf' as FunctionKind },
  ];
  for (const part of bad) {
    await t.throwsAsync(provisionFunction(controlling, { ...spec('vf'), ...part }), {
      code: 'ERR_TOWLINE_INVALID_ARGUMENT',
    });
  }
  t.deepEqual(fake.log, []);
});

test('close is idempotent and refuses what comes after it', async (t) => {
  const { fake, controlling } = await prepared();
  await controlling.close();
  await controlling.close();
  t.deepEqual(fake.log, ['close']);
  await t.throwsAsync(async () => controlling.list(), { code: 'ERR_TOWLINE_CLOSED' });
});

test('a function that is found online keeps its disks when only its queues change', async (t) => {
  const { fake, controlling } = await prepared();
  await fake.assign(11, 'vi', 2);
  await fake.assign(11, 'vq', 3);
  await fake.online(11);
  await fake.attachNamespace(2, 11);
  await fake.attachNamespace(1, 12);
  const [fn, ...more] = await controlling.list();
  t.is(more.length, 0);
  t.like(fn?.spec, { queues: 2, vectors: 2, namespaces: [2] });
  await fn?.configure({ ...fn.spec, queues: 1 });
  t.deepEqual(
    fake.snapshot().attachments.find(([nsid]) => nsid === 2),
    [2, [11]],
  );
});

test('a function that does not close keeps neither the others nor the device open', async (t) => {
  const { fake, controlling } = await prepared();
  const functions = [
    await provisionFunction(controlling, spec('vf')),
    await provisionFunction(controlling, { kind: 'vf' }),
  ];
  const closed: string[] = [];
  for (const fn of functions) {
    fn.channel().close = async () => {
      closed.push(fn.name);
      throw new TowlineError('ERR_TOWLINE_DEVICE', `${fn.name} stays`);
    };
  }
  await t.throwsAsync(controlling.close(), { message: `${functions[0]?.name} stays` });
  t.deepEqual(
    closed,
    functions.map((f) => f.name),
  );
  t.is(fake.log.at(-1), 'close');
});
