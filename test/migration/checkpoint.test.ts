import { randomBytes, randomUUID } from 'node:crypto';
import { existsSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync } from 'node:fs';
import { mkdir } from 'node:fs/promises';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { TowlineError } from '#towline/errors.js';
import { checkpoint } from '#towline/migration/checkpoint.js';
import type { CheckpointOptions, RestoreOptions } from '#towline/migration/checkpoint-options.js';
import type { MigrationEvent } from '#towline/migration/progress.js';
import { recover } from '#towline/migration/recover.js';
import type { MigrationReport } from '#towline/migration/report.js';
import { restore } from '#towline/migration/restore.js';
import { inspect, summarise } from '#towline/wire/index.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

/** A pair of hosts, with a folder for checkpoints. */
class Checkpoints extends Pair {
  readonly folder = join(this.directory, 'checkpoints');
  readonly path = join(this.folder, 'guest');

  static async make(t: ExecutionContext, memoryBytes?: bigint): Promise<Checkpoints> {
    const made = new Checkpoints(t, memoryBytes);
    await mkdir(made.folder);
    return made;
  }

  write(fn: TsDevice | readonly TsDevice[], options: Partial<CheckpointOptions> = {}) {
    const { path, memory, journals } = this;
    return checkpoint(fn, { path, mode: 'move', memory: memory.source, fence: journals.source, ...options });
  }

  restore(fn: TsDevice | readonly TsDevice[], options: Partial<RestoreOptions> = {}) {
    const { path, memory, journals } = this;
    return restore(fn, { path, memory: memory.destination, fence: journals.destination, ...options });
  }

  names(): string[] {
    return readdirSync(this.folder).sort();
  }
}

function twins(name: string): [TsDevice, TsDevice] {
  const source = new TsDevice(name);
  return [source, new TsDevice(name, { uuid: source.uuid })];
}

async function failure(result: Promise<MigrationReport>): Promise<TowlineError & { cause: TowlineError }> {
  try {
    const report = await result;
    throw new Error(`it was ${report.outcome}`);
  } catch (error) {
    if (error instanceof TowlineError) return error as TowlineError & { cause: TowlineError };
    throw error;
  }
}

test('a move goes into the file and out of it, once', async (t) => {
  const hosts = await Checkpoints.make(t);
  const [source, destination] = twins('ts');
  source.device.register = 77n;
  hosts.memory.source.write(0n, randomBytes(1 << 20));
  hosts.memory.destination.write(0x30_0000n, randomBytes(4096));
  const vcpu = randomBytes(3000);
  const written: MigrationEvent[] = [];
  const writing = hosts.write(source, {
    pause: () => source.dma(hosts.memory.source, 0x30_0123n, randomBytes(5000)),
    sections: { vcpu: () => vcpu },
  });
  for await (const event of writing) written.push(event);
  const report = await writing.result;
  t.is(report.outcome, 'committed');
  t.deepEqual(report.checkpoint, { path: hosts.path, mode: 'move', bytes: statSync(hosts.path).size });
  t.not(source.device.now, 'running');
  t.is(hosts.journals.source.sessions()[0]?.verdict, 'released');
  t.true(written.some((e) => e.type === 'pages' && e.wireBytes > 0));
  t.deepEqual(hosts.names(), ['guest']);
  t.is(statSync(hosts.path).mode & 0o777, 0o600);

  const summary = await summarise(inspect([readFileSync(hosts.path)]));
  t.like(summary, { session: report.session, functions: 1, damage: undefined });

  const read: MigrationEvent[] = [];
  let section: Uint8Array | undefined;
  let resumed = 0;
  const restoring = hosts.restore(destination, {
    restoreSections: (sections) => {
      t.is(destination.device.now, 'stop');
      section = sections['vcpu'];
    },
    resume: () => void resumed++,
  });
  for await (const event of restoring) read.push(event);
  const restored = await restoring.result;
  t.is(restored.outcome, 'committed');
  t.is(restored.session, report.session);
  t.true(Number(restored.epoch) > Number(report.epoch));
  t.true(hosts.equalMemory());
  t.is(destination.device.register, 77n);
  t.is(destination.device.now, 'running');
  t.deepEqual(Buffer.from(section ?? []), vcpu);
  t.is(resumed, 1);
  const checked = read.findLast((e) => e.type === 'checked');
  t.is(checked?.bytes, report.checkpoint?.bytes);
  t.true(read.some((e) => e.type === 'pages' && e.totalPages > 0 && e.sentPages <= e.totalPages));
  t.is(hosts.journals.destination.sessions()[0]?.verdict, 'run-destination');
  t.deepEqual(hosts.names(), [`guest.${report.session}.restored`]);

  const again = await failure(hosts.restore(new TsDevice('ts', { uuid: source.uuid })).result);
  t.is(again.cause.code, 'ERR_TOWLINE_FENCED');
});

test('a copy leaves the source running, and is restored into functions of other UUIDs', async (t) => {
  const hosts = await Checkpoints.make(t);
  const source = new TsDevice('ts');
  source.device.register = 5n;
  hosts.memory.source.write(0n, randomBytes(1 << 20));
  const calls: string[] = [];
  const report = await hosts.write(source, {
    mode: 'copy',
    pause: () => void calls.push('pause'),
    verify: () => {
      t.not(source.device.now, 'running');
      calls.push('verify');
    },
    resume: () => {
      t.is(source.device.now, 'running');
      t.false(existsSync(hosts.path));
      calls.push('resume');
    },
  }).result;
  t.is(report.outcome, 'copied');
  t.deepEqual(calls, ['pause', 'verify', 'resume']);
  t.true(report.downtimeMs > 0 && report.downtimeMs < report.totalMs);
  t.is(source.device.now, 'running');
  t.is(source.device.resets, 0);
  t.false(source.dirty.tracking);
  t.is(hosts.journals.source.sessions()[0]?.verdict, 'resume-source');

  const same = await failure(hosts.restore(new TsDevice('ts', { uuid: source.uuid })).result);
  t.is(same.cause.code, 'ERR_TOWLINE_MISMATCH');
  t.regex(same.message, /would exist twice/);
  for (const uuid of [randomUUID(), randomUUID()]) {
    const fn = new TsDevice('clone', { uuid });
    const restored = await hosts.restore(fn).result;
    t.is(restored.outcome, 'committed');
    t.is(fn.device.register, 5n);
    t.true(hosts.equalMemory());
    const session = hosts.journals.destination.sessions().find((s) => s.functions.includes(uuid));
    t.is(session?.verdict, 'run-destination');
  }
  t.deepEqual(hosts.names(), ['guest']);
  // And the source can be moved.
  t.is((await hosts.write(source, { path: join(hosts.folder, 'moved') }).result).outcome, 'committed');
});

test('a copy that stops for all of it writes no page twice', async (t) => {
  const hosts = await Checkpoints.make(t);
  const source = new TsDevice('ts');
  hosts.memory.source.write(0n, randomBytes(1 << 20));
  const report = await hosts.write(source, { mode: 'copy', live: false }).result;
  t.is(report.rounds, 0);
  t.is(report.pages.sent, 256);
  await hosts.restore(new TsDevice('clone')).result;
  t.true(hosts.equalMemory());
});

test('without memory only device state is in the file', async (t) => {
  const hosts = await Checkpoints.make(t);
  const [source, destination] = twins('ts');
  source.device.register = 8n;
  const { path, journals } = hosts;
  const report = await checkpoint(source, { path, mode: 'move', fence: journals.source }).result;
  t.is(report.pages.sent, 0);
  const error = await failure(hosts.restore(destination).result);
  t.regex(error.message, /guest memory differs/);
  await restore(destination, { path, fence: journals.destination }).result;
  t.is(destination.device.register, 8n);
});

test('several functions go into one file', async (t) => {
  const hosts = await Checkpoints.make(t);
  const pairs = ['a', 'b', 'c'].map(twins);
  for (const [i, [source]] of pairs.entries()) source.device.register = BigInt(i + 1);
  await hosts.write(pairs.map(([s]) => s)).result;
  await hosts.restore(pairs.map(([, d]) => d)).result;
  for (const [i, [, destination]] of pairs.entries()) t.is(destination.device.register, BigInt(i + 1));
});

test('every mismatch is told at once, nothing is touched, and the file stays', async (t) => {
  const hosts = await Checkpoints.make(t);
  const [source, destination] = twins('ts');
  await hosts.write(source).result;
  destination.revision = 2;
  destination.device.format = 'another';
  const other = new TsDevice('other');
  const small = new Checkpoints(t, 1n << 20n);
  const error = await failure(hosts.restore([destination, other], { memory: small.memory.destination }).result);
  t.is(error.cause.code, 'ERR_TOWLINE_MISMATCH');
  for (const what of [/revision/, /2 wait here/, /guest memory differs/, new RegExp(other.uuid)])
    t.regex(error.message, what);
  t.deepEqual(destination.device.history, ['running']);
  t.deepEqual(hosts.journals.destination.sessions(), []);
  t.is((await hosts.restore(new TsDevice('ts', { uuid: source.uuid })).result).outcome, 'committed');
});

for (const phase of ['offer', 'pre-copy', 'pause', 'stop', 'final-pages', 'prepare', 'hold'] as const) {
  for (const mode of ['move', 'copy'] as const) {
    test(`a ${mode} that is cancelled in phase ${phase} leaves the source running, and no file`, async (t) => {
      const hosts = await Checkpoints.make(t);
      hosts.memory.source.write(0n, randomBytes(1 << 20));
      const source = new TsDevice('ts');
      source.device.register = 9n;
      const controller = new AbortController();
      const pauses = { pause: 0, resume: 0 };
      const writing = hosts.write(source, {
        mode,
        signal: controller.signal,
        pause: () => {
          pauses.pause += 1;
          if (phase === 'pause') controller.abort();
        },
        resume: () => void (pauses.resume += 1),
        sections: {
          x: () => {
            if (phase === 'prepare') controller.abort();
            return randomBytes(10);
          },
        },
        verify: () => {
          if (phase === 'hold') controller.abort();
        },
      });
      for await (const event of writing) if (event.type === 'phase' && event.phase === phase) controller.abort();
      const error = await failure(writing.result);
      t.is(error.code, 'ERR_TOWLINE_ABORTED', error.message);
      t.is(source.device.now, 'running');
      t.is(source.device.register, 9n);
      t.is(pauses.pause, pauses.resume);
      t.false(source.dirty.tracking);
      t.deepEqual(hosts.names(), []);
      t.is((await hosts.write(source, { mode }).result).outcome, mode === 'copy' ? 'copied' : 'committed');
    });
  }
}

for (const name of ['pause', 'sections', 'verify'] as const) {
  test(`a failing ${name} hook leaves the source running, and no file`, async (t) => {
    const hosts = await Checkpoints.make(t);
    const source = new TsDevice('ts');
    let resumed = 0;
    const fail = (): never => {
      throw new Error('no');
    };
    const hooks = name === 'sections' ? { sections: { x: fail } } : { [name]: fail };
    const error = await failure(hosts.write(source, { ...hooks, resume: () => void resumed++ }).result);
    t.is(error.code, 'ERR_TOWLINE_ROLLED_BACK');
    t.is(error.cause.code, name === 'verify' ? 'ERR_TOWLINE_VERIFY' : 'ERR_TOWLINE_HOOK');
    t.is(source.device.now, 'running');
    t.is(resumed, 1);
    t.deepEqual(hosts.names(), []);
  });
}

test('a refusal of the sections leaves the checkpoint restorable', async (t) => {
  const hosts = await Checkpoints.make(t);
  const [source, destination] = twins('ts');
  source.device.register = 3n;
  await hosts.write(source).result;
  const refused = await failure(
    hosts.restore(destination, {
      restoreSections: () => {
        throw new Error('not mine');
      },
    }).result,
  );
  t.is(refused.code, 'ERR_TOWLINE_ROLLED_BACK');
  t.deepEqual(hosts.names(), ['guest']);
  t.is(destination.device.resets, 1);
  const controller = new AbortController();
  const cancelled = await failure(
    hosts.restore(destination, { signal: controller.signal, restoreSections: () => controller.abort() }).result,
  );
  t.is(cancelled.code, 'ERR_TOWLINE_ABORTED');
  await hosts.restore(destination).result;
  t.is(destination.device.register, 3n);
});

test('a file that is there stays, unless it is to be replaced', async (t) => {
  const hosts = await Checkpoints.make(t);
  const [source, destination] = twins('ts');
  writeFileSync(hosts.path, 'mine');
  const error = await failure(hosts.write(source).result);
  t.is(error.cause.code, 'ERR_TOWLINE_EXISTS');
  t.is(readFileSync(hosts.path, 'utf8'), 'mine');
  t.is(source.device.now, 'running');
  await hosts.write(source, { overwrite: true }).result;
  await hosts.restore(destination).result;
  t.is(destination.device.now, 'running');
});

test('what is damaged, cut or foreign is refused before anything is touched', async (t) => {
  const hosts = await Checkpoints.make(t);
  const [source, destination] = twins('ts');
  hosts.memory.source.write(0n, randomBytes(1 << 16));
  await hosts.write(source).result;
  const good = readFileSync(hosts.path);
  const flipped = Buffer.from(good);
  flipped[good.length / 2] = (flipped[good.length / 2] ?? 0) ^ 1;
  const version = Buffer.from(good);
  version[8] = 9;
  for (const [bytes, code] of [
    [good.subarray(0, good.length - 1), 'ERR_TOWLINE_STREAM'],
    [Buffer.concat([good, Buffer.of(0)]), 'ERR_TOWLINE_STREAM'],
    [flipped, 'ERR_TOWLINE_STREAM'],
    [version, 'ERR_TOWLINE_STREAM_VERSION'],
    [Buffer.from('not a stream'), 'ERR_TOWLINE_STREAM'],
  ] as const) {
    writeFileSync(hosts.path, bytes);
    const error = await failure(hosts.restore(destination).result);
    t.is(error.cause.code, code);
    t.deepEqual(destination.device.history, ['running']);
  }
  const none = await failure(hosts.restore(destination, { path: join(hosts.folder, 'none') }).result);
  t.is(none.cause.code, 'ERR_TOWLINE_NOT_FOUND');
  writeFileSync(hosts.path, good);
  await hosts.restore(destination).result;
});

test('a function that can not be copied is not, and says why', async (t) => {
  const hosts = await Checkpoints.make(t);
  const source = new TsDevice('ts');
  const asked: unknown[] = [];
  source.explain = async (options?: unknown) => {
    asked.push(options);
    return [{ code: 'namespace-shared' as const, message: 'it has a disk', mend: 'take it away' }];
  };
  const error = await failure(hosts.write(source, { mode: 'copy' }).result);
  t.regex(error.message, /can't be copied: it has a disk/);
  t.deepEqual(asked, [{ copy: true }]);
  t.deepEqual(hosts.names(), []);
});

test('a source that died between its intent and its release is settled by the folder', async (t) => {
  const hosts = await Checkpoints.make(t);
  const [source, destination] = twins('ts');
  const { session } = await hosts.write(source).result;
  // As its journal would have it after a power failure right there.
  const journal = join(hosts.journalDirectory, 'source', `${session}.source.journal`);
  const lines = readFileSync(journal, 'utf8').split('\n');
  hosts.journals.source.close();
  writeFileSync(journal, `${lines.slice(0, 2).join('\n')}\n`);
  const { Journal } = await import('#towline/migration/journal.js');
  const again = new Journal(join(hosts.journalDirectory, 'source'));
  t.teardown(() => again.close());
  t.like(again.sessions(), [{ verdict: 'in-doubt' }]);
  const after = new TsDevice('ts', { uuid: source.uuid });
  after.device.now = 'stop';
  const blocked = await failure(hosts.write(after, { fence: again, path: join(hosts.folder, 'x') }).result);
  t.is(blocked.cause.code, 'ERR_TOWLINE_FENCED');
  t.like(await recover({ journal: again }), [{ session, verdict: 'released', answer: 'committed' }]);
  await hosts.restore(destination).result;
});

test('a seal that fails behind the intent is taken back', async (t) => {
  const hosts = await Checkpoints.make(t);
  const source = new TsDevice('ts');
  for (const failAt of ['source:commit-intent-durable', 'checkpoint:commit-written', 'checkpoint:durable']) {
    const error = await failure(hosts.write(source, { faults: { failAt } }).result);
    t.is(error.code, 'ERR_TOWLINE_ROLLED_BACK');
    t.is(error.cause.code, 'ERR_TOWLINE_REHEARSED');
    t.is(source.device.now, 'running');
    t.deepEqual(hosts.names(), []);
    const report = (error.details as { report: MigrationReport }).report;
    t.like(
      hosts.journals.source.sessions().find((s) => s.session === report.session),
      { verdict: 'resume-source', state: 'aborted' },
    );
  }
});

test('one that can not be taken back leaves the source in doubt, until the folder tells', async (t) => {
  const hosts = await Checkpoints.make(t);
  const source = new TsDevice('ts');
  const session = randomUUID();
  const [partial, away] = [join(hosts.folder, `guest.${session}.partial`), join(hosts.directory, 'away')];
  // Somebody carries the file away before it has its name.
  const error = await failure(hosts.write(source, { session, verify: () => renameSync(partial, away) }).result);
  t.is(error.code, 'ERR_TOWLINE_IN_DOUBT');
  t.is(source.device.now, 'stop-copy');
  t.is(source.doubt?.session, session);
  const journal = hosts.journals.source;
  t.like(await recover({ journal, functions: [source] }), [{ session, verdict: 'in-doubt', answer: 'unknown' }]);
  t.is(source.device.now, 'stop-copy');
  renameSync(away, partial);
  t.like(await recover({ journal, functions: [source] }), [
    { session, verdict: 'resume-source', answer: 'refused', settled: [{ action: 'resumed' }] },
  ]);
  t.is(source.device.now, 'running');
  t.deepEqual(hosts.names(), []);
});
