import test from 'ava';
import { chmod, mkdtemp, rm, stat, writeFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
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

async function serve(path: string): Promise<RunningServer> {
  const namespace = { path: join(path, 'namespace'), sizeBytes: 1n << 20n };
  const host = await Host.open({
    embedded: [{ name: 'x', namespaces: [namespace] }],
    journal: join(path, 'journal'),
    memoryBytes: 1n << 20n,
  });
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
