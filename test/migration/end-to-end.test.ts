import { randomBytes } from 'node:crypto';
import { connect } from 'node:net';
import { join } from 'node:path';
import { PassThrough } from 'node:stream';
import test from 'ava';
import { isTowlineError, type TowlineError } from '#towline/errors.js';
import type { MigrationReport } from '#towline/migration/report.js';
import { PHASES, type Phase } from '#towline/migration/phases.js';
import { DIAGNOSTICS_CHANNEL, type MigrationEvent } from '#towline/migration/progress.js';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { receive } from '#towline/migration/destination.js';
import type { Link } from '#towline/migration/link.js';
import type { Sections } from '#towline/migration/options.js';
import { migrate } from '#towline/migration/source.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

function twins(name: string, options: ConstructorParameters<typeof TsDevice>[1] = {}): [TsDevice, TsDevice] {
  const source = new TsDevice(name, options);
  return [source, new TsDevice(name, { ...options, uuid: source.uuid })];
}

const failure = (result: PromiseSettledResult<MigrationReport>): TowlineError => {
  if (result.status === 'fulfilled') throw new Error(`it was ${result.value.outcome}`);
  return result.reason as TowlineError;
};

test('a function in plain TypeScript moves with its memory and its state', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  source.device.register = 0x0123_4567_89ab_cdefn;
  pair.memory.source.write(0n, randomBytes(1 << 20));
  source.dma(pair.memory.source, 0x20_0000n, randomBytes(10_000));
  const settled = await pair.move(source, destination, {
    source: {
      pause: () => source.dma(pair.memory.source, 0x30_0123n, randomBytes(5000)),
    },
  });
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  const report = settled.source.value;
  t.is(report.outcome, 'committed');
  t.true(pair.equalMemory());
  t.is(destination.device.register, 0x0123_4567_89ab_cdefn);
  t.is(destination.device.now, 'running');
  t.not(source.device.now, 'running');
  t.is(report.bytes.deviceState, 100_016);
  t.true(report.rounds >= 1);
  t.true(report.downtimeMs > 0 && report.downtimeMs <= report.totalMs);
  t.truthy(report.forecast);
  t.true((report.stopMs ?? Infinity) <= report.downtimeMs);
  t.deepEqual(
    report.phases.map((p) => p.name),
    PHASES.filter((p) => report.phases.some((x) => x.name === p)),
  );
  t.is(pair.journals.source.sessions()[0]?.verdict, 'released');
  t.is(pair.journals.destination.sessions()[0]?.verdict, 'run-destination');
});

test('the check of memory is able to fail', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  await pair.move(source, destination);
  pair.memory.destination.write(0x12345n, Uint8Array.of(1));
  t.false(pair.equalMemory());
});

test('several functions move in one session, with P2P before the stop', async (t) => {
  const pair = new Pair(t);
  const pairs = ['a', 'b', 'c'].map((name) => twins(name, { flags: { p2p: true } }));
  pairs.forEach(([s], i) => (s.device.register = BigInt(i + 1)));
  const settled = await pair.move(
    pairs.map((p) => p[0]),
    pairs.map((p) => p[1]),
  );
  t.is(settled.source.status, 'fulfilled');
  for (const [i, [s, d]] of pairs.entries()) {
    t.is(d.device.register, BigInt(i + 1));
    const p2p = s.device.history.indexOf('running-p2p');
    t.true(p2p > 0 && p2p < s.device.history.indexOf('stop-copy'), s.device.history.join());
  }
  t.is(pair.journals.destination.sessions().length, 1);
});

test('every mismatch is told before anything stops', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  destination.revision = 2;
  const settled = await pair.move(source, destination);
  const error = failure(settled.source);
  t.is((error.cause as TowlineError).code, 'ERR_TOWLINE_MISMATCH');
  t.deepEqual(source.device.history, ['running']);
  t.regex(error.message, /revision/);
});

test('state goes only to a channel of its format, and that is told in the offer', async (t) => {
  for (const [at, here] of [
    ['vfio:mtty:mtty-2', 'vfio:mtty:mtty-1'],
    ['vfio:mtty:mtty-2', undefined],
  ] as const) {
    const pair = new Pair(t);
    const [source, destination] = twins('ts');
    source.device.format = at;
    destination.device.format = here;
    const settled = await pair.move(source, destination);
    const error = failure(settled.source);
    t.is((error.cause as TowlineError).code, 'ERR_TOWLINE_MISMATCH');
    t.regex(error.message, /state-format is "vfio:mtty:mtty-2" at the source/);
    t.deepEqual(source.device.history, ['running']);
  }
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  source.device.format = destination.device.format = 'vfio:mtty:mtty-2';
  source.device.isSizeUnknown = true;
  source.device.register = 9n;
  const settled = await pair.move(source, destination);
  t.is(settled.source.status, 'fulfilled');
  t.is(destination.device.register, 9n);
});

test('a function that says it cannot be migrated is not', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  source.reasons = [{ code: 'other', message: 'it is bolted down', mend: 'unbolt it' }];
  const controller = new AbortController();
  const moving = pair.move(source, destination, { destination: { signal: controller.signal } });
  setTimeout(() => controller.abort(), 300);
  const settled = await moving;
  t.regex(failure(settled.source).message, /bolted down/);
});

test("the caller's sections arrive before commit, and a refusal of one rolls back", async (t) => {
  const pair = new Pair(t);
  const vcpu = randomBytes(3000);
  {
    const [source, destination] = twins('ts');
    let seen: Uint8Array | undefined;
    const settled = await pair.move(source, destination, {
      source: { sections: { vcpu: () => vcpu, empty: () => new Uint8Array() } },
      destination: {
        restoreSections: (sections) => {
          t.is(destination.device.now, 'stop');
          seen = sections['vcpu'];
          t.is(sections['empty']?.length, 0);
        },
      },
    });
    t.is(settled.source.status, 'fulfilled');
    t.deepEqual(Buffer.from(seen ?? []), vcpu);
  }
  const [source, destination] = twins('ts');
  const settled = await pair.move(source, destination, {
    source: { sections: { vcpu: () => vcpu } },
    destination: {
      restoreSections: () => {
        throw new Error('these registers are not mine');
      },
    },
  });
  t.is(failure(settled.source).code, 'ERR_TOWLINE_ROLLED_BACK');
  t.is(source.device.now, 'running');
});

test('sections out of one buffer, which is used again for each, arrive as they were', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  const buffer = Buffer.alloc(5000);
  const names = ['a', 'b', 'c'];
  const seen: Record<string, Uint8Array> = {};
  const settled = await pair.move(source, destination, {
    source: { sections: Object.fromEntries(names.map((name) => [name, () => buffer.fill(name)])) },
    destination: { restoreSections: (sections) => void Object.assign(seen, sections) },
  });
  t.is(settled.source.status, 'fulfilled');
  for (const name of names) t.deepEqual(Buffer.from(seen[name] ?? []), Buffer.alloc(5000, name));
});

for (const name of ['pause', 'verify', 'sections'] as const) {
  test(`a failing ${name} hook leaves the source running`, async (t) => {
    const pair = new Pair(t);
    const [source, destination] = twins('ts');
    let resumed = 0;
    const fail = (): never => {
      throw new Error('no');
    };
    const hooks = name === 'sections' ? { sections: { x: fail } } : { [name]: fail };
    const settled = await pair.move(source, destination, { source: { ...hooks, resume: () => void resumed++ } });
    const error = failure(settled.source);
    t.is(error.code, 'ERR_TOWLINE_ROLLED_BACK');
    t.is((error.details as { report: MigrationReport }).report.outcome, 'rolled-back');
    const cause = error.cause as { code: string; message: string };
    t.is(cause.code, name === 'verify' ? 'ERR_TOWLINE_VERIFY' : 'ERR_TOWLINE_HOOK');
    t.regex(cause.message, name === 'sections' ? /the sections\.x hook failed: no/ : new RegExp(`the ${name} hook`));
    t.is(source.device.now, 'running');
    t.is(source.device.resets, 0);
    t.is(resumed, 1);
    t.is(settled.destination.status, 'rejected');
    t.is(pair.journals.source.sessions()[0]?.verdict, 'resume-source');
  });
}

/** The phases in which a source can be told to cancel, each reached by the first event that names it. */
const CANCELLABLE: Phase[] = ['offer', 'measure', 'pre-copy', 'pause', 'stop', 'final-pages', 'prepare', 'hold'];

for (const phase of CANCELLABLE) {
  test(`a cancel in phase ${phase} leaves the source running`, async (t) => {
    const pair = new Pair(t);
    pair.memory.source.write(0n, randomBytes(1 << 20));
    const [source, destination] = twins('ts');
    source.device.register = 77n;
    const controller = new AbortController();
    const session = crypto.randomUUID();
    const listener = (message: unknown) => {
      const event = message as MigrationEvent;
      if (event.session === session && event.type === 'phase' && event.phase === phase)
        controller.abort(new Error('enough'));
    };
    subscribe(DIAGNOSTICS_CHANNEL, listener);
    let resumed = 0;
    const stop = new AbortController();
    const moving = pair.move(source, destination, {
      source: { session, signal: controller.signal, pause: () => {}, resume: () => void resumed++, verify: () => {} },
      destination: { signal: stop.signal },
    });
    const timer = setTimeout(() => stop.abort(), 20_000);
    const settled = await moving;
    clearTimeout(timer);
    unsubscribe(DIAGNOSTICS_CHANNEL, listener);
    const error = failure(settled.source);
    t.is(error.code, 'ERR_TOWLINE_ABORTED', error.stack ?? '');
    t.is(source.device.now, 'running');
    t.is(source.device.register, 77n);
    t.is(resumed, ['offer', 'measure', 'pre-copy'].includes(phase) ? 0 : 1);
    t.is(settled.destination.status, 'rejected');
    t.false(source.dirty.tracking);
    // It can be migrated again at once.
    const again = await pair.move(source, destination);
    t.is(again.source.status, 'fulfilled', JSON.stringify(again.source));
    t.is(destination.device.register, 77n);
  });
}

test('a cancel after COMMIT-INTENT comes too late and changes nothing', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  const controller = new AbortController();
  const session = crypto.randomUUID();
  const listener = (message: unknown) => {
    const event = message as MigrationEvent;
    if (event.session === session && event.type === 'phase' && event.phase === 'resume') controller.abort();
  };
  subscribe(DIAGNOSTICS_CHANNEL, listener);
  const settled = await pair.move(source, destination, { source: { session, signal: controller.signal } });
  unsubscribe(DIAGNOSTICS_CHANNEL, listener);
  t.true(controller.signal.aborted);
  t.is(settled.source.status, 'fulfilled');
  t.is(destination.device.now, 'running');
});

test('a device that fails to stop is told, with the reason, and runs on', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  source.device.onSet = (to) => {
    if (to === 'stop' || to === 'stop-copy') throw new Error('the firmware is busy');
  };
  const settled = await pair.move(source, destination);
  const error = failure(settled.source);
  t.regex(error.message, /firmware is busy/);
  t.is(source.device.now, 'running');
});

test('state that the destination does not accept rolls back', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  destination.device.onSet = (to) => {
    if (destination.device.now === 'resuming' && to !== 'resuming') throw new Error('the state is of another make');
  };
  const settled = await pair.move(source, destination);
  t.true(isTowlineError(failure(settled.source), 'ERR_TOWLINE_ROLLED_BACK'));
  t.is(source.device.now, 'running');
  t.true(destination.device.resets > 0);
});

test('a dry run ends with a forecast and touches nothing', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  const settled = await pair.move(source, destination, { source: { dryRun: true } });
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  t.is(settled.source.value.outcome, 'dry-run');
  t.truthy(settled.source.value.forecast);
  t.deepEqual(source.device.history, ['running']);
  t.is(settled.destination.status, 'rejected');
});

test('sections may be taken by one call, in the order of their names', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  const large = randomBytes(100_000);
  const seen: [string, Uint8Array][] = [];
  const names = ['b', 'a', 'z', 'empty'];
  const given = { z: Uint8Array.of(1), a: large, b: Uint8Array.of(2, 3), empty: new Uint8Array(), more: large };
  const restoreSections = (sections: Sections) => void seen.push(...Object.entries(sections));
  const move = (gives: Readonly<Record<string, Uint8Array>>) =>
    pair.move(source, destination, {
      source: { sections: { names, take: async () => gives } },
      destination: { restoreSections },
    });
  const { a: _left, ...incomplete } = given;
  const error = failure((await move(incomplete)).source);
  t.is((error.cause as TowlineError).code, 'ERR_TOWLINE_HOOK');
  t.regex(error.message, /no section a\b/);
  t.deepEqual([seen, source.device.now], [[], 'running']);
  const settled = await move(given);
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  t.deepEqual(
    seen.map(([name, bytes]) => [name, Buffer.from(bytes)] as const),
    names.map((name) => [name, Buffer.from(given[name as keyof typeof given])] as const),
  );
});

test('a forecast holds what earlier stops took, where it is told, and what has passed', async (t) => {
  const [pair, [source, destination]] = [new Pair(t), twins('ts')];
  const dryRun = async (stopMs: readonly number[]) => {
    const settled = await pair.move(source, destination, { source: { dryRun: true, policy: { stopMs } } });
    if (settled.source.status === 'rejected') throw settled.source.reason as Error;
    const { forecast, phases } = settled.source.value;
    if (forecast === undefined) throw new Error('there is no forecast');
    return { forecast, phases };
  };
  const { forecast, phases } = await dryRun([10_000, 20_000, 30_000]);
  const { p50, p95 } = forecast.downtimeMs;
  t.true(p50 >= 20_000 && p50 < 21_000, `${p50}`);
  t.true(p95 >= p50 + 1.644 * 10_000, `${p95}`);
  t.is(forecast.obstacle, 'stop-cost');
  const before = phases.reduce((sum, { ms }) => sum + ms, 0);
  t.true(before > 0 && forecast.totalMs >= p50 + 0.9 * before, `${forecast.totalMs} ${before}`);
  t.true((await dryRun([])).forecast.downtimeMs.p50 < 10_000);
});

test('memory that is written faster than it can be sent gives up with the reason and what it would take', async (t) => {
  const pair = new Pair(t, 16n << 20n);
  pair.memory.source.write(0n, randomBytes(8 << 20));
  const [source, destination] = twins('ts');
  const writer = setInterval(() => {
    if (source.device.now === 'running') source.dma(pair.memory.source, 0n, randomBytes(4 << 20));
  }, 5);
  t.teardown(() => clearInterval(writer));
  const settled = await pair.move(source, destination, {
    source: { policy: { maxDowntimeMs: 1, maxRounds: 3, bandwidthBytesPerSecond: 32 << 20 } },
  });
  const error = failure(settled.source);
  t.is((error.cause as TowlineError).code, 'ERR_TOWLINE_NOT_CONVERGING', error.message);
  t.regex(error.message, /limit is 1 ms/);
  t.is(source.device.now, 'running');
});

test('who connects without an offer does not end the waiting', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  const path = join(pair.directory, 'strangers');
  const receiving = receive(destination, {
    from: `unix://${path}`,
    memory: pair.memory.destination,
    fence: pair.journals.destination,
  });
  for (const words of ['', 'GET / HTTP/1.1\r\n\r\n', '\0'.repeat(1000)]) {
    await new Promise<void>((resolve) => {
      const stranger = connect(path, () => stranger.end(words));
      stranger.on('close', () => resolve());
      stranger.on('error', () => resolve());
      stranger.resume();
    });
  }
  const report = await migrate(source, {
    to: `unix://${path}`,
    memory: pair.memory.source,
    fence: pair.journals.source,
  }).result;
  t.is(report.outcome, 'committed');
  t.is((await receiving.result).outcome, 'committed');
});

test("a migration over the caller's own stream, and a cancel while that stream is stuck", async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins('ts');
  const [a, b] = streams();
  const moving = await pair.move(source, destination, { source: { to: a }, destination: { from: b } });
  t.is(moving.source.status, 'fulfilled', JSON.stringify(moving.source));
  t.true(pair.equalMemory());

  const [again] = twins('again');
  const controller = new AbortController();
  const stuck: Link = { send: () => new Promise(() => {}), receive: () => new Promise(() => {}), close: () => {} };
  const migration = migrate(again, { to: stuck, fence: pair.journals.source, signal: controller.signal });
  setTimeout(() => controller.abort(), 100);
  await t.throwsAsync(migration.result, { code: 'ERR_TOWLINE_ABORTED' });
  t.is(again.device.now, 'running');
});

/** Two ends of a duplex stream in memory. */
function streams(): [Link, Link] {
  const end = (mine: PassThrough, other: PassThrough): Link => ({
    send: (data) =>
      new Promise((resolve, reject) => {
        other.write(Buffer.from(data), (error) => (error ? reject(error) : resolve()));
      }),
    receive: async (maxBytes) => {
      for (;;) {
        const chunk = mine.read(Math.min(maxBytes, mine.readableLength || maxBytes)) as Buffer | null;
        if (chunk) return chunk;
        if (mine.readableEnded || mine.destroyed) return new Uint8Array();
        await new Promise<void>((resolve) => {
          const done = () => {
            mine.off('readable', done);
            mine.off('end', done);
            resolve();
          };
          mine.on('readable', done);
          mine.on('end', done);
        });
      }
    },
    close: () => void other.end(),
  });
  const [x, y] = [new PassThrough(), new PassThrough()];
  return [end(x, y), end(y, x)];
}

test('a function that does not let go of itself is told, the others are released, and it is committed', async (t) => {
  const pair = new Pair(t);
  const [stays, stayed] = twins('stays');
  const [goes, gone] = twins('goes');
  const released: string[] = [];
  for (const fn of [stays, goes]) {
    Object.assign(fn, {
      release: async () => {
        released.push(fn.name);
        if (fn === stays) throw new Error('it stays');
      },
    });
  }
  const { source } = await pair.move([stays, goes], [stayed, gone]);
  if (source.status === 'rejected') throw source.reason as Error;
  t.deepEqual(released, ['stays', 'goes']);
  t.is(source.value.outcome, 'committed');
  t.like(source.value.releaseFailures, [{ uuid: stays.uuid, name: 'stays', error: { message: 'it stays' } }]);
  t.is(source.value.releaseFailures?.length, 1);
  t.is(pair.journals.source.sessions()[0]?.verdict, 'released');
});
