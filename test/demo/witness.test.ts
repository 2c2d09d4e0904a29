import test from 'ava';
import { execFileSync, fork, type ChildProcess } from 'node:child_process';
import { closeSync, constants, mkdtempSync, openSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { crc32c, UNIT_BYTES } from '../../dist-examples/shared/block.js';

const PAGES = 1500;

interface Answer {
  result?: {
    stalePages: number;
    comparedPages: number;
    firstStale?: string[];
    io?: { completed: number; lost: number; duplicated: number; corrupted: number };
    owners?: number;
  };
  error?: string;
}

/** A witness with files for memories, FIFOs for logs and a disk, all of which a test can write to. */
class Stage {
  readonly directory = mkdtempSync(join(tmpdir(), 'towline-witness-'));
  readonly disk = join(this.directory, 'disk');
  readonly memories: [number, number];
  readonly logs: [number, number];
  readonly child: ChildProcess;

  constructor(pages: [number, number] = [PAGES, PAGES]) {
    const file = (name: string, count: number) => {
      writeFileSync(join(this.directory, name), Buffer.alloc(count * 4096, 0x5a));
      return openSync(join(this.directory, name), 'r+');
    };
    const fifo = (name: string) => {
      execFileSync('mkfifo', [join(this.directory, name)]);
      return openSync(join(this.directory, name), constants.O_RDWR);
    };
    writeFileSync(this.disk, Buffer.alloc(8 * UNIT_BYTES));
    this.memories = [file('a', pages[0]), file('b', pages[1])];
    this.logs = [fifo('log-a'), fifo('log-b')];
    const witness = fileURLToPath(new URL('../../dist-examples/shared/witness.js', import.meta.url));
    this.child = fork(witness, [this.disk], {
      stdio: ['ignore', 'inherit', 'inherit', 'ipc', ...this.memories, ...this.logs],
      execArgv: [],
    });
  }

  ask(command: string): Promise<Answer> {
    return new Promise((resolve, reject) => {
      this.child.once('message', (answer) => resolve(answer as Answer));
      this.child.once('exit', () => reject(new Error('the witness ended')));
      this.child.send({ command });
    });
  }

  close(): void {
    this.child.removeAllListeners('exit');
    this.child.kill();
    for (const fd of [...this.memories, ...this.logs]) closeSync(fd);
    rmSync(this.directory, { recursive: true });
  }
}

const stages: Stage[] = [];
test.afterEach.always(() => {
  for (const used of stages.splice(0)) used.close();
});

function stage(pages?: [number, number]): Stage {
  const made = new Stage(pages);
  stages.push(made);
  return made;
}

function record(kind: number, host: number, seq: number, unit: number, timeNs: number, nextSeq: number): Buffer {
  const bytes = Buffer.alloc(64);
  bytes.set([kind, host, 1, 0, host], 0);
  bytes.writeBigUInt64LE(BigInt(seq), 8);
  bytes.writeBigUInt64LE(BigInt(unit), 16);
  bytes.writeBigUInt64LE(BigInt(seq), 24);
  bytes.writeUInt32LE(host, 32);
  bytes.writeBigUInt64LE(BigInt(timeNs), 40);
  bytes.writeBigUInt64LE(BigInt(nextSeq), 48);
  return bytes;
}

function block(unit: number, seq: number, epoch: number): Buffer {
  const bytes = Buffer.alloc(UNIT_BYTES, 1);
  bytes.write('TWLBLOCK', 0, 'latin1');
  bytes.writeBigUInt64LE(BigInt(unit), 8);
  bytes.writeBigUInt64LE(BigInt(seq), 16);
  bytes.writeUInt32LE(epoch, 24);
  bytes.writeUInt32LE(crc32c(bytes.subarray(0, UNIT_BYTES - 4)), UNIT_BYTES - 4);
  return bytes;
}

test.serial('every page is compared, and each that differs is counted', async (t) => {
  const s = stage();
  const same = await s.ask('compare');
  t.like(same.result, { comparedPages: PAGES, stalePages: 0, firstStale: [] });
  // The last byte of the first page, and one far behind it.
  writeSync(s.memories[0], Buffer.of(1), 0, 1, 4095);
  writeSync(s.memories[1], Buffer.of(1), 0, 1, 1400 * 4096 + 7);
  const differs = await s.ask('compare');
  t.like(differs.result, { comparedPages: PAGES, stalePages: 2, firstStale: ['0x0', '0x578000'] });
});

test.serial('memories of different sizes are not compared', async (t) => {
  t.like(await stage([4, 5]).ask('compare'), { error: 'the memories differ in size' });
});

/** Sequence 1 at the first host, more at the second than a pipe takes at once, then `last` of the disk. */
async function moved(s: Stage, last: (disk: Buffer) => void): Promise<Answer> {
  const writes = 3000;
  writeSync(
    s.logs[0],
    Buffer.concat([record(5, 1, 0, 0, 10, 1), record(1, 1, 1, 2, 20, 2), record(6, 1, 0, 0, 30, 2)]),
  );
  writeSync(s.logs[1], record(5, 2, 0, 0, 40, 2));
  for (let n = 0; n < writes; n += 500) {
    const batch = Array.from({ length: 500 }, (_, i) => record(1, 2, n + i + 2, 3, n + i + 50, n + i + 3));
    writeSync(s.logs[1], Buffer.concat(batch));
  }
  const disk = Buffer.alloc(8 * UNIT_BYTES);
  block(2, 1, 1).copy(disk, 2 * UNIT_BYTES);
  block(3, writes + 1, 2).copy(disk, 3 * UNIT_BYTES);
  last(disk);
  writeFileSync(s.disk, disk);
  writeSync(s.logs[1], record(7, 2, 0, 0, 1e6, writes + 2));
  return s.ask('finish');
}

test.serial('logs and disk are read whole and judged', async (t) => {
  const { result } = await moved(stage(), () => undefined);
  t.like(result, { io: { completed: 3001, lost: 0, duplicated: 0, corrupted: 0 }, owners: 1, stalePages: 0 });
});

test.serial('a byte of the disk that is wrong is found', async (t) => {
  const { result } = await moved(stage(), (disk) => disk.writeUInt8(9, 2 * UNIT_BYTES + 2000));
  t.like(result, { io: { completed: 3001, lost: 0, duplicated: 0, corrupted: 1 } });
});

test.serial('a write that is not there is found', async (t) => {
  const { result } = await moved(stage(), (disk) => disk.fill(0, 2 * UNIT_BYTES, 3 * UNIT_BYTES));
  t.like(result, { io: { completed: 3001, lost: 1, duplicated: 0, corrupted: 0 } });
});

test.serial('without the end of the log there is no judgement', async (t) => {
  const s = stage();
  writeSync(s.logs[0], record(5, 1, 0, 0, 10, 1));
  t.regex((await s.ask('finish')).error ?? '', /not drained/);
  t.regex((await s.ask('nonsense')).error ?? '', /unknown command/);
});
