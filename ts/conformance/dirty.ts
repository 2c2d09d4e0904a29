/**
 * Checks of a dirty source: it may tell too much, never too little.
 */
import type { MemoryRange } from '../function/channel.js';
import { expect, expectRefusal, NotExercised, CheckRun, type CheckResult } from './check.js';
import type { DirtyInstance, DirtySubject } from './subjects.js';

function covers(ranges: readonly MemoryRange[], gpa: bigint, len: bigint): boolean {
  let at = gpa;
  const end = gpa + len;
  // Ranges come in any order and may touch.
  for (const range of ranges.toSorted((a, b) => (a.gpa < b.gpa ? -1 : 1))) {
    if (range.gpa <= at && at < range.gpa + range.len) at = range.gpa + range.len;
    if (at >= end) return true;
  }
  return false;
}

/** A fixed sequence of writes inside of the ranges, crossing pages. */
function* writes(instance: DirtyInstance, count: number): Generator<[bigint, number]> {
  let x = 1;
  for (let n = 0; n < count; n += 1) {
    x = (Math.imul(x, 1_103_515_245) + 12_345) >>> 0;
    const range = instance.ranges[x % instance.ranges.length];
    if (range === undefined) return;
    const len = 1 + (x % (2 * instance.pageSizeBytes));
    const room = range.len - BigInt(len);
    if (room < 0n) continue;
    yield [range.gpa + ((BigInt(x) * 4093n) % (room + 1n)), len];
  }
}

function stimulus(instance: DirtyInstance): (gpa: bigint, len: number) => Promise<void> {
  if (instance.write === undefined) throw new NotExercised('the subject has no means to let the writer write');
  return instance.write.bind(instance);
}

async function checkComplete(instance: DirtyInstance): Promise<void> {
  const write = stimulus(instance);
  const { source } = instance;
  await source.start(instance.ranges, instance.pageSizeBytes);
  await source.harvest();
  const pending: [bigint, number][] = [];
  const found: MemoryRange[] = [];
  for (const [gpa, len] of writes(instance, 200)) {
    pending.push([gpa, len]);
    await write(gpa, len);
    if (pending.length % 17 === 0) found.push(...(await source.harvest()));
  }
  found.push(...(await source.harvest()));
  for (const [gpa, len] of pending) {
    expect(covers(found, gpa, BigInt(len)), `${len} bytes written at 0x${gpa.toString(16)} are in no harvest`);
  }
  await source.stop();
}

/** A write that overlaps a harvest in time is in that harvest or in the next. */
async function checkConcurrent(instance: DirtyInstance): Promise<void> {
  const write = stimulus(instance);
  const { source } = instance;
  await source.start(instance.ranges, instance.pageSizeBytes);
  await source.harvest();
  for (const [gpa, len] of writes(instance, 64)) {
    const [during] = await Promise.all([source.harvest(), write(gpa, len)]);
    const after = await source.harvest();
    expect(
      covers([...during, ...after], gpa, BigInt(len)),
      `${len} bytes written at 0x${gpa.toString(16)} during a harvest are lost`,
    );
  }
  await source.stop();
}

/** A page that was told once is told again after it was written again. */
async function checkAgain(instance: DirtyInstance): Promise<void> {
  const write = stimulus(instance);
  const { source } = instance;
  await source.start(instance.ranges, instance.pageSizeBytes);
  const [first] = writes(instance, 1);
  if (first === undefined) throw new NotExercised('the ranges are too small');
  const [gpa, len] = first;
  for (let round = 1; round <= 3; round += 1) {
    await write(gpa, len);
    const harvest = await source.harvest();
    expect(
      covers(harvest, gpa, BigInt(len)),
      `written for the ${round}. time, ${len} bytes at 0x${gpa.toString(16)} are not told`,
    );
    const quiet = await source.harvest();
    expect(quiet.length === 0, `a harvest without writes still tells ${quiet.length} ranges`);
  }
  await source.stop();
}

async function checkGranularity(instance: DirtyInstance): Promise<void> {
  const { source, ranges, pageSizeBytes } = instance;
  const granularity = await source.start(ranges, pageSizeBytes);
  expect(
    Number.isSafeInteger(granularity) && granularity > 0 && Number.isInteger(Math.log2(granularity)),
    `start() gives ${granularity}, which is no power of two`,
  );
  if (instance.write !== undefined) {
    for (const [gpa, len] of writes(instance, 16)) await instance.write(gpa, len);
  }
  const g = BigInt(granularity);
  const [low, high] = [ranges.map((r) => r.gpa), ranges.map((r) => r.gpa + r.len)];
  for (const range of await source.harvest()) {
    expect(range.len > 0n, 'a harvest tells an empty range');
    const inside = low.some((l, i) => range.gpa >= l - (l % g) && range.gpa + range.len <= (high[i] ?? 0n) + g);
    expect(inside, `a harvest tells 0x${range.gpa.toString(16)} + ${range.len}, which was not to be tracked`);
  }
  await source.stop();
}

async function checkStop(instance: DirtyInstance): Promise<void> {
  const { source, ranges, pageSizeBytes } = instance;
  await source.stop();
  await source.start(ranges, pageSizeBytes);
  await source.stop();
  await source.stop();
  await source.start(ranges, pageSizeBytes);
  await source.harvest();
  await source.stop();
}

async function checkClose({ source, ranges, pageSizeBytes }: DirtyInstance): Promise<void> {
  await source.close();
  await source.close();
  await expectRefusal('start after close', () => source.start(ranges, pageSizeBytes), ['ERR_TOWLINE_CLOSED']);
}

async function checkAbort({ source, ranges, pageSizeBytes }: DirtyInstance): Promise<void> {
  const signal = AbortSignal.abort(new Error('the kit cancels'));
  await expectRefusal('start with a fired signal', () => source.start(ranges, pageSizeBytes, { signal }), [
    'ERR_TOWLINE_ABORTED',
  ]);
  await source.start(ranges, pageSizeBytes);
  await expectRefusal('harvest with a fired signal', () => source.harvest({ signal }), ['ERR_TOWLINE_ABORTED']);
  await source.stop();
}

const checks: readonly (readonly [string, string, (instance: DirtyInstance) => Promise<void>])[] = [
  ['dirty/granularity', 'granularity and ranges are right', checkGranularity],
  ['dirty/complete', 'every write is in a harvest', checkComplete],
  ['dirty/concurrent', 'a write during a harvest is in it or in the next', checkConcurrent],
  ['dirty/again', 'what is written again is told again, and only then', checkAgain],
  ['dirty/stop', 'stop is idempotent, and tracking starts again', checkStop],
  ['dirty/abort', 'a fired signal is heard and changes nothing', checkAbort],
  ['dirty/close', 'close is idempotent, and refuses what comes after it', checkClose],
];

/** Runs every check of a dirty source, one after another. */
export function conformDirtySource(subject: DirtySubject): AsyncGenerator<CheckResult, void, void> {
  return dirtyChecks(subject, new CheckRun(subject.checkTimeoutMs));
}

/** The checks of {@link conformDirtySource} as a part of `run`. */
export async function* dirtyChecks(subject: DirtySubject, run: CheckRun): AsyncGenerator<CheckResult, void, void> {
  for (const [name, passed, work] of checks) {
    yield run.check(name, passed, async () => {
      const instance = await subject.open();
      try {
        await work(instance);
      } finally {
        await instance.close();
      }
    });
  }
}
