import * as fc from 'fast-check';
import test from 'ava';
import { FilteredBar, type BarTarget } from '#towline/bar/index.js';
import {
  checkQuirk,
  quirkConfigPolicy,
  quirkPolicy,
  quirks,
  quirksFor,
  type Quirk,
} from '#towline/bar/quirks/index.js';
import { variantDrivers } from '#towline/host/variants.js';

/** Registers that are all secret. */
class Secrets implements BarTarget {
  readonly reached: bigint[] = [];

  read(offset: bigint, length: number): Uint8Array {
    this.reached.push(offset);
    return new Uint8Array(length).fill(0x5a);
  }

  write(offset: bigint): void {
    this.reached.push(offset);
  }
}

const hisi = { vendor: 0x19e5, device: 0xa256, driver: 'vfio-pci' };
const named = (name: string): Quirk => {
  const found = quirks.find((q) => q.name === name);
  if (found === undefined) throw new Error(`no quirk ${name}`);
  return found;
};

test('every quirk fits the schema, has a name of its own and says where it comes from', (t) => {
  for (const quirk of quirks) {
    t.notThrows(() => checkQuirk(JSON.parse(JSON.stringify(quirk))), quirk.name);
    t.regex(quirk.source, /^(drivers|samples)\/[\w/-]+\.c$/, quirk.name);
  }
  t.is(new Set(quirks.map((q) => q.name)).size, quirks.length);
});

test('every device of a variant driver has its quirk, even if only what one has to know', (t) => {
  for (const { driver, ids, bus } of variantDrivers) {
    if (bus !== 'pci') continue;
    for (const id of ids) t.true(quirksFor({ ...id, driver }).length > 0, `${driver} ${id.device.toString(16)}`);
  }
});

test('a quirk is found by what it matches, and a sane device has none', (t) => {
  t.deepEqual(
    quirksFor(hisi).map((q) => q.name),
    ['hisi-acc'],
  );
  t.deepEqual(
    quirksFor({ vendor: 0x15b3, device: 0x101e }).map((q) => q.name),
    ['mlx5'],
  );
  t.deepEqual(
    quirksFor({ vendor: 0x1af4, device: 0x1041 }).map((q) => q.name),
    ['virtio-net-legacy', 'virtio'],
  );
  t.deepEqual(
    quirksFor({ driver: 'mtty' }).map((q) => q.name),
    ['mtty'],
  );
  t.deepEqual(
    quirksFor({ vendor: 0x8086, device: 0xe20b, driver: 'xe_vfio_pci' }).map((q) => q.name),
    ['xe'],
  );
  for (const sane of [{ vendor: 0x1b36, device: 0x0010, driver: 'nvme' }, { vendor: 0x8086, device: 0x10ca }, {}]) {
    t.deepEqual(quirksFor(sane), []);
  }
});

test('hisilicon: the half of BAR 2 that controls migration is out of reach, and of the plan of mappings', (t) => {
  const [quirk] = quirksFor(hisi);
  if (quirk === undefined) return t.fail();
  for (const size of [0x8000n, 1n << 20n]) {
    const filter = quirkPolicy(quirk, 2, size, 'vfio-pci')?.compile();
    if (filter === undefined) return t.fail();
    t.is(filter.visibleBytes, size / 2n);
    t.deepEqual(filter.mmapPlan(), [{ offset: 0n, length: size / 2n }]);
    const target = new Secrets();
    const bar = new FilteredBar(filter, target);
    for (const at of [size / 2n, size / 2n + 8n, size - 8n]) {
      t.deepEqual(
        [...bar.read(at, 8)],
        Array.from({ length: 8 }, () => 0xff),
      );
      bar.write(at, new Uint8Array(8));
    }
    t.deepEqual(target.reached, []);
    // The other half is the guest's.
    t.deepEqual([...bar.read(size / 2n - 4n, 4)], [0x5a, 0x5a, 0x5a, 0x5a]);
    // An access across the edge reaches nothing behind it.
    bar.read(size / 2n - 4n, 8);
    t.true(target.reached.every((at) => at < size / 2n));
  }
  t.is(quirkPolicy(quirk, 0, 0x1000n, 'vfio-pci'), undefined, 'other BARs are sane');
  t.is(quirkPolicy(quirk, 2, 0x4000n, 'hisi_acc_vfio_pci'), undefined, 'its own driver has cut the region already');
});

test('a quirk that hides too little is noticed', (t) => {
  const quirk = named('hisi-acc');
  const harmless: Quirk = { ...quirk, bars: quirk.bars.map((b) => ({ ...b, from: { numerator: 3, denominator: 4 } })) };
  const target = new Secrets();
  const policy = quirkPolicy(harmless, 2, 0x8000n);
  const filter = policy?.compile();
  if (filter === undefined) return t.fail();
  new FilteredBar(filter, target).read(0x4000n, 8);
  t.deepEqual(target.reached, [0x4000n]);
});

test('virtio: a legacy guest sees a transitional device', (t) => {
  const filter = quirkConfigPolicy(named('virtio-net-legacy'), 'vfio-pci')?.compile();
  if (filter === undefined) return t.fail();
  const trapped: bigint[] = [];
  const config = new FilteredBar(
    filter,
    { read: (_, length) => new Uint8Array(length).fill(0x41), write: () => undefined },
    { read: (offset, length) => (trapped.push(offset), new Uint8Array(length)), write: () => undefined },
  );
  t.deepEqual([...config.read(0n, 4)], [0x41, 0x41, 0x00, 0x10], 'vendor as it is, device 0x1000');
  t.deepEqual([...config.read(8n, 4)], [0, 0x41, 0x41, 0x41], 'revision 0, class as it is');
  t.deepEqual([...config.read(0x2cn, 4)], [0xf4, 0x1a, 0x01, 0x00]);
  config.read(0x10n, 4);
  t.deepEqual(trapped, [0x10n], 'the I/O BAR is virtual');
  t.is(quirkConfigPolicy(named('virtio-net-legacy'), 'virtio_vfio_pci'), undefined);
  const bar0 = quirkPolicy(named('virtio-net-legacy'), 0, 32n)?.compile();
  t.is(bar0?.lookup(0n, 'read').op, 'trap');
  t.deepEqual(bar0?.mmapPlan(), []);
});

test('mlx5: function level resets are trapped, and resuming is one arc', (t) => {
  const quirk = named('mlx5');
  t.is(quirk.reset?.flr, 'trap');
  t.true(quirk.combineResuming);
});

test('every policy of every quirk compiles, for every size of the BAR', (t) => {
  fc.assert(
    fc.property(
      fc.constantFrom(...quirks),
      fc.integer({ min: 0, max: 5 }),
      fc.integer({ min: 4, max: 30 }),
      (quirk, bar, shift) => {
        const size = 1n << BigInt(shift);
        const filter = quirkPolicy(quirk, bar, size)?.compile();
        return filter === undefined || filter.visibleBytes <= size;
      },
    ),
    { numRuns: 300 },
  );
  for (const quirk of quirks) t.notThrows(() => quirkConfigPolicy(quirk)?.compile(), quirk.name);
});

test('a record from outside that is wrong is refused, whatever is wrong', (t) => {
  const good = JSON.parse(JSON.stringify(named('hisi-acc'))) as Record<string, unknown>;
  const bar = (good['bars'] as Record<string, unknown>[])[0] ?? {};
  const wrong: [string, unknown][] = [
    ['no object', null],
    ['a list', []],
    ['no name', { ...good, name: '' }],
    ['a stranger', { ...good, bonus: 1 }],
    ['matches everything', { ...good, match: {} }],
    ['devices without a vendor', { ...good, match: { drivers: ['x'], devices: [1] } }],
    ['a vendor too large', { ...good, match: { vendor: 0x10000 } }],
    ['BAR 6', { ...good, bars: [{ ...bar, bar: 6 }] }],
    ['an action that is none', { ...good, bars: [{ ...bar, action: 'burn' }] }],
    ['truncate with an end', { ...good, bars: [{ ...bar, to: { numerator: 1, denominator: 1 } }] }],
    ['truncate to all of it', { ...good, bars: [{ ...bar, from: { numerator: 1, denominator: 1 } }] }],
    ['truncate to nothing', { ...good, bars: [{ ...bar, from: { numerator: 0, denominator: 1 } }] }],
    ['hide without an end', { ...good, bars: [{ ...bar, action: 'hide' }] }],
    ['hide backwards', { ...good, bars: [{ ...bar, action: 'hide', to: { numerator: 1, denominator: 4 } }] }],
    ['a third of a BAR', { ...good, bars: [{ ...bar, from: { numerator: 1, denominator: 3 } }] }],
    ['more than a BAR', { ...good, bars: [{ ...bar, from: { numerator: 3, denominator: 2 } }] }],
    ['division by zero', { ...good, bars: [{ ...bar, from: { numerator: 1, denominator: 0 } }] }],
    [
      'a register outside',
      { ...good, config: [{ register: 'X', offset: 255, bytes: 2, value: 0, why: 'x', doneBy: [] }] },
    ],
    [
      'a value too large',
      { ...good, config: [{ register: 'X', offset: 0, bytes: 1, value: 256, why: 'x', doneBy: [] }] },
    ],
    ['a reset of a kind', { ...good, reset: { flr: 'maybe', deferred: true, note: 'x' } }],
    ['no source', { ...good, source: '' }],
    ['notes that are no text', { ...good, notes: [1] }],
  ];
  t.notThrows(() => checkQuirk(good));
  for (const [what, value] of wrong) t.throws(() => checkQuirk(value), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' }, what);
});
