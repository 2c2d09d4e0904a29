/**
 * The flat bytes of a compiled filter, and their check. The layout is documented in crates/core/src/bar/layout.rs.
 */
import { TowlineError } from '../errors.js';

/** Bytes of the header. */
export const HEADER_BYTES = 144;
/** log2 of the bytes of a filter page. */
export const PAGE_SHIFT = 12;
/** Bytes of a mixed page. */
export const MIXED_BYTES = 8 + 1024;
/** Bytes of a class. */
export const CLASS_BYTES = 24;
/** Bytes of a rule record. */
export const RULE_BYTES = 40;
/** Bit of a page entry that names a mixed page. */
export const MIXED_BIT = 0x8000_0000;
/** The operations of a class. */
export const OP = { target: 0, fixed: 1, trap: 2, shadow: 3 } as const;
/** The kind of a rule record that has a shadow. */
export const KIND_WRITE_ONE_TO_CLEAR = 4;

const MAGIC = new Uint8Array([0x54, 0x57, 0x4c, 0x42, 0x41, 0x52, 0x46, 0]);
const VERSION = 1;
const MAX_BAR_BYTES = 2 ** 37;
const MAX_FILTER_BYTES = 2 ** 30;
const MAX_RULES = 131_072;
const MAX_SHADOW_BYTES = 2 ** 20;

/** Where a section begins and how many records it has. */
export interface Section {
  readonly at: number;
  readonly count: number;
}

/** The header, checked: every section lies inside of the bytes, and every index in it inside of its section. */
export interface FilterHeader {
  readonly barBytes: number;
  readonly visibleBytes: number;
  readonly pages: Section;
  readonly mixed: Section;
  readonly classes: Section;
  readonly readRules: Section;
  readonly writeRules: Section;
  readonly shadowBytes: number;
  readonly rules: number;
}

function damaged(what: string): TowlineError {
  return new TowlineError('ERR_TOWLINE_POLICY', `not a compiled BAR filter: ${what}`);
}

/** A 64-bit field that has to be at most `most`, which is exactly representable. */
function capped(view: DataView, at: number, most: number, what: string): number {
  const value = view.getBigUint64(at, true);
  if (value > BigInt(most)) throw damaged(`${what} is ${value}, the limit is ${most}`);
  return Number(value);
}

/**
 * Checks everything that a later look-up relies on.
 * @throws TowlineError `ERR_TOWLINE_POLICY`.
 */
export function checkLayout(bytes: Uint8Array): FilterHeader {
  if (bytes.length < HEADER_BYTES) throw damaged(`${bytes.length} bytes`);
  if (bytes.length > MAX_FILTER_BYTES) throw damaged(`${bytes.length} bytes, the limit is ${MAX_FILTER_BYTES}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (MAGIC.some((b, i) => bytes[i] !== b)) throw damaged('the magic is missing');
  if (view.getUint32(8, true) !== VERSION)
    throw damaged(`layout version ${view.getUint32(8, true)}, known is ${VERSION}`);
  if (view.getUint32(12, true) !== HEADER_BYTES) throw damaged('the header has another length');
  if (view.getUint32(40, true) !== PAGE_SHIFT || view.getUint32(44, true) !== 2) throw damaged('page or granule size');
  if (capped(view, 16, MAX_FILTER_BYTES, 'the length') !== bytes.length) throw damaged('the length does not match');
  const barBytes = capped(view, 24, MAX_BAR_BYTES, 'the BAR');
  const visibleBytes = capped(view, 32, barBytes, 'the visible part');
  if (visibleBytes === 0) throw damaged('nothing is visible');
  const section = (at: number, size: number, most: number, what: string): Section => {
    const start = capped(view, at, bytes.length, what);
    const count = capped(view, at + 8, most, what);
    if (start < HEADER_BYTES || start % 8 !== 0 || start + count * size > bytes.length)
      throw damaged(`${what} lie outside`);
    return { at: start, count };
  };
  const pageCount = Math.ceil(visibleBytes / 4096);
  const header: FilterHeader = {
    barBytes,
    visibleBytes,
    pages: section(48, 4, pageCount, 'pages'),
    mixed: section(64, MIXED_BYTES, pageCount, 'mixed pages'),
    classes: section(80, CLASS_BYTES, MAX_FILTER_BYTES / 8, 'classes'),
    readRules: section(96, RULE_BYTES, MAX_RULES, 'rules about reads'),
    writeRules: section(112, RULE_BYTES, MAX_RULES, 'rules about writes'),
    shadowBytes: view.getUint32(128, true),
    rules: view.getUint32(132, true),
  };
  if (header.pages.count !== pageCount || header.classes.count === 0) throw damaged('pages or classes are missing');
  if (header.shadowBytes > MAX_SHADOW_BYTES) throw damaged('the shadow is too large');
  checkIndexes(bytes, view, header);
  checkRules(view, header, header.readRules);
  checkRules(view, header, header.writeRules);
  return header;
}

function checkIndexes(bytes: Uint8Array, view: DataView, { pages, mixed, classes }: FilterHeader): void {
  for (let n = 0; n < pages.count; n += 1) {
    const entry = view.getUint32(pages.at + 4 * n, true);
    const limit = entry >= MIXED_BIT ? mixed.count : classes.count;
    if (entry % MIXED_BIT >= limit) throw damaged(`the entry of page ${n}`);
  }
  for (let n = 0; n < mixed.count; n += 1) {
    const at = mixed.at + n * MIXED_BYTES;
    const base = view.getUint32(at, true);
    const codes = view.getUint32(at + 4, true);
    if (codes === 0 || codes > 256 || base + codes > classes.count) throw damaged(`mixed page ${n}`);
    for (let i = 0; i < 1024; i += 1) {
      if ((bytes[at + 8 + i] ?? 255) >= codes) throw damaged(`a code of mixed page ${n}`);
    }
  }
  for (let n = 0; n < classes.count; n += 1) {
    for (let i = 0; i < 8; i += 1) {
      if ((bytes[classes.at + n * CLASS_BYTES + i] ?? 255) > OP.shadow) throw damaged(`class ${n}`);
    }
  }
}

function checkRules(view: DataView, header: FilterHeader, section: Section): void {
  let end = 0n;
  for (let n = 0; n < section.count; n += 1) {
    const at = section.at + n * RULE_BYTES;
    const offset = view.getBigUint64(at, true);
    const length = view.getBigUint64(at + 8, true);
    if (length === 0n || offset < end || offset + length > BigInt(header.visibleBytes))
      throw damaged(`rule record ${n}`);
    end = offset + length;
    if (view.getUint32(at + 16, true) >= header.rules) throw damaged(`rule record ${n}`);
    if (view.getUint32(at + 20, true) !== KIND_WRITE_ONE_TO_CLEAR) continue;
    const period = view.getUint32(at + 28, true);
    if (![1, 2, 4, 8].includes(period) || BigInt(view.getUint32(at + 24, true)) + length > BigInt(header.shadowBytes)) {
      throw damaged(`the shadow of rule record ${n}`);
    }
  }
}
