import test from 'ava';
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { existsSync } from 'node:fs';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { version } from '#towline/version.js';
import { parseNamespace, parseSize, showBytes } from '#towline/cli/values.js';
import { exitCodeOf } from '#towline/cli/exit.js';
import { TowlineError } from '#towline/errors.js';

const main = fileURLToPath(new URL('main.js', import.meta.resolve('#towline/cli/main.js')));

interface Ended {
  code: number;
  out: string;
  err: string;
}

function towline(socket: string, ...args: string[]): Promise<Ended> {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [main, ...args],
      { env: { ...process.env, TOWLINE_SOCKET: socket } },
      (error, out, err) => {
        resolve({ code: typeof error?.code === 'number' ? error.code : error ? -1 : 0, out, err });
      },
    );
  });
}

async function serve(directory: string, name: string): Promise<{ socket: string; child: ChildProcess }> {
  const socket = join(directory, `${name}.sock`);
  const args = [
    'serve',
    '--json',
    '--embedded',
    name,
    '--socket',
    socket,
    '--journal',
    join(directory, `journal-${name}`),
  ];
  const child = spawn(
    process.execPath,
    [main, ...args, '--namespace', `${join(directory, 'namespace')}:4M`, '--memory', '4M'],
    {
      stdio: ['ignore', 'pipe', 'inherit'],
    },
  );
  const [line] = (await once(child.stdout as NodeJS.ReadableStream, 'data')) as [Buffer];
  const told = JSON.parse(line.toString()) as { serving: { socket: string } };
  return { socket: told.serving.socket, child };
}

const lines = (out: string): Record<string, unknown>[] =>
  out
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as Record<string, unknown>);

test('version, help and wrong usage', async (t) => {
  t.like(await towline('/nowhere', '--version'), { code: 0, out: `${version}\n` });
  const help = await towline('/nowhere', '--help');
  for (const command of [
    'list',
    'provision',
    'configure',
    'expose',
    'release',
    'serve',
    'migrate',
    'receive',
    'checkpoint',
    'restore',
    'explain',
    'inspect',
    'recover',
    'conformance',
    'bench',
  ]) {
    t.true(help.out.includes(`towline ${command}`), command);
  }
  for (const wrong of [
    ['bogus'],
    ['provision'],
    ['provision', '--kind', 'xf'],
    ['list', '--bogus'],
    ['migrate', 'f'],
  ]) {
    t.is((await towline('/nowhere', ...wrong)).code, 2, wrong.join(' '));
  }
  for (const asked of [
    ['list', '--socket', '/nowhere/serve.sock'],
    ['list', '--no-host'],
    ['provision', '--kind', 'vf'],
  ]) {
    const nobody = await towline('/nowhere/serve.sock', ...asked, '--json');
    t.is(nobody.code, 5);
    t.like(lines(nobody.out)[0], { error: { code: 'ERR_TOWLINE_GONE' } });
  }
});

test('values and exit codes', (t) => {
  t.is(parseSize('512M'), 512n << 20n);
  t.is(parseSize('2GiB'), 2n << 30n);
  t.is(parseSize('10'), 10n);
  for (const bad of ['', '-1', '1X', '1.5G', 'M']) t.throws(() => parseSize(bad));
  t.deepEqual(parseNamespace('/a:b/c:1G:512'), { path: '/a:b/c', sizeBytes: 1n << 30n, lbaSizeBytes: 512 });
  t.is(showBytes(1536), '1.5 KiB');
  const rolledBack = (cause: TowlineError): number =>
    exitCodeOf(new TowlineError('ERR_TOWLINE_ROLLED_BACK', '', { cause }));
  t.is(rolledBack(new TowlineError('ERR_TOWLINE_MISMATCH', '')), 3);
  t.is(rolledBack(new TowlineError('ERR_TOWLINE_LINK', '')), 1);
  t.is(exitCodeOf(new TowlineError('ERR_TOWLINE_IN_DOUBT', '')), 4);
  t.is(exitCodeOf(new TowlineError('ERR_TOWLINE_ABORTED', '')), 130);
});

test('a function moves from one serving process to another, and its recorded stream is explained', async (t) => {
  const directory = await mkdtemp(join(tmpdir(), 'towline-cli-'));
  const [a, b] = [await serve(directory, 'a'), await serve(directory, 'b')];
  t.teardown(async () => {
    for (const { child } of [a, b]) {
      child.kill('SIGTERM');
      if (child.exitCode === null) await once(child, 'exit');
    }
    await rm(directory, { recursive: true, force: true });
  });
  const uuid = crypto.randomUUID();
  const spec = [
    '--kind',
    'vf',
    '--queues',
    '4',
    '--vectors',
    '4',
    '--namespace',
    '1',
    '--migration',
    'on',
    '--expose',
    'none',
    '--uuid',
    uuid,
    '--name',
    'v',
  ];
  for (const { socket } of [a, b]) {
    const made = await towline(socket, 'provision', ...spec, '--json');
    t.is(made.code, 0, made.err);
    t.like(lines(made.out)[0], {
      uuid,
      queues: 4,
      vectors: 4,
      namespaces: [1],
      state: 'migration-enabled',
      exposure: 'none',
    });
  }
  const refused = await towline(a.socket, 'expose', 'v', '--as', 'vfio', '--json');
  t.is(refused.code, 3);
  t.like(lines(refused.out)[0], { error: { code: 'ERR_TOWLINE_EXPOSURE' } });

  const link = `unix://${join(directory, 'link')}`;
  const receiving = towline(b.socket, 'receive', 'v', '--from', link, '--json');
  // The socket is there once it listens.
  while (!existsSync(join(directory, 'link'))) await new Promise((resolve) => setTimeout(resolve, 20));
  const record = join(directory, 'stream');
  const limit = ['--device-limit', '64K'];
  const moved = await towline(a.socket, 'migrate', 'v', '--to', link, '--record', record, '--json', ...limit);
  t.is(moved.code, 0, moved.out + moved.err);
  const moving = { outcome: 'committed', role: 'source', converge: { steps: [], unavailable: [], notLifted: [] } };
  t.like(lines(moved.out).at(-1), moving);
  const received = await receiving;
  t.is(received.code, 0, received.out + received.err);
  t.like(lines(received.out).at(-1), { outcome: 'committed', role: 'destination' });
  // The source has let go, the destination has it.
  t.is((await towline(a.socket, 'explain', 'v')).code, 5);
  t.is((await towline(b.socket, 'explain', 'v')).code, 0);

  const whole = await towline(a.socket, 'inspect', record, '--json');
  t.is(whole.code, 0, whole.out);
  t.like(lines(whole.out).at(-1), { summary: { functions: 1 } });
  const stream = await readFile(record);
  for (const [name, damaged] of [
    ['cut', stream.subarray(0, stream.length - 10)],
    ['flipped', Uint8Array.from(stream, (value, at) => (at === stream.length >> 1 ? value ^ 4 : value))],
  ] as const) {
    await writeFile(join(directory, name), damaged);
    const found = await towline(a.socket, 'inspect', join(directory, name), '--json');
    t.is(found.code, 1, name);
    t.true(
      lines(found.out).some((item) => item['type'] === 'damage'),
      name,
    );
  }
});
