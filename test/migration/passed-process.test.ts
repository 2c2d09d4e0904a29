/** A guest at work is handed to another process on this host: its memory is passed, its tenant goes on there. */
import { fork, type ChildProcess } from 'node:child_process';
import { on, once } from 'node:events';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import test, { type ExecutionContext } from 'ava';
import { isTowlineError, Journal, migrate, type MigrationReport } from '#towline/index.js';
import { GuestMemory } from '#towline/migration/memory.js';
import { embedded, memfd, Tenant } from '#towline/rehearsal/index.js';
import type { FromChild, PassedParams } from '../support/passed-child.js';

const child = fileURLToPath(new URL('../support/passed-child.js', import.meta.url));
const MEMORY_BYTES = 64n << 20n;
const NAMESPACE_BYTES = 4n << 20n;

interface Ended {
  report: MigrationReport | undefined;
  code: string | undefined;
  messages: FromChild[];
  exit: unknown[];
  /** What the tenant here has had answered, before and some time after. */
  commands: { before: number; after: number };
  failure: unknown;
  memory: GuestMemory;
  log: string;
}

/** Runs a tenant here, hands it to a child, and tells how it went. */
async function handOver(t: ExecutionContext, params: Pick<PassedParams, 'fault' | 'killAt'>): Promise<Ended> {
  const folder = mkdtempSync(join(tmpdir(), 'towline-passed-'));
  t.teardown(() => rmSync(folder, { recursive: true, force: true }));
  const [path, socket, logPath] = ['disk', 'link', 'log'].map((name) => join(folder, name)) as [string, string, string];
  writeFileSync(path, Buffer.alloc(Number(NAMESPACE_BYTES)));
  const subsystem = await embedded.open({ namespaces: [{ path, sizeBytes: NAMESPACE_BYTES, shared: true }] });
  const uuid = crypto.randomUUID();
  const fn = await subsystem.provision({ kind: 'vf', uuid, name: 'passed-vf', queues: 2, vectors: 3, namespaces: [1] });
  // Another range above a hole, which has to come along.
  const [low, high] = [memfd('low', MEMORY_BYTES), memfd('high', 4n << 20n)];
  const memory = new GuestMemory([
    { gpa: 0n, len: MEMORY_BYTES, fd: low },
    { gpa: 1n << 32n, len: 4n << 20n, fd: high },
  ]);
  for (const fd of [low, high]) closeSync(fd);
  t.teardown(() => memory.close());
  subsystem.attachMemory(fn, memory);
  const tenant = await Tenant.boot(subsystem, fn, memory, {
    units: Number(NAMESPACE_BYTES / 4096n),
    memoryBytes: MEMORY_BYTES,
    workingSetPages: 512,
    targetIops: 3000,
  });
  const nowhere = openSync('/dev/null', 'w');
  tenant.run({ logFd: nowhere });
  const count = (): number => {
    const { reads, writes } = tenant.stats() as { reads: number; writes: number };
    return reads + writes;
  };
  while (count() < 50) await pause(5);

  const there = fork(child, { stdio: 'inherit' });
  const messages: FromChild[] = [];
  there.on('message', (message: FromChild) => messages.push(message));
  const exited = once(there, 'exit');
  const request: PassedParams = {
    socket,
    journal: join(folder, 'there'),
    uuid,
    namespace: { path, sizeBytes: NAMESPACE_BYTES.toString() },
    ...params,
  };
  there.send(request);
  await listening(there, messages);
  const journal = new Journal(join(folder, 'here'));
  const log = openSync(logPath, 'w+');
  let before = 0;
  let report: MigrationReport | undefined;
  let code: string | undefined;
  try {
    report = await migrate(fn, {
      to: `unix://${socket}`,
      memory,
      memoryTransfer: 'pass',
      sectionFds: true,
      fence: journal,
      policy: { maxDowntimeMs: 60_000 },
      pause: async () => {
        await tenant.pause();
        before = count();
      },
      resume: () => tenant.resume(),
      sections: { log: () => ({ bytes: Buffer.from('written over there'), fds: { file: log } }) },
      // The function is closed with its subsystem: its tenant is asked about afterwards.
      release: false,
    }).result;
  } catch (error) {
    if (!isTowlineError(error)) throw error;
    code = error.code;
    report = (error.details as { report?: MigrationReport } | undefined)?.report;
  }
  const exit = await exited;
  await pause(100);
  const { failure } = tenant.stats() as { failure: unknown };
  const ended: Ended = {
    report,
    code,
    messages,
    exit,
    commands: { before, after: count() },
    failure,
    memory,
    log: readFileSync(logPath, 'utf8'),
  };
  await tenant.close();
  await subsystem.close();
  journal.close();
  for (const fd of [log, nowhere]) closeSync(fd);
  return ended;
}

const pause = (ms: number) =>
  new Promise<void>((resolve) => {
    setTimeout(resolve, ms);
  });

async function listening(there: ChildProcess, messages: readonly FromChild[]): Promise<void> {
  const ended = () => messages.some((m) => m.type === 'listening' || m.type === 'ended');
  if (ended()) return;
  for await (const _ of on(there, 'message')) if (ended()) return;
}

test('the tenant goes on in the other process, in the very same memory', async (t) => {
  const { report, messages, commands, exit, memory, log } = await handOver(t, {});
  t.is(report?.outcome, 'committed');
  t.is(report?.memoryTransfer, 'pass');
  t.is(report?.bytes.memory, 0);
  t.deepEqual(exit, [0, null]);
  t.like(messages.at(-2), { type: 'ended', outcome: 'committed', memoryTransfer: 'pass' });
  const worked = messages.at(-1);
  if (worked?.type !== 'worked') throw new Error('the child said nothing of its tenant');
  t.is(worked.failure, null);
  t.true(worked.commands > commands.before, `${worked.commands} there after ${commands.before} here`);
  // Nothing ran here meanwhile.
  t.is(commands.after, commands.before);
  t.is(log, 'written over there');
  t.deepEqual(
    memory.ranges().map((r) => r.gpa),
    [0n, 1n << 32n],
  );
});

test('the tenant does not go on in other memory: the oracle trips', async (t) => {
  const { messages } = await handOver(t, { fault: 'other-memory' });
  const worked = messages.at(-1);
  if (worked?.type !== 'worked') throw new Error('the child said nothing of its tenant');
  t.not(worked.failure, null);
});

test('after a refusal the tenant goes on here', async (t) => {
  const { report, code, commands, failure, exit } = await handOver(t, { fault: 'refuse' });
  t.is(code, 'ERR_TOWLINE_ROLLED_BACK');
  t.is(report?.outcome, 'rolled-back');
  t.true(commands.after > commands.before, `${commands.after} after ${commands.before}`);
  t.is(failure, null);
  t.deepEqual(exit, [0, null]);
});

for (const killAt of ['destination:memory-pass', 'destination:loaded', 'destination:prepared']) {
  test(`the other process is killed at ${killAt}, and the tenant goes on here`, async (t) => {
    const { code, commands, failure, exit } = await handOver(t, { killAt });
    t.deepEqual(exit, [null, 'SIGKILL']);
    if (killAt === 'destination:prepared' && code === 'ERR_TOWLINE_IN_DOUBT') {
      // COMMIT was on its way: nothing runs until somebody asks.
      t.is(commands.after, commands.before);
      return;
    }
    t.is(code, 'ERR_TOWLINE_ROLLED_BACK');
    t.true(commands.after > commands.before, `${commands.after} after ${commands.before}`);
    t.is(failure, null);
  });
}
