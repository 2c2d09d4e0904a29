/** Guest memory that is passed, and descriptors beside sections: the API, both sides in one process. */
import {
  closeSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test from 'ava';
import type { TowlineError } from '#towline/errors.js';
import { GuestMemory } from '#towline/migration/memory.js';
import type { MigrateOptions, ReceiveOptions } from '#towline/migration/options.js';
import type { MigrationReport } from '#towline/migration/report.js';
import { migrate } from '#towline/migration/source.js';
import { receive } from '#towline/migration/destination.js';
import { memfd } from '#towline/rehearsal/index.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

const twins = (options: ConstructorParameters<typeof TsDevice>[1] = {}): [TsDevice, TsDevice] => {
  const source = new TsDevice('passed', options);
  return [source, new TsDevice('passed', { ...options, uuid: source.uuid })];
};

const failure = (result: PromiseSettledResult<MigrationReport>): TowlineError => {
  if (result.status === 'fulfilled') throw new Error(`it was ${result.value.outcome}`);
  return result.reason as TowlineError;
};

const success = (result: PromiseSettledResult<MigrationReport>): MigrationReport => {
  if (result.status === 'rejected') throw result.reason as Error;
  return result.value;
};

/** Both sides with memory passed; gives what came as well. */
async function pass(
  pair: Pair,
  from: TsDevice,
  to: TsDevice,
  options: { source?: Partial<MigrateOptions>; destination?: Partial<ReceiveOptions> } = {},
) {
  let got: GuestMemory | undefined;
  const settled = await pair.move(from, to, {
    source: { memoryTransfer: 'pass', ...options.source },
    destination: {
      memory: 'passed',
      ...options.destination,
      onMemory: async (memory) => {
        got = memory;
        await options.destination?.onMemory?.(memory);
      },
    },
  });
  return { ...settled, got };
}

test('the destination has the very memory, nothing of it was sent, and the source tracked nothing', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins();
  source.device.register = 3n;
  // Two files, a hole between them, and the second begins within its file.
  const [low, high] = [memfd('low', 1n << 20n), memfd('high', 1n << 20n)];
  const memory = new GuestMemory([
    { gpa: 0n, len: 1n << 20n, fd: low },
    { gpa: 1n << 32n, len: 1n << 19n, fd: high, fdOffset: 1n << 19n },
  ]);
  closeSync(low);
  closeSync(high);
  memory.write((1n << 32n) + 5n, Buffer.from('above the hole'));
  const order: string[] = [];
  const { got, ...settled } = await pass(pair, source, destination, {
    source: {
      memory,
      // Whatever a stop costs on a busy machine: it is forecast to fit.
      policy: { maxDowntimeMs: 60_000 },
      pause: () => {
        order.push('pause');
        t.false(source.dirty.tracking);
        // Everything up to here arrives without being marked or sent.
        memory.write(77n, Buffer.from('last words'));
      },
    },
    destination: {
      onMemory: async (m) => {
        order.push('onMemory');
        await new Promise((resolve) => {
          setTimeout(resolve, 50);
        });
        t.deepEqual(m.ranges(), memory.ranges());
        t.is(source.device.now, 'running');
        t.throws(() => m.write(0n, Uint8Array.of(1)), { message: /belongs to another process/ });
        order.push('built');
      },
      restoreSections: () => void order.push(destination.device.now),
    },
  });
  const report = success(settled.source);
  t.deepEqual(order, ['onMemory', 'built', 'pause', 'stop']);
  t.is(report.outcome, 'committed');
  t.is(report.memoryTransfer, 'pass');
  t.is(report.bytes.memory, 0);
  t.deepEqual(report.pages, { sent: 0, zero: 0, hole: 0 });
  t.is(report.rounds, 0);
  t.is(report.forecast?.rounds, 0);
  t.is(report.forecast?.memoryBytes, 0);
  t.true(report.forecast?.converges);
  t.true(report.bytes.wire < 300_000, `${report.bytes.wire} bytes`);
  t.is(success(settled.destination).memoryTransfer, 'pass');
  t.true(report.phases.some((p) => p.name === 'pass-memory'));
  t.false(report.phases.some((p) => p.name === 'final-pages'));
  if (got === undefined) throw new Error('no memory came');
  t.is(Buffer.from(got.read(77n, 10)).toString(), 'last words');
  t.is(Buffer.from(got.read((1n << 32n) + 5n, 14)).toString(), 'above the hole');
  got.write(0n, Buffer.from('the new owner'));
  t.is(Buffer.from(memory.read(0n, 13)).toString(), 'the new owner');
  t.is(destination.device.register, 3n);
  t.false(source.dirty.tracking);
  // It stays both callers'.
  memory.close();
  t.is(got.ranges().length, 2);
  got.close();
});

test('regions have the files that memory lies in, for as long as it is open', (t) => {
  const fd = memfd('regions', 1n << 20n);
  const memory = new GuestMemory([
    { gpa: 1n << 30n, len: 4096n, fd, fdOffset: 8192n },
    { gpa: 0n, len: 8192n, fd },
  ]);
  const regions = memory.regions();
  t.deepEqual(
    regions.map(({ gpa, len, fdOffset }) => ({ gpa, len, fdOffset })),
    [
      { gpa: 0n, len: 8192n, fdOffset: 0n },
      { gpa: 1n << 30n, len: 4096n, fdOffset: 8192n },
    ],
  );
  for (const region of regions) {
    t.not(region.fd, fd);
    t.is(fstatSync(region.fd).ino, fstatSync(fd).ino);
    // Memory of the same file is the same memory.
    using again = new GuestMemory([region]);
    memory.write(region.gpa, Buffer.from('x'));
    t.is(again.read(region.gpa, 1)[0], 0x78);
  }
  closeSync(fd);
  memory.close();
  t.throws(() => memory.regions(), { code: 'ERR_TOWLINE_CLOSED' });
  t.throws(() => fstatSync(regions[0]?.fd ?? -1), { code: 'EBADF' });
});

for (const where of ['onMemory', 'restoreSections', 'source verify'] as const) {
  test(`a failure of ${where} leaves the source running in its memory, and the other side shut out of it`, async (t) => {
    const pair = new Pair(t);
    const [source, destination] = twins();
    source.device.register = 9n;
    let resumed = 0;
    const fail = (): never => {
      throw new Error('no');
    };
    const { got, ...settled } = await pass(pair, source, destination, {
      source: { resume: () => void resumed++, ...(where === 'source verify' ? { verify: fail } : {}) },
      destination: where === 'source verify' ? {} : { [where]: fail },
    });
    t.is(failure(settled.source).code, 'ERR_TOWLINE_ROLLED_BACK');
    t.is(failure(settled.destination).code, 'ERR_TOWLINE_ROLLED_BACK');
    t.is(source.device.now, 'running');
    t.is(source.device.register, 9n);
    t.is(source.device.resets, 0);
    // Before the pause nothing had to be resumed.
    t.is(resumed, where === 'onMemory' ? 0 : 1);
    t.is(source.device.history.includes('stop'), where !== 'onMemory');
    pair.memory.source.write(0n, Buffer.from('ours'));
    if (where === 'onMemory') {
      t.throws(() => got?.ranges(), { code: 'ERR_TOWLINE_CLOSED' });
    } else {
      t.throws(() => got?.write(0n, Uint8Array.of(0)), { message: /belongs to another process/ });
      t.is(Buffer.from(got?.read(0n, 4) ?? []).toString(), 'ours');
      got?.close();
    }
    // It can be passed again, and goes.
    const again = await pass(pair, source, destination);
    t.is(success(again.source).outcome, 'committed');
    t.is(destination.device.register, 9n);
    again.got?.close();
  });
}

test('over TCP it is a mismatch on both sides, before anything stops', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins();
  let listening: (address: string) => void = () => {};
  const address = new Promise<string>((resolve) => {
    listening = resolve;
  });
  const receiving = receive(destination, {
    from: 'tcp://127.0.0.1:0',
    memory: 'passed',
    onMemory: () => t.fail(),
    fence: pair.journals.destination,
    onListening: listening,
  });
  const sending = migrate(source, {
    to: await address,
    memory: pair.memory.source,
    memoryTransfer: 'pass',
    fence: pair.journals.source,
  });
  const [a, b] = await Promise.allSettled([sending.result, receiving.result]);
  for (const side of [a, b]) {
    const cause = failure(side).cause as TowlineError;
    t.is(cause.code, 'ERR_TOWLINE_MISMATCH');
    t.regex(cause.message, /guest memory can't be passed: .* is no UNIX socket/);
  }
  t.deepEqual(source.device.history, ['running']);
});

test('both sides have to say it', async (t) => {
  const pair = new Pair(t);
  for (const [ours, theirs] of [
    [{ memoryTransfer: 'pass' }, {}],
    [{}, { memory: 'passed', onMemory: () => {} }],
  ] as const) {
    const [source, destination] = twins();
    const settled = await pair.move(source, destination, { source: ours, destination: theirs });
    t.is((failure(settled.source).cause as TowlineError).code, 'ERR_TOWLINE_MISMATCH');
    t.deepEqual(source.device.history, ['running']);
  }
});

test('what is missing is said before a link is made', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins();
  const fence = pair.journals.source;
  const nothing = migrate(source, { to: 'unix:///nowhere', memoryTransfer: 'pass', fence }).result;
  t.is(((await t.throwsAsync(nothing)).cause as TowlineError).code, 'ERR_TOWLINE_INVALID_ARGUMENT');
  const nobody = receive(destination, { from: 'unix:///nowhere', memory: 'passed', fence }).result;
  t.is(((await t.throwsAsync(nobody)).cause as TowlineError).code, 'ERR_TOWLINE_INVALID_ARGUMENT');
});

test('files that could shrink are taken only where the destination says so', async (t) => {
  const pair = new Pair(t);
  const folder = mkdtempSync(join(tmpdir(), 'towline-passed-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const path = join(folder, 'memory');
  const fd = openSync(path, 'w+');
  writeSync(fd, Buffer.alloc(1 << 20));
  const memory = new GuestMemory([{ gpa: 0n, len: 1n << 20n, fd, shrinkable: true }]);
  closeSync(fd);
  const [source, destination] = twins();
  const refused = await pass(pair, source, destination, { source: { memory } });
  t.regex(failure(refused.source).message, /not sealed against shrinking.*\(shrinkable\)/);
  t.deepEqual(source.device.history, ['running']);
  const taken = await pass(pair, source, destination, { source: { memory }, destination: { shrinkable: true } });
  t.is(success(taken.source).outcome, 'committed');
  taken.got?.write(4096n, Buffer.from('in the file'));
  t.is(readFileSync(path).subarray(4096, 4107).toString(), 'in the file');
  taken.got?.close();
  memory.close();
});

test('a device that gives state while it runs does so here, too', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins({ flags: { preCopy: true } });
  source.device.register = 11n;
  const settled = await pass(pair, source, destination);
  t.is(success(settled.source).outcome, 'committed');
  t.true(source.device.history.includes('pre-copy'));
  t.is(destination.device.register, 11n);
  settled.got?.close();
});

test('a stop that takes too long is not begun', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins();
  const settled = await pass(pair, source, destination, {
    source: { policy: { maxDowntimeMs: 0, onNoConvergence: 'give-up' } },
  });
  const cause = failure(settled.source).cause as TowlineError;
  t.is(cause.code, 'ERR_TOWLINE_NOT_CONVERGING');
  t.deepEqual(
    source.device.history.filter((s) => s === 'stop'),
    [],
  );
  settled.got?.close();
});

test('a dry run passes memory, and gives it back', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins();
  const settled = await pass(pair, source, destination, { source: { dryRun: true } });
  const report = success(settled.source);
  t.is(report.outcome, 'dry-run');
  t.is(report.forecast?.memoryBytes, 0);
  t.is(settled.destination.status, 'rejected');
  t.throws(() => settled.got?.write(0n, Uint8Array.of(0)), { message: /belongs to another process/ });
  settled.got?.close();
});

test('descriptors come with their section, and those that nobody took are closed', async (t) => {
  const pair = new Pair(t);
  const folder = mkdtempSync(join(tmpdir(), 'towline-section-'));
  t.teardown(() => rmSync(folder, { recursive: true }));
  const open = (name: string) => openSync(join(folder, name), 'w+');
  const [a, b, c] = [open('a'), open('b'), open('c')];
  const [source, destination] = twins();
  let kept = -1;
  /** How many descriptors of this process are of that file. */
  const openOf = (name: string): number => {
    const fds = readdirSync('/proc/self/fd').map((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`);
      } catch {
        return '';
      }
    });
    return fds.filter((path) => path === join(folder, name)).length;
  };
  const settled = await pair.move(source, destination, {
    source: {
      sectionFds: true,
      sections: {
        plain: () => Buffer.from('no descriptors'),
        device: () => ({ bytes: Buffer.from('two'), fds: { log: a, other: b } }),
        more: async () => ({ bytes: new Uint8Array(), fds: { log: c } }),
      },
    },
    destination: {
      restoreSections: (sections, fds) => {
        t.is(Buffer.from(sections['device'] ?? []).toString(), 'two');
        t.is(sections['more']?.length, 0);
        t.deepEqual(fds.names('plain'), []);
        t.deepEqual(fds.names('device'), ['log', 'other']);
        t.deepEqual(fds.names('more'), ['log']);
        kept = fds.take('device', 'log');
        t.not(kept, a);
        t.throws(() => fds.take('device', 'log'), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
        t.throws(() => fds.take('device', 'none'), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
        t.deepEqual(['a', 'b', 'c'].map(openOf), [2, 2, 2]);
      },
    },
  });
  t.is(success(settled.source).outcome, 'committed');
  t.deepEqual(['a', 'b', 'c'].map(openOf), [2, 1, 1]);
  writeSync(kept, 'by the destination');
  t.is(readFileSync(join(folder, 'a'), 'utf8'), 'by the destination');
  // They stayed the source's, which closes its own.
  for (const fd of [a, b, c, kept]) closeSync(fd);
});

test('descriptors without leave, or that are not open, roll back', async (t) => {
  const pair = new Pair(t);
  for (const [sectionFds, fd, why] of [
    [false, 1, /not offered as one that passes any/],
    [true, 987_654, /descriptor 987654 can't be duplicated/],
    [true, -1, /-1 is not a file descriptor/],
  ] as const) {
    const [source, destination] = twins();
    const settled = await pair.move(source, destination, {
      source: { sectionFds, sections: { x: () => ({ bytes: new Uint8Array(), fds: { x: fd } }) } },
    });
    t.regex(failure(settled.source).message, why);
    t.is(source.device.now, 'running');
  }
});
