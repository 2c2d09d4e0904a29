/**
 * A function as a third party would write it: plain TypeScript, nothing native. Its device counts up a register while it runs and writes
 * guest memory; its state is the register and some ballast.
 */
import { randomUUID } from 'node:crypto';
import type { DirtySource, MemoryRange, PendingState, ReadResult, StateChannel } from '#towline/function/channel.js';
import type { DeviceState, MigrationFlags } from '#towline/function/state.js';
import type { FunctionDescriptor, MigratableFunction, Reason } from '#towline/function/types.js';
import { TowlineError } from '#towline/errors.js';
import type { Doubt } from '#towline/migration/doubt.js';
import type { GuestMemory } from '#towline/migration/memory.js';

const MAGIC = 0x5453_4456;

export class TsDevice implements MigratableFunction {
  readonly kind = 'vf' as const;
  readonly uuid: string;
  readonly name: string;
  readonly device: TsChannel;
  readonly dirty = new TsDirty();
  /** What `explain` says; empty where it can be migrated. */
  reasons: Reason[] = [];
  revision = 1;
  doubt: Doubt | undefined;

  constructor(name: string, options: { uuid?: string; flags?: Partial<MigrationFlags>; ballastBytes?: number } = {}) {
    this.uuid = options.uuid ?? randomUUID();
    this.name = name;
    this.device = new TsChannel(
      { stopCopy: true, p2p: false, preCopy: false, ...options.flags },
      options.ballastBytes ?? 100_000,
    );
  }

  setDoubt(doubt: Doubt | undefined): void {
    this.doubt = doubt;
  }

  channel(): StateChannel {
    return this.device;
  }

  dirtySources(): readonly DirtySource[] {
    return [this.dirty];
  }

  async descriptor(): Promise<FunctionDescriptor> {
    return { revision: { value: this.revision, rule: 'equal', why: 'provision the same revision' } };
  }

  async explain(): Promise<readonly Reason[]> {
    return this.reasons;
  }

  /** DMA: writes, then reports. Only while it runs. */
  dma(memory: GuestMemory, gpa: bigint, data: Uint8Array): void {
    if (this.device.now !== 'running') throw new Error(`DMA in ${this.device.now}`);
    memory.write(gpa, data);
    this.dirty.wrote.push({ gpa, len: BigInt(data.length) });
  }
}

export class TsDirty implements DirtySource {
  wrote: MemoryRange[] = [];
  tracking = false;

  async start(_ranges: readonly MemoryRange[], pageSizeBytes: number): Promise<number> {
    this.tracking = true;
    return pageSizeBytes;
  }

  async harvest(): Promise<readonly MemoryRange[]> {
    return this.wrote.splice(0);
  }

  async stop(): Promise<void> {
    this.tracking = false;
  }

  async close(): Promise<void> {}
}

export class TsChannel implements StateChannel {
  now: DeviceState = 'running';
  register = 0n;
  resets = 0;
  format: string | undefined;
  /** It can't tell how large its state is. */
  isSizeUnknown = false;
  /** Every state it was in, for order. */
  readonly history: DeviceState[] = ['running'];
  /** Called before a transition; may throw. */
  onSet: (to: DeviceState) => void | Promise<void> = () => {};
  #out: Uint8Array = new Uint8Array();
  #in: Uint8Array[] = [];

  constructor(
    readonly flags: MigrationFlags,
    readonly ballastBytes: number,
  ) {}

  async state(): Promise<DeviceState> {
    return this.now;
  }

  async setState(to: DeviceState): Promise<void> {
    await this.onSet(to);
    if (this.now === 'resuming' && to !== 'resuming') this.#load();
    if (to === 'stop-copy') this.#out = this.#save();
    if (to === 'resuming') this.#in = [];
    this.now = to;
    this.history.push(to);
  }

  async read(maxBytes: number): Promise<ReadResult> {
    if (this.now === 'pre-copy') return { kind: 'empty-for-now' };
    if (this.now !== 'stop-copy') throw new TowlineError('ERR_TOWLINE_STATE', `read in ${this.now}`);
    if (this.#out.length === 0) return { kind: 'end' };
    const bytes = this.#out.slice(0, Math.min(maxBytes, 7001));
    this.#out = this.#out.subarray(bytes.length);
    return { kind: 'bytes', bytes };
  }

  async write(data: Uint8Array): Promise<void> {
    if (this.now !== 'resuming') throw new TowlineError('ERR_TOWLINE_STATE', `write in ${this.now}`);
    this.#in.push(data.slice());
  }

  async pending(): Promise<PendingState> {
    const stopCopyBytes = this.isSizeUnknown ? undefined : BigInt(this.ballastBytes + 16);
    return { initialBytes: 0n, dirtyBytes: 0n, stopCopyBytes };
  }

  async reset(): Promise<void> {
    this.resets += 1;
    this.register = 0n;
    this.now = 'running';
    this.history.push('running');
  }

  async close(): Promise<void> {}

  #save(): Uint8Array {
    const out = new Uint8Array(16 + this.ballastBytes);
    const view = new DataView(out.buffer);
    view.setUint32(0, MAGIC, true);
    view.setUint32(4, this.ballastBytes, true);
    view.setBigUint64(8, this.register, true);
    for (let i = 16; i < out.length; i++) out[i] = (i * 31 + Number(this.register & 0xffn)) & 0xff;
    return out;
  }

  #load(): void {
    const bytes = Buffer.concat(this.#in);
    if (bytes.length < 16 || bytes.readUInt32LE(0) !== MAGIC || bytes.length !== 16 + bytes.readUInt32LE(4)) {
      throw new TowlineError('ERR_TOWLINE_BAD_STATE', `${bytes.length} bytes are no whole state`);
    }
    this.register = bytes.readBigUInt64LE(8);
    if (!Buffer.from(this.#save()).equals(bytes))
      throw new TowlineError('ERR_TOWLINE_BAD_STATE', 'the ballast is damaged');
  }
}
