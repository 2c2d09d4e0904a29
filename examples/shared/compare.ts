/** Compares two guest memories, page by page. */
import { fstatSync, readSync } from 'node:fs';

/** Bytes of a page. */
export const PAGE_BYTES = 4096;
/** Small enough that both copies stay in the cache: half the time of blocks of 4 MiB. */
const BLOCK_BYTES = 256 << 10;
const MAX_LISTED = 16;

/** What {@link compareMemories} found. */
export interface Comparison {
  comparedPages: number;
  /** Pages that differ. */
  stalePages: number;
  /** Offsets of the first of them, hexadecimal; at most 16. */
  firstStale: string[];
  ms: number;
}

/** Compares every page of two files of the same size, holes included. Nothing may write to either meanwhile. */
export function compareMemories(a: number, b: number): Comparison {
  const size = fstatSync(a).size;
  if (size !== fstatSync(b).size) throw new Error('the memories differ in size');
  if (size === 0 || size % PAGE_BYTES !== 0) throw new Error(`a memory of ${size} bytes`);
  const started = process.hrtime.bigint();
  const left = Buffer.allocUnsafe(BLOCK_BYTES);
  const right = Buffer.allocUnsafe(BLOCK_BYTES);
  const found: Comparison = { comparedPages: 0, stalePages: 0, firstStale: [], ms: 0 };
  for (let at = 0; at < size; at += BLOCK_BYTES) {
    const length = Math.min(BLOCK_BYTES, size - at);
    readFully(a, left, length, at);
    readFully(b, right, length, at);
    found.comparedPages += length / PAGE_BYTES;
    if (left.compare(right, 0, length, 0, length) !== 0) listPages(left, right, length, at, found);
  }
  found.ms = Number(process.hrtime.bigint() - started) / 1e6;
  return found;
}

function listPages(left: Buffer, right: Buffer, length: number, at: number, found: Comparison): void {
  for (let page = 0; page < length; page += PAGE_BYTES) {
    if (left.compare(right, page, page + PAGE_BYTES, page, page + PAGE_BYTES) === 0) continue;
    found.stalePages++;
    if (found.firstStale.length < MAX_LISTED) found.firstStale.push(`0x${(at + page).toString(16)}`);
  }
}

/** Reads `length` bytes at `position`; fewer are an error. */
export function readFully(fd: number, into: Buffer, length: number, position: number): void {
  let done = 0;
  while (done < length) {
    const n = readSync(fd, into, done, length - done, position + done);
    if (n === 0) throw new Error(`nothing more to read at byte ${position + done}`);
    done += n;
  }
}
