/** Guest memory in several ranges with holes between them, and out of huge pages: it arrives byte for byte, copied or passed. */
import { randomBytes } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, readFileSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { GuestMemory, type MemoryRegion } from '#towline/migration/memory.js';
import { memfd } from '#towline/rehearsal/index.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

const MIB = 1n << 20n;
const HUGE = 2n * MIB;

/** Three ranges, as a PC has them: below a hole, below 4 GiB, and above. The last two share a file, in the other order. */
const PC: readonly { gpa: bigint; len: bigint; file: number; fdOffset: bigint }[] = [
  { gpa: 0n, len: 2n * MIB, file: 0, fdOffset: 0n },
  { gpa: 3n << 30n, len: 2n * MIB, file: 1, fdOffset: 4n * MIB },
  { gpa: 1n << 32n, len: 4n * MIB, file: 1, fdOffset: 0n },
];

function pc(makeFile: (index: number, bytes: bigint) => number, shrinkable: boolean): GuestMemory {
  const files = [makeFile(0, 2n * MIB), makeFile(1, 6n * MIB)];
  const region = ({ gpa, len, file, fdOffset }: (typeof PC)[number]): MemoryRegion => ({
    gpa,
    len,
    fd: files[file] ?? -1,
    fdOffset,
    shrinkable,
  });
  const memory = new GuestMemory(PC.map(region));
  for (const fd of files) closeSync(fd);
  return memory;
}

const contents = (memory: GuestMemory): Buffer[] =>
  memory.ranges().map(({ gpa, len }) => Buffer.from(memory.read(gpa, Number(len))));

async function arrives(t: ExecutionContext, make: () => GuestMemory, how: 'copy' | 'pass', shrinkable: boolean) {
  const pair = new Pair(t);
  const source = new TsDevice('ranges');
  const destination = new TsDevice('ranges', { uuid: source.uuid });
  const memory = make();
  for (const { gpa, len } of memory.ranges()) {
    // Around both ends, and across pages in the middle; what lies between stays as it is.
    memory.write(gpa, randomBytes(5000));
    memory.write(gpa + len / 2n - 3n, randomBytes(70_000));
    memory.write(gpa + len - 9n, randomBytes(9));
  }
  let there = how === 'copy' ? make() : undefined;
  const { gpa, len } = PC[2] ?? { gpa: 0n, len: 0n };
  const settled = await pair.move(source, destination, {
    source: {
      memory,
      memoryTransfer: how,
      // The last words of the device, at the very end of memory.
      pause: () => source.dma(memory, gpa + len - 4100n, randomBytes(4100)),
    },
    destination: there ? { memory: there } : { memory: 'passed', shrinkable, onMemory: (m) => void (there = m) },
  });
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  t.deepEqual(there?.ranges(), memory.ranges());
  const [mine, theirs] = [contents(memory), contents(there as GuestMemory)];
  t.deepEqual(
    mine.map((bytes, i) => bytes.equals(theirs[i] ?? Buffer.alloc(0))),
    PC.map(() => true),
  );
  // A byte outside of every range has nowhere to go.
  t.throws(() => there?.read(2n * MIB, 1), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
  there?.close();
  memory.close();
}

/** Where files of huge pages can be made; the reason why not otherwise. */
function hugePages(): { folder: string } | { skip: string } {
  const mount = /^\S+ (\S+) hugetlbfs [^\n]*/m.exec(readFileSync('/proc/mounts', 'utf8'));
  const folder = mount?.[1];
  if (folder === undefined) return { skip: 'no hugetlbfs is mounted' };
  const free = Number(readFileSync('/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages', 'utf8'));
  // Both sides of a copy, and as much again for what another test has.
  const wanted = Number((16n * MIB) / HUGE);
  return free >= wanted ? { folder } : { skip: `${wanted} free huge pages of 2 MiB are needed, there are ${free}` };
}

const huge = hugePages();
const hugeFile = (index: number, bytes: bigint): number => {
  if ('skip' in huge) throw new Error(huge.skip);
  const path = join(huge.folder, `towline-ranges-${process.pid}-${index}`);
  const fd = openSync(path, 'wx+');
  unlinkSync(path);
  ftruncateSync(fd, Number(bytes));
  return fd;
};

for (const how of ['copy', 'pass'] as const) {
  test(`ranges with holes arrive byte for byte by ${how}`, (t) =>
    arrives(t, () => pc((index, bytes) => memfd(`ranges-${index}`, bytes), false), how, false));

  const title = `memory out of huge pages arrives byte for byte by ${how}`;
  if ('skip' in huge) test.skip(`${title}: ${huge.skip}`, () => undefined);
  else test.serial(title, (t) => arrives(t, () => pc(hugeFile, true), how, true));
}
