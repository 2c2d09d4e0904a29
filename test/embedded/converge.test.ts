import { randomUUID } from 'node:crypto';
import { closeSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { TowlineError } from '#towline/errors.js';
import type { ControlledFunction } from '#towline/function/types.js';
import type { ConvergeReport } from '#towline/migration/converge.js';
import type { Forecast, ForecastNeeds } from '#towline/migration/forecast.js';
import type { MigrateOptions } from '#towline/migration/options.js';
import type { MigrationPolicy } from '#towline/migration/policy.js';
import { DIAGNOSTICS_CHANNEL, type MigrationEvent } from '#towline/migration/progress.js';
import type { MigrationReport } from '#towline/migration/report.js';
import { embedded, Tenant, type EmbeddedSubsystem, type TenantSpec } from '#towline/rehearsal/index.js';
import { Pair, type Settled } from '../support/pair.js';

const MIB = 1 << 20;
const UNITS = 1024;
/** Slow beside what the tenants write: nothing here depends on how fast the machine is. */
const LINK = 4 * MIB;
const POLICY: MigrationPolicy = { bandwidthBytesPerSecond: LINK, maxDowntimeMs: 300, maxRounds: 30 };

/** Its CPU writes 64 MiB/s over 4 MiB. */
const CPU: TenantSpec = { workingSetPages: 1024, cpuDirtyBytesPerSecond: 64 * MIB, targetIops: 50 };
/** Its device reads some 28 MiB/s into 4 MiB of buffers; its CPU writes next to nothing. */
const DEVICE: TenantSpec = {
  workingSetPages: 1,
  cpuDirtyBytesPerSecond: 0,
  targetIops: 1500,
  queueDepth: 63,
  readPercent: 100,
};

interface Rig {
  pair: Pair;
  source: { subsystem: EmbeddedSubsystem; fn: ControlledFunction };
  destination: { subsystem: EmbeddedSubsystem; fn: ControlledFunction };
  tenant: Tenant;
  logFd: number;
}

async function rig(t: ExecutionContext, spec: TenantSpec): Promise<Rig> {
  const pair = new Pair(t, 16n << 20n);
  // No holes: what a guest that has run for long has.
  pair.memory.source.write(0n, new Uint8Array(16 << 20));
  const uuid = randomUUID();
  const side = async (memory: 'source' | 'destination') => {
    const subsystem = await embedded.open({
      namespaces: [{ path: join(pair.directory, 'disk'), sizeBytes: BigInt(UNITS) * 4096n }],
    });
    t.teardown(() => subsystem.close());
    const fn = await subsystem.provision({ kind: 'vf', uuid, name: 'vf', queues: 2, vectors: 3, namespaces: [1] });
    subsystem.attachMemory(fn, pair.memory[memory]);
    return { subsystem, fn };
  };
  const [source, destination] = [await side('source'), await side('destination')];
  const directory = mkdtempSync(join(tmpdir(), 'towline-log-'));
  const logFd = openSync(join(directory, 'log'), 'a+');
  const tenant = await Tenant.boot(source.subsystem, source.fn, pair.memory.source, { units: UNITS, ...spec });
  tenant.run({ logFd });
  t.teardown(async () => {
    await tenant.close();
    closeSync(logFd);
    rmSync(directory, { recursive: true });
  });
  return { pair, source, destination, tenant, logFd };
}

interface Moved {
  settled: Settled;
  events: MigrationEvent[];
  throttled: number[];
}

/** One migration, with what it told and how the tenant's CPU was throttled. */
async function move(r: Rig, options: Partial<MigrateOptions>, useHook = false): Promise<Moved> {
  const [session, events, throttled]: [string, MigrationEvent[], number[]] = [randomUUID(), [], []];
  const note = (event: unknown) => {
    if ((event as MigrationEvent).session === session) events.push(event as MigrationEvent);
  };
  subscribe(DIAGNOSTICS_CHANNEL, note);
  const throttle = async (percent: number) => {
    throttled.push(percent);
    r.tenant.throttle(percent);
  };
  try {
    const settled = await r.pair.move(r.source.fn, r.destination.fn, {
      source: {
        session,
        policy: POLICY,
        pause: () => r.tenant.pause(),
        resume: () => r.tenant.resume(),
        ...(useHook ? { throttle } : {}),
        ...options,
      },
    });
    return { settled, events, throttled };
  } finally {
    unsubscribe(DIAGNOSTICS_CHANNEL, note);
  }
}

function committed({ settled }: Moved): MigrationReport {
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  return settled.source.value;
}

interface GaveUp {
  error: TowlineError;
  needs: ForecastNeeds;
  forecast: Forecast;
  converge: ConvergeReport | undefined;
}

function gaveUp(t: ExecutionContext, { settled }: Moved): GaveUp {
  if (settled.source.status === 'fulfilled') throw new Error(`it was ${settled.source.value.outcome}`);
  const error = (settled.source.reason as TowlineError).cause as TowlineError;
  t.is(error.code, 'ERR_TOWLINE_NOT_CONVERGING', error.message);
  return { error, ...(error.details as Omit<GaveUp, 'error'>) };
}

/** What ran at the source runs on, with what it had. */
async function stillRuns(t: ExecutionContext, r: Rig): Promise<void> {
  t.is(await r.source.fn.channel().state(), 'running');
  t.is(await r.source.subsystem.controlling.rateLimitOf(r.source.fn), null);
  t.is((await r.tenant.drain({ timeoutMs: 60_000 })).pending, 0);
  r.tenant.resume();
}

const few: MigrationPolicy = { ...POLICY, maxRounds: 6 };
/** Slow beside what a device writes on a machine that is busy with other things. */
const DEVICE_POLICY: MigrationPolicy = { ...POLICY, bandwidthBytesPerSecond: MIB, maxDowntimeMs: 500 };
const DEVICE_LIMIT = { leastBytesPerSecond: 64 << 10 };

test('without means it gives up and says what it would take; that bandwidth does take it there', async (t) => {
  const r = await rig(t, CPU);
  const { needs, error, forecast } = gaveUp(t, await move(r, { policy: few }));
  await stillRuns(t, r);
  t.false(forecast.converges);
  t.true((needs.bandwidthBytesPerSecond ?? 0) > LINK && (needs.maxDowntimeMs ?? 0) > 300, JSON.stringify(needs));
  t.true((needs.throttlePercent ?? 0) > 50 && (needs.throttlePercent ?? 100) <= 99, JSON.stringify(needs));
  // What the device writes is not what keeps it from converging.
  t.is(needs.deviceDirtyBytesPerSecond, null);
  t.regex(error.message, /a bandwidth of .* MiB\/s, .*a downtime limit of .* ms, or vCPUs throttled by \d+ %/);
  const bandwidthBytesPerSecond = needs.bandwidthBytesPerSecond ?? 0;
  t.is(committed(await move(r, { policy: { ...POLICY, bandwidthBytesPerSecond } })).outcome, 'committed');
});

test('the downtime limit that it names takes it there', async (t) => {
  const r = await rig(t, CPU);
  const { needs } = gaveUp(t, await move(r, { policy: few }));
  const report = committed(await move(r, { policy: { ...few, maxDowntimeMs: needs.maxDowntimeMs ?? 0 } }));
  t.is(report.outcome, 'committed');
});

test('the throttle that it names takes it there', async (t) => {
  const r = await rig(t, CPU);
  const { needs } = gaveUp(t, await move(r, { policy: few }));
  r.tenant.throttle(needs.throttlePercent ?? 0);
  t.is(committed(await move(r, {})).outcome, 'committed');
});

test('with the throttle hook it converges, and the hook is called with 0 at the end', async (t) => {
  const r = await rig(t, CPU);
  const moved = await move(r, {}, true);
  const { converge } = committed(moved);
  const [first] = converge?.steps ?? [];
  t.is(first?.means, 'throttle');
  t.true((first?.throttlePercent ?? 0) >= 50, JSON.stringify(converge));
  // It did what it is for, as measured.
  t.true((first?.after.others ?? Infinity) < (first?.before.others ?? 0), JSON.stringify(first));
  t.is(moved.throttled.at(-1), 0);
  t.true(moved.throttled.slice(0, -1).every((percent, i, all) => percent > (all[i - 1] ?? 0) && percent <= 99));
  const told = moved.events.flatMap((e) => (e.type === 'converge' && e.action === 'throttle' ? [e.percent] : []));
  t.deepEqual(told, moved.throttled);
  t.deepEqual([converge?.unavailable, converge?.notLifted], [[], []]);
});

test('with a limit on the device it converges where the device is the writer; there it has none', async (t) => {
  const r = await rig(t, DEVICE);
  const policy: MigrationPolicy = {
    ...DEVICE_POLICY,
    converge: { means: ['device-limit'], deviceLimit: DEVICE_LIMIT },
  };
  const { needs, error } = gaveUp(t, await move(r, { policy: { ...DEVICE_POLICY, maxRounds: 4 } }));
  t.is(needs.throttlePercent, null, 'its CPU writes next to nothing');
  t.true((needs.deviceDirtyBytesPerSecond ?? Infinity) < MIB, JSON.stringify(needs));
  t.regex(error.message, /devices limited to .* MiB\/s/);
  let inForce: unknown;
  const { controlling } = r.source.subsystem;
  const pause = async () => {
    inForce = await controlling.rateLimitOf(r.source.fn);
    await r.tenant.pause();
  };
  const moved = await move(r, { policy, pause });
  const { converge } = committed(moved);
  const [first] = converge?.steps ?? [];
  t.is(first?.means, 'device-limit');
  t.true((first?.after.devices ?? Infinity) < (first?.before.devices ?? 0), JSON.stringify(first));
  t.true(typeof (inForce as { bytesPerSecond: bigint } | null)?.bytesPerSecond === 'bigint');
  const told = moved.events.filter((e) => e.type === 'converge' && e.action === 'rate-limit');
  t.like(told.at(-1), { function: r.source.fn.uuid, bytesPerSecond: null });
  t.is(await r.destination.subsystem.controlling.rateLimitOf(r.destination.fn), null);
  // Who dirtied what is told in every round.
  const rounds = moved.events.flatMap((e) => (e.type === 'round' ? [e.dirtyBySource] : []));
  const of = (name: string) => rounds.reduce((sum, by) => sum + (by[name] ?? 0), 0);
  t.true(of(`device:${r.source.fn.uuid}`) > 2 * of('marked'), JSON.stringify(rounds));
  // Its tenant goes on there.
  await r.tenant.stop();
  const there = await Tenant.attach(r.destination.subsystem, r.destination.fn, r.pair.memory.destination, {});
  there.run({ logFd: r.logFd });
  t.is((await there.drain({ timeoutMs: 60_000 })).pending, 0);
  await there.close();
});

test('the limit that it names takes it there', async (t) => {
  const r = await rig(t, DEVICE);
  const { needs } = gaveUp(t, await move(r, { policy: { ...DEVICE_POLICY, maxRounds: 4 } }));
  const bytesPerSecond = BigInt(Math.floor(needs.deviceDirtyBytesPerSecond ?? 1));
  await r.source.fn.rateLimit?.({ bytesPerSecond });
  t.is(committed(await move(r, { policy: DEVICE_POLICY })).outcome, 'committed');
});

test('whatever ends it, everything is taken back', async (t) => {
  const r = await rig(t, DEVICE);
  const policy: MigrationPolicy = {
    ...DEVICE_POLICY,
    converge: { means: ['device-limit', 'throttle'], deviceLimit: DEVICE_LIMIT },
  };
  const limited = async () => t.not(await r.source.subsystem.controlling.rateLimitOf(r.source.fn), null);
  // A rollback at the end.
  const verify = async () => {
    await limited();
    throw new Error('no');
  };
  const refused = await move(r, { policy, verify }, true);
  t.is(refused.settled.source.status, 'rejected');
  await stillRuns(t, r);
  // A cancel once the first limit is in force.
  const cancel = new AbortController();
  const onStep = (event: unknown) => {
    const e = event as MigrationEvent;
    if (e.type === 'converge' && e.action === 'rate-limit' && e.bytesPerSecond !== null) cancel.abort();
  };
  subscribe(DIAGNOSTICS_CHANNEL, onStep);
  const cancelled = await move(r, { policy, signal: cancel.signal }, true);
  unsubscribe(DIAGNOSTICS_CHANNEL, onStep);
  t.true(cancel.signal.aborted);
  t.is(cancelled.settled.source.status, 'rejected');
  await stillRuns(t, r);
});

test('a throttle hook that throws is an error of the caller: rolled back, and called with 0', async (t) => {
  const r = await rig(t, CPU);
  const calls: number[] = [];
  const throttle = (percent: number) => {
    calls.push(percent);
    if (percent > 0) throw new Error('no duty cycle here');
  };
  const { settled } = await move(r, { throttle });
  const error = (settled.source as PromiseRejectedResult).reason as TowlineError;
  t.is((error.cause as TowlineError).code, 'ERR_TOWLINE_HOOK');
  t.deepEqual([calls.length, calls.at(-1)], [2, 0]);
  await stillRuns(t, r);
});

test('means that can not be used are told with why', async (t) => {
  const r = await rig(t, CPU);
  const policy: MigrationPolicy = { ...few, converge: { means: ['throttle'] } };
  const { converge, error } = gaveUp(t, await move(r, { policy }));
  t.deepEqual(converge?.steps, []);
  t.like(converge?.unavailable[0], { means: 'throttle', why: 'there is no throttle hook' });
  t.regex(error.message, /it would take/);
});

test('a dry run says the same before anything is copied', async (t) => {
  const r = await rig(t, CPU);
  const { forecast } = committed(await move(r, { dryRun: true, policy: few }));
  t.false(forecast?.converges);
  t.true((forecast?.needs?.bandwidthBytesPerSecond ?? 0) > LINK);
  t.true((forecast?.needs?.throttlePercent ?? 0) > 50, JSON.stringify(forecast));
});
