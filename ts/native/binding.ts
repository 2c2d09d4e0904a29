/**
 * The private surface of the native addon (`crates/napi`). Nothing here is public: the rest of `ts/` wraps it.
 *
 * Conventions: a call that fails throws (or rejects with) an `Error` whose message is the JSON of {@link NativeFault};
 * `unwrapFault` in `ts/errors.ts` is the one place that turns it into a `TowlineError`. Rich results are JSON strings
 * with the shapes given here, since each is asked for once a phase, not once a page. `bigint` for 64-bit addresses and lengths.
 */
import type { NativeDirtyBinding } from './dirty-binding.js';
import type { NativeHost, NativeVfioUserOptions, NativeVfioUserServer, NativeVfioUserVacancy } from './host-binding.js';

/** What native code tells of a failure. */
export interface NativeFault {
  /** `ERR_TOWLINE_…` */
  code: string;
  message: string;
  errno?: number;
  syscall?: string;
  /** SCT << 8 | SC */
  nvmeStatus?: number;
  state?: string;
  details?: unknown;
}

export interface NativeRange {
  gpa: bigint;
  len: bigint;
}

/** Guest memory of one guest: regions of file descriptors, mapped here, and the log of pages marked by the caller. */
export interface NativeGuestMemory {
  /** `fd` is duplicated. Page-aligned numbers. */
  addRegion(gpa: bigint, fd: number, fdOffset: bigint, len: bigint, shrinkable: boolean): void;
  /** Drains accesses under way. */
  removeRegion(gpa: bigint, len: bigint): Promise<void>;
  ranges(): NativeRange[];
  /** The descriptors stay the memory's. */
  regions(): { gpa: bigint; len: bigint; fd: number; fdOffset: bigint }[];
  read(gpa: bigint, len: number): Uint8Array;
  /** Writes, then marks the pages dirty. */
  write(gpa: bigint, data: Uint8Array): void;
  /** Marks pages that the caller wrote by other means. */
  markDirty(gpa: bigint, len: bigint): void;
  /** The dirty source fed by `write`, `markDirty` and the rehearsal tenant. */
  markedSource(): NativeDirtySource;
  /** A new dirty source that watches this process's own mappings of the regions. */
  watchedSource(): NativeDirtySource;
  close(): void;
}

/** A `StateChannel` in native code; also usable from JavaScript, byte by byte, by the conformance kit. */
export interface NativeStateChannel {
  /** bit 0 STOP_COPY, 1 P2P, 2 PRE_COPY */
  flags(): number;
  /** What the state bytes are, where that is known. */
  format(): string | null;
  /** Whether leaving RESUMING refuses whatever is not a whole valid state. */
  verifies(): boolean;
  state(): Promise<number>;
  setState(to: number): Promise<void>;
  /** `bytes` missing: `kind` is 'empty-for-now' or 'end'. */
  read(maxBytes: number): Promise<{ kind: 'bytes' | 'empty-for-now' | 'end'; bytes?: Uint8Array }>;
  write(data: Uint8Array): Promise<void>;
  pending(): Promise<{ initialBytes: bigint; dirtyBytes: bigint; stopCopyBytes?: bigint | null }>;
  reset(): Promise<void>;
  close(): void;
}

export interface NativeDirtySource {
  /** Returns the granularity in bytes. */
  start(ranges: NativeRange[], pageSizeBytes: number): Promise<number>;
  harvest(): Promise<NativeRange[]>;
  stop(): Promise<void>;
  close(): void;
}

/**
 * Lets native threads call JavaScript: `callback(id, method, json, bytes)` is called on the main thread, and whoever
 * answers calls `reply` once, at any later time. Weak: it keeps no process alive.
 */
export interface NativeBridge {
  reply(id: number, json: string | null, bytes: Uint8Array | null): void;
  fail(id: number, faultJson: string): void;
  /**
   * methods: `state` → json number · `setState` json number · `read` json maxBytes → json 'bytes'|'empty-for-now'|'end' (+ bytes) ·
   * `write` bytes · `pending` → json {initialBytes,dirtyBytes,stopCopyBytes} as decimal strings, the last null where unknown · `reset`
   */
  stateChannel(flags: number): NativeStateChannel;
  /** methods: `start` json {ranges:[[gpa,len]…] decimal strings, pageSizeBytes} → json granularity · `harvest` → json {ranges:[[gpa,len]…]} · `stop` */
  dirtySource(): NativeDirtySource;
  /** methods: those of `Fence` in ts/migration/fence.ts, json in, json out */
  fence(): NativeFence;
  /** methods: `send` bytes · `receive` json maxBytes → bytes (empty: end of stream) · `close` */
  link(): NativeLink;
  close(): void;
}

export interface NativeFence {
  close(): void;
}

export interface NativeLink {
  peer(): string;
  close(): void;
}

export interface NativeListener {
  /** The address it really listens on, port 0 resolved. */
  address(): string;
  accept(timeoutMs: number): Promise<NativeLink>;
  close(): void;
}

/** Typed admin commands (crates/nvme `AdminClient`) over any admin transport. Results are JSON strings of the shapes named. */
export interface NativeAdmin {
  /** {@link NvmeIdentify} */
  identify(cntlid: number | null): Promise<string>;
  /** {vqFlexibleTotal, vqAssigned, vqPrivate…, viFlexibleTotal …} see {@link NvmePrimaryCaps} */
  primaryCaps(): Promise<string>;
  /** {@link NvmeSecondary}[] */
  secondaryList(): Promise<string>;
  /** {@link NvmeStateFormats} */
  stateFormats(): Promise<string>;
  /** {@link NvmeNamespace}[]: every namespace of the subsystem, with the controllers it is attached to */
  namespaces(): Promise<string>;
  /** action: 'offline' | 'online' | 'assign' | 'primary'; resource 'vq' | 'vi'; returns NRM */
  virtualizationManage(action: string, cntlid: number, resource: string, count: number): Promise<number>;
  attachNamespace(nsid: number, cntlids: number[]): Promise<void>;
  detachNamespace(nsid: number, cntlids: number[]): Promise<void>;
  /** Whether the device is the embedded subsystem, which has a rate limit. */
  hasRateLimit(): Promise<boolean>;
  /** 0 for no limit. */
  setRateLimit(cntlid: number, bytesPerSecond: bigint, commandsPerSecond: number): Promise<void>;
  /** {bytesPerSecond (decimal), commandsPerSecond}; 0 for no limit */
  rateLimit(cntlid: number): Promise<string>;
  /** HMLM channel of a controlled function; its reset is the one of the function. */
  stateChannel(cntlid: number): NativeStateChannel;
  /** Track Send / Track Receive of a controlled function. */
  dirtySource(cntlid: number): NativeDirtySource;
  close(): void;
}

/** Identify Controller (CNS 01h), the fields that provisioning and migration need. */
export interface NvmeIdentify {
  cntlid: number;
  subnqn: string;
  serialNumber: string;
  modelNumber: string;
  firmwareRevision: string;
  version: string;
  mdtsBytes: number;
  hmlms: boolean;
  virtualizationManagement: boolean;
  namespaceManagement: boolean;
  trackMemory: boolean;
  maxNamespaces: number;
}
/** Primary Controller Capabilities (CNS 14h): flexible queue pairs (VQ) and interrupt vectors (VI). */
export interface NvmePrimaryCaps {
  vq: {
    flexibleTotal: number;
    flexibleAssigned: number;
    flexibleToPrimary: number;
    privateToPrimary: number;
    maxPerSecondary: number;
    granularity: number;
  };
  vi: {
    flexibleTotal: number;
    flexibleAssigned: number;
    flexibleToPrimary: number;
    privateToPrimary: number;
    maxPerSecondary: number;
    granularity: number;
  };
}
/** One entry of the Secondary Controller List (CNS 15h). */
export interface NvmeSecondary {
  cntlid: number;
  primaryCntlid: number;
  online: boolean;
  /** 0: not a VF */
  vfNumber: number;
  vq: number;
  vi: number;
}
/** Supported Controller State Formats (CNS 20h): versions and vendor-specific UUIDs, each by position. */
export interface NvmeStateFormats {
  versions: number[];
  uuids: string[];
}
/** A namespace and the controllers that it is attached to. Sizes in bytes, 64-bit ones as decimal strings. */
export interface NvmeNamespace {
  nsid: number;
  sizeBytes: string;
  lbaSizeBytes: number;
  nguid: string;
  uuid: string;
  shared: boolean;
  attached: number[];
}

/** The embedded NVMe subsystem. `configJson`: {@link EmbeddedConfig}. */
export interface NativeSubsystem {
  /** {@link EmbeddedController}[] */
  controllers(): string;
  setNumVfs(count: number): void;
  createSiov(): number;
  removeSiov(cntlid: number): void;
  /** The controlling PF's real admin queue, behind typed commands. */
  admin(): NativeAdmin;
  /** The DMA address space of a controlled function. */
  attachMemory(cntlid: number, memory: NativeGuestMemory): void;
  /** Drains. */
  detachMemory(cntlid: number): Promise<void>;
  flr(cntlid: number): Promise<void>;
  /** {@link EmbeddedFault}[]: replaces all rules. */
  setFaults(json: string): void;
  /** {@link EmbeddedFault}: adds a rule after the others, and gives its number. */
  addFault(json: string): number;
  /** Lets go on what hangs by it. Nothing where it is gone. */
  removeFault(number: number): void;
  /** How many commands it has hit; 0 where it is gone. */
  faultHits(number: number): number;
  /** {saveBytesPerSecond?, loadBytesPerSecond?, saveLatencyMs?, loadLatencyMs?, ioLatencyMs?} */
  setRates(json: string): void;
  /**
   * Serves a controller on a vfio-user socket. The controlling one too, whose own admin queue the guest then has: admin() ends.
   */
  exposeVfioUser(cntlid: number, path: string, options: NativeVfioUserOptions): Promise<NativeVfioUserServer>;
  /** Takes a controller for a socket that comes from another process. */
  awaitVfioUser(cntlid: number, options: NativeVfioUserOptions): Promise<NativeVfioUserVacancy>;
  close(): Promise<void>;
}

export interface EmbeddedConfig {
  uuid: string;
  serial: string;
  namespaces: { path: string; sizeBytes: string; lbaSizeBytes: number; nguid: string; uuid: string; shared: boolean }[];
  furtherPfs: number;
  maxVfs: number;
  maxSiov: number;
  flexibleVq: number;
  flexibleVi: number;
}
/** One controller of the embedded subsystem, as its registers tell. */
export interface EmbeddedController {
  cntlid: number;
  kind: 'pf' | 'vf' | 'siov';
  controlling: boolean;
  vfNumber: number;
  online: boolean;
  enabled: boolean;
  fatal: boolean;
  /** Queue pairs that it may use now, the admin queue included. */
  queues: number;
  /** MSI-X vectors that it may use now. */
  vectors: number;
}
/** One fault rule; what is left out matches everything. */
export interface EmbeddedFault {
  cntlid?: number;
  queue?: 'admin' | 'io';
  opcode?: number;
  /** 1-based: the nth matching command from now; 1 when missing */
  nth?: number;
  /** how many after that; 1 when missing, 0 for all */
  count?: number;
  action:
    | { kind: 'status'; sct: number; sc: number; dnr?: boolean }
    | { kind: 'delay'; ms: number }
    | { kind: 'drop-completion' }
    | { kind: 'repeat' }
    | { kind: 'hang' };
}

/** The rehearsal tenant (crates/tenant). */
export interface NativeTenant {
  /** Layout as JSON: {stateGpa, telemetry:{gpa,len}, workingSet:{gpa,len}, data:{gpa,len}} (decimal strings) */
  layout(): string;
  run(options: { logFd: number; flushOnly: boolean }): void;
  pause(): Promise<void>;
  resume(): void;
  /** 0 to 99 */
  throttle(percent: number): void;
  drain(timeoutMs: number): Promise<string>;
  stop(): Promise<void>;
  stats(): string;
  close(): void;
}

export interface NativeProgress {
  /** JSON of a progress event; see ts/migration/progress.ts */
  (json: string): void;
}

/** Sections in one piece. */
export interface NativeSections {
  /** JSON of their {name, bytes: how many, fds: {name, fd}[]}[], in the order in which they were offered. */
  layout: string;
  /** Their bytes, one after the other. */
  bytes: Uint8Array;
}

/** One migration, at the source. Every step is a blocking call on a thread of its own; JSON results as in crates/engine. */
export interface NativeSourceSession {
  offer(json: string): Promise<string>;
  startTracking(): Promise<void>;
  /** Samples the dirty rate for `sampleMs`, and the link; {@link Measured} of ts/migration/steps.ts */
  measure(sampleMs: number): Promise<string>;
  /** Who dirties how much, for `ms`; {@link DirtySample} of ts/migration/steps.ts */
  sampleDirty(ms: number): Promise<string>;
  memoryPass(): Promise<string>;
  precopyState(): Promise<string>;
  quiesce(): Promise<void>;
  stop(): Promise<string>;
  finalPass(): Promise<string>;
  /** Where the caller moves memory: {dirtyPages, isLast, failedSources} */
  harvest(): Promise<string>;
  /** Where the caller moves memory, or it is passed: {stateBytes, saveMs} */
  saveState(): Promise<string>;
  /** Where the caller carries the commit: {epoch, journalMs} */
  intent(): Promise<string>;
  /** The destination's refusal is durable, and the caller has heard it. */
  refused(): Promise<void>;
  /** 'committed' | 'refused' | 'unknown' → {verdict} */
  settle(answer: string): Promise<string>;
  /** The next of the offered sections, as {@link NativeSections}. The bytes are copied and the descriptors duplicated before this returns. */
  sendSections(layout: string, bytes: Uint8Array): Promise<void>;
  prepare(): Promise<string>;
  commit(): Promise<string>;
  /** A copy, after `prepare`: the functions run again; JSON outcomes as of `abort` */
  resumeCopied(): Promise<string>;
  /** A checkpoint: {epoch, bytes, syncMs, journalMs} */
  seal(): Promise<string>;
  waitRunning(): Promise<string>;
  release(): Promise<string>;
  abort(reason: string): Promise<string>;
  /** For a `MigrationSession` whose caller moves its memory: dirty runs, taken and forgotten. */
  takeDirtyRuns(maxPages: number): Promise<NativeRange[]>;
  /** Whether `abort` may give up: no destination can own the functions. Between steps. */
  mayAbort(): boolean;
  /** False where it is too late: the intent, or the commit, is being made durable or is. */
  cancel(): boolean;
  /** Whether a rehearsed fault has really happened: one that never did proves nothing. */
  fired(): boolean;
  timings(): string;
  /** Rolls back what is not over. Resolves once the session holds nothing any more: its fence, its channels, its memory. */
  end(): Promise<void>;
}

/** One migration, at the destination. */
export interface NativeDestinationSession {
  readOffer(): Promise<string>;
  /** A checkpoint in place of `readOffer`: as that, with {mode, bytes, pages} */
  readCheckpoint(): Promise<string>;
  /** A checkpoint in place of `answer`, with the mismatches of both: {accepted, mismatches} */
  answerCheckpoint(json: string): Promise<string>;
  /** A checkpoint in place of `waitCommit`: {epoch, journalMs} */
  takeCheckpoint(): Promise<string>;
  /** Once it runs: gives the room of a move's file back. */
  emptyCheckpoint(): Promise<void>;
  /** {accepted, mismatches} */
  answer(json: string): Promise<string>;
  /** Where memory is passed: maps it. Writes to it wait for the commit. */
  receiveMemory(shrinkable: boolean): Promise<NativeGuestMemory>;
  /** Where memory is passed: the caller has what it needs of it, so the source may stop. */
  memoryTaken(): Promise<void>;
  receive(): Promise<string>;
  /** The caller's sections, in the order in which they were offered, once: their descriptors are the caller's from then on. */
  takeSections(): NativeSections;
  /** {digests} */
  prepared(): Promise<string>;
  waitCommit(): Promise<string>;
  /** Where the caller carries the commit; the epoch is decimal. {epoch, journalMs} */
  commitByCaller(epoch: string): Promise<string>;
  resume(): Promise<string>;
  /** Whether the source could be told. */
  running(): Promise<boolean>;
  abort(reason: string): Promise<string>;
  /** False where it is too late: the intent, or the commit, is being made durable or is. */
  cancel(): boolean;
  /** Whether a rehearsed fault has really happened: one that never did proves nothing. */
  fired(): boolean;
  timings(): string;
  /** Rolls back what is not over. Resolves once the session holds nothing any more: its fence, its channels, its memory. */
  end(): Promise<void>;
}

export interface NativeJournal {
  /** `JournalSession[]` of ts/migration/journal.ts. */
  sessions(): string;
  fence(): NativeFence;
  /** Settles one session; asks over `link`, once, where it is in doubt. JSON {verdict, answer}. */
  recover(sessionId: string, role: string, link: NativeLink | null): Promise<string>;
  declareDestinationDead(sessionId: string, reason: string): void;
  close(): void;
}

export interface NativeBinding extends NativeHost, NativeDirtyBinding {
  version(): string;
  /** Every point at which a crash or a failure can be rehearsed, in order. */
  faultPoints(): string[];
  /** Those that only a checkpoint or its restore passes. */
  checkpointPoints(): string[];
  monotonicNs(): bigint;
  memfd(name: string, lengthBytes: bigint): number;
  GuestMemory: new () => NativeGuestMemory;
  Bridge: new (callback: (id: number, method: string, json: string, bytes: Uint8Array) => void) => NativeBridge;
  /** `configJson`: {@link EmbeddedConfig} */
  openSubsystem(configJson: string): Promise<NativeSubsystem>;
  /** `specJson`: crates/tenant `TenantSpec` in camelCase, 64-bit numbers as decimal strings. `cntlid` of `subsystem`. */
  bootTenant(
    subsystem: NativeSubsystem,
    cntlid: number,
    memory: NativeGuestMemory,
    specJson: string,
  ): Promise<NativeTenant>;
  /** Takes up what is in guest memory. `hostTag` 0..255. */
  attachTenant(
    subsystem: NativeSubsystem,
    cntlid: number,
    memory: NativeGuestMemory,
    stateGpa: bigint,
    hostTag: number,
  ): Promise<NativeTenant>;
  connect(address: string, timeoutMs: number): Promise<NativeLink>;
  listen(address: string, allowRemotePlaintext: boolean, idleTimeoutMs: number): NativeListener;
  openJournal(directory: string): NativeJournal;
  sourceSession(configJson: string, parts: NativeSessionParts): NativeSourceSession;
  destinationSession(configJson: string, parts: NativeSessionParts): NativeDestinationSession;
  /** `mode`: 'move' | 'copy' */
  checkpointSession(
    configJson: string,
    parts: NativeSessionParts,
    path: string,
    mode: string,
    overwrite: boolean,
  ): NativeSourceSession;
  restoreSession(configJson: string, parts: NativeSessionParts, path: string): NativeDestinationSession;
  /** BAR policy (JSON, see ts/bar/policy.ts) → compiled filter in its documented flat layout. */
  compileBarPolicy(policyJson: string): Uint8Array;
  /** Largest ranges that may be mapped straight through: JSON [{offset,len}] as decimal strings. */
  barMmapPlan(filter: Uint8Array, pageSizeBytes: number): string;
  /** Push decoder for migration streams: returns JSON events. */
  StreamInspector: new (limitsJson: string) => NativeStreamInspector;
  crc32c(seed: number, data: Uint8Array): number;
  /** `inputJson`: `ForecastInput` of ts/migration/forecast.ts */
  Forecaster: new (inputJson: string) => NativeForecaster;
  /** [{ms, bytes}], ascending → `DirtyWriter` of ts/migration/forecast.ts */
  dirtyWriter(countsJson: string): string;
}

/** JSON of the shapes in ts/migration/forecast.ts. */
export interface NativeForecaster {
  observeRound(roundJson: string): void;
  /** {others, devices} as `DirtyWriter` of ts/migration/forecast.ts, and ms */
  observeWriters(json: string): void;
  /** {others, devices} of {ms, bytes} */
  observePace(json: string): void;
  observePending(bytes: number): void;
  observeStateBytes(bytes: number): void;
  forecast(): string;
  forecastAgain(): string;
  /** {others, devices} as `DirtyWriter` of ts/migration/forecast.ts */
  writers(): string;
  downtimeNow(): string;
}

export interface NativeStreamInspector {
  push(bytes: Uint8Array): string;
  finish(): string;
}

export interface NativeSessionParts {
  /** `null` where the session makes its own. */
  link: NativeLink | null;
  fence: NativeFence;
  memory: NativeGuestMemory | null;
  functions: { uuid: string; name: string; channel: NativeStateChannel; dirty: NativeDirtySource[] }[];
  extraDirty: NativeDirtySource[];
  progress: NativeProgress | null;
}
