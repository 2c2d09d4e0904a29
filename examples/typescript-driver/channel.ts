/**
 * The two interfaces of a migration, for the adding machine.
 */
import { createHash } from 'node:crypto';
import {
  TowlineError,
  type DeviceState,
  type DirtySource,
  type MemoryRange,
  type PendingState,
  type ReadResult,
  type StateChannel,
  type WaitOptions,
} from 'towline';
import { isReachable } from 'towline/conformance';
import type { Tally } from './tally.js';

/** Magic, total, count, SHA-256 of these: nothing that was cut off, damaged or foreign is taken. */
const MAGIC = new TextEncoder().encode('TALLYv01');
const STATE_BYTES = 8 + 16 + 32;

function checkOpen(closed: boolean, options: WaitOptions | undefined): void {
  if (options?.signal?.aborted)
    throw new TowlineError('ERR_TOWLINE_ABORTED', 'the caller cancelled', { cause: options.signal.reason });
  if (closed) throw new TowlineError('ERR_TOWLINE_CLOSED', 'it is closed');
}

/** Brings the device's state out and in. It has neither pre-copy nor P2P: the state is a few bytes. */
export class TallyChannel implements StateChannel {
  readonly flags = { stopCopy: true, p2p: false, preCopy: false };
  readonly #device: Tally;
  #state: DeviceState = 'running';
  #out: Uint8Array = new Uint8Array();
  #in: Uint8Array = new Uint8Array();
  #closed = false;

  constructor(device: Tally) {
    this.#device = device;
  }

  async state(options?: WaitOptions): Promise<DeviceState> {
    checkOpen(this.#closed, options);
    return this.#state;
  }

  // guide: arcs
  async setState(to: DeviceState, options?: WaitOptions): Promise<void> {
    checkOpen(this.#closed, options);
    if (!isReachable(this.flags, this.#state, to)) this.#refuse(`setState(${to})`);
    if (to === this.#state) return;
    // What was written is looked at as a whole, on the way out of resuming, and refused there.
    if (this.#state === 'resuming') load(this.#device, this.#in);
    this.#device.running = to === 'running';
    this.#out = to === 'stop-copy' ? save(this.#device) : new Uint8Array();
    this.#in = new Uint8Array();
    this.#state = to;
  }
  // guide: end

  async read(maxBytes: number, options?: WaitOptions): Promise<ReadResult> {
    checkOpen(this.#closed, options);
    if (this.#state !== 'stop-copy') this.#refuse('read');
    if (this.#out.length === 0) return { kind: 'end' };
    const bytes = this.#out.slice(0, maxBytes);
    this.#out = this.#out.subarray(bytes.length);
    return { kind: 'bytes', bytes };
  }

  async write(data: Uint8Array, options?: WaitOptions): Promise<void> {
    checkOpen(this.#closed, options);
    if (this.#state !== 'resuming') this.#refuse('write');
    // Whoever sends state may send anything: a cap comes before memory.
    if (this.#in.length + data.length > STATE_BYTES)
      throw new TowlineError('ERR_TOWLINE_BAD_STATE', `more than ${STATE_BYTES} bytes of state`);
    this.#in = Uint8Array.from([...this.#in, ...data]);
  }

  async pending(options?: WaitOptions): Promise<PendingState> {
    checkOpen(this.#closed, options);
    return { initialBytes: 0n, dirtyBytes: 0n, stopCopyBytes: BigInt(STATE_BYTES) };
  }

  async reset(options?: WaitOptions): Promise<void> {
    checkOpen(this.#closed, options);
    this.#device.reset();
    this.#state = 'running';
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  #refuse(what: string): never {
    throw new TowlineError('ERR_TOWLINE_STATE', `${what} in ${this.#state}`, { state: this.#state });
  }
}

/** Tells which pages the device wrote. */
export class TallyWrites implements DirtySource {
  readonly #pages = new Set<bigint>();
  #ranges: readonly MemoryRange[] = [];
  #pageBytes = 4096n;
  #closed = false;

  constructor(device: Tally) {
    device.onWrite = (gpa, lengthBytes) => this.#written(gpa, BigInt(lengthBytes));
  }

  async start(ranges: readonly MemoryRange[], pageSizeBytes: number, options?: WaitOptions): Promise<number> {
    checkOpen(this.#closed, options);
    this.#pageBytes = BigInt(pageSizeBytes);
    this.#ranges = ranges;
    this.#pages.clear();
    return pageSizeBytes;
  }

  async harvest(options?: WaitOptions): Promise<readonly MemoryRange[]> {
    checkOpen(this.#closed, options);
    const harvest = [...this.#pages].map((page) => ({ gpa: page * this.#pageBytes, len: this.#pageBytes }));
    this.#pages.clear();
    return harvest;
  }

  async stop(options?: WaitOptions): Promise<void> {
    checkOpen(this.#closed, options);
    this.#ranges = [];
    this.#pages.clear();
  }

  async close(): Promise<void> {
    this.#closed = true;
  }

  #written(gpa: bigint, len: bigint): void {
    if (!this.#ranges.some((r) => gpa < r.gpa + r.len && gpa + len > r.gpa)) return;
    const last = (gpa + len - 1n) / this.#pageBytes;
    for (let page = gpa / this.#pageBytes; page <= last; page += 1n) this.#pages.add(page);
  }
}

function save({ total, count }: Tally): Uint8Array {
  const state = new Uint8Array(STATE_BYTES);
  const view = new DataView(state.buffer);
  state.set(MAGIC);
  view.setBigUint64(8, total, true);
  view.setBigUint64(16, count, true);
  state.set(createHash('sha256').update(state.subarray(0, 24)).digest(), 24);
  return state;
}

function load(device: Tally, state: Uint8Array): void {
  const digest = createHash('sha256').update(state.subarray(0, 24)).digest();
  const isWhole =
    state.length === STATE_BYTES &&
    MAGIC.every((byte, at) => state[at] === byte) &&
    digest.every((byte, at) => state[24 + at] === byte);
  if (!isWhole) throw new TowlineError('ERR_TOWLINE_BAD_STATE', `${state.length} bytes are no whole state of a tally`);
  const view = new DataView(state.buffer, state.byteOffset);
  device.total = view.getBigUint64(8, true);
  device.count = view.getBigUint64(16, true);
}
