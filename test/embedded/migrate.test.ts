import { randomUUID } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import test, { type ExecutionContext } from 'ava';
import type { TowlineError } from '#towline/errors.js';
import type { ControlledFunction, FunctionKind } from '#towline/function/types.js';
import { DIAGNOSTICS_CHANNEL, type MigrationEvent } from '#towline/migration/progress.js';
import { embedded, Tenant, type EmbeddedSubsystem } from '#towline/rehearsal/index.js';
import { Pair } from '../support/pair.js';

const UNITS = 1024;

interface Side {
  subsystem: EmbeddedSubsystem;
  functions: ControlledFunction[];
}

/** Two subsystems over one disk, with the same functions in each. */
async function sides(t: ExecutionContext, pair: Pair, kinds: readonly FunctionKind[]): Promise<[Side, Side]> {
  const namespaces = kinds.map((_, i) => ({
    path: join(pair.directory, `disk-${i}`),
    sizeBytes: BigInt(UNITS) * 4096n,
  }));
  const uuids = kinds.map(() => randomUUID());
  const make = async (memory: 'source' | 'destination'): Promise<Side> => {
    const subsystem = await embedded.open({ namespaces });
    t.teardown(() => subsystem.close());
    const functions: ControlledFunction[] = [];
    for (const [i, kind] of kinds.entries()) {
      const fn = await subsystem.provision({
        kind,
        uuid: uuids[i],
        name: `${kind}-${i}`,
        queues: 2,
        vectors: 3,
        namespaces: [i + 1],
      });
      subsystem.attachMemory(fn, pair.memory[memory]);
      functions.push(fn);
    }
    return { subsystem, functions };
  };
  return [await make('source'), await make('destination')];
}

/** A tenant for each function, each in its own part of guest memory. */
function tenantSpec(i: number, hostTag: number) {
  return {
    baseGpa: BigInt(i) << 24n,
    memoryBytes: 1n << 24n,
    nsid: i + 1,
    units: UNITS,
    workingSetPages: 512,
    targetIops: 500,
    hostTag,
  };
}

function log(t: ExecutionContext): number {
  const directory = mkdtempSync(join(tmpdir(), 'towline-log-'));
  const fd = openSync(join(directory, 'log'), 'a+');
  t.teardown(() => {
    closeSync(fd);
    rmSync(directory, { recursive: true });
  });
  return fd;
}

async function failed(result: PromiseSettledResult<unknown>): Promise<TowlineError> {
  if (result.status === 'fulfilled') throw new Error('it succeeded');
  return result.reason as TowlineError;
}

test('a PF, a VF and a SIOV-like function of one guest move in one session, each with its tenant', async (t) => {
  const pair = new Pair(t, 64n << 20n);
  const kinds: FunctionKind[] = ['pf', 'vf', 'siov'];
  const [source, destination] = await sides(t, pair, kinds);
  const logFd = log(t);
  const tenants: Tenant[] = [];
  for (const [i, fn] of source.functions.entries()) {
    const tenant = await Tenant.boot(source.subsystem, fn, pair.memory.source, tenantSpec(i, 1));
    tenant.run({ logFd });
    tenants.push(tenant);
  }
  let equal = false;
  const settled = await pair.move(source.functions, destination.functions, {
    source: {
      pause: async () => {
        for (const tenant of tenants) await tenant.pause();
      },
      verify: () => {
        equal = pair.equalMemory();
      },
    },
  });
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  t.true(equal);
  t.is(pair.journals.source.sessions().length, 1);
  for (const tenant of tenants) await tenant.stop();
  for (const [i, fn] of destination.functions.entries()) {
    const tenant = await Tenant.attach(destination.subsystem, fn, pair.memory.destination, {
      stateGpa: BigInt(i) << 24n,
      hostTag: 2,
    });
    tenant.run({ logFd });
    await new Promise((resolve) => {
      setTimeout(resolve, 200);
    });
    const drained = await tenant.drain({ timeoutMs: 10_000 });
    t.is(drained.pending, 0);
    await tenant.stop();
  }
  // Error statuses (kind 8) and completions that nobody asked for (kind 4) would be in the log.
  const bytes = readFileSync(`/proc/self/fd/${logFd}`);
  const kindsSeen = new Set<number>();
  for (let at = 0; at + 64 <= bytes.length; at += 64) kindsSeen.add(bytes[at] ?? 0);
  t.true(kindsSeen.has(1) && kindsSeen.has(2), [...kindsSeen].join());
  t.false(kindsSeen.has(4) || kindsSeen.has(8), [...kindsSeen].join());
});

const MIGRATION_SEND = 0x41;
const MIGRATION_RECEIVE = 0x42;
const TRACK_SEND = 0x3d;
const TRACK_RECEIVE = 0x3e;

/** Which command fails where, by Internal Error or so that nobody answers in time. */
const FAILURES: { what: string; side: 'source' | 'destination'; opcode: number; nth?: number }[] = [
  { what: 'tracking cannot be started', side: 'source', opcode: TRACK_SEND },
  { what: 'a harvest fails', side: 'source', opcode: TRACK_RECEIVE, nth: 3 },
  { what: 'Suspend fails', side: 'source', opcode: MIGRATION_SEND },
  { what: 'the state cannot be read', side: 'source', opcode: MIGRATION_RECEIVE, nth: 2 },
  { what: 'the state is not taken', side: 'destination', opcode: MIGRATION_SEND, nth: 2 },
];

for (const { what, side, opcode, nth } of FAILURES) {
  test(`${what}: rolled back, the tenant unharmed, and the next try works`, async (t) => {
    const pair = new Pair(t, 16n << 20n);
    const [source, destination] = await sides(t, pair, ['vf']);
    const logFd = log(t);
    const tenant = await Tenant.boot(
      source.subsystem,
      source.functions[0] as ControlledFunction,
      pair.memory.source,
      tenantSpec(0, 1),
    );
    tenant.run({ logFd });
    const broken = side === 'source' ? source : destination;
    broken.subsystem.setFaults([{ queue: 'admin', opcode, nth: nth ?? 1, action: { kind: 'status', sct: 0, sc: 6 } }]);
    const hooks = { pause: () => tenant.pause().then(() => undefined), resume: () => tenant.resume() };
    const settled = await pair.move(source.functions, destination.functions, { source: hooks });
    const error = await failed(settled.source);
    t.is(error.code, 'ERR_TOWLINE_ROLLED_BACK', error.message);
    t.is(await source.functions[0]?.channel().state(), 'running');
    broken.subsystem.setFaults([]);
    const drained = await tenant.drain({ timeoutMs: 10_000 });
    t.is(drained.pending, 0);
    tenant.resume();
    const again = await pair.move(source.functions, destination.functions, { source: hooks });
    if (again.source.status === 'rejected') throw again.source.reason as Error;
    t.is(again.source.value.outcome, 'committed');
    await tenant.stop();
  });
}

/** What a guest does to its device in the middle of things. */
const DISTURBANCES: { what: string; phase: MigrationEvent['type'] extends string ? string : never }[] = [
  { what: 'while memory is copied', phase: 'pre-copy' },
  { what: 'while it is being stopped', phase: 'stop' },
  { what: 'while the destination gets ready', phase: 'prepare' },
];

for (const { what, phase } of DISTURBANCES) {
  test(`a guest resets its function ${what}: one owner, and it runs`, async (t) => {
    const pair = new Pair(t, 16n << 20n);
    const [source, destination] = await sides(t, pair, ['vf']);
    const fn = source.functions[0] as ControlledFunction;
    const tenant = await Tenant.boot(source.subsystem, fn, pair.memory.source, tenantSpec(0, 1));
    tenant.run({ logFd: log(t) });
    const session = randomUUID();
    let reset: Promise<void> | undefined;
    const listener = (message: unknown) => {
      const event = message as MigrationEvent;
      if (event.session !== session || event.type !== 'phase' || event.phase !== phase) return;
      reset ??= source.subsystem.controlling.functionReset(fn);
    };
    subscribe(DIAGNOSTICS_CHANNEL, listener);
    const settled = await pair.move(source.functions, destination.functions, {
      source: { session, pause: () => tenant.pause().then(() => undefined) },
    });
    unsubscribe(DIAGNOSTICS_CHANNEL, listener);
    t.truthy(reset);
    await reset;
    await tenant.stop();
    const verdicts = [pair.journals.source.sessions()[0]?.verdict, pair.journals.destination.sessions()[0]?.verdict];
    if (settled.source.status === 'fulfilled') {
      t.deepEqual(verdicts, ['released', 'run-destination']);
      t.is(await destination.functions[0]?.channel().state(), 'running');
    } else {
      t.is(verdicts[0], 'resume-source');
      t.not(verdicts[1], 'run-destination');
      t.is(await fn.channel().state(), 'running');
    }
    // Whoever owns it can bring it up anew.
    const [subsystem, owner, memory] =
      settled.source.status === 'fulfilled'
        ? ([destination.subsystem, destination.functions[0] as ControlledFunction, pair.memory.destination] as const)
        : ([source.subsystem, fn, pair.memory.source] as const);
    const fresh = await Tenant.boot(subsystem, owner, memory, tenantSpec(0, 3));
    fresh.run({ logFd: log(t) });
    t.is((await fresh.drain({ timeoutMs: 10_000 })).pending, 0);
    await fresh.stop();
  });
}

test('a slow device is rehearsed: its save and load times are the downtime', async (t) => {
  const pair = new Pair(t, 16n << 20n);
  const [source, destination] = await sides(t, pair, ['siov']);
  source.subsystem.setRates({ saveLatencyMs: 150 });
  destination.subsystem.setRates({ loadLatencyMs: 150 });
  const settled = await pair.move(source.functions, destination.functions);
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  const { downtimeMs, stopMs = 0 } = settled.source.value;
  t.true(downtimeMs >= 300, `${downtimeMs}`);
  // That is no sending, so it is what the next one has to expect.
  t.true(stopMs >= 290 && stopMs <= downtimeMs, `${stopMs}`);
});
