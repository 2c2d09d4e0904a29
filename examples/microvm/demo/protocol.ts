/** What the demo's processes say to each other over Node's own IPC: plain JSON. */
import type { ConvergeReport, Forecast, ForecastNeeds, FunctionKind, Means, MigrationReport } from 'towline';
import type { Load } from '#native';
import type { Interruption } from './interruption.js';
import type { Sabotage } from './sabotage.js';

export type Kind = FunctionKind;
export const KINDS: readonly Kind[] = ['pf', 'vf', 'siov'];

/** How the machine is moved; see `src/`. */
export const MODES = ['migrate', 'session', 'same-host', 'checkpoint'] as const;
export type Mode = (typeof MODES)[number];

/** File descriptors that a host inherits. */
export const MEMORY_FD = 4;
export const LOG_FD = 5;

/** How big the demo is. */
export interface Scale {
  memoryMiB: number;
  namespaceMiB: number;
  /** Milliseconds of I/O before and after the move. */
  runMs: number;
  vcpus: number;
  load: Partial<Load>;
  /** 0: KVM's log. */
  dirtyRingEntries: number;
  doorbells: 'mmio' | 'ioeventfd';
  /** What the link between the hosts carries; missing: what the machine can. */
  linkBytesPerSecond?: number;
  /** The function does so many commands a second, from before it is moved; missing: as many as it can. */
  iopsLimit?: number;
  /** What earlier stops took besides sending, in milliseconds. */
  stopMs: readonly number[];
  /** What may be done so that it converges, in this order; `give-up`: where that is not enough the guest stays. Else it is stopped all the same. */
  converge: readonly (Means | 'give-up')[];
}

export interface NamespaceFile {
  path: string;
  nguid: string;
  uuid: string;
}

export type HostRequest =
  | {
      do: 'open';
      kind: Kind;
      uuid: string;
      hostTag: number;
      namespace: NamespaceFile;
      directory: string;
      scale: Scale;
    }
  | { do: 'boot' }
  | { do: 'receive'; mode: Mode; sabotage: Sabotage | undefined; interruption: Interruption | undefined }
  | { do: 'received' }
  | {
      do: 'leave';
      to: string;
      mode: Mode;
      sabotage: Sabotage | undefined;
      interruption: Interruption | undefined;
      freshDestination: boolean;
    }
  | { do: 'haunt' }
  | { do: 'guest' }
  | { do: 'drain' }
  | { do: 'close' };

/** How the source's part of a move ended. Times in milliseconds. */
export interface Move {
  outcome: MigrationReport['outcome'];
  why?: string;
  downtimeMs: number;
  totalMs: number;
  stopMs?: number;
  /** How long the witness held everything up; in no other figure. */
  heldMs: number;
  passes: number;
  bytes: { memory: number; deviceState: number; wire: number };
  phases: { name: string; ms: number }[];
  forecast?: Forecast;
  converge?: ConvergeReport;
  /** Where it gave up: what it would take. */
  needs?: ForecastNeeds | null;
  /** Pages that were reported as written while it ran, by the vCPUs' source and by the function's. */
  dirty: { kvm: number; device: number };
  /** When the vCPUs were told to stop; `CLOCK_MONOTONIC`, decimal. */
  pausedAtNs?: string;
}

/** How it ended at the destination. */
export interface Arrival {
  /** When the vCPUs were let go; `CLOCK_MONOTONIC`, decimal. Missing where they were not. */
  ranAtNs?: string;
  /** How long the witness held it up; in no other figure. */
  heldMs?: number;
  why?: string;
}

/** What the guest says about itself, and the VMM about it. */
export interface GuestReport {
  phase: string;
  failure?: string;
  heartbeats: number;
  heartbeatGapMs: number;
  ios: number;
  pagesWritten: number;
  /** Pages that it found other than it had left them. */
  memoryErrors: number;
  /** Registers that were lost or older than memory. */
  stateErrors: number;
  /** Times that the TSC went back. */
  tscErrors: number;
  /** Interrupts that never came. */
  lostInterrupts: number;
  /** Completions that it did not expect, commands that failed, reads that were wrong. */
  ioErrors: number;
  doorbells: { mmio: number; ioeventfd: number };
}

/** What a host tells while it is at work. */
export type HostEvent =
  | { type: 'sending'; pass: number; sentPages: number; totalPages: number }
  | { type: 'pass'; pass: number; pages: number; ms: number; dirtyPagesAfter: number }
  | { type: 'forecast'; forecast: Forecast }
  | { type: 'decision'; action: string; why: string }
  | { type: 'sample'; atMs: number; heartbeats: number; pagesWritten: number; ios: number };
