/**
 * Reads a migration stream and explains it, frame by frame. Nothing of it is believed: every frame that comes out was whole, in
 * order and in its checksum.
 */
import { throwIfAborted, type WaitOptions } from '../abort.js';
import { nativeSync, TowlineError } from '../errors.js';
import { binding } from '../native/api.js';
import type { StreamItem, StreamLimits } from './frames.js';
import { readAnswer } from './native.js';

/** Bytes that are looked at in one go: between two of them the signal is heard. */
const PIECE_BYTES = 1 << 20;

/** Options of {@link inspect}. */
export interface InspectOptions extends WaitOptions {
  limits?: StreamLimits | undefined;
}

function checkLimits(limits: StreamLimits): void {
  for (const [name, value] of Object.entries(limits)) {
    if (value !== undefined && !(Number.isSafeInteger(value) && value > 0 && value < 2 ** 32)) {
      throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${name} is ${String(value)}; it has to be 1 to 2^32 - 1`);
    }
  }
}

/**
 * Yields every frame, and `damage` at the end where the stream is not whole. It throws only where `stream` itself does, or the
 * signal fires.
 */
export async function* inspect(
  stream: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  options: InspectOptions = {},
): AsyncGenerator<StreamItem, void, void> {
  const limits = options.limits ?? {};
  checkLimits(limits);
  // In a recording the dialogue goes on after the state has ended, as it did on the link.
  const inspector = nativeSync(() => new (binding().StreamInspector)(JSON.stringify({ ...limits, connection: true })));
  for await (const bytes of stream) {
    for (let at = 0; at < bytes.length; at += PIECE_BYTES) {
      throwIfAborted(options.signal);
      const items = readAnswer(nativeSync(() => inspector.push(bytes.subarray(at, at + PIECE_BYTES))));
      yield* items;
      if (items.at(-1)?.type === 'damage') return;
    }
  }
  yield* readAnswer(nativeSync(() => inspector.finish()));
}

/** What a whole stream holds. */
export interface StreamSummary {
  readonly session: string | undefined;
  readonly frames: number;
  readonly functions: number;
  /** Memory passes, the final one included. */
  readonly rounds: number;
  readonly pages: number;
  readonly memoryBytes: number;
  readonly stateBytes: number;
  readonly damage: string | undefined;
}

/** Adds up what {@link inspect} yields. */
export async function summarise(items: AsyncIterable<StreamItem>): Promise<StreamSummary> {
  const sum = {
    session: undefined as string | undefined,
    frames: 0,
    functions: 0,
    rounds: 0,
    pages: 0,
    memoryBytes: 0,
    stateBytes: 0,
    damage: undefined as string | undefined,
  };
  for await (const item of items) {
    if (item.type === 'damage') {
      sum.damage = item.message;
      continue;
    }
    sum.frames += 1;
    if (item.type === 'header') sum.session = item.session;
    else if (item.type === 'section-begin' && item.kind === 'device-state') sum.functions += 1;
    else if (item.type === 'round-end') sum.rounds += 1;
    else if (item.type === 'state-chunk') sum.stateBytes += item.bytes;
    else if (item.type === 'pages') {
      sum.pages += (item.dataBytes + item.zeroBytes) / item.pageSizeBytes;
      sum.memoryBytes += item.dataBytes;
    }
  }
  return sum;
}

/** One frame in a line, for people. */
export function describe(item: StreamItem): string {
  switch (item.type) {
    case 'header':
      return `stream of session ${item.session}, version ${item.major}.${item.minor}`;
    case 'section-begin':
      return `channel ${item.channel}: ${item.kind} "${printable(item.name)}"${item.kind === 'device-state' ? ` of ${item.function}` : ''}`;
    case 'state-chunk':
      return `channel ${item.channel}: ${item.bytes} bytes of device state`;
    case 'pages':
      return `channel ${item.channel}: pages of ${item.pageSizeBytes} bytes from 0x${BigInt(item.from).toString(16)} to 0x${BigInt(item.to).toString(16)}: ${item.dataBytes} bytes, ${item.zeroBytes} zero`;
    case 'section-data':
      return `channel ${item.channel}: ${item.bytes} bytes`;
    case 'round-end':
      return `channel ${item.channel}: end of ${item.final ? 'the final round' : `round ${item.round}`}: ${item.pages} pages, ${item.bytes} bytes`;
    case 'manifest':
      return `channel ${item.channel}: manifest of ${item.frames} frames, ${item.bytes} bytes`;
    case 'dialogue':
      return `dialogue: ${item.bytes} bytes${item.message === null ? '' : `, ${printable(item.message)}`}`;
    case 'filler':
      return `${item.bytes} bytes of filler, by which the bandwidth was measured`;
    case 'skipped':
      return `channel ${item.channel}: optional frame of unknown type ${item.frameType}, ${item.bytes} bytes`;
    case 'stream-end':
      return 'end of the state';
    case 'damage':
      return `DAMAGED: ${item.message}`;
  }
}

/** A name out of a stream must not steer the terminal that shows it. */
function printable(name: string): string {
  return name.replace(/[\u0000-\u001f\u007f-\u009f"\\]/g, (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, '0')}`);
}
