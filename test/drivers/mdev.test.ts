import test from 'ava';
import { conformDriver } from '#towline/conformance/index.js';
import { MdevDriver, type MdevControllingFunction, type MdevOptions } from '#towline/drivers/mdev.js';
import { provisionFunction } from '#towline/function/lifecycle.js';
import type { FunctionSpec } from '#towline/function/types.js';
import { FakeHost, mttyParent } from '../support/fake-host.js';
import { failEach } from './undo.js';

const spec = (more: Partial<FunctionSpec> = {}): FunctionSpec => ({ kind: 'siov', type: 'mtty-2', ...more });

async function opened(options: MdevOptions = {}): Promise<{ host: FakeHost; controlling: MdevControllingFunction }> {
  const host = new FakeHost();
  host.parents = [mttyParent()];
  return { host, controlling: await new MdevDriver({ ...options, host }).open('mtty') };
}

const codesOf = (reasons: readonly { code: string }[]): string[] => reasons.map((r) => r.code);

test('it passes the kit of drivers, with a type to take', async (t) => {
  const host = new FakeHost();
  host.parents = [mttyParent()];
  const driver = new MdevDriver({ host, type: 'mtty-1' });
  for await (const { check, outcome, why } of conformDriver({ driver, address: 'mtty' }))
    t.is(outcome, 'passed', `${check}: ${why}`);
});

test('a mediated device is made by its type and has the UUID of the function', async (t) => {
  const { host, controlling } = await opened();
  const fn = await provisionFunction(controlling, spec({ expose: 'vfio' }));
  t.deepEqual(
    host.parents[0]?.devices.map((d) => [d.uuid, d.type]),
    [[fn.uuid, 'mtty-2']],
  );
  t.like(fn, { state: 'exposed', location: { bus: 'mdev', address: fn.uuid } });
  t.is(fn.spec.type, 'mtty-2');
  t.deepEqual(await fn.explain(), []);
  await fn.open?.();
  t.is(await fn.channel().state(), 'running');
  t.is((await fn.descriptor())['type']?.value, 'mtty-2');
  await fn.release();
  t.deepEqual(host.parents[0]?.devices, []);
});

test('a type has to be named where there are several', async (t) => {
  const { host, controlling } = await opened();
  await t.throwsAsync(provisionFunction(controlling, { kind: 'siov' }), {
    code: 'ERR_TOWLINE_INVALID_ARGUMENT',
    message: /mtty-1.*mtty-2/,
  });
  await t.throwsAsync(provisionFunction(controlling, spec({ type: 'mtty-9' })), { code: 'ERR_TOWLINE_NOT_FOUND' });
  await t.throwsAsync(provisionFunction(controlling, spec({ type: '../x' })), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
  const [first, second] = host.parents[0]?.types ?? [];
  if (first === undefined || second === undefined) return t.fail();
  first.availableInstances = 0;
  t.is((await provisionFunction(controlling, { kind: 'siov' })).spec.type, 'mtty-2');
  second.availableInstances = 0;
  await t.throwsAsync(provisionFunction(controlling, spec()), { code: 'ERR_TOWLINE_NO_RESOURCES' });
});

test('a failure of any call leaves nothing', async (t) => {
  const count = await failEach(t, async () => {
    const { host, controlling } = await opened();
    return { host, work: () => provisionFunction(controlling, spec({ expose: 'vfio' })) };
  });
  t.true(count >= 5, `${count} calls`);
});

test('the comparison notices a device that is left behind', async (t) => {
  const { host } = await opened();
  const before = host.snapshot();
  await host.mdevCreate('devices/virtual/mtty/mtty', 'mtty-1', '11111111-2222-4333-8444-555555555555');
  t.notDeepEqual(host.snapshot(), before);
});

test('what a type does not give is refused, and there is no kernel driver', async (t) => {
  const { host, controlling } = await opened();
  const before = host.snapshot();
  for (const more of [{ queues: 1 }, { vectors: 1 }, { namespaces: [1] }, { hwAddress: '02:00:00:00:00:01' }]) {
    await t.throwsAsync(provisionFunction(controlling, spec(more)), { code: 'ERR_TOWLINE_UNSUPPORTED' });
  }
  await t.throwsAsync(provisionFunction(controlling, spec({ expose: 'kernel' })), {
    code: 'ERR_TOWLINE_EXPOSURE',
    message: /only VFIO/,
  });
  await t.throwsAsync(provisionFunction(controlling, spec({ kind: 'vf' })), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  t.deepEqual(host.snapshot(), before);
});

test('a driver that does not migrate is told by its missing state', async (t) => {
  const { host, controlling } = await opened();
  const create = host.mdevCreate.bind(host);
  host.mdevCreate = async (...args) => {
    await create(...args);
    for (const d of host.parents[0]?.devices ?? []) d.vfioState = null;
  };
  const before = host.snapshot();
  await t.throwsAsync(provisionFunction(controlling, spec()), { code: 'ERR_TOWLINE_UNSUPPORTED', message: /debugfs/ });
  t.deepEqual(host.snapshot(), before);
});

test('devices that are there are found, and who has them is told', async (t) => {
  const { host, controlling } = await opened();
  const uuid = '11111111-2222-4333-8444-555555555555';
  await host.mdevCreate('devices/virtual/mtty/mtty', 'mtty-1', uuid);
  const [found] = await controlling.list();
  t.like(found, { uuid, state: 'exposed', exposure: 'vfio' });
  host.opened.set('/dev/vfio/devices/vfio0', 4711);
  t.deepEqual(codesOf((await found?.explain()) ?? []), ['in-use']);
  t.true(await found?.inUse?.());
  await t.throwsAsync(provisionFunction(controlling, spec({ uuid })), { code: 'ERR_TOWLINE_EXISTS' });
  await host.mdevRemove(uuid);
  t.deepEqual(await controlling.list(), []);
  t.is(found?.state, 'lost');
});

test('a device that another process has open is not removed', async (t) => {
  for (const expose of ['vfio', 'none'] as const) {
    const { host, controlling } = await opened();
    const fn = await provisionFunction(controlling, spec({ expose }));
    host.opened.set('/dev/vfio/devices/vfio0', 4711);
    await t.throwsAsync(fn.release(), { code: 'ERR_TOWLINE_BUSY', message: /4711/ });
    t.is(host.parents[0]?.devices.length, 1);
    t.is(fn.exposure, expose);
    host.opened.clear();
    await fn.release();
    t.is(fn.state, 'released');
    t.deepEqual(host.parents[0]?.devices, []);
  }
});

test('parents are named by name or path', async (t) => {
  const host = new FakeHost();
  host.parents = [mttyParent(), { ...mttyParent(), path: 'devices/virtual/other/mtty' }];
  const driver = new MdevDriver({ host });
  t.deepEqual(
    (await driver.discover()).map((d) => d.address),
    ['devices/virtual/mtty/mtty', 'devices/virtual/other/mtty'],
  );
  await t.throwsAsync(driver.open('mtty'), { code: 'ERR_TOWLINE_INVALID_ARGUMENT', message: /several/ });
  t.is((await driver.open('/sys/devices/virtual/other/mtty')).address, 'devices/virtual/other/mtty');
  await t.throwsAsync(driver.open('gvt'), { code: 'ERR_TOWLINE_NOT_FOUND' });
});
