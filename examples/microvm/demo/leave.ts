/** The source's part of a move, in each mode, and what may be broken about it on purpose. */
import { connect } from 'node:net';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import {
  isTowlineError,
  type DirtySource,
  type ForecastNeeds,
  type Journal,
  type MemoryRange,
  type Migration,
  type MigrationEvent,
  type MigrationReport,
} from 'towline';
import { Connection } from '../src/connection.js';
import type { Machine } from '../src/machine.js';
import { migrateAway } from '../src/migrate-away.js';
import { ramRanges } from '../src/ram.js';
import { vcpuSections, type VcpuSections } from '../src/sections.js';
import { sessionAway } from '../src/session-away.js';
import { toFile } from '../src/to-file.js';
import { LAYOUT } from '#native';
import { MEMORY_FD, type HostEvent, type HostRequest, type Move, type Scale } from './protocol.js';
import { forgetful } from './sabotage.js';

/** What the host has for it. */
export interface LeaveContext {
  machine: Machine;
  journal: Journal;
  scale: Scale;
  request: Extract<HostRequest, { do: 'leave' }>;
  event: (event: HostEvent) => void;
  /** Holds the function back to so many commands a second; `null`: no longer. */
  limit: (operationsPerSecond: number | null) => Promise<void>;
  /** Waits until the witness has compared. */
  hold: () => Promise<void>;
}

/** What the function alone writes, all the time, and nobody looks at. */
const TELEMETRY: MemoryRange = { gpa: BigInt(LAYOUT.telemetry), len: 4096n };
/** Few enough that the last pass is short beside the rest of the downtime. */
const FEW_PAGES = 512;
const MOST_PASSES = 8;
/** Where means are taken to converge, they are given time to help. */
const MOST_PASSES_CONVERGING = 30;
/** By then every write that was under way has ended. */
const QUIET_MS = 100;
/** By then a guest at work has filled its queues. */
const FULL_MS = 500;

/** Moves the machine away, and tells how that ended; a rollback is an end as well. */
export async function leave(context: LeaveContext): Promise<Move> {
  const { machine, scale, request } = context;
  if (request.sabotage === 'two-owners') await readOnly(machine);
  if (scale.iopsLimit !== undefined) await slowDown(context, scale.iopsLimit);
  machine.vm.resetGaps();
  const sections = request.sabotage === 'stale-vcpu' ? await staleSections(machine) : vcpuSections(machine.vm);
  const times: { pausedAtNs?: string } = {};
  const hooks: Hooks = {
    sections,
    pause: () => {
      times.pausedAtNs = process.hrtime.bigint().toString();
      return machine.vm.pause();
    },
    verify: async () => {
      await context.hold();
      hooks.refuse();
    },
    refuse: () => {
      if (request.interruption === 'refuse-at-end') throw new Error('interrupted at the end');
    },
    dirtySources: [dirtySource(context)],
  };
  const by = { migrate: byMigrate, 'same-host': byMigrate, session: bySession, checkpoint: byFile }[request.mode];
  const move = await by(context, hooks);
  // It is of the function, which goes with a commit and stays with a rollback.
  if (scale.iopsLimit !== undefined && move.outcome === 'rolled-back') await context.limit(null);
  return { ...move, ...times };
}

interface Hooks {
  sections: VcpuSections;
  pause: () => Promise<void>;
  verify: () => Promise<void>;
  refuse: () => void;
  dirtySources: readonly DirtySource[];
}

async function byMigrate(context: LeaveContext, hooks: Hooks): Promise<Move> {
  const { machine, journal, scale, request } = context;
  const { sabotage } = request;
  const { refuse, ...shared } = hooks;
  const cancel = new AbortController();
  const migration = migrateAway(machine, {
    ...shared,
    to: request.to,
    // RAM that is passed is the same on both sides: nobody has to tell what is written to it, and there is nothing to compare.
    ...(request.mode === 'same-host' ? { memoryTransfer: 'pass' as const, dirtySources: [], verify: refuse } : {}),
    fence: journal,
    signal: cancel.signal,
    policy: {
      // On a loaded machine a stop may cost more than that by itself; the demo shows what it was.
      maxDowntimeMs: 50,
      stopMs: scale.stopMs,
      maxRounds: scale.converge.some((means) => means !== 'give-up') ? MOST_PASSES_CONVERGING : MOST_PASSES,
      onNoConvergence: scale.converge.includes('give-up') ? 'give-up' : 'stop',
      converge: { means: scale.converge.filter((means) => means !== 'give-up') },
    },
    // A source that still runs needs something that it can run.
    release: sabotage !== 'two-owners',
    faults: {
      ...(sabotage === 'skip-device-dirty' ? { skipDeviceDirty: TELEMETRY } : {}),
      ...(sabotage === 'two-owners' ? { runAfterRelease: true } : {}),
    },
  });
  const dirty = { kvm: 0, device: 0 };
  await follow(migration, context, dirty, cancel);
  const { report, needs } = await endOf(migration.result);
  return { ...moveOf(report), dirty, ...(needs === undefined ? {} : { needs }) };
}

/** Into a file, from which the destination makes a guest again. The witness compares there: nothing has that memory until then. */
async function byFile(context: LeaveContext, hooks: Hooks): Promise<Move> {
  const { machine, journal, request } = context;
  const cancel = new AbortController();
  const writing = toFile(machine, {
    sections: hooks.sections,
    pause: hooks.pause,
    verify: hooks.refuse,
    dirtySources: hooks.dirtySources,
    path: fileURLToPath(request.to),
    fence: journal,
    signal: cancel.signal,
  });
  const dirty = { kvm: 0, device: 0 };
  await follow(writing, context, dirty, cancel);
  return { ...moveOf((await endOf(writing.result)).report), dirty };
}

/** Tells what happens, and counts who dirtied what. */
async function follow(
  migration: Migration,
  { request, event }: LeaveContext,
  dirty: Move['dirty'],
  cancel: AbortController,
): Promise<void> {
  for await (const e of migration) {
    if (e.type === 'phase' && e.phase === 'pre-copy' && request.interruption === 'cancel') cancel.abort();
    if (e.type === 'pages') event({ type: 'sending', pass: e.round, sentPages: e.sentPages, totalPages: e.totalPages });
    if (e.type === 'round') {
      count(dirty, e.dirtyBySource);
      event({ type: 'pass', pass: e.round, pages: e.pages, ms: e.ms, dirtyPagesAfter: e.dirtyPagesAfter });
    }
    if (e.type === 'forecast' && e.frozen) event({ type: 'forecast', forecast: e.forecast });
    if (e.type === 'converge' && e.action !== 'continue') event({ type: 'decision', ...decision(e) });
  }
}

/** What was decided, in words. */
function decision(e: Extract<MigrationEvent, { type: 'converge' }>): { action: string; why: string } {
  const { action, why } = e;
  if (action === 'throttle') return { action: `vCPUs are throttled by ${e.percent} %`, why };
  if (action !== 'rate-limit') return { action, why };
  const limit = e.bytesPerSecond === null ? 'no limit' : `${(e.bytesPerSecond / (1 << 20)).toFixed(1)} MiB/s`;
  return { action: `the function may move ${limit}`, why };
}

/** The report of a migration that was rolled back is beside its error; so is what it would take, where it gave up. */
async function endOf(
  result: Promise<MigrationReport>,
): Promise<{ report: MigrationReport; needs?: ForecastNeeds | null | undefined }> {
  try {
    return { report: await result };
  } catch (error) {
    if (!isTowlineError(error)) throw error;
    const report = (error.details as { report?: MigrationReport } | undefined)?.report;
    if (report === undefined) throw error;
    const cause = isTowlineError(error.cause, 'ERR_TOWLINE_NOT_CONVERGING') ? error.cause.details : {};
    return { report, needs: (cause as { needs?: ForecastNeeds | null } | undefined)?.needs };
  }
}

type DirtyPages = Readonly<Record<string, number>>;

/** Sources have names; the vCPUs' is what KVM tells, and the VMM marks nothing itself. */
function count(dirty: Move['dirty'], bySource: DirtyPages): void {
  for (const [source, pages] of Object.entries(bySource)) {
    if (source.startsWith('device:')) dirty.device += pages;
    else dirty.kvm += pages;
  }
}

function moveOf(report: MigrationReport): Omit<Move, 'dirty'> {
  const { outcome, why, downtimeMs, totalMs, stopMs, rounds, bytes, phases, forecast, converge } = report;
  return {
    outcome,
    downtimeMs,
    totalMs,
    heldMs: phases.find(({ name }) => name === 'hold')?.ms ?? 0,
    passes: rounds,
    bytes,
    phases,
    ...(why === undefined ? {} : { why }),
    ...(stopMs === undefined ? {} : { stopMs }),
    ...(forecast === undefined ? {} : { forecast }),
    ...(converge === undefined ? {} : { converge }),
  };
}

async function bySession(context: LeaveContext, hooks: Hooks): Promise<Move> {
  const { machine, journal, request, event } = context;
  const { hostname, port } = new URL(request.to);
  const socket = connect({ host: hostname, port: Number(port), noDelay: true });
  await once(socket, 'connect');
  const wire = new Connection(socket, machine.memory);
  const cancel = new AbortController();
  const started = performance.now();
  const dirty = { kvm: 0, device: 0 };
  try {
    const { passes, ...moved } = await sessionAway(machine, wire, {
      ...hooks,
      fence: journal,
      signal: cancel.signal,
      freshDestination: request.freshDestination,
      fewPages: FEW_PAGES,
      mostPasses: MOST_PASSES,
      onPass: (pass, pages, harvest) => {
        count(dirty, harvest.dirtyBySource);
        if (pass === 1 && request.interruption === 'cancel') cancel.abort();
        event({ type: 'pass', pass, pages, ms: performance.now() - started, dirtyPagesAfter: pages });
      },
    });
    return { outcome: 'committed', passes, dirty, ...moved };
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error);
    const bytes = { memory: wire.sentMemoryBytes, deviceState: 0, wire: wire.sentBytes };
    const totalMs = performance.now() - started;
    const outcome = why.startsWith('in doubt') ? 'in-doubt' : 'rolled-back';
    return { outcome, why, passes: 0, downtimeMs: 0, totalMs, heldMs: 0, bytes, phases: [], dirty };
  } finally {
    wire.end();
  }
}

/** What a second owner does shall not show on the disk: that is another counter's. */
async function readOnly({ vm }: Machine): Promise<void> {
  vm.setLoad({ readPercent: 100 });
  await new Promise((resolve) => setTimeout(resolve, QUIET_MS));
}

/** Holds the function back until its queues are full. What waits in them when it goes is done at the destination, where nothing holds it back. */
async function slowDown({ limit }: LeaveContext, operationsPerSecond: number): Promise<void> {
  await limit(operationsPerSecond);
  await new Promise((resolve) => setTimeout(resolve, FULL_MS));
}

/** Sections of vector registers: the guest keeps its count of heartbeats there, too. */
const isVector = (name: string) => /xsave/i.test(name);

async function staleSections({ vm }: Machine): Promise<VcpuSections> {
  await vm.pause();
  const stale = Object.entries(vm.save()).filter(([name]) => isVector(name));
  vm.run();
  const { names, take } = vcpuSections(vm);
  return { names, take: () => ({ ...take(), ...Object.fromEntries(stale) }) };
}

/** What KVM tells; the sabotage keeps quiet about the upper half of the lower range, in which there is nothing but the working set. */
function dirtySource({ machine, scale, request }: LeaveContext): DirtySource {
  if (request.sabotage !== 'skip-kvm-dirty') return machine.vcpuDirty;
  const [low] = ramRanges(MEMORY_FD, BigInt(scale.memoryMiB) << 20n);
  const half = (low?.len ?? 0n) / 2n;
  return forgetful(machine.vcpuDirty, [{ gpa: half, len: half }]);
}
