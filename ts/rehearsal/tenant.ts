/**
 * A tenant for rehearsals: an NVMe host with a workload, whose whole state is in guest memory, so that it goes on after a move
 * only with what was migrated (crates/tenant).
 */
import { throwIfAborted, withSignal, type WaitOptions } from '../abort.js';
import { kSubsystem } from '../drivers/embedded.js';
import { NvmeFunction } from '../drivers/nvme.js';
import { native, nativeSync, TowlineError } from '../errors.js';
import type { MemoryRange } from '../function/channel.js';
import type { ControlledFunction } from '../function/types.js';
import type { GuestMemory } from '../migration/memory.js';
import { binding } from '../native/api.js';
import type { NativeTenant } from '../native/binding.js';
import type { EmbeddedSubsystem } from './subsystem.js';

/** What a tenant does. What is left out is the default of crates/tenant. */
export interface TenantSpec {
  /** First guest-physical address of its memory, a multiple of 4096. Default: 0. */
  baseGpa?: bigint | undefined;
  /** Bytes of its memory, a multiple of 4096. Default: all of the range that begins at `baseGpa`. */
  memoryBytes?: bigint | undefined;
  /** Reads and writes in flight, 1 to 63. Default: 32. */
  queueDepth?: number | undefined;
  /** I/O queue pairs, 1 to 8. Default: 2. */
  ioQueuePairs?: number | undefined;
  /** Units of 4096 bytes of the namespace that it uses, from block 0 on. Default: 8192. */
  units?: number | undefined;
  /** The namespace. Default: 1. */
  nsid?: number | undefined;
  /** Pages of 4096 bytes that its CPU writes. Default: 4096. */
  workingSetPages?: number | undefined;
  /** How fast it writes them, bytes a second; 0 is not at all. Default: 8 MiB. */
  cpuDirtyBytesPerSecond?: number | undefined;
  /** Commands a second at most. Default: 1500. */
  targetIops?: number | undefined;
  /** Share of reads, 0 to 100. Default: 50. */
  readPercent?: number | undefined;
  /** Start of its random numbers. Default: 1. */
  seed?: bigint | undefined;
  /** Says in every record of its log which process it was, 0 to 255. Default: 0. */
  hostTag?: number | undefined;
}

/** Where a tenant has what in guest memory. */
export interface TenantLayout {
  readonly stateGpa: bigint;
  /** Written by the device only. */
  readonly telemetry: MemoryRange;
  /** Written by its CPU. */
  readonly workingSet: MemoryRange;
  /** Data of its reads and writes. */
  readonly data: MemoryRange;
}

/** What a drain found. */
export interface Drained {
  /** Commands still in flight when the time was up. */
  readonly pending: number;
}

/** A tenant; it keeps running until it is stopped, also across a pause. */
export class Tenant {
  /** Where it has what. */
  readonly layout: TenantLayout;
  readonly #handle: NativeTenant;
  #closed = false;

  private constructor(handle: NativeTenant) {
    this.#handle = handle;
    this.layout = parseLayout(nativeSync(() => handle.layout()));
  }

  /** Resets the function, brings it up as Linux would and writes its first state into `memory`. */
  static async boot(
    subsystem: EmbeddedSubsystem,
    fn: ControlledFunction,
    memory: GuestMemory,
    spec: TenantSpec = {},
  ): Promise<Tenant> {
    const { cntlid } = nvme(fn);
    const json = JSON.stringify(specJson(spec, memory));
    const handle = await native(
      () => binding().bootTenant(subsystem.controlling[kSubsystem], cntlid, memory.native(), json),
      { function: fn.uuid },
    );
    return new Tenant(handle);
  }

  /** Takes up the tenant whose state is in `memory`, with nothing else. */
  static async attach(
    subsystem: EmbeddedSubsystem,
    fn: ControlledFunction,
    memory: GuestMemory,
    options: { stateGpa?: bigint | undefined; hostTag?: number | undefined } = {},
  ): Promise<Tenant> {
    const { cntlid } = nvme(fn);
    const handle = await native(
      () =>
        binding().attachTenant(
          subsystem.controlling[kSubsystem],
          cntlid,
          memory.native(),
          options.stateGpa ?? 0n,
          checkTag(options.hostTag ?? 0),
        ),
      { function: fn.uuid },
    );
    return new Tenant(handle);
  }

  /** Starts its CPU. `logFd` is duplicated; every completion is written to it. `flushOnly`: it submits flushes and nothing else. */
  run(options: { logFd: number; flushOnly?: boolean | undefined }): void {
    nativeSync(() => this.#handle.run({ logFd: options.logFd, flushOnly: options.flushOnly ?? false }));
  }

  /** Stops its CPU where it is, with commands in flight. */
  async pause(): Promise<void> {
    await native(() => this.#handle.pause());
  }

  /** Lets its CPU go on. */
  resume(): void {
    nativeSync(() => this.#handle.resume());
  }

  /**
   * Takes `percent` (0 to 99) off the pace of its CPU: of its writes to memory and of the commands that it submits. While it runs; what a
   * `throttle` hook of a migration calls. It does not migrate.
   */
  throttle(percent: number): void {
    nativeSync(() => this.#handle.throttle(percent));
  }

  /** Submits nothing more and waits for what is in flight, `timeoutMs` at most. */
  async drain(options: WaitOptions & { timeoutMs: number }): Promise<Drained> {
    throwIfAborted(options.signal);
    return JSON.parse(
      await withSignal(
        native(() => this.#handle.drain(options.timeoutMs)),
        options.signal,
      ),
    ) as Drained;
  }

  /** Ends its CPU. It can be run again. Idempotent. */
  async stop(): Promise<void> {
    await native(() => this.#handle.stop());
  }

  /** Counters; those of commands go on through migrations. */
  stats(): Readonly<Record<string, unknown>> {
    return JSON.parse(nativeSync(() => this.#handle.stats())) as Record<string, unknown>;
  }

  /** Stops it and lets go of it. Idempotent. */
  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.stop();
    nativeSync(() => this.#handle.close());
  }

  /** As {@link Tenant.close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

function nvme(fn: ControlledFunction): NvmeFunction {
  if (fn instanceof NvmeFunction) return fn;
  throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${fn.name} is no function of an embedded subsystem`, {
    function: fn.uuid,
  });
}

function checkTag(tag: number): number {
  if (Number.isInteger(tag) && tag >= 0 && tag <= 255) return tag;
  throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `hostTag is ${tag}; it has to be 0 to 255`);
}

/** The native shape: `TenantSpec` of crates/tenant in camelCase, 64-bit numbers as decimal strings, and `hostTag`. */
function specJson(spec: TenantSpec, memory: GuestMemory): Record<string, string | number> {
  const baseGpa = spec.baseGpa ?? 0n;
  const range = memory.ranges().find((r) => r.gpa <= baseGpa && baseGpa < r.gpa + r.len);
  if (range === undefined) {
    throw new TowlineError('ERR_TOWLINE_MEMORY', `0x${baseGpa.toString(16)} is in no range of the guest memory`);
  }
  const json: Record<string, string | number> = {
    baseGpa: baseGpa.toString(),
    memoryLen: (spec.memoryBytes ?? range.gpa + range.len - baseGpa).toString(),
    hostTag: checkTag(spec.hostTag ?? 0),
  };
  const number = (key: string, value: number | undefined): void => {
    if (value !== undefined) json[key] = value;
  };
  const wide = (key: string, value: number | bigint | undefined): void => {
    if (value === undefined) return;
    if (typeof value === 'number' && !(Number.isSafeInteger(value) && value >= 0)) {
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        `${key} is ${value}; it has to be a whole number, 0 or more`,
      );
    }
    json[key] = value.toString();
  };
  number('queueDepth', spec.queueDepth);
  number('ioQueuePairs', spec.ioQueuePairs);
  wide('units', spec.units);
  number('nsid', spec.nsid);
  wide('workingSetPages', spec.workingSetPages);
  wide('cpuDirtyBytesPerS', spec.cpuDirtyBytesPerSecond);
  number('targetIops', spec.targetIops);
  number('readPercent', spec.readPercent);
  wide('seed', spec.seed);
  return json;
}

interface LayoutJson {
  stateGpa: string;
  telemetry: { gpa: string; len: string };
  workingSet: { gpa: string; len: string };
  data: { gpa: string; len: string };
}

function parseLayout(text: string): TenantLayout {
  const json = JSON.parse(text) as LayoutJson;
  const range = (r: { gpa: string; len: string }): MemoryRange => ({ gpa: BigInt(r.gpa), len: BigInt(r.len) });
  return {
    stateGpa: BigInt(json.stateGpa),
    telemetry: range(json.telemetry),
    workingSet: range(json.workingSet),
    data: range(json.data),
  };
}
