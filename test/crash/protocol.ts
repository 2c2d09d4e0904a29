/** What the test and its holders say to each other over Node's own IPC. */
import type { JournalSession, MigrationReport, Outcome, Recovered } from '#towline/index.js';
import type { NamespaceFile } from '../../dist-examples/demo/protocol.js';

/** File descriptors that a holder inherits. */
export const MEMORY_FD = 4;
export const LOG_FD = 5;

export const MEMORY_BYTES = 64n << 20n;
export const NAMESPACE_BYTES = 4n << 20n;

/** What a holder is asked. */
export interface Requests {
  /** Opens the journal and the namespace, and provisions the function anew. */
  prepare: { params: { uuid: string; hostTag: number; namespace: NamespaceFile; journal: string }; result: null };
  boot: { params: null; result: null };
  /** Waits for a migration, answering questions about earlier ones; `received` tells how it ended. */
  receive: { params: { killAt?: string; failAt?: string }; result: string };
  received: { params: null; result: Ended };
  /** Ends the waiting for a migration that does not come. */
  hangUp: { params: null; result: null };
  migrate: { params: MigrateParams; result: Ended };
  /** Writes a checkpoint, as a move unless told otherwise. */
  checkpoint: { params: { path: string; killAt?: string }; result: Ended };
  restore: { params: { path: string; killAt?: string }; result: Ended };
  recover: { params: { peer?: string; timeoutMs?: number }; result: Recovered[] };
  declareDestinationDead: { params: { session: string }; result: null };
  /** Does what `recover` has said: the function and its tenant run again here. */
  runAgain: { params: null; result: null };
  sessions: { params: null; result: JournalSession[] };
  look: { params: null; result: Look };
  /** Waits until the tenant has had `commands` more answers. */
  work: { params: { commands: number }; result: null };
  drain: { params: null; result: null };
  close: { params: null; result: null };
}

export interface MigrateParams {
  to: string;
  killAt?: string;
  failAt?: string;
  /** What the verify hook throws. */
  objection?: string;
}

/** How a migration ended on one side. */
export interface Ended {
  outcome: Outcome;
  /** Of the error, where there is one. */
  code: string | null;
  report: MigrationReport;
}

/** What a holder has at this moment. */
export interface Look {
  /** Of the device, by its own word; `released` where it was given back. */
  device: string;
  /** Whether there is a tenant whose CPU runs. */
  tenantRuns: boolean;
}

export type RequestName = keyof Requests;

export interface Request<N extends RequestName = RequestName> {
  type: 'request';
  id: number;
  name: N;
  params: Requests[N]['params'];
}

export type ToHolder = Request | { type: 'held'; id: number };

export type FromHolder =
  | { type: 'answer'; id: number; result?: unknown; error?: { message: string; code?: string } }
  | { type: 'phase'; phase: string }
  | { type: 'hold'; id: number };
