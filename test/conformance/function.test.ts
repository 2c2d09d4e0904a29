import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { conformFunction, type CheckResult, type ConformFunctionOptions } from '#towline/conformance/index.js';
import { MdevDriver } from '#towline/drivers/mdev.js';
import type { DirtySource } from '#towline/function/channel.js';
import { provisionFunction } from '#towline/function/lifecycle.js';
import type { ControlledFunction, FunctionKind } from '#towline/function/types.js';
import { GuestMemory } from '#towline/migration/memory.js';
import { embedded, Tenant, type EmbeddedSubsystem } from '#towline/rehearsal/index.js';
import { FakeHost, mttyParent } from '../support/fake-host.js';

const PAGE = 4096n;
/** Where a tenant has the buffer of its Identify commands, in pages from its base (crates/tenant, layout.rs). */
const IDENTIFY_PAGE = 3n;
/** Below it there is room for what a tenant has before that buffer. */
const tracked = { gpa: 1n << 20n, len: 16n * PAGE };

/** A function whose own DMA the kit drives: a tenant that boots makes its controller write Identify data where it says. */
class Rig {
  readonly #memories = new Map<ControlledFunction, GuestMemory>();

  private constructor(
    readonly subsystem: EmbeddedSubsystem,
    readonly fn: ControlledFunction,
  ) {}

  static async open(t: ExecutionContext, kind: FunctionKind): Promise<Rig> {
    const directory = await mkdtemp(join(tmpdir(), 'towline-conform-'));
    const subsystem = await embedded.open({ namespaces: [{ path: join(directory, 'disk'), sizeBytes: 1n << 20n }] });
    const rig = new Rig(subsystem, await subsystem.provision({ kind, queues: 2, vectors: 2, namespaces: [1] }));
    t.teardown(async () => {
      await subsystem.close();
      for (const memory of rig.#memories.values()) memory.close();
      await rm(directory, { recursive: true, force: true });
    });
    return rig;
  }

  memory(fn: ControlledFunction): GuestMemory {
    let memory = this.#memories.get(fn);
    if (memory === undefined) {
      memory = GuestMemory.anonymous(fn.name, 8n << 20n);
      this.subsystem.attachMemory(fn, memory);
      this.#memories.set(fn, memory);
    }
    return memory;
  }

  async boot(fn: ControlledFunction, baseGpa: bigint): Promise<void> {
    const spec = { baseGpa, units: 1, workingSetPages: 1, cpuDirtyBytesPerSecond: 0, ioQueuePairs: 1 };
    await (await Tenant.boot(this.subsystem, fn, this.memory(fn), spec)).close();
  }

  options(): ConformFunctionOptions {
    return {
      destructive: true,
      memory: [tracked],
      write: async (gpa, len) => {
        for (let page = gpa - (gpa % PAGE); page < gpa + BigInt(len); page += PAGE) {
          await this.boot(this.fn, page - IDENTIFY_PAGE * PAGE);
          // The tenant clears the buffer before: what is there now, its controller wrote.
          const bytes = this.memory(this.fn).read(page, Number(PAGE));
          if (bytes.every((b) => b === 0)) throw new Error(`nothing was written at 0x${page.toString(16)}`);
        }
      },
      stimulate: (fn, seed) => this.boot(fn, BigInt(seed) * PAGE),
      observe: async (fn) => {
        this.memory(fn);
        const { cntlid } = fn as ControlledFunction & { cntlid: number };
        const { enabled, fatal } = this.subsystem.controlling.modelControllers().find((c) => c.cntlid === cntlid) ?? {};
        return `enabled ${enabled}, fatal ${fatal}`;
      },
    };
  }

  async run(options = this.options()): Promise<CheckResult[]> {
    const results: CheckResult[] = [];
    for await (const result of conformFunction(this.subsystem.controlling, this.fn, options)) results.push(result);
    return results;
  }
}

const named = (results: readonly CheckResult[], outcome: CheckResult['outcome']): string[] =>
  results.filter((r) => r.outcome === outcome).map((r) => r.check);

/** HMLM has no pre-copy of controller state, and nothing from outside brings the model into the error state. */
const WITHOUT_MEANS = ['channel/pre-copy', 'channel/reset-error'];
const NEEDS_WRITES = ['dirty/complete', 'dirty/concurrent', 'dirty/again'];

for (const kind of ['vf', 'siov'] as const) {
  test(`an embedded ${kind}: state and dirty pages pass, with the DMA of its controller as the writer`, async (t) => {
    const rig = await Rig.open(t, kind);
    const results = await rig.run();
    t.deepEqual(
      results.filter((r) => r.outcome === 'failed'),
      [],
    );
    t.deepEqual(named(results, 'not-exercised'), WITHOUT_MEANS);
    for (const check of ['loading/same-behaviour', 'dirty/granularity', ...NEEDS_WRITES]) {
      t.true(named(results, 'passed').includes(check), check);
    }
    // The second function is gone, and the first one as it was.
    t.deepEqual(await rig.subsystem.controlling.list(), [rig.fn]);
    t.deepEqual(await rig.fn.explain(), []);
  });
}

test('without a writer nothing that needs one passes', async (t) => {
  const rig = await Rig.open(t, 'vf');
  const results = await rig.run({ destructive: true });
  t.deepEqual(named(results, 'failed'), []);
  t.deepEqual(named(results, 'not-exercised'), [...WITHOUT_MEANS, 'loading/same-behaviour', ...NEEDS_WRITES]);
});

test('a source that keeps one range of each harvest to itself is found', async (t) => {
  const rig = await Rig.open(t, 'vf');
  const [source] = rig.fn.dirtySources() as [DirtySource];
  const lossy: DirtySource = {
    start: (ranges, pageSizeBytes, o) => source.start(ranges, pageSizeBytes, o),
    harvest: async (o) => (await source.harvest(o)).slice(1),
    stop: (o) => source.stop(o),
    close: () => source.close(),
  };
  Object.assign(rig.fn, { dirtySources: () => [lossy] });
  const found = (await rig.run()).find((r) => r.check === 'dirty/complete');
  t.is(found?.outcome, 'failed');
  t.regex(found?.why ?? '', /are in no harvest/);
});

test('a check that hangs ends the run, of the dirty source too, and the second function does not keep it', async (t) => {
  const rig = await Rig.open(t, 'vf');
  const channel = rig.fn.channel();
  Object.assign(channel, { pending: () => new Promise(() => undefined) });
  const results = await rig.run({ ...rig.options(), checkTimeoutMs: 2000 });
  const at = results.findIndex((r) => r.outcome === 'failed');
  t.like(results[at], { check: 'channel/pending', why: 'no answer within 2000 ms' });
  for (const { outcome, why } of results.slice(at + 1)) {
    t.is(outcome, 'not-exercised');
    t.regex(why, /^a check hung: channel\/pending/);
  }
  t.is(results.at(-1)?.check, 'dirty/close');
});

test('a function on VFIO is not left open', async (t) => {
  const host = new FakeHost();
  host.parents = [mttyParent()];
  const controlling = await new MdevDriver({ host }).open('mtty');
  const fn = await provisionFunction(controlling, { kind: 'siov', type: 'mtty-2', expose: 'vfio' });
  for await (const { check, outcome, why } of conformFunction(controlling, fn, { destructive: true }))
    t.not(outcome, 'failed', `${check}: ${why}`);
  t.deepEqual([...host.open], []);
  // Who had it open has it open still.
  await fn.open?.();
  for await (const { outcome } of conformFunction(controlling, fn, { destructive: true })) t.not(outcome, 'failed');
  t.deepEqual([...host.open], [fn.uuid]);
});
