import * as fc from 'fast-check';
import test from 'ava';
import {
  BarFilter,
  barPolicy,
  FilteredBar,
  u16,
  u32,
  u64,
  u8,
  type BarPattern,
  type BarPolicyBuilder,
  type BarRule,
  type BarTarget,
} from '#towline/bar/index.js';

const BAR = 0x3000n;

/** A register space of plain bytes. */
class Registers implements BarTarget {
  readonly bytes = Uint8Array.from({ length: Number(BAR) }, (_, i) => (i * 31 + 7) & 0xff);

  read(offset: bigint, length: number): Uint8Array {
    return Uint8Array.from({ length }, (_, i) => this.bytes[Number(offset) + i] ?? 0xff);
  }

  write(offset: bigint, data: Uint8Array): void {
    data.forEach((value, i) => {
      if (Number(offset) + i < this.bytes.length) this.bytes[Number(offset) + i] = value;
    });
  }
}

function patternByte({ bytes, value }: BarPattern, index: bigint): number {
  return Number((value >> (8n * (index % BigInt(bytes)))) & 0xffn);
}

/** The policy itself, asked byte by byte: shares nothing with the compiled layout. */
class Naive {
  readonly #shadow = new Map<bigint, number>();
  readonly traps: string[] = [];
  readonly #policy: BarPolicyBuilder;
  readonly #target: Registers;
  readonly #visible: bigint;

  constructor(policy: BarPolicyBuilder, target: Registers) {
    this.#policy = policy;
    this.#target = target;
    this.#visible = policy.rules.find((r) => r.action.kind === 'truncate')?.offset ?? policy.barBytes;
  }

  #rule(at: bigint, access: 'read' | 'write'): BarRule | undefined {
    return this.#policy.rules.find(
      (r) =>
        r.action.kind !== 'truncate' &&
        at >= r.offset &&
        at < r.offset + r.length &&
        (r.access === undefined || r.access === 'both' || r.access === access),
    );
  }

  #shadowByte(rule: BarRule, at: bigint): number {
    return (
      this.#shadow.get(at) ??
      (rule.action.kind === 'write-one-to-clear' ? patternByte(rule.action.initial, at - rule.offset) : 0)
    );
  }

  read(at: bigint): number {
    if (at >= this.#visible) return 0xff;
    const rule = this.#rule(at, 'read');
    const own = this.#target.bytes[Number(at)] ?? 0xff;
    switch (rule?.action.kind) {
      case undefined:
      case 'pass':
      case 'truncate':
        return own;
      case 'deny':
        return rule.action.fill === 'ones' ? 0xff : 0;
      case 'hide':
        return 0;
      case 'trap':
        return 0xaa;
      case 'bits':
        return (own & patternByte(rule.action.and, at - rule.offset)) | patternByte(rule.action.or, at - rule.offset);
      case 'write-one-to-clear':
        return this.#shadowByte(rule, at);
    }
  }

  write(at: bigint, value: number): void {
    if (at >= this.#visible) return;
    const rule = this.#rule(at, 'write');
    switch (rule?.action.kind) {
      case undefined:
      case 'pass':
      case 'truncate':
        this.#target.bytes[Number(at)] = value;
        break;
      case 'bits':
        this.#target.bytes[Number(at)] =
          (value & patternByte(rule.action.and, at - rule.offset)) | patternByte(rule.action.or, at - rule.offset);
        break;
      case 'write-one-to-clear':
        this.#shadow.set(at, this.#shadowByte(rule, at) & ~value & 0xff);
        break;
      default:
        break;
    }
  }
}

const policy = barPolicy(BAR)
  .deny('read-only', 0x10n, 8n, 'zeros', 'write')
  .mask('capability', 0x21n, 6n, u32(0x00ff_f00f), 'read')
  .setBits('always on', 0x40n, 4n, u16(0x8001))
  .writeOneToClear('status', 0x7en, 5n, u64(0x1122_3344_5566_7788n))
  .trap('doorbell', 0xffcn, 8n)
  .hide('debug', 0x1800n, 0x20n)
  .deny('gap', 0x1900n, 3n, 'ones')
  .setBits('odd', 0x1fffn, 2n, u8(0x10), 'write')
  .truncate('upper part', 0x2804n);

const lengths = [1, 2, 4, 8] as const;
const access = fc.record({
  offset: fc.oneof(
    fc.bigInt(0n, BAR + 16n),
    fc.constantFrom(0x10n, 0x21n, 0x40n, 0x7en, 0xffcn, 0xffen, 0x1000n, 0x17fcn, 0x1800n, 0x18fen, 0x1ffen, 0x2800n),
  ),
  length: fc.constantFrom(...lengths),
  write: fc.boolean(),
  value: fc.bigInt(0n, (1n << 64n) - 1n),
});

function compare(filter: BarFilter, model: BarPolicyBuilder): void {
  fc.assert(
    fc.property(fc.array(access, { minLength: 1, maxLength: 40 }), (accesses) => {
      const target = new Registers();
      const bar = new FilteredBar(filter, target, {
        read: (_, length) => new Uint8Array(length).fill(0xaa),
        write: () => undefined,
      });
      const naiveTarget = new Registers();
      const naive = new Naive(model, naiveTarget);
      for (const { offset, length, write, value } of accesses) {
        if (write) {
          const data = new Uint8Array(8);
          new DataView(data.buffer).setBigUint64(0, value, true);
          bar.write(offset, data.slice(0, length));
          for (let i = 0; i < length; i += 1) naive.write(offset + BigInt(i), data[i] ?? 0);
          if (Buffer.compare(target.bytes, naiveTarget.bytes) !== 0)
            throw new Error(`after a write of ${length} at ${offset} the targets differ`);
        } else {
          const expected = Array.from({ length }, (_, i) => naive.read(offset + BigInt(i)));
          const seen = [...bar.read(offset, length)];
          if (seen.join() !== expected.join())
            throw new Error(`a read of ${length} at ${offset} gives ${seen.join()}, not ${expected.join()}`);
        }
      }
    }),
    { numRuns: 300, seed: 7 },
  );
}

test('the filter that native code compiles answers as the policy says, byte by byte', (t) => {
  t.notThrows(() => compare(policy.compile(), policy));
});

test('the comparison notices another policy', (t) => {
  t.throws(() => compare(policy.compile(), policy.deny('one byte more', 0x2000n + 0x100n, 1n, 'zeros')));
});

test('what may be mapped passes everywhere, and what passes is mapped', (t) => {
  const filter = policy.compile();
  const plan = filter.mmapPlan(4096);
  const mapped = (page: bigint): boolean => plan.some((r) => page >= r.offset && page < r.offset + r.length);
  for (let page = 0n; page + 0x1000n <= filter.visibleBytes; page += 0x1000n) {
    let passes = true;
    for (let at = page; at < page + 0x1000n; at += 1n) {
      for (const way of ['read', 'write'] as const) {
        const v = filter.lookup(at, way);
        passes &&= v.op === 'target' && v.and === 0xff && v.or === 0;
      }
    }
    t.is(mapped(page), passes, `page ${page}`);
  }
  t.true(barPolicy(0x4000n).compile().mmapPlan()[0]?.length === 0x4000n);
});

test('rules that overlap are refused with both named', (t) => {
  const both = barPolicy(0x1000n).deny('first', 0n, 8n, 'ones').trap('second', 4n, 8n);
  t.throws(() => both.compile(), { code: 'ERR_TOWLINE_POLICY', message: /first.*second|second.*first/s });
  t.throws(() => barPolicy(0x1000n).mask('wide', 0n, 8n, { bytes: 1, value: 256n }).compile(), {
    code: 'ERR_TOWLINE_INVALID_ARGUMENT',
  });
});

test('bytes that are no filter are refused, wherever they are broken', (t) => {
  const bytes = policy.compile().toBytes();
  t.deepEqual(BarFilter.fromBytes(bytes).toBytes(), bytes);
  for (let length = 0; length < bytes.length; length += 61) {
    t.throws(() => BarFilter.fromBytes(bytes.subarray(0, length)), { code: 'ERR_TOWLINE_POLICY' });
  }
  // A flip is refused, or it is a filter all the same: no look-up ever leaves the bytes.
  for (let at = 0; at < 144; at += 1) {
    const flipped = bytes.slice();
    flipped[at] = (flipped[at] ?? 0) ^ 0x41;
    try {
      const filter = BarFilter.fromBytes(flipped);
      for (let offset = 0n; offset < BAR; offset += 127n) filter.lookup(offset, 'read');
    } catch (error) {
      t.like(error, { code: 'ERR_TOWLINE_POLICY' });
    }
  }
});
