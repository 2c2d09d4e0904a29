// mtty from one kernel to another and back: by the commands of a shell, with the link cut, and with a holder killed at every point of the
// handoff. Runs in two guests; the destination does what the source says. What is run is the argument: `move` (with one crash), `crashes`
// or `links`.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { faultPoints } from '#towline/rehearsal/index.js';
import { command, obey } from '../agent.js';
import { disagreements } from '../agreement.js';
import { create, fifoReads, fifoWrites, observed, remove, writes, written } from '../mtty.js';
import { Journey, type Pair } from '../pair.js';
import { Relay, type Cut } from '../relay.js';
import { Side } from '../side.js';

const { TOWLINE_ROLE: role, TOWLINE_ADDRESS: address = '', TOWLINE_PEER: peer = '' } = process.env;
const part = process.argv[2];
const PORT = 7100;
/** A link that is silent so long is broken: a busy emulator is slower than any network. */
const LINK_MS = 15_000;

/** Behind these the destination's commit is durable. */
const COMMITTED: ReadonlySet<string> = new Set([
  'source:committed',
  'source:running',
  'source:released',
  'destination:commit-durable',
  'destination:committed-sent',
  'destination:resumed',
  'destination:running',
]);
/** Of the destination, from the first byte of device state on. */
const BEHIND_STATE = [
  'state-loading',
  'loaded',
  'prepared',
  'commit-received',
  'commit-durable',
  'committed-sent',
  'resumed',
  'running',
  'refusal-durable',
  'aborted',
] as const;
const IN_MID_STREAM: Cut = { direction: 'there', frame: 'state-chunk', bytes: 'half' };
/** Reached where the link breaks while device state is on its way, and both give up. */
const GIVING_UP: ReadonlySet<string> = new Set(['source:aborting', 'source:aborted', 'destination:aborted']);
/** Reached where a source in doubt, whose COMMIT never left, asks. */
const REFUSAL = 'destination:refusal-durable';

if (role === 'destination') {
  test('the destination does what the source says', async () => {
    const side = new Side('destination', address);
    await side.start();
    await obey(side, address);
    assert.equal(await side.stop(), '0');
  });
} else {
  let seed = 1;
  const a = new Side('source', address);
  let b: Awaited<ReturnType<typeof command>>;
  let pair: Pair;

  const journey = async (work: (one: Journey) => Promise<void>): Promise<void> => {
    const one = new Journey(pair, seed++);
    try {
      await one.begin();
      await work(one);
      await one.end();
    } catch (error) {
      // What is left of it must not reach the next one.
      for (const side of [a, b]) {
        await side.kill();
        await side.remove(one.uuid);
        await side.start();
      }
      throw error;
    }
  };

  before(async () => {
    await a.start();
    b = await command(peer);
    pair = { source: a, destination: b, answers: crypto.randomUUID() };
    await b.provision(pair.answers);
  });
  after(async () => {
    // Where it did not begin, that was told.
    if (pair !== undefined) await b.release(pair.answers);
    assert.equal(await a.stop(), '0');
    b?.close();
  });

  if (part === 'move') {
    test('by towline migrate and towline receive, and back: registers, FIFO and memory are what they were', async (t) => {
      const uuid = crypto.randomUUID();
      const provision = [
        'provision',
        'mdev:mtty',
        '--kind',
        'siov',
        '--type',
        'mtty-2',
        '--uuid',
        uuid,
        '--migration',
        'on',
        '--expose',
        'vfio',
      ];
      const bytes = [0x74, 0x6f, 0x77, 0x00, 0xff];
      const idle = [await a.open(), await b.open()];
      let digest: string | undefined;
      for (const [n, from, to, at] of [
        [1, a, b, peer],
        [2, b, a, address],
      ] as const) {
        const values = written(1000 + n);
        for (const side of n === 1 ? [a, b] : [to]) {
          const { code, out, err } = await side.towline(...provision);
          assert.equal(code, 0, out + err);
        }
        await from.write(uuid, writes(values));
        await from.write(uuid, fifoWrites(bytes));
        if (n === 1) await from.fill(n);
        digest ??= await from.digest();
        assert.notEqual(await to.digest(), digest);

        const receiving = to.towline(
          'receive',
          uuid,
          '--from',
          `tcp://${at}:${PORT + n}`,
          '--allow-remote-plaintext',
          '--accept-timeout',
          '60000',
          '--json',
        );
        const migrating = sleep(1000).then(async () => {
          await to.listens(PORT + n);
          return from.towline('migrate', uuid, '--to', `tcp://${at}:${PORT + n}`, '--max-downtime', '60000', '--json');
        });
        const migrated = await migrating;
        assert.equal(migrated.code, 0, migrated.out + migrated.err);
        const received = await receiving;
        assert.equal(received.code, 0, received.out + received.err);
        const report = JSON.parse(migrated.out.trim().split('\n').at(-1) ?? '') as {
          outcome: string;
          downtimeMs: number;
        };
        assert.equal(report.outcome, 'committed');
        t.diagnostic(`${n === 1 ? 'there' : 'back'}: downtime ${report.downtimeMs.toFixed(0)} ms`);

        assert.deepEqual(await to.read(uuid, observed), values);
        assert.deepEqual(await to.read(uuid, fifoReads(bytes.length)), bytes);
        assert.equal(await to.digest(), digest);
        assert.equal(await to.kernelState(uuid), 'running');
        assert.equal(await from.kernelState(uuid), 'absent');
      }
      await a.release(uuid);
      assert.deepEqual([await a.open(), await b.open()], idle, 'descriptors are left');
    });

    test('a destination whose device was made anew, or has one other bit, is noticed', async () => {
      await journey(async (one) => {
        const to = await b.listen([one.uuid]);
        assert.equal((await a.migrate([one.uuid], to)).outcome, 'committed');
        assert.equal((await b.received()).outcome, 'committed');
        assert.deepEqual(disagreements(await one.look(), true), []);
        await b.write(one.uuid, [[1, 7, (one.guest[8] ?? 0) ^ 1]]);
        const [changed, ...more] = disagreements(await one.look(), true);
        assert.match(changed ?? '', /owns the function with the registers/);
        assert.deepEqual(more, []);
        assert.equal(await b.kill(), 'SIGKILL');
        await b.remove(one.uuid);
        await b.create(one.uuid);
        await b.start();
        assert.match(
          disagreements(await one.look(), true).join(),
          /owns the function with the registers 0,0,0,0,0,0,0,0,0/,
        );
      });
    });

    test('a second owner is noticed', async () => {
      // What towline never does: the device that was given back is there again, runs, and has what the guest wrote.
      await journey(async (one) => {
        const to = await b.listen([one.uuid]);
        await a.migrate([one.uuid], to);
        await b.received();
        await create(one.uuid);
        await a.write(one.uuid, writes(one.guest));
        const broken = disagreements(await one.look(), true);
        assert.ok(broken.includes('the function executes in both kernels'), broken.join('; '));
        await remove(one.uuid);
      });
    });
  }

  /** One crash: the holder is killed at `point` and started again over what it left. */
  const crash = async (point: string): Promise<void> => {
    const victim = point.startsWith('source:') ? a : b;
    await journey(async (one) => {
      if (point === REFUSAL) await a.arm({ failAt: 'source:commit-intent-durable' });
      else await victim.arm({ killAt: point });
      const to = await b.listen([one.uuid], { linkTimeoutMs: LINK_MS });
      const relay = GIVING_UP.has(point) ? await Relay.start(to, IN_MID_STREAM) : undefined;
      const migrating = a.migrate([one.uuid], relay?.address ?? to, { linkTimeoutMs: LINK_MS });
      const [left, received] = await Promise.all([migrating, b.received()]);
      relay?.close();
      if (point === REFUSAL) {
        assert.equal(left.outcome, 'in-doubt', left.why ?? '');
        await victim.arm({ killAt: point });
        const asked = await b.listen([pair.answers]);
        await a.recover(asked);
      }
      assert.equal(await victim.gone(20_000), 'SIGKILL', `${point} was not reached: ${left.why}; ${received.why}`);
      if (received.outcome === 'rolled-back') one.destinationWasReset();
      // The kernel has the device as it was left, whoever asks.
      const state = await victim.kernelState(one.uuid);
      if (state !== 'absent') assert.equal(await victim.reopened(one.uuid), state);
      await victim.start();
      assert.equal(await victim.kernelState(one.uuid), state);
      const owner = await one.recover();
      // COMMIT may have left with the last breath of the source, or not.
      const allowed = COMMITTED.has(point)
        ? ['destination']
        : point === 'source:commit-sent'
          ? ['source', 'destination']
          : ['source'];
      assert.ok(allowed.includes(owner ?? ''), `owner: ${owner}`);
      if (victim === b && point === REFUSAL) await a.arm({});
    });
  };

  /** All of them, or one behind COMMIT, where most can go wrong. */
  const points = part === 'move' ? ['destination:commit-durable'] : part === 'crashes' ? faultPoints() : [];
  const hit = new Set<string>();
  for (const point of points)
    test(`killed at ${point}`, async () => {
      await crash(point);
      hit.add(point);
    });
  if (part === 'crashes')
    test('every point was hit, those of the destination behind the state too', () => {
      assert.deepEqual([...hit], faultPoints());
      for (const name of BEHIND_STATE) assert.ok(hit.has(`destination:${name}`), name);
    });

  if (part === 'links') {
    /** Where it is cut, and who owns the function then. */
    const cuts: readonly [name: string, cut: Cut, owner: string, doubt?: 'in-doubt'][] = [
      ['before anything', { direction: 'there', frame: 'header' }, 'source'],
      ['in the header of the stream', { direction: 'there', frame: 'header', bytes: 20 }, 'source'],
      ['before the offer', { direction: 'there', frame: 'offer' }, 'source'],
      ['in the offer', { direction: 'there', frame: 'offer', bytes: 'half' }, 'source'],
      ['before the answer to the offer', { direction: 'back', frame: 'answer' }, 'source'],
      ['in what measures the bandwidth', { direction: 'there', frame: 'filler', bytes: 'half' }, 'source'],
      ['before the first pass over memory', { direction: 'there', frame: 'pages' }, 'source'],
      ['in the first pass over memory', { direction: 'there', frame: 'pages', bytes: 'half' }, 'source'],
      ['before its end is answered', { direction: 'back', frame: 'round-done' }, 'source'],
      ['in device state', { direction: 'there', frame: 'state-chunk', bytes: 'half' }, 'source'],
      [
        'before the last byte of the stream',
        { direction: 'there', frame: 'stream-end', bytes: 'all-but-one' },
        'source',
      ],
      ['before PREPARED', { direction: 'back', frame: 'prepared' }, 'source'],
      ['before COMMIT', { direction: 'there', frame: 'commit' }, 'source', 'in-doubt'],
      ['in COMMIT', { direction: 'there', frame: 'commit', bytes: 5 }, 'source', 'in-doubt'],
      ['before the answer to COMMIT', { direction: 'back', frame: 'committed' }, 'destination', 'in-doubt'],
      ['in the answer to COMMIT', { direction: 'back', frame: 'committed', bytes: 5 }, 'destination', 'in-doubt'],
    ];
    for (const [name, cut, owner, doubt] of cuts) {
      test(`link cut ${name}`, () =>
        journey(async (one) => {
          // A pass over holes alone has no pages.
          if (cut.frame === 'pages') await a.fill(7);
          const relay = await Relay.start(await b.listen([one.uuid], { linkTimeoutMs: LINK_MS }), cut);
          const left = await a.migrate([one.uuid], relay.address, { linkTimeoutMs: LINK_MS });
          const went = relay.frames.map((f) => `${f.direction} ${f.frame} ${f.bytes}`).join(', ');
          relay.close();
          // Nobody who has no offer ends the waiting.
          if (cut.frame === 'header' || cut.frame === 'offer') await b.hangUp();
          const received = await b.received();
          assert.ok(relay.isCut, `the link was never cut: ${went}`);
          assert.equal(left.outcome, doubt ?? 'rolled-back', left.why ?? '');
          assert.equal(received.outcome, owner === 'source' ? 'rolled-back' : 'committed', received.why ?? '');
          one.destinationWasReset();
          assert.equal(await one.recover(), owner);
        }));
    }

    test('network down while memory is copied, and up again', () =>
      journey(async (one) => {
        await a.fill(7);
        const to = await b.listen([one.uuid], { linkTimeoutMs: 3000 });
        // Ten seconds of copying, so that it comes in time.
        const slowly = { linkTimeoutMs: 3000, bytesPerSecond: 100_000 };
        const left = await a.migrate([one.uuid], to, slowly, (phase) => {
          if (phase === 'pre-copy') execFileSync('ip', ['link', 'set', 'eth0', 'down']);
        });
        // Both notice by themselves, each on its own.
        await sleep(4000);
        execFileSync('ip', ['link', 'set', 'eth0', 'up']);
        const received = await b.received();
        assert.equal(left.outcome, 'rolled-back', left.why ?? '');
        assert.equal(received.outcome, 'rolled-back', received.why ?? '');
        one.destinationWasReset();
        assert.equal(await one.recover(), 'source');
      }));
  }
}
