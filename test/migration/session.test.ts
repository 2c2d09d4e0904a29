import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { MigrationSession } from '#towline/migration/session.js';
import { Journal } from '#towline/migration/journal.js';
import { recover } from '#towline/migration/recover.js';
import type { DestinationSession } from '#towline/migration/session-destination.js';
import type { DestinationSessionOptions, SourceSessionOptions } from '#towline/migration/session-options.js';
import type { SourceSession } from '#towline/migration/session-source.js';
import type { MemoryRange } from '#towline/function/channel.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';
import { connection, Vmm } from '../support/vmm.js';

type Way = 'session' | 'caller' | 'one-way';

interface SideOptions {
  source?: Partial<SourceSessionOptions>;
  destination?: Partial<DestinationSessionOptions>;
}

/** Two VMMs with a function each, and a session between them. */
class Vmms {
  readonly pair: Pair;
  readonly device: { source: TsDevice; destination: TsDevice };
  readonly vmm: { source: Vmm; destination: Vmm };
  readonly source: SourceSession;
  readonly destination: DestinationSession;

  constructor(
    readonly t: ExecutionContext,
    readonly way: Way,
    options: SideOptions = {},
    flags: ConstructorParameters<typeof TsDevice>[1] = {},
  ) {
    this.pair = new Pair(t);
    const source = new TsDevice('nic', flags);
    this.device = { source, destination: new TsDevice('nic', { ...flags, uuid: source.uuid }) };
    const [a, b] = connection();
    this.vmm = { source: new Vmm(this.pair.memory.source, a), destination: new Vmm(this.pair.memory.destination, b) };
    const { source: from, destination: to } = this.vmm;
    const oneWay = way === 'one-way';
    const commit = way === 'session' ? 'session' : 'caller';
    this.source = MigrationSession.source(source, {
      stream: oneWay ? { send: (data) => from.link.send(data) } : from.link,
      commit,
      memory: this.pair.memory.source,
      fence: this.pair.journals.source,
      ...options.source,
    });
    this.destination = MigrationSession.destination(this.device.destination, {
      stream: oneWay ? { receive: (maxBytes) => to.link.receive(maxBytes) } : to.link,
      commit,
      fence: this.pair.journals.destination,
      ...options.destination,
    });
    t.teardown(async () => {
      await this.source.close();
      await this.destination.close();
    });
  }

  /** The first half of the destination; `received` tells its caller's end. */
  async receive(): Promise<void> {
    const offer = await this.destination.readOffer();
    this.t.is(offer.type, 'offer');
    await this.destination.answer();
    await this.destination.receive();
    // Memory comes by the VMM's own frames; its last word is behind them.
    this.t.is(await this.vmm.destination.hear(), 'memory is complete');
    const { digests } = await this.destination.prepared();
    this.vmm.destination.say(JSON.stringify(digests));
  }

  /** Moves what is dirty, as the VMM does; `ignore` leaves one run out. */
  async move(ignore?: (runs: readonly MemoryRange[]) => readonly MemoryRange[]): Promise<number> {
    let pages = 0;
    for (;;) {
      const runs = await this.source.dirtyRuns(64);
      if (runs.length === 0) return pages;
      pages += runs.reduce((sum, r) => sum + Number(r.len) / 4096, 0);
      this.vmm.source.sendRuns(ignore ? ignore(runs) : runs);
    }
  }

  /** The guest writes: a device by DMA, a vCPU by itself. */
  work(): void {
    const { source } = this.device;
    const memory = this.pair.memory.source;
    source.dma(memory, 0x1000n * BigInt(randomBytes(1).readUInt8()), randomBytes(6000));
    memory.write(0x30_0000n + 0x1000n * BigInt(randomBytes(1).readUInt8() % 16), randomBytes(100));
  }

  /** The source up to PREPARED, with the guest at work. */
  async prepare(ignoreLast?: (runs: readonly MemoryRange[]) => readonly MemoryRange[]): Promise<void> {
    const { source } = this;
    await source.offer();
    await source.startTracking();
    await this.move();
    for (let round = 0; round < 3; round++) {
      this.work();
      await source.precopyState();
      const harvest = await source.harvest();
      this.t.false(harvest.isLast);
      this.t.true(harvest.dirtyPages > 0);
      this.t.is(await this.move(), harvest.dirtyPages);
    }
    this.work();
    const last = await source.stop();
    this.t.true(last.isLast && last.dirtyPages > 0);
    await source.saveState();
    this.t.is(await this.move(ignoreLast), last.dirtyPages);
    this.vmm.source.say('memory is complete');
    const { digests } = await source.prepare();
    this.t.deepEqual(JSON.parse(await this.vmm.source.hear()), digests);
  }

  async prepareBoth(ignoreLast?: (runs: readonly MemoryRange[]) => readonly MemoryRange[]): Promise<void> {
    await Promise.all([this.receive(), this.prepare(ignoreLast)]);
  }

  /** From PREPARED to the release, on the terms of this session. */
  async commit(): Promise<void> {
    const { source, destination, vmm } = this;
    if (this.way === 'session') {
      await Promise.all([
        (async () => {
          await source.commit();
          await source.waitRunning();
        })(),
        (async () => {
          await destination.waitCommit();
          await destination.resume();
          this.t.true(await destination.running());
        })(),
      ]);
    } else {
      const { epoch } = await source.intent();
      vmm.source.say(`commit ${epoch}`);
      const asked = /^commit (\d+)$/.exec(await vmm.destination.hear());
      await destination.commit(Number(asked?.[1]));
      vmm.destination.say('committed');
      this.t.is(await vmm.source.hear(), 'committed');
      await destination.resume();
      this.t.is(await destination.running(), this.way === 'caller');
      if (this.way === 'caller') await source.waitRunning();
    }
    await source.release();
  }

  verdicts(): (string | undefined)[] {
    return [this.pair.journals.source.sessions()[0]?.verdict, this.pair.journals.destination.sessions()[0]?.verdict];
  }

  /** The source runs on, the destination can't. */
  rolledBack(): void {
    this.t.is(this.device.source.device.now, 'running');
    this.t.is(this.device.source.device.resets, 0);
    this.t.is(this.device.source.device.register, 7n);
    this.t.false(this.device.source.dirty.tracking);
  }
}

function vmms(
  t: ExecutionContext,
  way: Way,
  options?: SideOptions,
  flags?: ConstructorParameters<typeof TsDevice>[1],
): Vmms {
  const both = new Vmms(t, way, options, flags);
  both.device.source.device.register = 7n;
  both.pair.memory.source.write(0n, randomBytes(1 << 20));
  return both;
}

for (const way of ['session', 'caller', 'one-way'] as const) {
  test(`${way}: a VMM moves memory by itself and the device state inside of its own frames`, async (t) => {
    const both = vmms(t, way);
    await both.prepareBoth();
    t.true(both.pair.equalMemory());
    t.is(both.device.source.device.now, 'stop-copy');
    t.is(both.device.destination.device.now, 'stop');
    await both.commit();
    t.is(both.device.destination.device.now, 'running');
    t.is(both.device.destination.device.register, 7n);
    t.is(both.device.source.device.now, 'stop');
    t.deepEqual(both.verdicts(), ['released', 'run-destination']);
    t.is(both.source.state, 'released');
    t.is(both.destination.state, 'running');
    t.true(both.vmm.destination.received.towline > 0 && both.vmm.destination.received.pages > 0);
    t.is(both.vmm.source.received.towline > 0, way !== 'one-way');
    t.true(both.source.timings().some((p) => p.name === 'final-harvest'));
  });

  test(`${way}: a run that the VMM does not move is found by the comparison of memory`, async (t) => {
    const both = vmms(t, way);
    let ignored = 0;
    await both.prepareBoth((runs) => (ignored++ === 0 ? runs.slice(1) : runs));
    t.true(ignored > 0);
    t.false(both.pair.equalMemory());
  });
}

test('several functions are quiesced against each other, and sections arrive', async (t) => {
  const pair = new Pair(t);
  const from = ['a', 'b'].map((name) => new TsDevice(name, { flags: { p2p: true } }));
  const to = from.map((f) => new TsDevice(f.name, { uuid: f.uuid, flags: { p2p: true } }));
  const [a, b] = connection();
  const vmm = { source: new Vmm(pair.memory.source, a), destination: new Vmm(pair.memory.destination, b) };
  await using source = MigrationSession.source(from, {
    stream: vmm.source.link,
    fence: pair.journals.source,
    sections: ['vcpu', 'empty'],
  });
  await using destination = MigrationSession.destination(to, {
    stream: vmm.destination.link,
    fence: pair.journals.destination,
  });
  const [sections] = await Promise.all([
    (async () => {
      const offer = await destination.readOffer();
      t.deepEqual(
        offer.type === 'offer' ? [offer.sections, offer.functions.map((f) => f.name), offer.mismatches] : [],
        [['vcpu', 'empty'], ['a', 'b'], []],
      );
      await destination.answer();
      const received = await destination.receive();
      await destination.prepared();
      await destination.waitCommit();
      await destination.resume();
      await destination.running();
      return received.sections;
    })(),
    (async () => {
      await source.offer();
      await source.startTracking();
      const { isLast, dirtyPages } = await source.stop();
      t.deepEqual([isLast, dirtyPages], [true, 0]);
      await source.saveState();
      await t.throwsAsync(source.prepare(), { code: 'ERR_TOWLINE_CONFIG', message: /"vcpu" was offered and not sent/ });
      await source.sendSection('vcpu', Uint8Array.of(1, 2, 3));
      await source.sendSection('empty', new Uint8Array());
      await source.prepare();
      await source.commit();
      await source.waitRunning();
      await source.release();
    })(),
  ]);
  t.deepEqual([...(sections['vcpu'] ?? [])], [1, 2, 3]);
  t.is(sections['empty']?.length, 0);
  for (const f of from) t.true(f.device.history.indexOf('running-p2p') > 0, f.device.history.join());
});

/** Each leaves a source session after one more step. */
const STEPS = ['new', 'offered', 'tracking', 'stopped', 'saved', 'prepared'] as const;

async function upTo(both: Vmms, state: (typeof STEPS)[number]): Promise<void> {
  const { source } = both;
  const steps: (() => Promise<unknown>)[] = [
    () => source.offer(),
    () => source.startTracking(),
    async () => {
      both.work();
      await source.stop();
    },
    () => source.saveState(),
    async () => {
      await both.move();
      both.vmm.source.say('memory is complete');
      await source.prepare();
    },
  ];
  for (const step of steps.slice(0, STEPS.indexOf(state))) await step();
  both.t.is(source.state, state);
}

for (const way of ['session', 'caller', 'one-way'] as const) {
  for (const state of STEPS) {
    test(`${way}: an abort when it is ${state} lets the source run, and it can be tried again`, async (t) => {
      const both = vmms(t, way);
      const receiving = both.receive().catch((error: unknown) => error);
      await upTo(both, state);
      const outcomes = await both.source.abort('not now');
      both.rolledBack();
      t.deepEqual(outcomes, [{ function: both.device.source.uuid, state: 'running', wasReset: false }]);
      t.is(both.source.state, 'aborted');
      await t.throwsAsync(both.source.abort(), { code: 'ERR_TOWLINE_MISUSE', message: /it is over/ });
      both.vmm.source.hangUp();
      await both.destination.abort('the other VMM gave up').catch(() => undefined);
      await receiving;
      t.is(both.destination.state, 'aborted');
      t.not(both.pair.journals.destination.sessions()[0]?.verdict, 'run-destination');
      const again = await both.pair.move(both.device.source, both.device.destination);
      t.is(again.source.status, 'fulfilled', JSON.stringify(again.source));
      t.is(both.device.destination.device.register, 7n);
    });
  }
}

test('a signal that fires cancels the session, and closing lets the source run', async (t) => {
  const controller = new AbortController();
  const both = vmms(t, 'session', { source: { signal: controller.signal } });
  const offering = both.source.offer();
  setTimeout(() => controller.abort(new Error('enough')), 50);
  await t.throwsAsync(offering, { code: 'ERR_TOWLINE_ABORTED', message: 'enough' });
  t.is(both.source.state, 'failed');
  await both.source.close();
  await both.source.close();
  both.rolledBack();
  t.is(both.source.state, 'closed');
});

test("a step's own signal, a stream that accepts nothing, and a close in the middle end in time", async (t) => {
  const never = (): Promise<never> => new Promise(() => undefined);
  const stuck = { send: never, receive: never, close: () => {} };
  {
    const both = vmms(t, 'session', { source: { stream: stuck } });
    const signal = AbortSignal.timeout(50);
    await t.throwsAsync(both.source.offer({ signal }), { code: 'ERR_TOWLINE_ABORTED' });
    await both.source.close();
    both.rolledBack();
  }
  const both = vmms(t, 'session', { destination: { stream: stuck } });
  const reading = both.destination.readOffer().catch((error: unknown) => (error as { code: string }).code);
  await both.destination.close();
  t.is(await reading, 'ERR_TOWLINE_ABORTED');
});

test('misuse says what is allowed and changes nothing', async (t) => {
  const both = vmms(t, 'caller');
  await t.throwsAsync(both.source.prepare(), {
    code: 'ERR_TOWLINE_MISUSE',
    message: /session is new; allowed is: offer, abort/,
  });
  const receiving = both.receive();
  const offering = both.source.offer();
  await t.throwsAsync(both.source.offer(), { code: 'ERR_TOWLINE_MISUSE', message: /offer is under way/ });
  t.throws(() => both.source.timings(), { code: 'ERR_TOWLINE_BUSY' });
  await offering;
  await t.throwsAsync(both.source.intent(), { code: 'ERR_TOWLINE_MISUSE' });
  await both.source.startTracking();
  await both.source.stop();
  await both.source.saveState();
  await t.throwsAsync(both.source.prepare(), { code: 'ERR_TOWLINE_CONFIG', message: /dirty pages were not taken/ });
  await t.throwsAsync(both.source.dirtyRuns(0), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
  await both.move();
  both.vmm.source.say('memory is complete');
  await both.source.prepare();
  await receiving;
  await t.throwsAsync(both.source.commit(), { code: 'ERR_TOWLINE_MISUSE', message: /allowed is: intent, abort/ });
  await t.throwsAsync(both.source.release(), { code: 'ERR_TOWLINE_MISUSE' });
  await t.throwsAsync(both.destination.waitCommit(), {
    code: 'ERR_TOWLINE_MISUSE',
    message: /allowed is: commit, abort/,
  });
  await t.throwsAsync(both.destination.resume(), { code: 'ERR_TOWLINE_MISUSE' });
  t.is(await both.vmm.source.hear().then((w) => w.startsWith('[')), true);
  await both.commit();
  t.deepEqual(both.verdicts(), ['released', 'run-destination']);
});

test('a session tells its states', async (t) => {
  const both = vmms(t, 'session');
  const states: string[] = [];
  const watching = (async () => {
    for await (const state of both.source.states()) states.push(state);
  })();
  await both.prepareBoth();
  await both.commit();
  await both.source.close();
  await watching;
  t.deepEqual(states, [
    'new',
    'offered',
    'tracking',
    'stopped',
    'saved',
    'prepared',
    'committed',
    'running',
    'released',
    'closed',
  ]);
});

test('holes need not be moved to fresh memory', async (t) => {
  const pages = async (freshDestination: boolean): Promise<number> => {
    const both = vmms(t, 'session', { source: { freshDestination } });
    const receiving = t.throwsAsync(both.receive());
    await both.source.offer();
    await both.source.startTracking();
    const moved = await both.move();
    await both.source.abort();
    await receiving;
    return moved;
  };
  t.is(await pages(false), 1024);
  t.is(await pages(true), 256);
});

test('over a one-way stream the caller carries the commit', (t) => {
  const pair = new Pair(t);
  const send = async () => {};
  t.throws(() => MigrationSession.source(new TsDevice('nic'), { stream: { send }, fence: pair.journals.source }), {
    code: 'ERR_TOWLINE_INVALID_ARGUMENT',
  });
});

test('every mismatch is told on both sides before anything stops', async (t) => {
  const both = vmms(t, 'session');
  both.device.destination.revision = 2;
  const answering = (async () => {
    const offer = await both.destination.readOffer();
    t.is(offer.type === 'offer' ? offer.mismatches.length : 0, 1);
    await both.destination.answer([{ code: 'memory', message: 'the guest is larger there', mend: 'make it smaller' }]);
  })();
  const source = await t.throwsAsync(both.source.offer(), {
    code: 'ERR_TOWLINE_MISMATCH',
    message: /revision.*larger/,
  });
  const destination = await t.throwsAsync(answering, { code: 'ERR_TOWLINE_MISMATCH' });
  for (const error of [source, destination])
    t.is((error as unknown as { details: { mismatches: unknown[] } }).details.mismatches.length, 2);
  t.deepEqual(both.device.source.device.history, ['running']);
  t.is(both.source.state, 'aborted');
});

test('sides that say different things about the commit do not begin', async (t) => {
  const both = vmms(t, 'session', { destination: { commit: 'caller' } });
  const answering = both.destination.readOffer().then(() => both.destination.answer());
  await t.throwsAsync(both.source.offer(), { code: 'ERR_TOWLINE_MISMATCH', message: /terms differ/ });
  await t.throwsAsync(answering, { code: 'ERR_TOWLINE_MISMATCH' });
});

test('a stale epoch is refused over a one-way stream, and the refusal says which is not', async (t) => {
  const first = vmms(t, 'one-way');
  await first.prepareBoth();
  await first.commit();
  const offer = async (leastEpoch: number) => {
    // Another source, which knows nothing of the epochs so far.
    const both = vmms(
      t,
      'one-way',
      {
        source: { fence: new Journal(join(first.pair.directory, `fresh-${leastEpoch}`)), leastEpoch },
        destination: { fence: first.pair.journals.destination },
      },
      { uuid: first.device.source.uuid },
    );
    await both.source.offer();
    await both.destination.readOffer();
    await both.destination.answer();
    return both;
  };
  await t.throwsAsync(offer(1), { code: 'ERR_TOWLINE_MISMATCH', message: /epoch 1 is offered, 1 was seen here/ });
  await t.notThrowsAsync(offer(2));
});

for (const way of ['caller', 'one-way'] as const) {
  test(`${way}: a refusal after the intent, brought by the caller, lets the source run`, async (t) => {
    const both = vmms(t, way);
    await both.prepareBoth();
    const { epoch } = await both.source.intent();
    await t.throwsAsync(both.source.abort(), { code: 'ERR_TOWLINE_MISUSE' });
    t.is(both.device.source.device.now, 'stop-copy');
    await both.destination.abort('the disk is gone');
    await t.throwsAsync(both.destination.commit(epoch), { code: 'ERR_TOWLINE_MISUSE' });
    await both.source.refused();
    await both.source.abort('refused');
    both.rolledBack();
    t.deepEqual(both.verdicts(), ['resume-source', 'refuse']);
  });
}

test('another epoch than the session has is not committed', async (t) => {
  const both = vmms(t, 'one-way');
  await both.prepareBoth();
  const { epoch } = await both.source.intent();
  await t.throwsAsync(both.destination.commit(epoch + 1), { code: 'ERR_TOWLINE_CONFIG' });
  t.is(both.destination.state, 'prepared');
  await both.destination.commit(epoch);
  await both.source.release();
  t.deepEqual(both.verdicts(), ['released', 'run-destination']);
});

/** A link between a source that recovers and a destination that answers. */
async function ask(both: Vmms): Promise<string | undefined> {
  const [a, b] = connection();
  const asking = new Vmm(both.pair.memory.source, a);
  const asked = new Vmm(both.pair.memory.destination, b);
  const answering = MigrationSession.destination(both.device.destination, {
    stream: asked.link,
    fence: both.pair.journals.destination,
  });
  const journal = new Journal(both.pair.journals.source.directory);
  const [recovered, read] = await Promise.all([recover({ journal, peer: asking.link }), answering.readOffer()]);
  both.t.is(read.type, 'asked');
  both.t.is(answering.state, 'asked');
  await answering.close();
  journal.close();
  return recovered[0]?.verdict;
}

for (const way of ['caller', 'one-way'] as const) {
  test(`${way}: a caller that dies between its intent and its word is settled by recover, with one owner`, async (t) => {
    const both = vmms(t, way);
    await both.prepareBoth();
    const { epoch } = await both.source.intent();
    // The process is gone: nothing is said, nothing runs, and the journal is what is left.
    await both.source.close();
    t.is(both.device.source.device.now, 'stop-copy');
    both.pair.journals.source.close();
    t.is(await ask(both), 'resume-source');
    // The word was only late. The refusal was durable first.
    await t.throwsAsync(both.destination.commit(epoch), { code: 'ERR_TOWLINE_COMMIT_REFUSED' });
    await t.throwsAsync(both.destination.resume(), { code: 'ERR_TOWLINE_MISUSE' });
    t.is(both.pair.journals.destination.sessions()[0]?.verdict, 'refuse');
    t.true(both.device.destination.device.resets > 0);
  });

  test(`${way}: a caller that dies before it hears of the commit is settled by recover, with one owner`, async (t) => {
    const both = vmms(t, way);
    await both.prepareBoth();
    const { epoch } = await both.source.intent();
    await both.destination.commit(epoch);
    await both.source.close();
    both.pair.journals.source.close();
    t.is(await ask(both), 'released');
    await both.destination.resume();
    t.is(both.device.destination.device.now, 'running');
    t.is(both.device.source.device.now, 'stop-copy');
    t.is(both.pair.journals.destination.sessions()[0]?.verdict, 'run-destination');
  });
}

test('a session in doubt that is still there is settled by what recover learned', async (t) => {
  const both = vmms(t, 'session');
  await both.prepareBoth();
  const waiting = both.destination.waitCommit().catch((error: unknown) => (error as { code: string }).code);
  // The destination refuses while COMMIT is on its way to it, and its word is lost.
  both.vmm.source.hangUp();
  await t.throwsAsync(both.source.commit(), { code: 'ERR_TOWLINE_IN_DOUBT' });
  t.is(both.source.state, 'in-doubt');
  t.is(both.device.source.device.now, 'stop-copy');
  const { doubt } = both.device.source;
  t.is(doubt?.session, both.source.id);
  t.false(await doubt?.settled());
  await waiting;
  t.is(await both.source.settle('unknown'), 'in-doubt');
  const session = both.pair.journals.destination.sessions()[0];
  t.is(session?.verdict, 'refuse');
  t.is(both.device.source.doubt, doubt, 'nobody knows yet');
  t.is(await both.source.settle('refused'), 'resume-source');
  t.is(both.device.source.doubt, undefined);
  await both.source.abort();
  both.rolledBack();
});

test('a session that is closed between the intent and its end leaves its functions in doubt', async (t) => {
  const both = vmms(t, 'caller');
  await both.prepareBoth();
  t.is(both.device.source.doubt, undefined);
  await both.source.intent();
  t.is(both.device.source.doubt, undefined, 'the caller knows what it does');
  await both.source.close();
  t.is(both.device.source.doubt?.session, both.source.id);
  t.is(both.pair.journals.source.sessions()[0]?.verdict, 'in-doubt');
});

test('state that is damaged on its way is refused, and the source runs on', async (t) => {
  const both = vmms(t, 'caller');
  const send = both.vmm.source.link.send.bind(both.vmm.source.link);
  let bytes = 0;
  both.vmm.source.link.send = async (data) => {
    bytes += data.length;
    const damaged = Uint8Array.from(data);
    if (bytes > 50_000) damaged[0] = (damaged[0] ?? 0) ^ 1;
    await send(damaged);
  };
  const receiving = t.throwsAsync(both.receive(), { code: 'ERR_TOWLINE_STREAM' });
  const failed = await t.throwsAsync(both.prepare());
  t.true(
    ['ERR_TOWLINE_PEER_ABORTED', 'ERR_TOWLINE_LINK_CLOSED'].includes((failed as { code?: string }).code ?? ''),
    String(failed),
  );
  await receiving;
  await both.source.abort();
  both.rolledBack();
  t.is(both.pair.journals.destination.sessions()[0]?.verdict, 'refuse');
});
