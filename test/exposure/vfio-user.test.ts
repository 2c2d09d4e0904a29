import { existsSync, mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { barPolicy } from '#towline/bar/index.js';
import { EmbeddedDriver, kSubsystem, type EmbeddedControllingFunction } from '#towline/drivers/embedded.js';
import { native, nativeSync, type TowlineError } from '#towline/errors.js';
import { provisionFunction } from '#towline/function/lifecycle.js';
import { functionKinds } from '#towline/function/types.js';
import { GuestMemory } from '#towline/migration/memory.js';
import { Host } from '#towline/serve/host.js';
import { GET_INFO, RESET, VfioUserClient } from '../support/vfio-user-client.js';

const BAR0 = 0;
const CONFIG = 7;
/** Class, subclass and programming interface of an NVMe controller. */
const NVME = 0x010802;

interface Place {
  directory: string;
  controlling: EmbeddedControllingFunction;
  socket: (name: string) => string;
}

async function place(t: ExecutionContext): Promise<Place> {
  const directory = mkdtempSync(join(tmpdir(), 'towline-vfio-user-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const name = 'vu';
  const namespaces = [{ path: join(directory, 'disk'), sizeBytes: 1n << 20n }];
  const controlling = await new EmbeddedDriver([{ name, namespaces }]).open(`embedded:${name}`);
  t.teardown(() => controlling.close());
  return { directory, controlling, socket: (file) => join(directory, file) };
}

const code = (expected: string) => ({ code: expected }) as Partial<TowlineError>;

for (const kind of functionKinds) {
  test(`a ${kind} on a socket`, async (t) => {
    const { controlling, socket } = await place(t);
    const fn = await provisionFunction(controlling, { kind, queues: 2, vectors: 3, namespaces: [1] });
    const socketPath = socket('function');
    await fn.expose('vfio-user', { socketPath });
    t.like(fn, { state: 'exposed', exposure: 'vfio-user' });
    t.is(statSync(socketPath).mode & 0o777, 0o600);
    t.true(statSync(socketPath).isSocket());

    const client = await VfioUserClient.connect(socketPath);
    const info = await client.ask(GET_INFO, Buffer.from([16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]));
    t.is(info.body?.readUInt32LE(4), 3, 'a PCI device that can be reset');
    t.is((await client.read32(CONFIG, 8)) >>> 8, NVME);
    t.is(await client.read32(BAR0, 8), 0x20100, 'NVMe 2.1');
    t.deepEqual(await client.ask(RESET), { body: Buffer.alloc(0) });

    t.deepEqual(await fn.explain(), [], 'it can be migrated as it is');
    t.regex(fn.exposureState?.format ?? '', /^vfio-user:1:1234:74..:01080201:bar0=8192:bar4=8192:vectors=\d+$/);
    await t.throwsAsync(fn.configure({ queues: 1 }), code('ERR_TOWLINE_STATE'));

    await fn.expose('none');
    await client.gone;
    t.false(existsSync(socketPath));
    t.like(fn, { state: 'migration-enabled', exposure: 'none', exposureState: undefined });
    t.deepEqual(await fn.explain(), []);
    // And once more: where it was, or elsewhere.
    await fn.expose('vfio-user', { socketPath: socket('elsewhere') });
    t.is(await (await VfioUserClient.connect(socket('elsewhere'))).read32(BAR0, 8), 0x20100);
    await fn.release();
    t.false(existsSync(socket('elsewhere')));
  });
}

test('a client that comes back finds the function reset', async (t) => {
  const { controlling, socket } = await place(t);
  const fn = await provisionFunction(controlling, { kind: 'vf', queues: 2, vectors: 3 });
  await fn.expose('vfio-user', { socketPath: socket('vf') });
  const first = await VfioUserClient.connect(socket('vf'));
  // AQA keeps what is written while the controller is disabled.
  await first.write32(BAR0, 0x24, 0x001f001f);
  t.is(await first.read32(BAR0, 0x24), 0x001f001f);
  await first.close();
  // The server hears of the end by itself, and until then turns others away.
  for (let tries = 0; ; tries += 1) {
    try {
      const second = await VfioUserClient.connect(socket('vf'));
      t.is(await second.read32(BAR0, 0x24), 0);
      return;
    } catch (error) {
      if (tries === 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
  }
});

test('what is in the way is told, and the function stays as it was', async (t) => {
  const { controlling, socket } = await place(t);
  const [one, two] = [
    await provisionFunction(controlling, { kind: 'vf', queues: 2, vectors: 3 }),
    await provisionFunction(controlling, { kind: 'siov', queues: 2, vectors: 3 }),
  ];
  await one.expose('vfio-user', { socketPath: socket('one') });
  await t.throwsAsync(two.expose('vfio-user', { socketPath: socket('one') }), code('ERR_TOWLINE_EXISTS'));
  writeFileSync(socket('file'), 'mine');
  await t.throwsAsync(two.expose('vfio-user', { socketPath: socket('file') }), code('ERR_TOWLINE_EXISTS'));
  const missing = join(socket('no-directory'), 'socket');
  await t.throwsAsync(two.expose('vfio-user', { socketPath: missing }), {
    code: 'ERR_TOWLINE_SYSTEM',
    message: /ENOENT|No such file/,
  });
  await t.throwsAsync(two.expose('vfio-user', { socketPath: socket('x'.repeat(200)) }), code('ERR_TOWLINE_SYSTEM'));
  t.like(two, { state: 'migration-enabled', exposure: 'none' });
  await two.expose('vfio-user', { socketPath: socket('two') });
  t.is(await VfioUserClient.connect(socket('one')).then((c) => c.read32(BAR0, 8)), 0x20100);
});

test('while a client has a function, nobody else gives it memory', async (t) => {
  const { controlling, socket } = await place(t);
  const fn = await provisionFunction(controlling, { kind: 'vf', queues: 2, vectors: 3 });
  const memory = GuestMemory.anonymous('test', 1n << 20n);
  t.teardown(() => memory.close());
  await controlling.attachMemory(fn, memory);
  await fn.expose('vfio-user', { socketPath: socket('vf') });
  await t.throwsAsync(async () => controlling.attachMemory(fn, memory), code('ERR_TOWLINE_BUSY'));
  // Taking away what is not there any more is no error: releasing a function does it.
  await controlling.detachMemory(fn);
  const client = await VfioUserClient.connect(socket('vf'));
  t.is(await client.read32(BAR0, 8), 0x20100);
  await fn.expose('none');
  await controlling.attachMemory(fn, memory);
});

test('the controlling function itself: its admin queue is the guest’s then', async (t) => {
  const { controlling, socket } = await place(t);
  const subsystem = controlling[kSubsystem];
  const [pf] = controlling.modelControllers();
  t.true(pf?.controlling);
  const server = await native(() => subsystem.exposeVfioUser(pf?.cntlid ?? 0, socket('pf'), {}));
  await t.throwsAsync(
    controlling.capacity().then(() => controlling.list()),
    code('ERR_TOWLINE_GONE'),
  );
  t.throws(() => nativeSync(() => subsystem.admin()), code('ERR_TOWLINE_GONE'));
  const client = await VfioUserClient.connect(socket('pf'));
  t.is((await client.read32(CONFIG, 8)) >>> 8, NVME);
  t.like(JSON.parse(server.status()), {
    path: socket('pf'),
    connected: true,
    clients: 1,
    dmaRegions: 0,
    lastError: null,
  });
  t.deepEqual(server.memory()?.ranges(), []);
  await native(() => server.close());
  await native(() => server.close());
  t.is(server.memory(), null);
  // Given up by the guest, it can be commanded from here again.
  const admin = nativeSync(() => subsystem.admin());
  t.like(JSON.parse(await native(() => admin.identify(null))), { hmlms: true });
});

test('a BAR filter stands before the guest; doorbells that are mapped are refused', async (t) => {
  const { controlling, socket } = await place(t);
  const subsystem = controlling[kSubsystem];
  const [, { cntlid } = { cntlid: 0 }] = controlling.modelControllers();
  const filter = (bytes: bigint): Uint8Array =>
    barPolicy(bytes).deny('version', 8n, 4n, 'zeros', 'read').compile().toBytes();
  const expose = (options: object) => native(() => subsystem.exposeVfioUser(cntlid, socket('pf'), options));
  await t.throwsAsync(expose({ filter: filter(0x4000n) }), code('ERR_TOWLINE_INVALID_ARGUMENT'));
  await t.throwsAsync(expose({ filter: new Uint8Array(7) }), code('ERR_TOWLINE_INVALID_ARGUMENT'));
  await t.throwsAsync(expose({ mapDoorbells: true }), code('ERR_TOWLINE_UNSUPPORTED'));
  t.false(existsSync(socket('pf')));
  const server = await expose({ filter: filter(0x2000n) });
  await t.throwsAsync(expose({}), code('ERR_TOWLINE_BUSY'));
  const client = await VfioUserClient.connect(socket('pf'));
  t.is(await client.read32(BAR0, 8), 0);
  t.not(await client.read32(BAR0, 0), 0);
  await native(() => server.close());
  // Without the filter it is there.
  await expose({});
  t.is(await (await VfioUserClient.connect(socket('pf'))).read32(BAR0, 8), 0x20100);
});

test('the controlling function by its own call', async (t) => {
  const { controlling, socket } = await place(t);
  const fn = await provisionFunction(controlling, { kind: 'vf', queues: 2, vectors: 3 });
  const hide = await controlling.exposeControlling({ socketPath: socket('pf') });
  t.is(await (await VfioUserClient.connect(socket('pf'))).read32(BAR0, 8), 0x20100);
  await t.throwsAsync(controlling.list(), code('ERR_TOWLINE_GONE'));
  t.false(
    controlling.modelControllers().some((c) => c.kind === 'vf' && c.online),
    'a reset takes them offline',
  );
  t.is(fn.kind, 'vf');
  await hide();
  t.false(existsSync(socket('pf')));
});

test('a filter by the function’s own call', async (t) => {
  const { controlling, socket } = await place(t);
  const fn = await provisionFunction(controlling, { kind: 'siov', queues: 2, vectors: 3 });
  const filter = barPolicy(0x2000n).deny('version', 8n, 4n, 'zeros', 'read').compile();
  await fn.expose('vfio-user', { socketPath: socket('siov'), filter });
  const client = await VfioUserClient.connect(socket('siov'));
  t.is(await client.read32(BAR0, 8), 0);
  t.not(await client.read32(BAR0, 0), 0);
});

test('a serving process makes the socket where none is named, and gives the function its own memory again', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'towline-vu-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const journal = join(directory, 'journal');
  const host = await Host.open({ embedded: [{ name: 'one' }], journal, memoryBytes: 1n << 20n });
  t.teardown(() => host.close());
  const held = await host.provision(undefined, { kind: 'siov', queues: 2, vectors: 3, expose: 'vfio-user' }, {});
  const path = join(directory, 'vfio-user', `${held.fn.uuid}.sock`);
  t.like(host.info(held), { exposure: 'vfio-user', socket: path, state: 'exposed' });
  t.is(statSync(join(directory, 'vfio-user')).mode & 0o777, 0o700);
  const client = await VfioUserClient.connect(path);
  t.is(await client.read32(BAR0, 8), 0x20100);
  await host.expose(held, 'none', {});
  await client.gone;
  t.like(host.info(held), { exposure: 'none', socket: null, state: 'migration-enabled' });
  t.deepEqual(await host.explain(held, {}), []);
  await host.expose(held, 'vfio-user', { socketPath: join(directory, 'named') });
  t.like(host.info(held), { socket: join(directory, 'named') });
  await host.release(held);
  t.false(existsSync(join(directory, 'named')));
});
