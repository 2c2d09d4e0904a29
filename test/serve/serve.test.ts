import test, { type ExecutionContext } from 'ava';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmod, chown, mkdir, mkdtemp, readFile, rm, stat, symlink, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { TowlineError } from '#towline/errors.js';
import type { FunctionSpec } from '#towline/function/types.js';
import { ServeClient } from '#towline/serve/client.js';
import { Host } from '#towline/serve/host.js';
import { LineReader, parseMessage } from '#towline/serve/lines.js';
import { Params } from '#towline/serve/params.js';
import { MAX_LINE_BYTES } from '#towline/serve/protocol.js';
import { startServer, type RunningServer } from '#towline/serve/server.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

async function directory(t: { teardown: (work: () => unknown) => void }): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'towline-test-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  return path;
}

async function openHost(path: string, memoryBytes = 1n << 20n): Promise<Host> {
  const namespace = { path: join(path, 'namespace'), sizeBytes: 1n << 20n };
  return Host.open({
    embedded: [{ name: 'x', namespaces: [namespace] }],
    journal: join(path, 'journal'),
    memoryBytes,
  });
}

async function serve(path: string): Promise<RunningServer> {
  const host = await openHost(path);
  try {
    return await startServer(host, join(path, 'serve.sock'));
  } catch (error) {
    await host.close();
    throw error;
  }
}

test('lines come in any cuts and have a cap', (t) => {
  const lines = new LineReader(8);
  t.deepEqual([...lines.push(bytes('ab'))], []);
  t.deepEqual([...lines.push(bytes('c\nde\nf'))], ['abc', 'de']);
  t.deepEqual([...lines.push(bytes('\n'))], ['f']);
  t.throws(() => [...lines.push(bytes('123456789'))], { code: 'ERR_TOWLINE_LIMIT' });
  t.throws(() => [...new LineReader(8).push(Uint8Array.of(0xff, 0x0a))], { code: 'ERR_TOWLINE_PROTOCOL' });
  for (const line of ['{', '[]', 'null', '1']) t.throws(() => parseMessage(line), { code: 'ERR_TOWLINE_PROTOCOL' });
});

test('parameters of a wrong type or range are refused', (t) => {
  const params = new Params(
    { text: '', count: 1.5, flag: 'yes', list: ['a', 1], nested: { deep: 1 }, nul: 'a\0b' },
    'm',
  );
  const code = { code: 'ERR_TOWLINE_INVALID_ARGUMENT' };
  t.throws(() => params.text('text'), code);
  t.throws(() => params.text('missing'), code);
  t.throws(() => params.text('nul'), code);
  t.throws(() => params.optionalCount('count', 0, 10), code);
  t.throws(() => params.optionalFlag('flag'), code);
  t.throws(() => params.texts('list', 1, 4), code);
  t.throws(() => params.choice('text', ['a']), code);
  t.throws(() => new Params([], 'm'), code);
  t.is(params.nested('nested').optionalCount('deep', 0, 1), 1);
  t.is(params.optionalText('constructor'), undefined);
});

test('a client provisions, explains and releases over the socket', async (t) => {
  const path = await directory(t);
  const server = await serve(path);
  t.is((await stat(server.socketPath)).mode & 0o777, 0o600);
  const client = await ServeClient.connect(server.socketPath);
  const fn = await client.call('provision', { spec: { kind: 'vf', name: 'one', namespaces: [1] } });
  t.like(fn, {
    name: 'one',
    kind: 'vf',
    state: 'migration-enabled',
    memoryBytes: '1048576',
    controlling: 'embedded:x',
  });
  t.deepEqual((await client.call('explain', { function: 'one' })).reasons, []);
  t.is((await client.call('list', {})).functions.length, 1);
  await t.throwsAsync(client.call('expose', { function: 'one', exposure: 'vfio' }), { code: 'ERR_TOWLINE_EXPOSURE' });
  await t.throwsAsync(client.call('explain', { function: 'two' }), { code: 'ERR_TOWLINE_NOT_FOUND' });
  await t.throwsAsync(client.call('nothing' as 'list', {}), { code: 'ERR_TOWLINE_NOT_FOUND' });
  t.is((await client.call('release', { function: fn.uuid })).state, 'released');
  await client.call('shutdown', {});
  await server.closed;
  await t.throwsAsync(client.call('list', {}), { code: 'ERR_TOWLINE_GONE' });
  await t.throwsAsync(ServeClient.connect(server.socketPath), { code: 'ERR_TOWLINE_GONE' });
});

test('a cancelled receive ends, and the function is free again', async (t) => {
  const path = await directory(t);
  const server = await serve(path);
  const client = await ServeClient.connect(server.socketPath);
  await client.call('provision', { spec: { kind: 'siov', name: 's' } });
  const controller = new AbortController();
  const listening = new Promise<string>((resolve) => {
    const waiting = client.call(
      'receive',
      { functions: ['s'], from: 'tcp://127.0.0.1:0' },
      { signal: controller.signal, onEvent: (e) => e.type === 'listening' && resolve(e.address) },
    );
    t.teardown(() => waiting.catch(() => undefined));
    void t.throwsAsync(waiting, { code: 'ERR_TOWLINE_ABORTED' });
  });
  t.regex(await listening, /^tcp:\/\/127\.0\.0\.1:\d+$/);
  await t.throwsAsync(client.call('release', { function: 's' }), { code: 'ERR_TOWLINE_BUSY' });
  controller.abort();
  for (let tries = 0; ; tries += 1) {
    try {
      t.is((await client.call('release', { function: 's' })).state, 'released');
      break;
    } catch (error) {
      if (tries > 100) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
  client.close();
  await server.close();
});

test('nonsense ends the connection and nothing else', async (t) => {
  const path = await directory(t);
  const server = await serve(path);
  for (const nonsense of ['no json\n', '[1]\n', '{"id":"x","method":1}\n', 'x'.repeat(MAX_LINE_BYTES + 1)]) {
    const answer = await new Promise<string>((resolve, reject) => {
      const socket = connect(server.socketPath, () => socket.write(nonsense));
      let text = '';
      socket.on('data', (data) => (text += data.toString()));
      socket.on('close', () => resolve(text));
      socket.on('error', reject);
    });
    t.regex(answer, /ERR_TOWLINE_(PROTOCOL|LIMIT)/);
  }
  const client = await ServeClient.connect(server.socketPath);
  t.is((await client.call('version', {})).pid, process.pid);
  client.close();
  await server.close();
});

test('one process serves on a socket, in a directory that others cannot write', async (t) => {
  const path = await directory(t);
  const server = await serve(path);
  const other = await directory(t);
  const host = await Host.open({ embedded: [], journal: join(other, 'journal'), memoryBytes: 0n });
  await t.throwsAsync(startServer(host, server.socketPath), { code: 'ERR_TOWLINE_BUSY' });
  await server.close();
  await chmod(other, 0o777);
  await t.throwsAsync(startServer(host, join(other, 'serve.sock')), { code: 'ERR_TOWLINE_PERMISSION' });
  await chmod(other, 0o700);
  await host.close();
  await writeFile(join(other, 'file'), '');
  await t.throwsAsync(ServeClient.connect(join(other, 'file')), { code: 'ERR_TOWLINE_PERMISSION' });
});

test('a file that is no socket, or is of another user, stays where it is', async (t) => {
  const path = await directory(t);
  const host = await Host.open({ embedded: [], journal: join(path, 'journal'), memoryBytes: 0n });
  t.teardown(() => host.close());
  const file = join(path, 'precious');
  await writeFile(file, 'precious');
  await symlink(file, join(path, 'link'));
  await mkdir(join(path, 'folder'));
  for (const name of ['precious', 'link', 'folder']) {
    const error = await t.throwsAsync(startServer(host, join(path, name)), { code: 'ERR_TOWLINE_EXISTS' });
    t.regex(error?.message ?? '', /is no socket/);
  }
  t.is(await readFile(file, 'utf8'), 'precious');
  t.is(await readFile(join(path, 'link'), 'utf8'), 'precious');
  // The socket of a process that ended: made here by one that is killed, since Node removes its own.
  const left = join(path, 'left.sock');
  const child = spawn(process.execPath, [
    '-e',
    `require('node:net').createServer().listen(${JSON.stringify(left)}, () => console.log('listening'))`,
  ]);
  await once(child.stdout, 'data');
  child.kill('SIGKILL');
  await once(child, 'exit');
  if (process.geteuid?.() === 0) {
    await chown(left, 12_345, 12_345);
    await t.throwsAsync(startServer(host, left), { code: 'ERR_TOWLINE_PERMISSION' });
    t.is((await stat(left)).uid, 12_345);
    await chown(left, 0, 0);
  }
  const server = await startServer(host, left);
  t.is((await stat(left)).mode & 0o777, 0o600);
  await server.close();
});

test('a directory in which others may make files is refused, sticky or not', async (t) => {
  const path = await directory(t);
  const host = await Host.open({ embedded: [], journal: join(path, 'journal'), memoryBytes: 0n });
  t.teardown(() => host.close());
  const open = join(path, 'open');
  await mkdir(open);
  for (const mode of [0o1777, 0o777, 0o1770]) {
    await chmod(open, mode);
    await t.throwsAsync(startServer(host, join(open, 'serve.sock')), { code: 'ERR_TOWLINE_PERMISSION' });
  }
  await chmod(open, 0o755);
  await (await startServer(host, join(open, 'serve.sock'))).close();
});

test('after a broken line nothing of that connection is heard any more, and it ends', async (t) => {
  const path = await directory(t);
  const server = await serve(path);
  t.teardown(() => server.close());
  const request = `${JSON.stringify({ id: 1, method: 'provision', params: { spec: { kind: 'vf' } } })}\n`;
  // Half open: the server's end of the connection does not make this one end it.
  const socket = connect({ path: server.socketPath, allowHalfOpen: true });
  socket.on('error', () => undefined);
  const closed = new Promise<'closed'>((resolve) => socket.once('close', () => resolve('closed')));
  await once(socket, 'connect');
  socket.write('no json\n');
  let answers = '';
  socket.on('data', (data) => (answers += data.toString()));
  await once(socket, 'end');
  const again = setInterval(() => socket.writable && socket.write(request), 20);
  const late = new Promise<'open'>((resolve) => setTimeout(() => resolve('open'), 3000).unref());
  t.is(await Promise.race([closed, late]), 'closed');
  clearInterval(again);
  t.regex(answers, /ERR_TOWLINE_PROTOCOL/);
  const client = await ServeClient.connect(server.socketPath);
  t.is((await client.call('list', {})).functions.length, 0);
  client.close();
});

/** Tells in which order the work of the host's functions ended and the host was closed. */
function watch(host: Host): string[] {
  const order: string[] = [];
  const exclusively = host.exclusively.bind(host) as (...args: unknown[]) => Promise<unknown>;
  host.exclusively = (async (...args: unknown[]) => {
    try {
      return await exclusively(...args);
    } finally {
      order.push('work ended');
    }
  }) as unknown as typeof host.exclusively;
  const close = host.close.bind(host);
  host.close = () => {
    order.push('host closed');
    return close();
  };
  return order;
}

interface Side {
  readonly path: string;
  readonly host: Host;
  readonly server: RunningServer;
  readonly client: ServeClient;
}

/** Two serving processes, as it were; each function of `specs` is at both. */
async function sides(t: ExecutionContext, memoryBytes: bigint, specs: readonly FunctionSpec[]): Promise<[Side, Side]> {
  const side = async (): Promise<Side> => {
    const path = await directory(t);
    const host = await openHost(path, memoryBytes);
    const server = await startServer(host, join(path, 'serve.sock'));
    t.teardown(() => server.close());
    const client = await ServeClient.connect(server.socketPath);
    for (const spec of specs) await client.call('provision', { spec });
    return { path, host, server, client };
  };
  return [await side(), await side()];
}

/** Lets a side wait for a migration; gives its address and how it ends. */
async function receiveAt({ path, client }: Side, functions: string[]): Promise<{ to: string; end: Promise<unknown> }> {
  return new Promise((resolve, reject) => {
    const end: Promise<unknown> = client.call(
      'receive',
      { functions, from: `unix://${join(path, 'link')}` },
      { onEvent: (e) => e.type === 'listening' && resolve({ to: e.address, end }) },
    );
    end.catch(reject);
  });
}

test('a server that is closed cancels what is under way, waits for it, and only then lets go of the functions', async (t) => {
  const uuid = crypto.randomUUID();
  const [a, b] = await sides(t, 8n << 20n, [{ kind: 'vf', name: 'v', uuid }]);
  const [held] = await a.host.functions();
  held?.memory?.write(0n, new Uint8Array(8 << 20).fill(7));
  const order = watch(a.host);
  const { to, end } = await receiveAt(b, ['v']);
  let sending: Promise<unknown> = Promise.resolve();
  await new Promise<void>((resolve) => {
    sending = a.client.call(
      'migrate',
      { functions: ['v'], to, policy: { bandwidthBytesPerSecond: 2 << 20, maxDowntimeMs: 1 } },
      { onEvent: (e) => e.type === 'phase' && e.phase === 'pre-copy' && resolve() },
    );
    sending.catch(() => resolve());
  });
  const [closing] = await Promise.allSettled([
    a.server.close(),
    t.throwsAsync(sending, { code: 'ERR_TOWLINE_ABORTED' }),
    t.throwsAsync(end, { code: 'ERR_TOWLINE_ROLLED_BACK' }),
  ]);
  t.is(closing.status, 'fulfilled');
  t.deepEqual(order, ['work ended', 'host closed']);
  // The other side serves on.
  t.is((await b.client.call('list', {})).functions.length, 1);
});

test('a shutdown waits for the requests of other clients, and takes no new ones', async (t) => {
  const path = await directory(t);
  const host = await openHost(path);
  const order = watch(host);
  const server = await startServer(host, join(path, 'serve.sock'));
  const [client, other] = [await ServeClient.connect(server.socketPath), await ServeClient.connect(server.socketPath)];
  const fn = await client.call('provision', { spec: { kind: 'siov', name: 's' } });
  // Its release hangs until the test lets it go on.
  let goOn: () => void = () => undefined;
  const gate = new Promise<void>((resolve) => (goOn = resolve));
  const release = host.release.bind(host);
  const begun = new Promise<void>((resolve) => {
    host.release = async (held) => {
      resolve();
      await gate;
      await release(held);
    };
  });
  const releasing = client.call('release', { function: fn.uuid });
  await begun;
  await other.call('shutdown', {});
  await t.throwsAsync(other.call('list', {}), { code: 'ERR_TOWLINE_CLOSED' });
  t.deepEqual(order, []);
  goOn();
  t.is((await releasing).state, 'released');
  await server.closed;
  t.deepEqual(order, ['work ended', 'host closed']);
});

test('a committed migration releases each function, and one that stays is told in the report', async (t) => {
  const specs = ['one', 'two'].map((name): FunctionSpec => ({ kind: 'vf', name, uuid: crypto.randomUUID() }));
  const [a, b] = await sides(t, 0n, specs);
  const { to, end } = await receiveAt(b, ['one', 'two']);
  const release = a.host.release.bind(a.host);
  a.host.release = async (held) => {
    if (held.fn.name === 'one') throw new TowlineError('ERR_TOWLINE_DEVICE', 'it stays', { function: held.fn.uuid });
    await release(held);
  };
  const converge = { means: ['throttle'] } as const;
  await t.throwsAsync(a.client.call('migrate', { functions: ['one', 'two'], to, policy: { converge } }), {
    code: 'ERR_TOWLINE_INVALID_ARGUMENT',
    message: /device-limit/,
  });
  const report = await a.client.call('migrate', { functions: ['one', 'two'], to, policy: { maxDowntimeMs: 60_000 } });
  t.is(report.outcome, 'committed');
  t.like(report.releaseFailures, [{ uuid: specs[0]?.uuid, name: 'one', error: { code: 'ERR_TOWLINE_DEVICE' } }]);
  t.is(report.releaseFailures?.length, 1);
  await end;
  t.deepEqual(
    (await a.client.call('list', {})).functions.map((f) => f.name),
    ['one'],
  );
});

for (const kind of ['vf', 'siov'] as const) {
  test(`a ${kind} that was migrated away leaves no memory behind`, async (t) => {
    const [a, b] = await sides(t, 1n << 20n, [{ kind, name: 'f', uuid: crypto.randomUUID() }]);
    const [held] = await a.host.functions();
    const { to, end } = await receiveAt(b, ['f']);
    const report = await a.client.call('migrate', { functions: ['f'], to, policy: { maxDowntimeMs: 60_000 } });
    t.like(report, { outcome: 'committed', releaseFailures: undefined });
    await end;
    t.is((await a.client.call('list', {})).functions.length, 0);
    t.throws(() => held?.memory?.ranges(), { code: 'ERR_TOWLINE_CLOSED' });
  });
}

test('the memory of a function that was released by itself goes as well', async (t) => {
  const path = await directory(t);
  const host = await openHost(path);
  t.teardown(() => host.close());
  const held = await host.provision(undefined, { kind: 'siov', name: 's' }, {});
  await held.fn.release();
  await host.release(held);
  t.throws(() => held.memory?.ranges(), { code: 'ERR_TOWLINE_CLOSED' });
});

test('checks that are cancelled by the end of the server end before the next one', async (t) => {
  const path = await directory(t);
  const host = await openHost(path);
  const order = watch(host);
  const server = await startServer(host, join(path, 'serve.sock'));
  const client = await ServeClient.connect(server.socketPath);
  await client.call('provision', { spec: { kind: 'vf', name: 'v' } });
  const seen: string[] = [];
  let closing: Promise<void> | undefined;
  const checking = client.call(
    'conformance',
    { function: 'v', destructive: true },
    {
      onEvent: ({ check }) => {
        seen.push(check);
        closing ??= server.close();
      },
    },
  );
  await t.throwsAsync(checking, { code: 'ERR_TOWLINE_ABORTED' });
  await closing;
  t.true(seen.length > 0 && !seen.includes('dirty/close'), seen.join(', '));
  t.deepEqual(order, ['work ended', 'host closed']);
});
