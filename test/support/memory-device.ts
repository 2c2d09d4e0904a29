/**
 * A small device in plain TypeScript: eight registers and a page log. It implements both interfaces and is what the conformance kit
 * is tried on; `defects` break it on purpose.
 */
import { createHash } from 'node:crypto';
import { throwIfAborted, type WaitOptions } from '#towline/abort.js';
import { isReachable, statesOf } from '#towline/conformance/arcs.js';
import { TowlineError } from '#towline/errors.js';
import type { DirtySource, MemoryRange, PendingState, ReadResult, StateChannel } from '#towline/function/channel.js';
import type { DeviceState, MigrationFlags } from '#towline/function/state.js';

/** Each breaks one rule of the interfaces. */
export type Defect =
  | 'no-digest'
  | 'says-unverified'
  | 'format-changes'
  | 'accepts-cut'
  | 'accepts-extended'
  | 'state-lies'
  | 'reads-while-running'
  | 'writes-anywhere'
  | 'end-in-pre-copy'
  | 'never-ends'
  | 'oversized-reads'
  | 'any-arc'
  | 'reset-stays'
  | 'forgets-register'
  | 'deaf-to-abort'
  | 'close-twice-throws'
  | 'usable-after-close'
  | 'plain-errors'
  | 'cursor-survives'
  | 'stuck-after-bad-state'
  | 'dirty-loses-one'
  | 'dirty-start-only-once'
  | 'dirty-never-forgets'
  | 'dirty-odd-granularity'
  | 'dirty-first-page-only'
  | 'dirty-deaf-to-abort'
  | 'dirty-usable-after-close';

const MAGIC = 'MEMDEV01';
const STATE_BYTES = 8 + 64 + 32;

export class MemoryDevice {
  readonly registers = new BigUint64Array(8);
  readonly channel: StateChannel;
  readonly source: DirtySource & { written(gpa: bigint, len: number): void };
  failed = false;

  constructor(flags: MigrationFlags = { stopCopy: true, p2p: true, preCopy: true }, defects: readonly Defect[] = []) {
    const has = (d: Defect): boolean => defects.includes(d);
    this.channel = new Channel(this, flags, has);
    this.source = new PageLog(has);
  }

  serialize(): Uint8Array {
    const out = new Uint8Array(STATE_BYTES);
    out.set(new TextEncoder().encode(MAGIC));
    out.set(new Uint8Array(this.registers.buffer), 8);
    out.set(createHash('sha256').update(out.subarray(0, 72)).digest(), 72);
    return out;
  }

  /** Takes a state, or says why not. */
  parse(state: Uint8Array, has: (d: Defect) => boolean): void {
    const bad = (why: string): never => {
      throw new TowlineError('ERR_TOWLINE_BAD_STATE', `the written state ${why}`);
    };
    if (state.length < STATE_BYTES && !has('accepts-cut')) bad(`has ${state.length} bytes, not ${STATE_BYTES}`);
    if (state.length > STATE_BYTES && !has('accepts-extended')) bad(`has ${state.length} bytes, not ${STATE_BYTES}`);
    if (!has('no-digest') && !has('accepts-cut')) {
      if (new TextDecoder().decode(state.subarray(0, 8)) !== MAGIC) bad('has another magic');
      const digest = createHash('sha256').update(state.subarray(0, 72)).digest();
      if (digest.compare(state, 72, STATE_BYTES) !== 0) bad('has another digest');
    }
    const whole = new Uint8Array(STATE_BYTES);
    whole.set(state.subarray(0, STATE_BYTES));
    this.registers.set(new BigUint64Array(whole.slice(8, 72).buffer));
    if (has('forgets-register')) this.registers[7] = 0n;
  }
}

class Channel implements StateChannel {
  readonly #device: MemoryDevice;
  readonly flags: MigrationFlags;
  readonly verifies: boolean;
  readonly #has: (d: Defect) => boolean;
  #state: DeviceState = 'running';
  #reading: Uint8Array | undefined;
  #at = 0;
  #written: number[] = [];
  #closed = false;
  #stuck = false;

  constructor(device: MemoryDevice, flags: MigrationFlags, has: (d: Defect) => boolean) {
    this.#device = device;
    this.flags = flags;
    this.verifies = !has('says-unverified');
    this.#has = has;
  }

  get format(): string {
    return this.#has('format-changes') ? `memory:${this.#state}` : 'memory:1';
  }

  #enter(options: WaitOptions | undefined): void {
    if (!this.#has('deaf-to-abort')) throwIfAborted(options?.signal);
    if (this.#closed && !this.#has('usable-after-close'))
      throw new TowlineError('ERR_TOWLINE_CLOSED', 'the channel is closed');
    if (this.#device.failed) this.#state = 'error';
  }

  #refuse(what: string): never {
    if (this.#has('plain-errors')) throw new Error(`${what} in ${this.#state}`);
    throw new TowlineError('ERR_TOWLINE_STATE', `${what} in ${this.#state}`, { state: this.#state });
  }

  async state(options?: WaitOptions): Promise<DeviceState> {
    this.#enter(options);
    return this.#has('state-lies') && this.#state === 'stop-copy' ? 'stop' : this.#state;
  }

  async setState(to: DeviceState, options?: WaitOptions): Promise<void> {
    this.#enter(options);
    const from = this.#state;
    if (from === 'error') this.#refuse(`setState(${to})`);
    if (!this.#has('any-arc') && !(statesOf(this.flags).includes(to) && isReachable(this.flags, from, to)))
      this.#refuse(`setState(${to})`);
    if (from === to) return;
    if (from === 'resuming') {
      try {
        if (this.#stuck) throw new TowlineError('ERR_TOWLINE_BAD_STATE', 'a state was refused before');
        this.#device.parse(Uint8Array.from(this.#written), this.#has);
      } catch (error) {
        if (this.#has('stuck-after-bad-state')) this.#stuck = true;
        throw error;
      }
    }
    if (to === 'resuming') this.#written = [];
    if (!this.#has('cursor-survives') || this.#reading === undefined) {
      this.#reading = to === 'stop-copy' || to.startsWith('pre-copy') ? this.#device.serialize() : undefined;
      this.#at = 0;
    }
    this.#state = to;
  }

  async read(maxBytes: number, options?: WaitOptions): Promise<ReadResult> {
    this.#enter(options);
    const live = this.#state.startsWith('pre-copy');
    if (this.#state !== 'stop-copy' && !live) {
      if (!this.#has('reads-while-running')) this.#refuse('read');
      return { kind: 'end' };
    }
    const state = this.#reading ?? this.#device.serialize();
    // In pre-copy the first half comes; the rest is read once the device has stopped, from the beginning.
    const end = live ? state.length / 2 : state.length;
    if (this.#at >= end) {
      if (this.#has('never-ends') && !live) this.#at = 0;
      else return { kind: live && !this.#has('end-in-pre-copy') ? 'empty-for-now' : 'end' };
    }
    const take = this.#has('oversized-reads') ? maxBytes + 1 : maxBytes;
    const bytes = state.slice(this.#at, Math.min(this.#at + take, end));
    this.#at += bytes.length;
    return { kind: 'bytes', bytes };
  }

  async write(data: Uint8Array, options?: WaitOptions): Promise<void> {
    this.#enter(options);
    if (this.#state !== 'resuming') {
      if (this.#has('writes-anywhere')) return;
      this.#refuse('write');
    }
    if (this.#written.length + data.length > 4096)
      throw new TowlineError('ERR_TOWLINE_LIMIT', 'more than 4096 bytes of state');
    this.#written.push(...data);
  }

  async pending(options?: WaitOptions): Promise<PendingState> {
    this.#enter(options);
    return { initialBytes: 0n, dirtyBytes: 0n, stopCopyBytes: BigInt(STATE_BYTES) };
  }

  async reset(options?: WaitOptions): Promise<void> {
    this.#enter(options);
    if (this.#has('reset-stays')) return;
    this.#device.failed = false;
    this.#device.registers.fill(0n);
    this.#state = 'running';
    this.#reading = undefined;
  }

  async close(): Promise<void> {
    if (this.#closed && this.#has('close-twice-throws'))
      throw new TowlineError('ERR_TOWLINE_CLOSED', 'it is closed already');
    this.#closed = true;
  }
}

const PAGE = 4096n;

class PageLog implements DirtySource {
  readonly #has: (d: Defect) => boolean;
  readonly #dirty = new Set<bigint>();
  #ranges: readonly MemoryRange[] = [];
  #starts = 0;
  #writes = 0;
  #closed = false;

  constructor(has: (d: Defect) => boolean) {
    this.#has = has;
  }

  written(gpa: bigint, len: number): void {
    this.#writes += 1;
    if (this.#has('dirty-loses-one') && this.#writes === 41) return;
    const last = this.#has('dirty-first-page-only') ? gpa / PAGE : (gpa + BigInt(len) - 1n) / PAGE;
    for (let page = gpa / PAGE; page <= last; page += 1n) {
      if (this.#ranges.some((r) => page * PAGE + PAGE > r.gpa && page * PAGE < r.gpa + r.len)) this.#dirty.add(page);
    }
  }

  #enter(options: WaitOptions | undefined): void {
    if (!this.#has('dirty-deaf-to-abort')) throwIfAborted(options?.signal);
    if (this.#closed && !this.#has('dirty-usable-after-close'))
      throw new TowlineError('ERR_TOWLINE_CLOSED', 'the source is closed');
  }

  async start(ranges: readonly MemoryRange[], _pageSizeBytes: number, options?: WaitOptions): Promise<number> {
    this.#enter(options);
    if (this.#has('dirty-start-only-once') && this.#starts++ > 0)
      throw new TowlineError('ERR_TOWLINE_BUSY', 'started before');
    this.#ranges = ranges;
    this.#dirty.clear();
    return this.#has('dirty-odd-granularity') ? 5000 : Number(PAGE);
  }

  async harvest(options?: WaitOptions): Promise<readonly MemoryRange[]> {
    this.#enter(options);
    const ranges = [...this.#dirty].map((page) => ({ gpa: page * PAGE, len: PAGE }));
    if (!this.#has('dirty-never-forgets')) this.#dirty.clear();
    return ranges;
  }

  async stop(options?: WaitOptions): Promise<void> {
    this.#enter(options);
    this.#ranges = [];
  }

  async close(): Promise<void> {
    this.#closed = true;
  }
}
