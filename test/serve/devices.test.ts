/** Serving processes that hold devices of a host: here one in memory. */
import { existsSync, statSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { MdevDriver } from '#towline/drivers/mdev.js';
import { SriovDriver } from '#towline/drivers/sriov.js';
import type { ControllingFunction } from '#towline/drivers/driver.js';
import { TowlineError } from '#towline/errors.js';
import { ServeClient } from '#towline/serve/client.js';
import { openControlling, parseControlling } from '#towline/serve/drivers.js';
import { Host } from '#towline/serve/host.js';
import { settleOutlived } from '#towline/serve/outlived.js';
import { startServer, type RunningServer } from '#towline/serve/server.js';
import { FakeHost, mlx5Pf, mttyParent } from '../support/fake-host.js';
import { MemoryDevice } from '../support/memory-device.js';

const UUIDS = ['55555555-0000-4000-8000-000000000001', '55555555-0000-4000-8000-000000000002'] as const;

interface Side {
  path: string;
  fake: FakeHost;
  server: RunningServer;
  client: ServeClient;
}

async function side(
  t: ExecutionContext,
  open: (fake: FakeHost) => Promise<ControllingFunction[]> = async (fake) => [
    await new MdevDriver({ host: fake }).open('mtty'),
  ],
): Promise<Side> {
  const path = await mkdtemp(join(tmpdir(), 'towline-devices-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  const fake = new FakeHost(mlx5Pf());
  fake.parents = [mttyParent()];
  const host = await Host.open({
    embedded: [],
    controlling: () => open(fake),
    journal: join(path, 'journal'),
    memoryBytes: 1n << 20n,
  });
  const server = await startServer(host, join(path, 'serve.sock'));
  t.teardown(() => server.close().catch(() => undefined));
  return { path, fake, server, client: await ServeClient.connect(server.socketPath) };
}

test('a mediated device is provisioned, found by its address, and released', async (t) => {
  const { fake, client } = await side(t);
  const spec = { kind: 'siov', type: 'mtty-2', name: 'serial', uuid: UUIDS[0], expose: 'vfio' } as const;
  const made = await client.call('provision', { controlling: 'mdev:mtty', spec });
  t.like(made, {
    controlling: 'mdev:mtty',
    location: { bus: 'mdev', address: UUIDS[0] },
    type: 'mtty-2',
    exposure: 'vfio',
    memoryBytes: `${1 << 20}`,
  });
  t.deepEqual((await client.call('explain', { function: UUIDS[0] })).reasons, []);
  t.like((await client.call('list', {})).controlling, [{ address: 'mdev:mtty', driver: 'mdev', rehearsal: null }]);
  await t.throwsAsync(client.call('expose', { function: 'serial', exposure: 'vfio-user', socketPath: '/tmp/x' }), {
    code: 'ERR_TOWLINE_EXPOSURE',
    message: /embedded/,
  });
  await client.call('release', { function: 'serial' });
  t.deepEqual(fake.parents[0]?.devices, []);
  t.deepEqual([...fake.open], []);
});

test('a VF is found by its PCI address, and two drivers of one PF are told apart by name', async (t) => {
  const { client } = await side(t, async (fake) => {
    const driver = new SriovDriver({ host: fake, vfs: 2 });
    const mdev = new MdevDriver({ host: fake });
    return [await driver.open('0000:01:00.0'), await mdev.open('mtty')];
  });
  const spec = { kind: 'vf', name: 'v' } as const;
  await t.throwsAsync(client.call('provision', { spec }), { message: /sriov:0000:01:00\.0, mdev:mtty/ });
  for (const controlling of ['0000:01:00.0', 'sriov:0000:01:00.0']) {
    const made = await client.call('provision', { controlling, spec });
    t.is(made.controlling, 'sriov:0000:01:00.0');
    const { function: found } = await client.call('explain', { function: made.location?.address.toUpperCase() ?? '' });
    t.is(found.uuid, made.uuid);
    await client.call('release', { function: 'v' });
  }
});

test('two devices of one guest are migrated in one session, with one memory', async (t) => {
  const [here, there] = [await side(t), await side(t)];
  for (const { client, fake } of [here, there]) {
    for (const [n, uuid] of UUIDS.entries()) {
      // What it gives before the stop is of no use afterwards, so that it has no pre-copy.
      fake.devices.set(uuid, new MemoryDevice({ stopCopy: true, p2p: true, preCopy: false }));
      const spec = { kind: 'siov', type: 'mtty-2', name: `serial${n}`, uuid, expose: 'vfio' } as const;
      await client.call('provision', { spec, guest: 'g' });
    }
  }
  const functions = ['serial0', 'serial1'];
  const address = await new Promise<string>((resolve, reject) => {
    there.client
      .call(
        'receive',
        { functions, from: `unix://${join(there.path, 'link')}` },
        { onEvent: (e) => e.type === 'listening' && resolve(e.address) },
      )
      .then((report) => t.is(report.outcome, 'committed'), reject);
  });
  for (const [n, uuid] of UUIDS.entries()) here.fake.devices.get(uuid)?.registers.fill(BigInt(n) + 7n);
  const report = await here.client.call('migrate', {
    functions,
    to: address,
    // How long a stop takes on a loaded machine is not what this is about.
    policy: { maxDowntimeMs: 60_000 },
  });
  t.is(report.outcome, 'committed');
  t.deepEqual(
    UUIDS.map((uuid) => there.fake.devices.get(uuid)?.registers[3]),
    [7n, 8n],
  );
  t.deepEqual(report.releaseFailures ?? [], []);
  t.deepEqual(here.fake.parents[0]?.devices, [], 'the source has given them back');
  t.deepEqual([...here.fake.open], []);
  t.deepEqual((await here.client.call('list', {})).functions, []);
  t.deepEqual((await there.client.call('list', {})).functions.map((f) => f.uuid).toSorted(), [...UUIDS]);
});

test('functions of two guests are not migrated together', async (t) => {
  const { client } = await side(t);
  for (const [n, uuid] of UUIDS.entries()) {
    const spec = { kind: 'siov', type: 'mtty-2', name: `serial${n}`, uuid, expose: 'vfio' } as const;
    await client.call('provision', { spec, guest: `g${n}` });
  }
  await t.throwsAsync(client.call('migrate', { functions: ['serial0', 'serial1'], to: 'unix:///tmp/nobody' }), {
    code: 'ERR_TOWLINE_INVALID_ARGUMENT',
    message: /different guest memories/,
  });
});

test('a controlling function that does not close is told, and keeps nothing else open', async (t) => {
  const path = await mkdtemp(join(tmpdir(), 'towline-devices-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  const fake = new FakeHost();
  fake.parents = [mttyParent()];
  const open = async (): Promise<Host> =>
    Host.open({
      embedded: [],
      controlling: async () => [await new MdevDriver({ host: fake }).open('mtty')],
      journal: join(path, 'journal'),
      memoryBytes: 0n,
    });
  const host = await open();
  const [controlling] = host.controlling;
  if (controlling === undefined) return t.fail();
  controlling.close = async () => {
    throw new TowlineError('ERR_TOWLINE_DEVICE', 'it does not close');
  };
  const server = await startServer(host, join(path, 'serve.sock'));
  await t.throwsAsync(server.close(), { code: 'ERR_TOWLINE_DEVICE' });
  await t.throwsAsync(server.closed, { code: 'ERR_TOWLINE_DEVICE' });
  // The journal is free again.
  await (await open()).close();
});

/** A host over an mtty device that its holder left stopped within a session that the journal says was taken back. */
async function outlived(t: ExecutionContext): Promise<{ host: Host; fake: FakeHost; device: MemoryDevice }> {
  const path = await mkdtemp(join(tmpdir(), 'towline-devices-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  const fake = new FakeHost();
  fake.parents = [mttyParent()];
  await fake.mdevCreate('devices/virtual/mtty/mtty', 'mtty-2', UUIDS[0]);
  const device = new MemoryDevice();
  fake.devices.set(UUIDS[0], device);
  await device.channel.setState('stop');
  const host = await Host.open({
    embedded: [],
    controlling: async () => [await new MdevDriver({ host: fake }).open('mtty')],
    journal: join(path, 'journal'),
    memoryBytes: 0n,
  });
  t.teardown(() => host.close());
  const session = { session: UUIDS[1], role: 'source', functions: [UUIDS[0]], epoch: '1', state: 'aborted' } as const;
  host.journal.sessions = () => [{ ...session, functions: [...session.functions], verdict: 'resume-source' }];
  return { host, fake, device };
}

test('one that outlived its holder is settled, and its VFIO device is not kept open', async (t) => {
  const { host, fake, device } = await outlived(t);
  const [recovered] = await settleOutlived(host, [], {});
  t.deepEqual(recovered?.settled, [{ function: UUIDS[0], action: 'resumed' }]);
  t.is(await device.channel.state(), 'running');
  t.deepEqual([...fake.open], []);
  // One that runs is looked at, and left alone.
  t.deepEqual(await settleOutlived(host, [], {}), []);
  t.deepEqual([...fake.open], []);
});

test('one that another process has open is judged by what the kernel shows of it', async (t) => {
  const { host, fake } = await outlived(t);
  const [shown] = fake.parents[0]?.devices ?? [];
  if (shown === undefined) return t.fail();
  fake.opened.set(`/dev/vfio/devices/${shown.vfioDevice}`, 4711);
  t.deepEqual(await settleOutlived(host, [], {}), []);
  shown.vfioState = 'STOP_COPY';
  const [recovered] = await settleOutlived(host, [], {});
  t.like(recovered?.settled[0], { action: 'failed' });
  t.regex(recovered?.settled[0]?.why ?? '', /process 4711 has its VFIO device open, in the state stop-copy/);
  t.false(fake.log.some((line) => line.startsWith('open vfio')));
});

/** A host over the parent mtty, with memory for its functions. */
async function withMemory(t: ExecutionContext): Promise<{ host: Host; fake: FakeHost }> {
  const path = await mkdtemp(join(tmpdir(), 'towline-devices-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  const fake = new FakeHost();
  fake.parents = [mttyParent()];
  const host = await Host.open({
    embedded: [],
    controlling: async () => [await new MdevDriver({ host: fake }).open('mtty')],
    journal: join(path, 'journal'),
    memoryBytes: 1n << 20n,
  });
  t.teardown(() => host.close());
  return { host, fake };
}

test('what a provision could not undo is told, and a function that is not released keeps its memory', async (t) => {
  const { host, fake } = await withMemory(t);
  const spec = { kind: 'siov', type: 'mtty-2', name: 'serial', uuid: UUIDS[0] } as const;
  const remove = fake.mdevRemove.bind(fake);
  fake.mdevRemove = async () => {
    throw new TowlineError('ERR_TOWLINE_DEVICE', 'it stays');
  };
  const error = await t.throwsAsync<TowlineError>(host.provision(undefined, { ...spec, expose: 'vfio-user' }, {}), {
    code: 'ERR_TOWLINE_EXPOSURE',
    message: /not undone: provision \(it stays\)/,
  });
  t.deepEqual(error?.details, { notUndone: [{ step: 'provision', why: 'it stays' }] });
  const [held] = await host.functions();
  t.true((held?.memory?.ranges().length ?? 0) > 0);
  if (held === undefined) return t.fail();
  fake.mdevRemove = remove;
  await host.release(held);
  t.deepEqual(await host.functions(), []);
  t.throws(() => held.memory?.read(0n, 1));
});

test('the memory of a function that is lost is freed', async (t) => {
  const { host, fake } = await withMemory(t);
  const spec = { kind: 'siov', type: 'mtty-2', name: 'serial', uuid: UUIDS[0] } as const;
  const { memory } = await host.provision(undefined, spec, {});
  t.is(memory?.read(0n, 1).length, 1);
  await fake.mdevRemove(UUIDS[0]);
  t.deepEqual(await host.functions(), []);
  t.throws(() => memory?.read(0n, 1));
});

test('words for controlling functions', async (t) => {
  t.deepEqual(parseControlling('nvme:0000:01:00.0'), { driver: 'nvme', address: '0000:01:00.0' });
  t.deepEqual(parseControlling('devlink:pci/0000:01:00.0'), { driver: 'devlink', address: 'pci/0000:01:00.0' });
  for (const wrong of ['', 'nvme', 'nvme:', ':x', 'usb:1', '0000:01:00.0'])
    t.throws(() => parseControlling(wrong), { instanceOf: SyntaxError }, wrong);
  const twice = ['embedded:a', 'embedded:a'].map(parseControlling);
  await t.throwsAsync(openControlling(twice, {}), { code: 'ERR_TOWLINE_INVALID_ARGUMENT', message: /named twice/ });
  // Those that were open before are closed again: the same name can be opened.
  const opened = await openControlling([parseControlling('embedded:a'), parseControlling('embedded:b')], {});
  t.deepEqual(
    opened.map((c) => c.address),
    ['embedded:a', 'embedded:b'],
  );
  for (const controlling of opened) await controlling.close();
});

test('a function on a vfio-user socket: shown, refused to migrate, hidden', async (t) => {
  const { path, client } = await side(t, () => openControlling([parseControlling('embedded:x')], {}));
  const spec = { kind: 'vf', name: 'v' } as const;
  await client.call('provision', { spec });
  const socketPath = join(path, 'v.sock');
  await writeFile(join(path, 'taken'), '');
  await t.throwsAsync(
    client.call('expose', { function: 'v', exposure: 'vfio-user', socketPath: join(path, 'taken') }),
    {
      code: 'ERR_TOWLINE_EXISTS',
    },
  );
  t.is((await client.call('list', {})).functions[0]?.exposure, 'none');
  t.deepEqual((await client.call('explain', { function: 'v' })).reasons, []);

  t.is((await client.call('expose', { function: 'v', exposure: 'vfio-user', socketPath })).exposure, 'vfio-user');
  t.true(statSync(socketPath).isSocket());
  await new Promise<void>((resolve, reject) => {
    const socket = connect(socketPath);
    socket.once('connect', () => (socket.destroy(), resolve()));
    socket.once('error', reject);
  });
  t.deepEqual(
    (await client.call('explain', { function: 'v' })).reasons.map((r) => r.code),
    ['no-guest-memory'],
  );
  // Its memory is the VMM's: of what vCPUs write this process knows nothing.
  for (const [method, where] of [
    ['migrate', 'to'],
    ['receive', 'from'],
  ] as const) {
    await t.throwsAsync(client.call(method, { functions: ['v'], [where]: 'unix:///tmp/nobody' } as never), {
      code: 'ERR_TOWLINE_STATE',
      message: /VMM/,
    });
  }

  t.is((await client.call('expose', { function: 'v', exposure: 'none' })).exposure, 'none');
  t.false(existsSync(socketPath));
  t.deepEqual((await client.call('explain', { function: 'v' })).reasons, []);
  // A second time, and it is released as it is.
  await client.call('expose', { function: 'v', exposure: 'vfio-user', socketPath });
  await client.call('release', { function: 'v' });
  t.false(existsSync(socketPath));
  // Provisioned and shown at once; the end of the server takes the socket away.
  t.is((await client.call('provision', { spec: { ...spec, expose: 'vfio-user' }, socketPath })).exposure, 'vfio-user');
  await client.call('shutdown', {});
});
