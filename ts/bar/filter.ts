/**
 * A compiled BAR filter, evaluated in JavaScript straight from its flat bytes: as `crates/core` does it, only slower.
 */
import { nativeSync, TowlineError } from '../errors.js';
import { binding } from '../native/api.js';
import {
  CLASS_BYTES,
  checkLayout,
  KIND_WRITE_ONE_TO_CLEAR,
  MIXED_BIT,
  MIXED_BYTES,
  OP,
  PAGE_SHIFT,
  RULE_BYTES,
  type FilterHeader,
} from './layout.js';

/** A range of a BAR that may be mapped into a guest, in bytes. */
export interface BarRange {
  readonly offset: bigint;
  readonly length: bigint;
}

/** What happens to one byte of an access. */
export interface ByteVerdict {
  /** `target`: (value & and) | or, to or from the target. `fixed`: reads give `or`. `trap`. `shadow`: write-one-to-clear. */
  readonly op: 'target' | 'fixed' | 'trap' | 'shadow';
  readonly and: number;
  readonly or: number;
}

/** A rule that holds a byte. */
export interface BarRuleHit {
  /** Index in the policy. */
  readonly rule: number;
  /** First byte of the rule in the shadow; only for write-one-to-clear. */
  readonly shadow: number;
  /** First byte of the rule in the BAR. */
  readonly offset: number;
}

const ops = ['target', 'fixed', 'trap', 'shadow'] as const;
const outside: ByteVerdict = { op: 'fixed', and: 0, or: 0xff };

/** Immutable. Made by {@link compileBarPolicy}, or from bytes that somebody else compiled. */
export class BarFilter {
  readonly #bytes: Uint8Array;
  readonly #view: DataView;
  readonly #header: FilterHeader;

  private constructor(bytes: Uint8Array) {
    this.#bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.#header = checkLayout(bytes);
  }

  /**
   * A filter from its flat bytes; a copy is kept.
   * @throws TowlineError `ERR_TOWLINE_POLICY` where they are not whole.
   */
  static fromBytes(bytes: Uint8Array): BarFilter {
    return new BarFilter(bytes.slice());
  }

  /** A copy of the flat bytes. */
  toBytes(): Uint8Array {
    return this.#bytes.slice();
  }

  /** Size of the BAR in bytes. */
  get barBytes(): bigint {
    return BigInt(this.#header.barBytes);
  }

  /** Bytes that a guest sees: fewer than the BAR's where it is truncated. */
  get visibleBytes(): bigint {
    return BigInt(this.#header.visibleBytes);
  }

  /** Bytes of write-one-to-clear shadow. */
  get shadowBytes(): number {
    return this.#header.shadowBytes;
  }

  /** What happens to the byte at `offset`; beyond the visible part reads give ones and writes are dropped. */
  lookup(offset: bigint, access: 'read' | 'write'): ByteVerdict {
    if (offset < 0n || offset >= BigInt(this.#header.visibleBytes)) return outside;
    const at = Number(offset);
    // Offsets reach 2^37: no 32-bit operators on them.
    const lane = at % 4;
    const base = this.#classAt(at);
    const side = access === 'read' ? 0 : 1;
    const op = this.#bytes[base + 4 * side + lane] ?? OP.fixed;
    return {
      op: ops[op] ?? 'fixed',
      and: this.#bytes[base + 8 + 8 * side + lane] ?? 0,
      or: this.#bytes[base + 12 + 8 * side + lane] ?? 0xff,
    };
  }

  /** The rule that holds the byte at `offset`, where it traps or has a shadow; `undefined` where no such rule does. */
  ruleAt(offset: bigint, access: 'read' | 'write'): BarRuleHit | undefined {
    const section = access === 'read' ? this.#header.readRules : this.#header.writeRules;
    let low = 0;
    let high = section.count;
    // The first record that begins above `offset`; the one before it is the only candidate.
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#view.getBigUint64(section.at + middle * RULE_BYTES, true) <= offset) low = middle + 1;
      else high = middle;
    }
    if (low === 0) return undefined;
    const at = section.at + (low - 1) * RULE_BYTES;
    const start = this.#view.getBigUint64(at, true);
    if (offset - start >= this.#view.getBigUint64(at + 8, true)) return undefined;
    return {
      rule: this.#view.getUint32(at + 16, true),
      shadow: this.#view.getUint32(at + 24, true),
      offset: Number(start),
    };
  }

  /** The write-one-to-clear shadow with its initial values. */
  initialShadow(): Uint8Array {
    const shadow = new Uint8Array(this.#header.shadowBytes);
    const { readRules } = this.#header;
    for (let n = 0; n < readRules.count; n += 1) {
      const at = readRules.at + n * RULE_BYTES;
      if (this.#view.getUint32(at + 20, true) !== KIND_WRITE_ONE_TO_CLEAR) continue;
      const first = this.#view.getUint32(at + 24, true);
      const period = this.#view.getUint32(at + 28, true);
      const length = Number(this.#view.getBigUint64(at + 8, true));
      for (let i = 0; i < length; i += 1) shadow[first + i] = this.#bytes[at + 32 + (i % period)] ?? 0;
    }
    return shadow;
  }

  /** The largest ranges of whole pages in which everything passes, ascending. `pageSizeBytes`: 4096 to 2^30, a power of two. */
  mmapPlan(pageSizeBytes = 4096): BarRange[] {
    if (!Number.isSafeInteger(pageSizeBytes)) {
      throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${pageSizeBytes} is no page size`);
    }
    const json = nativeSync(() => binding().barMmapPlan(this.#bytes, pageSizeBytes));
    return (JSON.parse(json) as { offset: string; len: string }[]).map((r) => ({
      offset: BigInt(r.offset),
      length: BigInt(r.len),
    }));
  }

  /** Where the class of the byte at `at` begins. */
  #classAt(at: number): number {
    const { pages, mixed, classes } = this.#header;
    const entry = this.#view.getUint32(pages.at + 4 * Math.floor(at / 2 ** PAGE_SHIFT), true);
    if (entry < MIXED_BIT) return classes.at + entry * CLASS_BYTES;
    const record = mixed.at + (entry - MIXED_BIT) * MIXED_BYTES;
    const code = this.#bytes[record + 8 + (Math.floor(at / 4) % 1024)] ?? 0;
    return classes.at + (this.#view.getUint32(record, true) + code) * CLASS_BYTES;
  }
}
