/**
 * A register space behind a filter, in JavaScript. For rehearsals, tests and traps that a person looks at; a guest's accesses are
 * answered natively.
 */
import { TowlineError } from '../errors.js';
import type { BarFilter, ByteVerdict } from './filter.js';

/** A little-endian register space. What lies outside of it reads as ones, and writes there are dropped. */
export interface BarTarget {
  /** Reads `length` bytes, 1 to 8. */
  read(offset: bigint, length: number): Uint8Array;
  /** Writes `data`, 1 to 8 bytes. */
  write(offset: bigint, data: Uint8Array): void;
}

/** Answers what a policy traps. `rule` is the index in the policy; `undefined` where trapping is the default. */
export interface BarTrapHandler {
  /** Answers a read of `length` bytes, 1 to 8. */
  read(offset: bigint, length: number, rule: number | undefined): Uint8Array;
  /** Takes a write of 1 to 8 bytes. */
  write(offset: bigint, data: Uint8Array, rule: number | undefined): void;
}

/** For policies without traps: reads give ones, writes are dropped. */
const noTraps: BarTrapHandler = {
  read: (_, length) => new Uint8Array(length).fill(0xff),
  write: () => undefined,
};

interface Stretch {
  readonly from: number;
  readonly to: number;
  readonly verdicts: readonly ByteVerdict[];
  readonly rule: number | undefined;
}

/** A target behind a filter; itself a target. */
export class FilteredBar implements BarTarget {
  readonly filter: BarFilter;
  readonly #target: BarTarget;
  readonly #traps: BarTrapHandler;
  readonly #shadow: Uint8Array;

  constructor(filter: BarFilter, target: BarTarget, traps: BarTrapHandler = noTraps) {
    this.filter = filter;
    this.#target = target;
    this.#traps = traps;
    this.#shadow = filter.initialShadow();
  }

  read(offset: bigint, length: number): Uint8Array {
    checkLength(length);
    const out = new Uint8Array(length);
    for (const { from, to, verdicts, rule } of this.#stretches(offset, length, 'read')) {
      const at = offset + BigInt(from);
      const op = verdicts[0]?.op;
      if (op === 'target') {
        for (const [start, size] of pieces(at, to - from))
          out.set(this.#target.read(at + BigInt(start), size), from + start);
        verdicts.forEach((v, i) => (out[from + i] = ((out[from + i] ?? 0) & v.and) | v.or));
      } else if (op === 'fixed') verdicts.forEach((v, i) => (out[from + i] = v.or));
      else if (op === 'trap') out.set(this.#traps.read(at, to - from, rule).subarray(0, to - from), from);
      else for (let i = from; i < to; i += 1) out[i] = this.#shadow[this.#shadowIndex(offset + BigInt(i))] ?? 0xff;
    }
    return out;
  }

  write(offset: bigint, data: Uint8Array): void {
    checkLength(data.length);
    for (const { from, to, verdicts, rule } of this.#stretches(offset, data.length, 'write')) {
      const at = offset + BigInt(from);
      const op = verdicts[0]?.op;
      const part = data.slice(from, to);
      if (op === 'target') {
        verdicts.forEach((v, i) => (part[i] = ((part[i] ?? 0) & v.and) | v.or));
        for (const [start, size] of pieces(at, part.length))
          this.#target.write(at + BigInt(start), part.subarray(start, start + size));
      } else if (op === 'trap') this.#traps.write(at, part, rule);
      else if (op === 'shadow') {
        part.forEach((value, i) => {
          const index = this.#shadowIndex(at + BigInt(i));
          this.#shadow[index] = (this.#shadow[index] ?? 0) & ~value;
        });
      }
    }
  }

  /** Sets the ones of `bits` in the write-one-to-clear shadow at `offset`. */
  raise(offset: bigint, bits: Uint8Array): void {
    const indexes = Array.from(bits, (_, i) => {
      const at = offset + BigInt(i);
      if (this.filter.lookup(at, 'read').op !== 'shadow') {
        throw new TowlineError(
          'ERR_TOWLINE_INVALID_ARGUMENT',
          `the byte at 0x${at.toString(16)} is not write-one-to-clear`,
        );
      }
      return this.#shadowIndex(at);
    });
    bits.forEach((value, i) => {
      const index = indexes[i] ?? 0;
      this.#shadow[index] = (this.#shadow[index] ?? 0) | value;
    });
  }

  #shadowIndex(offset: bigint): number {
    const hit = this.filter.ruleAt(offset, 'read');
    return hit === undefined ? -1 : hit.shadow + Number(offset - BigInt(hit.offset));
  }

  /** Bytes that go the same way, in ascending order. */
  *#stretches(offset: bigint, length: number, access: 'read' | 'write'): Generator<Stretch> {
    const ways = Array.from({ length }, (_, i) => {
      const at = offset + BigInt(i);
      const verdict = this.filter.lookup(at, access);
      return { verdict, rule: verdict.op === 'trap' ? this.filter.ruleAt(at, access)?.rule : undefined };
    });
    let from = 0;
    for (let to = 1; to <= length; to += 1) {
      const first = ways[from];
      const next = ways[to];
      if (
        first === undefined ||
        (next !== undefined && next.verdict.op === first.verdict.op && next.rule === first.rule)
      )
        continue;
      yield { from, to, verdicts: ways.slice(from, to).map((w) => w.verdict), rule: first.rule };
      from = to;
    }
  }
}

function checkLength(length: number): void {
  if (length !== 1 && length !== 2 && length !== 4 && length !== 8) {
    throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `an access of ${length} bytes; it has to be 1, 2, 4 or 8`);
  }
}

/** A stretch that is no power of two long is cut into the largest naturally aligned pieces. */
function* pieces(offset: bigint, length: number): Generator<[number, number]> {
  if (length === 1 || length === 2 || length === 4 || length === 8) {
    yield [0, length];
    return;
  }
  for (let done = 0; done < length;) {
    const step = [8, 4, 2].find((n) => n <= length - done && (offset + BigInt(done)) % BigInt(n) === 0n) ?? 1;
    yield [done, step];
    done += step;
  }
}
