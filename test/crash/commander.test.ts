/** Whoever merely commands a migration dies in every phase: the function is not harmed, and the migration goes to its end. */
import test from 'ava';
import { execFileSync, fork, type ChildProcess } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, constants, mkdirSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { PHASES, type JournalSession } from '#towline/index.js';
import { memfd } from '#towline/rehearsal/index.js';
import { ServeClient } from '#towline/serve/client.js';
import { WitnessProcess, type Finding } from '../../dist-examples/shared/witness-process.js';
import { limited } from './limited.js';
import type { FromServing, ToServing } from './serving.js';

/**
 * Phases that no event begins: a serving process has no hooks and passes no memory, only a checkpoint syncs a file, and two are taken out of
 * others at the end.
 */
const NOT_TOLD = new Set(['pass-memory', 'pause', 'device-state', 'hold', 'journal', 'sync']);
const DEADLINE_MS = 30_000;

interface Serving {
  child: ChildProcess;
  directory: string;
  ask: (message: ToServing) => Promise<void>;
}

function serving(directory: string, memoryFd: number, logFd: number): Serving {
  mkdirSync(directory, { mode: 0o700 });
  const child = fork(path('./serving.js'), [], {
    stdio: ['ignore', 'inherit', 'inherit', 'ipc', memoryFd, logFd],
    execArgv: ['--enable-source-maps'],
  });
  const ask = async (message: ToServing): Promise<void> => {
    child.send(message);
    const answered = once(child, 'message') as Promise<[FromServing]>;
    const ended = once(child, 'exit').then(() => [{ error: 'it ended' }] as [FromServing]);
    const [{ error }] = await Promise.race([answered, ended]);
    if (error !== undefined) throw new Error(error);
  };
  return { child, directory, ask };
}

const path = (name: string): string => fileURLToPath(new URL(name, import.meta.url));

function commander(directory: string, method: string, params: object, last: string): ChildProcess {
  const args = [join(directory, 'socket'), method, JSON.stringify(params), last];
  return fork(path('./commander.js'), args, { execArgv: ['--enable-source-maps'] });
}

interface Outcome {
  signal: NodeJS.Signals | null;
  source: JournalSession[];
  destination: JournalSession[];
  finding: Finding;
}

/** A migration of a guest at rest; `who` of the two commanders dies at `last`. */
async function commanded(who: 'migrate' | 'receive', last: string): Promise<Outcome> {
  const directory = mkdtempSync(join(tmpdir(), 'towline-commander-'));
  const fds: number[] = [];
  const keep = (fd: number): number => (fds.push(fd), fd);
  const log = (name: string): number => {
    execFileSync('mkfifo', ['-m', '600', join(directory, name)]);
    return keep(openSync(join(directory, name), constants.O_RDWR));
  };
  const uuid = randomUUID();
  const namespace = { path: join(directory, 'namespace'), nguid: randomUUID().replaceAll('-', ''), uuid: randomUUID() };
  // The guests' memories are the serving processes' own: nobody compares them here.
  const memory = keep(memfd('unused', 4096n));
  const logs = [log('source.log'), log('destination.log')] as const;
  const witness = new WitnessProcess([memory, memory], logs, namespace.path);
  const source = serving(join(directory, 'source'), memory, logs[0]);
  const destination = serving(join(directory, 'destination'), memory, logs[1]);
  try {
    await source.ask({ do: 'open', namespace, uuid, hostTag: 1, directory: source.directory });
    await destination.ask({ do: 'open', namespace, uuid, hostTag: 2, directory: destination.directory });
    await source.ask({ do: 'boot' });
    await source.ask({ do: 'work-and-rest', commands: 200 });

    const receiver = commander(
      destination.directory,
      'receive',
      { functions: [uuid], from: 'tcp://127.0.0.1:0' },
      who === 'receive' ? last : 'none',
    );
    const receiverEnd = once(receiver, 'exit');
    const [to] = (await once(receiver, 'message')) as [string];
    if (who === 'receive') await receiverEnd;
    const migrator = commander(
      source.directory,
      'migrate',
      { functions: [uuid], to, policy: { maxDowntimeMs: 60_000 } },
      who === 'migrate' ? last : 'none',
    );
    const migratorEnd = once(migrator, 'exit') as Promise<[number | null, NodeJS.Signals | null]>;
    const [, signal] = await ((who === 'migrate' ? migratorEnd : receiverEnd) as typeof migratorEnd);
    const [there, here] = [await settled(destination, 'committed'), await settled(source, 'released')];
    await Promise.all([migratorEnd, receiverEnd]);

    await destination.ask({ do: 'attach' });
    await destination.ask({ do: 'work-and-rest', commands: 200 });
    // What moved is given back where it was.
    await functions(source, 0);
    await functions(destination, 1);
    return { signal, source: here, destination: there, finding: await witness.finish() };
  } finally {
    witness.kill();
    for (const { child } of [source, destination]) {
      child.kill('SIGKILL');
      if (child.exitCode === null && child.signalCode === null) await once(child, 'exit');
    }
    for (const fd of fds) closeSync(fd);
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Asks as anybody would, until the answer is the one that has to come. */
async function until<T>(
  { directory }: Serving,
  ask: (client: ServeClient) => Promise<T>,
  right: (answer: T) => boolean,
): Promise<T> {
  const client = await ServeClient.connect(join(directory, 'socket'));
  try {
    const deadline = performance.now() + DEADLINE_MS;
    for (;;) {
      const answer = await ask(client);
      if (right(answer)) return answer;
      if (performance.now() > deadline) throw new Error(`still ${JSON.stringify(answer)}`);
      await new Promise((resolve) => {
        setTimeout(resolve, 10);
      });
    }
  } finally {
    client.close();
  }
}

const settled = (side: Serving, state: string): Promise<JournalSession[]> =>
  until(
    side,
    (client) => client.call('sessions', {}),
    (sessions) => sessions.some((s) => s.state === state),
  );

const functions = (side: Serving, wanted: number): Promise<number> =>
  until(
    side,
    async (client) => (await client.call('list', {})).functions.length,
    (n) => n === wanted,
  );

for (const phase of PHASES.filter((p) => !NOT_TOLD.has(p))) {
  test(`the commander dies in the phase ${phase}`, async (t) => {
    const { signal, source, destination, finding } = await limited(t, () => commanded('migrate', phase));
    t.is(signal, 'SIGKILL', 'the phase was never told');
    t.like(source, [{ verdict: 'released' }]);
    t.like(destination, [{ verdict: 'run-destination' }]);
    t.like(finding, { owners: 1, io: { lost: 0, duplicated: 0, corrupted: 0 } });
  });
}

test('the commander of the receiving side dies', async (t) => {
  const { signal, source, destination, finding } = await limited(t, () => commanded('receive', 'listening'));
  t.is(signal, 'SIGKILL');
  t.like(source, [{ verdict: 'released' }]);
  t.like(destination, [{ verdict: 'run-destination' }]);
  t.like(finding, { owners: 1, io: { lost: 0, duplicated: 0, corrupted: 0 } });
});
