import { randomBytes } from 'node:crypto';
import { closeSync } from 'node:fs';
import test, { type ExecutionContext } from 'ava';
import { conformDirtySource, type CheckResult } from '#towline/conformance/index.js';
import { processDirtySource } from '#towline/dirty/process.js';
import { isTowlineError } from '#towline/errors.js';
import type { DirtySource } from '#towline/function/channel.js';
import { GuestMemory } from '#towline/migration/memory.js';
import { memfd } from '#towline/rehearsal/memfd.js';
import { Writer } from '../support/dirty-child.js';
import { mappedAt } from '../support/mapped-at.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

const LEN = 4n << 20n;

/** Why this kernel can't do it, for the titles of what is skipped then. */
async function lacks(): Promise<string | undefined> {
  using memory = GuestMemory.anonymous('probe', 4096n);
  const source = memory.watchedSource();
  try {
    await source.start(memory.ranges(), 4096);
    return undefined;
  } catch (error) {
    if (isTowlineError(error, 'ERR_TOWLINE_UNSUPPORTED')) return error.message;
    throw error;
  } finally {
    await source.close();
  }
}

const why = await lacks();
const real = (title: string, run: (t: ExecutionContext) => Promise<void>): void =>
  why === undefined ? test(title, run) : test.skip(`${title} (${why})`, run);

async function failed(open: (memory: GuestMemory, name: string) => DirtySource): Promise<CheckResult[]> {
  const found: CheckResult[] = [];
  let count = 0;
  const subject = {
    open: async () => {
      const name = `kit-${(count += 1)}`;
      const memory = GuestMemory.anonymous(name, LEN);
      const source = open(memory, name);
      return {
        source,
        ranges: [
          { gpa: 0n, len: 64n * 4096n },
          { gpa: 1n << 20n, len: 1n << 20n },
        ],
        pageSizeBytes: 4096,
        write: async (gpa: bigint, len: number) => memory.write(gpa, randomBytes(len)),
        close: async () => {
          await source.close();
          memory.close();
        },
      };
    },
  };
  for await (const result of conformDirtySource(subject)) if (result.outcome !== 'passed') found.push(result);
  return found;
}

real('the watched mapping of guest memory conforms', async (t) => {
  t.deepEqual(await failed((memory) => memory.watchedSource()), []);
});

real('a watched mapping that the caller names conforms', async (t) => {
  const open = (_: GuestMemory, name: string) =>
    processDirtySource({ ranges: [{ address: mappedAt(name), len: LEN, gpa: 0n }] });
  t.deepEqual(await failed(open), []);
});

real('ranges come and go, and what has to be right is checked', async (t) => {
  using memory = GuestMemory.anonymous('ranges', LEN);
  const whole = { address: mappedAt('ranges'), len: LEN, gpa: 1n << 40n };
  const half = { ...whole, len: LEN / 2n };
  await using source = processDirtySource({ ranges: [half] });
  await source.start([{ gpa: whole.gpa, len: LEN }], 4096);
  memory.write(LEN - 1n, new Uint8Array(1));
  memory.write(4095n, new Uint8Array(2));
  t.deepEqual(await source.harvest(), [{ gpa: whole.gpa, len: 8192n }]);
  await source.addRange({ address: half.address + half.len, len: half.len, gpa: half.gpa + half.len });
  t.deepEqual(await source.harvest(), [{ gpa: whole.gpa + half.len, len: half.len }]);
  memory.write(0n, new Uint8Array(1));
  await source.removeRange(half);
  memory.write(8192n, new Uint8Array(1));
  t.deepEqual(await source.harvest(), [{ gpa: whole.gpa, len: 4096n }]);
  await t.throwsAsync(source.removeRange(half), { code: 'ERR_TOWLINE_NOT_FOUND' });
  await t.throwsAsync(source.addRange({ ...half, address: 4096n }), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
  t.throws(() => processDirtySource({ ranges: [{ ...half, address: -1n }] }), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
  t.throws(() => processDirtySource({ ranges: [{ ...half, address: 4096n }] }), {
    code: 'ERR_TOWLINE_INVALID_ARGUMENT',
    message: /not wholly mapped and writable/,
  });
  const second = processDirtySource({ ranges: [whole] });
  await t.throwsAsync(second.start([{ gpa: whole.gpa, len: LEN }], 4096), { code: 'ERR_TOWLINE_STATE' });
  await second.close();
  await source.close();
  await t.throwsAsync(source.harvest(), { code: 'ERR_TOWLINE_CLOSED' });
});

/** Migrates memory that this process and another one write, and the device too; the other one last, after the device. */
async function moveWhileTwoWrite(t: ExecutionContext, sources: (writer: Writer, memory: GuestMemory) => DirtySource[]) {
  const name = `shared-${process.pid}-${Math.floor(Math.random() * 1e9)}`;
  const fd = memfd(name, LEN);
  const pair = new Pair(t, LEN);
  pair.memory.source.close();
  pair.memory.source = new GuestMemory([{ gpa: 0n, len: LEN, fd }]);
  const writer = new Writer(fd, name, LEN);
  closeSync(fd);
  t.teardown(() => writer.kill());
  const device = new TsDevice('nic');
  const there = new TsDevice('nic', { uuid: device.uuid });
  pair.memory.source.write(0n, randomBytes(1 << 20));
  await writer.ask({ call: 'run' });
  const settled = await pair.move(device, there, {
    source: {
      dirtySources: sources(writer, pair.memory.source),
      pause: async () => {
        // The same pages, by each of the writers.
        const late = randomBytes(9000);
        device.dma(pair.memory.source, 0x10_0000n, late);
        pair.memory.source.write(0x10_1000n, late);
        await writer.ask({ call: 'halt' });
        await writer.ask({ call: 'write', gpa: 0x10_0800n, data: randomBytes(9000) });
      },
    },
  });
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  t.is(settled.source.value.outcome, 'committed');
  return pair.equalMemory();
}

real('memory that another process writes moves whole, by the runs that it serves', async (t) => {
  t.true(await moveWhileTwoWrite(t, (writer) => [writer.source()]));
});

real('sources that tell the same pages go together', async (t) => {
  t.true(await moveWhileTwoWrite(t, (writer, memory) => [writer.source(), memory.watchedSource()]));
});

real('without the source of that process its pages are lost, which is noticed', async (t) => {
  t.false(await moveWhileTwoWrite(t, (_, memory) => [memory.watchedSource()]));
});
