import { randomUUID } from 'node:crypto';
import { readFileSync } from 'node:fs';
import test from 'ava';
import { receive } from '#towline/migration/destination.js';
import { MigrationSession } from '#towline/migration/session.js';
import { NO_MEANS, type MeansState } from '#towline/migration/means.js';
import { migrateOrTell, turn, type Vcpus } from '../support/converge-guide.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';
import { connection, Vmm } from '../support/vmm.js';

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');
const all = (text: string, pattern: RegExp): string[] => [...text.matchAll(pattern)].map((m) => m[1] ?? '');

test('the guide shows the code that is tested here', (t) => {
  const tested = all(read('test/support/converge-guide.ts'), /^\/\/ guide: [a-z]+\n(.*?)^\/\/ guide: end$/gms);
  t.is(tested.length, 2);
  t.deepEqual(all(read('docs/guides/convergence.md'), /^```ts\n(.*?)^```$/gms), tested);
});

/** A guest that dirties `pages` pages every millisecond, over and over, at full pace. */
class Writer implements Vcpus {
  percent = 0;
  #owed = 0;
  #next = 0n;
  readonly calls: string[] = [];
  readonly #timer: NodeJS.Timeout;
  #last = performance.now();

  constructor(
    private readonly memory: Pair['memory']['source'],
    private readonly pagesPerMs: number,
    private readonly pages: bigint,
  ) {
    this.#timer = setInterval(() => this.#write(), 2);
  }

  #write(): void {
    const now = performance.now();
    this.#owed += (now - this.#last) * this.pagesPerMs * (1 - this.percent / 100);
    this.#last = now;
    for (; this.#owed >= 1; this.#owed -= 1) {
      this.memory.write((this.#next % this.pages) * 4096n, Uint8Array.of(1, Number(this.#next & 0xffn)));
      this.#next += 1n;
    }
  }

  async throttle(percent: number): Promise<void> {
    this.percent = percent;
    this.calls.push(`throttle ${percent}`);
  }

  async pause(): Promise<void> {
    this.stop();
    this.calls.push('pause');
  }

  async resume(): Promise<void> {
    this.calls.push('resume');
  }

  stop(): void {
    clearInterval(this.#timer);
  }
}

const twins = (): [TsDevice, TsDevice] => {
  const here = new TsDevice('nic');
  return [here, new TsDevice('nic', { uuid: here.uuid })];
};

test('the code of the guide converges', async (t) => {
  const pair = new Pair(t, 8n << 20n);
  const [here, there] = twins();
  // 12 MiB/s over 4 MiB, three times what the guide's link carries.
  const vcpus = new Writer(pair.memory.source, 3, 1024n);
  t.teardown(() => vcpus.stop());
  const to = `unix://${pair.directory}/link-${randomUUID()}`;
  const receiving = receive(there, { from: to, memory: pair.memory.destination, fence: pair.journals.destination });
  const way = { to, memory: pair.memory.source, fence: pair.journals.source };
  const needs = await migrateOrTell(here, vcpus, way, (line) => t.log(line));
  t.is(needs, undefined, JSON.stringify(needs));
  t.is((await receiving.result).outcome, 'committed');
  t.true(
    vcpus.calls.some((call) => /^throttle [1-9]/.test(call)),
    vcpus.calls.join(),
  );
  t.deepEqual(vcpus.calls.slice(-2), ['pause', 'throttle 0']);
  t.true(pair.equalMemory());
});

test("a turn of a VMM's own loop slows the guest down, then says that it is time to stop", async (t) => {
  const pair = new Pair(t, 8n << 20n);
  const [here, there] = twins();
  const vcpus = new Writer(pair.memory.source, 3, 1024n);
  t.teardown(() => vcpus.stop());
  const [a, b] = connection();
  const destination = MigrationSession.destination(there, {
    stream: new Vmm(pair.memory.destination, b).link,
    fence: pair.journals.destination,
  });
  t.teardown(() => destination.close());
  const session = MigrationSession.source(here, {
    stream: new Vmm(pair.memory.source, a).link,
    memory: pair.memory.source,
    fence: pair.journals.source,
  });
  t.teardown(() => session.close());
  const answered = (async () => {
    await destination.readOffer();
    await destination.answer();
    // It ends when the source gives up.
    await t.throwsAsync(destination.receive());
  })();
  await session.offer();
  await session.startTracking();
  t.throws(() => session.forecast({ bandwidthBytesPerSecond: 1, maxDowntimeMs: 1 }), { code: 'ERR_TOWLINE_MISUSE' });
  const inForce: { -readonly [K in keyof MeansState]: MeansState[K] } = { ...NO_MEANS };
  let stop = false;
  for (let n = 0; n < 40 && !stop; n++) {
    stop = await turn(session, here, vcpus, inForce);
    if (stop) break;
    // The VMM's link: 4 MiB a second, 64 pages at a time.
    for (;;) {
      const runs = await session.dirtyRuns(64);
      if (runs.length === 0) break;
      const bytes = runs.reduce((sum, run) => sum + Number(run.len), 0);
      await new Promise((resolve) => setTimeout(resolve, (bytes / (4 << 20)) * 1000));
    }
  }
  t.true(stop, `${JSON.stringify(inForce)} ${vcpus.calls.join()}`);
  t.true(inForce.throttlePercent > 0, vcpus.calls.join());
  const harvest = await session.harvest();
  t.deepEqual(Object.keys(harvest.dirtyBySource).sort(), [`device:${here.uuid}`, 'marked']);
  await session.close();
  await answered;
  await destination.close();
});
