/** One line of `--json`, and how it is judged. */
import type { ConvergeReport, ForecastNeeds } from 'towline';
import type { Finding } from '../../shared/witness-process.js';
import type { Arrival, GuestReport, Kind, Mode, Move, Scale } from './protocol.js';
import type { Sabotage } from './sabotage.js';

/** What was moved, what the witness and the guest found, what it took. Times in milliseconds, sizes in bytes. */
export interface DemoLine {
  kind: Kind;
  mode: Mode;
  verified: boolean;
  outcome: Move['outcome'];
  io: { completed: number; lost: number; duplicated: number; corrupted: number };
  stalePages: number;
  owners: number;
  /** What the guest itself found: pages, vCPU state and interrupts that were lost, answers of the device that were wrong. */
  guest: { memoryErrors: number; vcpuErrors: number; lostInterrupts: number; ioErrors: number };
  downtimeMs: number;
  /** From the last completion before to the first one after. */
  tenantPauseMs: number;
  /** From the moment that the VMM stops the vCPUs to the one that they run elsewhere. */
  guestPauseMs: number;
  /** As the guest feels it by its own clock: the largest time between two of its heartbeats. */
  heartbeatGapMs: number;
  totalMs: number;
  /** What of the downtime was no sending; `null` where that is not known. */
  stopMs: number | null;
  /** Passes over memory before the stop. */
  rounds: number;
  bytes: { memory: number; deviceState: number; wire: number };
  /** Pages that were reported as written while it ran. */
  dirty: { kvm: number; device: number };
  doorbells: Scale['doorbells'];
  vcpus: number;
  phases: { name: string; ms: number }[];
  forecast: { downtimeMs: { p50: number; p95: number }; totalMs: number } | null;
  /** What was done so that it converges, in its order; what it would take, where that was not enough and it gave up. */
  converge: ConvergeReport & { needs: ForecastNeeds | null };
  /** Several moves: how many there were, and how many were broken off on purpose. All else is the last one's, but for what was counted. */
  moves?: { committed: number; interrupted: number };
  /** Why it did not commit. */
  why?: string;
  /** A few of the witness's findings, where there are any. */
  samples?: unknown[];
}

/** All that is known of one run. */
export interface Run {
  kind: Kind;
  mode: Mode;
  scale: Scale;
  sabotage: Sabotage | undefined;
  move: Move;
  arrival: Arrival;
  /** Of the guest where it is in the end. */
  guest: GuestReport;
  finding: Finding;
  /** Moves that committed, each of which the witness has compared. */
  committed: number;
  interrupted?: number;
  wireBytes: number;
}

/** Judges a run: nothing is believed of the hosts but what no witness could see. */
export function lineOf(run: Run): DemoLine {
  const { kind, mode, scale, move, arrival, guest, finding } = run;
  const { io, stalePages, owners } = finding;
  const { memoryErrors, stateErrors, tscErrors, lostInterrupts, ioErrors } = guest;
  const vcpuErrors = stateErrors + tscErrors;
  const found = [io.lost, io.duplicated, io.corrupted, stalePages, memoryErrors, vcpuErrors, lostInterrupts, ioErrors];
  const clean = found.every((count) => count === 0) && owners === 1;
  // Every page was compared, once for each move that committed; those that were refused at the end had been compared as well.
  // No shift: that would be of 32 bits.
  const pages = scale.memoryMiB * 256;
  // RAM that is passed stays where it is.
  const moved = mode === 'same-host' ? 0 : run.committed;
  const compared = finding.comparedPages % pages === 0 && finding.comparedPages >= moved * pages;
  const ran = finding.ranOn && io.completed > 0 && guest.failure === undefined && guest.phase !== 'failed';
  const { why, samples } = { why: move.why ?? arrival.why ?? guest.failure, samples: finding.samples };
  return {
    kind,
    mode,
    verified: clean && compared && ran && move.outcome !== 'in-doubt',
    outcome: move.outcome,
    io,
    stalePages,
    owners,
    guest: { memoryErrors, vcpuErrors, lostInterrupts, ioErrors },
    downtimeMs: move.downtimeMs,
    tenantPauseMs: finding.tenantPauseMs,
    guestPauseMs: guestPause(move, arrival),
    heartbeatGapMs: Math.max(0, guest.heartbeatGapMs - held(move, arrival)),
    totalMs: move.totalMs,
    stopMs: move.stopMs ?? null,
    rounds: move.passes,
    bytes: { ...move.bytes, wire: run.wireBytes },
    dirty: move.dirty,
    doorbells: scale.doorbells,
    vcpus: scale.vcpus,
    phases: move.phases,
    forecast: move.forecast ? { downtimeMs: move.forecast.downtimeMs, totalMs: move.forecast.totalMs } : null,
    converge: { ...(move.converge ?? { steps: [], unavailable: [], notLifted: [] }), needs: move.needs ?? null },
    ...(run.interrupted === undefined ? {} : { moves: { committed: run.committed, interrupted: run.interrupted } }),
    ...(why === undefined ? {} : { why }),
    ...(samples.length > 0 ? { samples } : {}),
  };
}

/** From the stop of the vCPUs to their start elsewhere, without the time that the witness took; 0 where they never ran elsewhere. */
export function guestPause(move: Move, arrival: Arrival): number {
  const { pausedAtNs } = move;
  const { ranAtNs } = arrival;
  if (pausedAtNs === undefined || ranAtNs === undefined) return 0;
  return Number(BigInt(ranAtNs) - BigInt(pausedAtNs)) / 1e6 - held(move, arrival);
}

/** How long the witness held everything up, on either side. */
export const held = (move: Move, arrival: Arrival): number => move.heldMs + (arrival.heldMs ?? 0);
