import { randomUUID } from 'node:crypto';
import test from 'ava';
import type { RateLimit } from '#towline/drivers/driver.js';
import { TowlineError } from '#towline/errors.js';
import type { MigrationPolicy } from '#towline/migration/policy.js';
import { recover } from '#towline/migration/recover.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

/** A device in plain TypeScript that dirties memory all the time, unless it is limited. */
class Busy extends TsDevice {
  readonly calls: (bigint | null)[] = [];
  whyNot: string | undefined;
  failsToLift = false;
  #timer: NodeJS.Timeout | undefined;
  #next = 0n;
  #tick = 0;

  async rateLimit(limit: RateLimit | null): Promise<void> {
    this.calls.push(limit?.bytesPerSecond ?? null);
    if (limit === null && this.failsToLift) throw new TowlineError('ERR_TOWLINE_DEVICE', 'it does not answer');
  }

  async cannotRateLimit(): Promise<string | undefined> {
    return this.whyNot;
  }

  /** 512 pages, every 2 ms; one page every 40 ms where it is limited. */
  start(pair: Pair): void {
    this.#timer = setInterval(() => {
      if (this.device.now !== 'running') return;
      const limited = this.calls.at(-1) !== undefined && this.calls.at(-1) !== null;
      this.#tick += 1;
      if (limited && this.#tick % 20 !== 0) return;
      const pages = limited ? 1n : 512n;
      this.dma(pair.memory.source, (this.#next % 512n) * 4096n, Buffer.alloc(Number(pages) * 4096, 1));
      this.#next = limited ? this.#next + 1n : 0n;
    }, 2);
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

const policy: MigrationPolicy = {
  bandwidthBytesPerSecond: 2 << 20,
  maxDowntimeMs: 400,
  maxRounds: 8,
  converge: { means: ['device-limit'], deviceLimit: { leastBytesPerSecond: 1 } },
};

test("a third party's function is limited by its own method, and what can not be lifted is told", async (t) => {
  const pair = new Pair(t, 8n << 20n);
  const source = new Busy('busy');
  source.failsToLift = true;
  source.start(pair);
  t.teardown(() => source.stop());
  const settled = await pair.move(source, new TsDevice('busy', { uuid: source.uuid }), { source: { policy } });
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  const { converge } = settled.source.value;
  t.is(converge?.steps[0]?.means, 'device-limit');
  t.is(source.calls.at(-1), null);
  t.deepEqual(converge?.notLifted, ['the limit of busy: it does not answer']);
});

test('a function that can not be limited is told with why', async (t) => {
  const pair = new Pair(t, 8n << 20n);
  const source = new Busy('busy');
  source.whyNot = 'its firmware is old';
  source.start(pair);
  t.teardown(() => source.stop());
  const settled = await pair.move(source, new TsDevice('busy', { uuid: source.uuid }), { source: { policy } });
  const error = ((settled.source as PromiseRejectedResult).reason as TowlineError).cause as TowlineError;
  t.is(error.code, 'ERR_TOWLINE_NOT_CONVERGING', error.message);
  const { converge } = error.details as { converge: unknown };
  t.deepEqual(converge, {
    steps: [],
    unavailable: [{ means: 'device-limit', why: "busy can't be limited: its firmware is old" }],
    notLifted: [],
  });
  t.deepEqual(source.calls, []);
});

test('recover lifts what a migration that died has left', async (t) => {
  const pair = new Pair(t);
  const [session, source] = [randomUUID(), new Busy('busy')];
  const verify = () => {
    throw new Error('no');
  };
  await pair.move(source, new TsDevice('busy', { uuid: source.uuid }), { source: { session, verify } });
  // As it is after a crash: the device outlived the process, and so did its limit.
  await source.rateLimit({ bytesPerSecond: 1n });
  await recover({ journal: pair.journals.source, session, functions: [source, new Busy('another')] });
  t.deepEqual(source.calls, [1n, null]);
});
