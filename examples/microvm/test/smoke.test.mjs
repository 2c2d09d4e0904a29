// The guest boots and drives an embedded function: every command is answered, and the disk holds what the records say, by address and checksum.
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setTimeout as sleep } from 'node:timers/promises';
import test from 'ava';
import { embedded } from 'towline/rehearsal';
import { changedGuest } from './changed-guest.mjs';

const MIB = 1 << 20;
const UNIT = 4096;
const RECORD = 64;
const KIND = { write: 1, read: 2, flush: 3, started: 5, stopped: 6, drained: 7 };

/** Elsewhere there is no native part. */
const native =
  process.platform === 'linux' && process.arch === 'x64'
    ? await import(fileURLToPath(new URL('../native/index.js', import.meta.url)))
    : undefined;
const why = native === undefined ? 'only built for Linux on x86-64' : native.unavailable();
const run = why === undefined ? test.serial : test.serial.skip;

/** CRC32C (RFC 3720, appendix B.4). @param {Uint8Array} bytes */
function crc32c(bytes) {
  let crc = 0xffff_ffff;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f6_3b78 : crc >>> 1;
  }
  return (crc ^ 0xffff_ffff) >>> 0;
}

/** @param {import('ava').ExecutionContext} t @param {Buffer} log @param {Buffer} disk @param {bigint} nextSeq */
function judge(t, log, disk, nextSeq) {
  const answered = new Set();
  /** @type {Map<number, bigint>} */
  const current = new Map();
  const kinds = [];
  for (let at = 0; at < log.length; at += RECORD) {
    const kind = log.readUInt8(at);
    const units = log.readUInt8(at + 2);
    const seq = log.readBigUInt64LE(at + 8);
    const unit = Number(log.readBigUInt64LE(at + 16));
    if (kind === KIND.started || kind === KIND.stopped || kind === KIND.drained) {
      kinds.push(kind);
      continue;
    }
    t.is(log.readUInt8(at + 1), 7, 'the host tag');
    if (kind === KIND.write) for (let n = 0; n < units; n++) current.set(unit + n, seq);
    else if (kind === KIND.read) t.is(log.readBigUInt64LE(at + 24), current.get(unit) ?? 0n, `unit ${unit}`);
    else t.is(kind, KIND.flush);
    answered.add(seq);
  }
  t.deepEqual(kinds, [KIND.started, KIND.drained, KIND.stopped]);
  t.is(BigInt(answered.size), nextSeq - 1n, 'every command was answered, once');
  t.true(current.size > 50);
  for (const [unit, seq] of current) {
    const block = disk.subarray(unit * UNIT, (unit + 1) * UNIT);
    t.is(block.toString('latin1', 0, 8), 'TWLBLOCK');
    t.deepEqual([block.readBigUInt64LE(8), block.readBigUInt64LE(16)], [BigInt(unit), seq]);
    t.is(block.readUInt32LE(UNIT - 4), crc32c(block.subarray(0, UNIT - 4)));
  }
}

/**
 * A guest on an embedded function, with all that it needs taken away afterwards.
 * @param {string} title
 * @param {'mmio' | 'ioeventfd'} doorbells
 * @param {(t: import('ava').ExecutionContext, vm: any, files: { ram: number, log: string, disk: string }) => Promise<void>} body
 * @param {() => Uint8Array} [image] of another guest
 */
function guest(title, doorbells, body, image = () => native.guestImage()) {
  run(why === undefined ? title : `${title}: ${why}`, async (t) => {
    if (!native) return;
    const folder = mkdtempSync(join(tmpdir(), 'microvm-'));
    // A file that could shrink: the device does not map it but sends messages, which nothing else here has it do.
    const shm = join('/dev/shm', `microvm-${process.pid}`);
    const ram = openSync(shm, 'wx+');
    const log = openSync(join(folder, 'log'), 'w');
    const disk = join(folder, 'disk');
    const subsystem = await embedded.open({ namespaces: [{ path: disk, sizeBytes: BigInt(16 * MIB), shared: true }] });
    try {
      ftruncateSync(ram, 64 * MIB);
      const spec = { kind: /** @type {const} */ ('vf'), name: 'guest', queues: 2, vectors: 3, namespaces: [1] };
      const fn = await subsystem.provision({ ...spec, expose: 'none' });
      const socketPath = join(folder, 'socket');
      await subsystem.controlling.expose(fn, 'vfio-user', { socketPath });
      const vm = new native.Vm({ memory: [{ gpa: 0n, len: BigInt(64 * MIB), fd: ram }], logFd: log, hostTag: 7 });
      try {
        t.is((await vm.connect({ socketPath, doorbells })).vectors, 3);
        vm.boot(image(), { units: 512, doorbells });
        vm.setLoad({ iops: 2000, dirtyPagesPerS: 2000, workingSetPages: 256 });
        vm.armInterrupts();
        vm.run();
        await vm.ready(60_000);
        await body(t, vm, { ram, log: join(folder, 'log'), disk });
      } finally {
        vm.close();
      }
    } finally {
      await subsystem.close();
      closeSync(ram);
      closeSync(log);
      rmSync(shm);
      rmSync(folder, { recursive: true });
    }
  });
}

/** @param {() => boolean} reached */
async function until(reached) {
  for (let tries = 0; !reached() && tries < 600; tries++) await sleep(100);
}

for (const doorbells of /** @type {const} */ (['mmio', 'ioeventfd'])) {
  guest(`a guest whose doorbells go by ${doorbells}`, doorbells, async (t, vm, files) => {
    await until(() => vm.status().nextSeq >= 1000n && vm.status().total.pagesWritten > 512n);
    const { pending, nextSeq } = await vm.drain(30_000);
    t.is(pending, 0);
    await vm.pause();
    const { total } = vm.status();
    for (const name of ['duplicates', 'errors', 'mismatches', 'memoryErrors', 'stateErrors', 'tscErrors'])
      t.is(total[name], 0n, name);
    t.true(total.interrupts > 0n && total.pagesWritten > 512n);
    const rung = vm.counters().doorbells;
    t.true(doorbells === 'mmio' ? rung.mmio > 100n : rung.ioeventfd > 100n && rung.mmio === 0n);
    judge(t, readFileSync(files.log), readFileSync(files.disk), nextSeq);
  });
}

guest('the guest counts what is lost', 'mmio', async (t, vm, { ram }) => {
  // Once around the working set, so that it knows what every page has to hold.
  await until(() => vm.status().total.pagesWritten > 512n);
  await vm.pause();
  t.is(vm.status().total.memoryErrors, 0n);
  t.is(vm.status().total.stateErrors, 0n);
  // The first pages of the working set are the last ones of RAM.
  const old = Buffer.alloc(8);
  for (let page = 1; page <= 2; page++) writeSync(ram, old, 0, 8, 64 * MIB - page * UNIT + 8);
  // A count of heartbeats that the registers do not have.
  const beats = Buffer.alloc(8);
  readSync(ram, beats, 0, 8, native.LAYOUT.status + 8);
  beats.writeBigUInt64LE(beats.readBigUInt64LE() - 1n);
  writeSync(ram, beats, 0, 8, native.LAYOUT.status + 8);
  vm.run();
  await until(() => vm.status().total.memoryErrors > 0n && vm.status().total.stateErrors > 0n);
  t.true(vm.status().total.memoryErrors > 0n);
  t.true(vm.status().total.stateErrors > 0n);
});

/**
 * How much a throttled guest writes, as a share of what it may at most: what its vCPUs' time in the guest is worth, and a doze's for each slice of
 * the throttle that they were out of it.
 * @param {any} vm
 */
async function writtenWhileThrottled(vm) {
  const [rate, sliceS, dozeS] = [4000, 0.01, 0.002];
  vm.setLoad({ iops: 100, dirtyPagesPerS: rate, workingSetPages: 256 });
  vm.setThrottle(99);
  const now = () => ({
    s: performance.now() / 1000,
    pages: Number(vm.status().total.pagesWritten),
    throttledS: Number(vm.counters().throttledNs) / 1e9,
  });
  await until(() => vm.counters().throttledNs > 200_000_000n);
  const before = now();
  await until(() => now().throttledS - before.throttledS > 2);
  const after = now();
  vm.setThrottle(0);
  const seconds = after.s - before.s;
  const inGuest = Math.max(0, seconds - (after.throttledS - before.throttledS) / 2);
  return (after.pages - before.pages) / (rate * (inGuest + (seconds / sliceS + 2) * dozeS));
}

guest('a throttled guest writes less', 'ioeventfd', async (t, vm) => {
  const share = await writtenWhileThrottled(vm);
  t.true(share > 0.05 && share < 1.2, `${share}`);
});

guest(
  'sabotage: one that makes up for it is noticed',
  'ioeventfd',
  async (t, vm) => {
    const share = await writtenWhileThrottled(vm);
    t.true(share > 1.5, `${share}`);
  },
  () => changedGuest('dirty.c', { '    if (vcpu->dirty_budget > most) vcpu->dirty_budget = most;\n': '' }),
);
