import test from 'ava';
import {
  conformDirtySource,
  conformStateChannel,
  type ChannelSubject,
  type CheckResult,
  type DirtySubject,
} from '#towline/conformance/index.js';
import type { MigrationFlags } from '#towline/function/state.js';
import { MemoryDevice, type Defect } from '../support/memory-device.js';

const all: MigrationFlags = { stopCopy: true, p2p: true, preCopy: true };

function channelSubject(flags: MigrationFlags, defects: readonly Defect[]): ChannelSubject {
  return {
    maxStateBytes: 1 << 16,
    open: async () => {
      const device = new MemoryDevice(flags, defects);
      return {
        channel: device.channel,
        stimulate: async (seed) => {
          device.registers[seed % 8] = BigInt(seed) * 0x0101n;
          device.registers[7] = BigInt(seed);
        },
        observe: async () => device.registers.join(),
        fail: async () => {
          device.failed = true;
        },
        close: () => device.channel.close().catch(() => undefined),
      };
    },
  };
}

function dirtySubject(defects: readonly Defect[]): DirtySubject {
  return {
    open: async () => {
      const { source } = new MemoryDevice(all, defects);
      return {
        source,
        ranges: [
          { gpa: 0n, len: 0x10_0000n },
          { gpa: 0x20_0000n, len: 0x8000n },
        ],
        pageSizeBytes: 4096,
        write: async (gpa, len) => source.written(gpa, len),
        close: () => source.close(),
      };
    },
  };
}

async function collect(results: AsyncIterable<CheckResult>): Promise<CheckResult[]> {
  const found: CheckResult[] = [];
  for await (const result of results) found.push(result);
  return found;
}

const named = (results: readonly CheckResult[], outcome: CheckResult['outcome']): string[] =>
  results.filter((r) => r.outcome === outcome).map((r) => r.check);

test('a good device in plain TypeScript passes every check', async (t) => {
  const results = [
    ...(await collect(conformStateChannel(channelSubject(all, [])))),
    ...(await collect(conformDirtySource(dirtySubject([])))),
  ];
  t.deepEqual(
    results.filter((r) => r.outcome !== 'passed'),
    [],
  );
  t.true(results.length >= 27);
});

test('every capability set passes, and what it lacks is not exercised', async (t) => {
  for (const [flags, missing] of [
    [{ stopCopy: true, p2p: false, preCopy: false }, ['channel/pre-copy']],
    [{ stopCopy: true, p2p: true, preCopy: false }, ['channel/pre-copy']],
    [{ stopCopy: true, p2p: false, preCopy: true }, []],
  ] as const) {
    const results = await collect(conformStateChannel(channelSubject(flags, [])));
    t.deepEqual(named(results, 'failed'), []);
    t.deepEqual(named(results, 'not-exercised'), [...missing]);
  }
});

test('a channel that says that it does not verify passes without, but has to stay usable', async (t) => {
  const defects: Defect[] = ['no-digest', 'accepts-cut', 'accepts-extended'];
  const says = await collect(conformStateChannel(channelSubject(all, [...defects, 'says-unverified'])));
  t.deepEqual(named(says, 'failed'), []);
  const stuck = await collect(
    conformStateChannel(channelSubject(all, ['no-digest', 'says-unverified', 'stuck-after-bad-state'])),
  );
  t.true(named(stuck, 'failed').includes('loading/truncated'));
});

test('without means nothing passes unseen', async (t) => {
  const results = await collect(
    conformStateChannel({
      open: async () => {
        const { channel } = new MemoryDevice(all);
        return { channel, close: () => channel.close() };
      },
    }),
  );
  t.deepEqual(named(results, 'not-exercised'), ['channel/reset-error', 'loading/same-behaviour']);
});

// Each defect has to be found by the check that is about it.
const channelDefects: readonly (readonly [Defect, string])[] = [
  ['no-digest', 'loading/corrupted'],
  ['format-changes', 'channel/flags'],
  ['accepts-cut', 'loading/truncated'],
  ['accepts-extended', 'loading/extended'],
  ['state-lies', 'channel/arcs'],
  ['reads-while-running', 'channel/read-elsewhere'],
  ['writes-anywhere', 'channel/write-elsewhere'],
  ['end-in-pre-copy', 'channel/pre-copy'],
  ['never-ends', 'channel/read-to-end'],
  ['oversized-reads', 'channel/read-to-end'],
  ['any-arc', 'channel/illegal-arcs'],
  ['reset-stays', 'channel/reset'],
  ['forgets-register', 'loading/same-behaviour'],
  ['deaf-to-abort', 'channel/abort'],
  ['close-twice-throws', 'channel/close'],
  ['usable-after-close', 'channel/close'],
  ['plain-errors', 'channel/read-elsewhere'],
  ['cursor-survives', 'channel/read-again'],
  ['stuck-after-bad-state', 'loading/truncated'],
];

for (const [defect, check] of channelDefects) {
  test(`a channel with ${defect} fails ${check}`, async (t) => {
    const results = await collect(conformStateChannel(channelSubject(all, [defect])));
    t.true(named(results, 'failed').includes(check), JSON.stringify(results.filter((r) => r.outcome === 'failed')));
  });
}

const dirtyDefects: readonly (readonly [Defect, string])[] = [
  ['dirty-loses-one', 'dirty/complete'],
  ['dirty-first-page-only', 'dirty/complete'],
  ['dirty-start-only-once', 'dirty/stop'],
  ['dirty-never-forgets', 'dirty/again'],
  ['dirty-odd-granularity', 'dirty/granularity'],
  ['dirty-deaf-to-abort', 'dirty/abort'],
  ['dirty-usable-after-close', 'dirty/close'],
];

for (const [defect, check] of dirtyDefects) {
  test(`a dirty source with ${defect} fails ${check}`, async (t) => {
    const results = await collect(conformDirtySource(dirtySubject([defect])));
    t.true(named(results, 'failed').includes(check), JSON.stringify(results.filter((r) => r.outcome === 'failed')));
  });
}

test('after a check that hangs nothing drives the device any more', async (t) => {
  const good = channelSubject(all, []);
  let opened = 0;
  let openedAtHang = 0;
  const results = await collect(
    conformStateChannel({
      checkTimeoutMs: 500,
      open: async () => {
        opened += 1;
        const instance = await good.open();
        instance.channel.pending = () => {
          openedAtHang = opened;
          return new Promise(() => undefined);
        };
        return instance;
      },
    }),
  );
  t.deepEqual(named(results, 'failed'), ['channel/pending']);
  const after = results.slice(results.findIndex((r) => r.check === 'channel/pending') + 1);
  t.true(after.length >= 10);
  for (const { outcome, why } of after) {
    t.is(outcome, 'not-exercised');
    t.regex(why, /^a check hung: channel\/pending/);
  }
  t.is(opened, openedAtHang);
});
