/**
 * What `towline serve` and its clients say to each other: JSON-RPC 2.0, one message a line, over a UNIX socket. While a request
 * runs, the server sends `event` notifications with its id; the client may send `cancel` with it.
 */
import type { KindCapacity } from '../drivers/driver.js';
import type { CheckResult } from '../conformance/check.js';
import type { TowlineErrorJson } from '../errors.js';
import type {
  ExposureName,
  FunctionConfig,
  FunctionKind,
  FunctionLocation,
  FunctionSpec,
  LifecycleState,
  Reason,
} from '../function/types.js';
import type { CheckpointMode, CheckpointPolicy } from '../migration/checkpoint-options.js';
import type { JournalSession } from '../migration/journal.js';
import type { MigrationPolicy } from '../migration/policy.js';
import type { MigrationEvent } from '../migration/progress.js';
import type { Recovered } from '../migration/recover.js';
import type { MigrationReport } from '../migration/report.js';
import type { Rates } from '../rehearsal/faults.js';

/** The longest line, in bytes. A longer one ends the connection. */
export const MAX_LINE_BYTES = 1 << 20;
/** Requests of one connection that may be under way at once. */
export const MAX_REQUESTS = 32;
/** Connections at once. */
export const MAX_CONNECTIONS = 64;

/** A function as `list` shows it; the `--json` shape of the CLI. */
export interface FunctionInfo {
  uuid: string;
  name: string;
  kind: FunctionKind;
  state: LifecycleState;
  exposure: ExposureName;
  /** Its controlling function, as `DRIVER:ADDRESS`. */
  controlling: string;
  /** Where it is on this host; `null`: on none of its buses. */
  location: FunctionLocation | null;
  queues: number | null;
  vectors: number | null;
  namespaces: number[];
  migration: boolean;
  /** Type of a mediated device. */
  type: string | null;
  /** Bytes of guest memory that this process gave it; decimal. `0`: none. */
  memoryBytes: string;
  /** The vfio-user socket that it is on; `null`: none. */
  socket: string | null;
  /** The session that left it stopped and in doubt; `null`: none. */
  inDoubt: string | null;
}

/** A controlling function as `list` shows it. */
export interface ControllingInfo {
  /** `DRIVER:ADDRESS` */
  address: string;
  driver: string;
  capacity: readonly KindCapacity[];
  reasons: readonly Reason[];
  /** Faults and rates that are rehearsed; `null` where the device is real. */
  rehearsal: RehearsalInfo | null;
}

/** Faults and rates of an embedded subsystem. */
export interface RehearsalInfo {
  /** Each rule as it was written, whether it acts (its function exists), and how many commands it has hit. */
  faults: { rule: string; active: boolean; hits: number }[];
  /** What is left out is as fast as it can be. */
  rates: Rates;
}

/** Every method: what it takes, what it gives, and the events on the way. */
export interface Methods {
  version: { params: Record<string, never>; result: { version: string; pid: number }; event: never };
  list: {
    params: Record<string, never>;
    result: { controlling: ControllingInfo[]; functions: FunctionInfo[] };
    event: never;
  };
  provision: {
    params: { controlling?: string; guest?: string; socketPath?: string; spec: FunctionSpec };
    result: FunctionInfo;
    event: never;
  };
  configure: {
    params: { function: string; config: FunctionConfig; migration?: boolean };
    result: FunctionInfo;
    event: never;
  };
  rehearse: { params: RehearseParams; result: { address: string; rehearsal: RehearsalInfo }; event: never };
  expose: {
    params: { function: string; exposure: ExposureName; socketPath?: string };
    result: FunctionInfo;
    event: never;
  };
  release: { params: { function: string }; result: FunctionInfo; event: never };
  explain: {
    /** `copy`: why it can't be copied, in place of why it can't be migrated. */
    params: { function: string; copy?: boolean };
    result: { function: FunctionInfo; reasons: readonly Reason[] };
    event: never;
  };
  migrate: { params: MigrateParams; result: MigrationReport; event: MigrationEvent };
  receive: {
    params: ReceiveParams;
    result: MigrationReport;
    event: MigrationEvent | { type: 'listening'; address: string };
  };
  checkpoint: { params: CheckpointParams; result: MigrationReport; event: MigrationEvent };
  restore: { params: RestoreParams; result: MigrationReport; event: MigrationEvent };
  sessions: { params: Record<string, never>; result: JournalSession[]; event: never };
  recover: { params: RecoverParams; result: Recovered[]; event: never };
  conformance: {
    params: { function: string; destructive: boolean };
    result: { checks: number; failed: number };
    event: CheckResult;
  };
  shutdown: { params: Record<string, never>; result: null; event: never };
}

/** Faults and rates to rehearse from now on. */
export interface RehearseParams {
  /** Address of the controlling function; may be left out where there is one. */
  controlling?: string;
  /** Replace all rules; see `parseFaultRule`. Left out: they stay. */
  faults?: string[];
  /** Replaces all rates; see `parseRates`. Left out: they stay. */
  rates?: string;
}

/** See `MigrateOptions`. */
export interface MigrateParams {
  functions: string[];
  to: string;
  dryRun?: boolean;
  /** A path in the file system of the serving process. */
  record?: string;
  policy?: MigrationPolicy;
  linkTimeoutMs?: number;
}

/** See `ReceiveOptions`. */
export interface ReceiveParams {
  functions: string[];
  from: string;
  allowRemotePlaintext?: boolean;
  acceptTimeoutMs?: number;
  linkTimeoutMs?: number;
}

/** See `CheckpointOptions`. */
export interface CheckpointParams {
  functions: string[];
  /** A path in the file system of the serving process. */
  path: string;
  mode: CheckpointMode;
  overwrite?: boolean;
  live?: boolean;
  policy?: CheckpointPolicy;
}

/** See `RestoreOptions`. */
export interface RestoreParams {
  functions: string[];
  /** A path in the file system of the serving process. */
  path: string;
}

/** See `RecoverOptions`. */
export interface RecoverParams {
  session?: string;
  /** Where the destination answers: any `receive` there does. */
  peer?: string;
  declareDestinationDead?: boolean;
  reason?: string;
}

/** The name of a method. */
export type MethodName = keyof Methods;

/** The names, for checking a word from outside. */
export const methodNames = [
  'version',
  'list',
  'provision',
  'configure',
  'rehearse',
  'expose',
  'release',
  'explain',
  'migrate',
  'receive',
  'checkpoint',
  'restore',
  'sessions',
  'recover',
  'conformance',
  'shutdown',
] as const satisfies readonly MethodName[];

/** A request on the wire. */
export interface RequestMessage {
  jsonrpc: '2.0';
  id: number;
  method: string;
  params?: unknown;
}

/** Everything that a server sends. */
export type ServerMessage =
  | { jsonrpc: '2.0'; id: number; result: unknown }
  | { jsonrpc: '2.0'; id: number | null; error: { code: number; message: string; data?: TowlineErrorJson } }
  | { jsonrpc: '2.0'; method: 'event'; params: { id: number; event: unknown } };
