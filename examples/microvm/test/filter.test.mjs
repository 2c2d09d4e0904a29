// The evaluator that a vCPU's thread has, against towline's own: the same policies, the same accesses, the same bytes. Needs no KVM.
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { compileBarPolicy, FilteredBar, u16, u32, u8 } from 'towline';

const BAR_BYTES = 0x4000;

/** Numbers that are the same each time. @param {number} seed */
function randomNumbers(seed) {
  let state = (BigInt(seed) * 0x9e37_79b9_7f4a_7c15n) | 1n;
  /** @param {number} below */
  return (below) => {
    state ^= (state << 13n) & 0xffff_ffff_ffff_ffffn;
    state ^= state >> 7n;
    state ^= (state << 17n) & 0xffff_ffff_ffff_ffffn;
    return Number(state % BigInt(below));
  };
}

/** @param {(below: number) => number} random */
function randomPolicy(random) {
  const actions = [
    () => ({ kind: 'pass' }),
    () => ({ kind: 'deny', fill: random(2) ? 'ones' : 'zeros' }),
    () => ({ kind: 'trap' }),
    () => ({ kind: 'bits', and: u8(random(256)), or: u16(random(65_536)) }),
    () => ({ kind: 'write-one-to-clear', initial: u32(random(2 ** 31)) }),
    () => ({ kind: 'hide' }),
  ];
  const rules = [];
  for (let at = random(64); at < BAR_BYTES - 64;) {
    // Whole patterns, so that every kind of rule can be there.
    const length = 8 * (1 + random(random(8) ? 3 : 600));
    const offset = Math.ceil(at / 8) * 8;
    if (offset + length > BAR_BYTES) break;
    const action = actions[random(actions.length)]?.();
    rules.push({ name: `r${rules.length}`, offset: BigInt(offset), length: BigInt(length), action });
    at = offset + length + random(random(8) ? 24 : 4096);
  }
  const defaults = ['pass', 'deny-ones', 'deny-zeros', 'trap'];
  return { barBytes: BigInt(BAR_BYTES), defaultRead: defaults[random(4)], defaultWrite: defaults[random(4)], rules };
}

/** @param {Uint8Array} bytes */
function target(bytes) {
  return {
    /** @param {bigint} offset @param {number} length */
    read: (offset, length) => bytes.slice(Number(offset), Number(offset) + length),
    /** @param {bigint} offset @param {Uint8Array} data */
    write: (offset, data) => bytes.set(data, Number(offset)),
  };
}

/** Elsewhere there is no native part. */
const run = process.platform === 'linux' && process.arch === 'x64' ? test : test.skip;

run('the evaluator of the vCPU says what towline says', async (t) => {
  const { FilteredBytes } = await import(fileURLToPath(new URL('../native/index.js', import.meta.url)));
  let changed = 0;
  for (let seed = 1; seed <= 25; seed++) {
    const random = randomNumbers(seed);
    // @ts-expect-error The actions are made at random.
    const filter = compileBarPolicy(randomPolicy(random));
    const initial = Uint8Array.from({ length: BAR_BYTES }, () => random(256));
    const expected = initial.slice();
    const theirs = new FilteredBar(filter, target(expected));
    const ours = new FilteredBytes(filter.toBytes(), initial);
    for (let n = 0; n < 2000; n++) {
      const length = [1, 2, 4, 8][random(4)] ?? 1;
      const offset = BigInt(random(8) ? random(BAR_BYTES) : BAR_BYTES - 8 + random(24));
      if (random(2)) {
        const read = theirs.read(offset, length);
        // An assertion each would take minutes.
        const same = Buffer.from(read).equals(ours.read(offset, length));
        if (!same) t.fail(`seed ${seed}: ${length} bytes at ${offset}`);
        if (!Buffer.from(read).equals(initial.subarray(Number(offset), Number(offset) + length))) changed++;
      } else {
        const data = Uint8Array.from({ length }, () => random(256));
        theirs.write(offset, data);
        ours.write(offset, data);
      }
    }
    t.true(Buffer.from(expected).equals(ours.target()), `seed ${seed}: what was written`);
  }
  t.true(changed > 1000, 'the filters change what is read');
});

run('bytes that are no filter are refused', async (t) => {
  const { FilteredBytes } = await import(fileURLToPath(new URL('../native/index.js', import.meta.url)));
  const bytes = compileBarPolicy({ barBytes: 0x2000n, rules: [] }).toBytes();
  for (const length of [0, 1, 143, bytes.length - 1]) {
    t.throws(() => new FilteredBytes(bytes.slice(0, length), new Uint8Array(8)), { message: /^microvm: BAR filter/ });
  }
  t.throws(
    () =>
      new FilteredBytes(
        bytes.map((b) => b ^ 0x80),
        new Uint8Array(8),
      ),
    { message: /^microvm: BAR filter/ },
  );
});
