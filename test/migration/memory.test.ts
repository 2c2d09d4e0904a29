import test from 'ava';
import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { GuestMemory } from '#towline/index.js';
import { memfd } from '#towline/rehearsal/index.js';

const BYTES = 1 << 20;

/** Descriptors of files that can't be sealed. */
function unsealed(t: { teardown: (work: () => void) => void }, directory: string): number {
  const path = mkdtempSync(join(directory, 'towline-memory-'));
  const fd = openSync(join(path, 'memory'), 'w+');
  ftruncateSync(fd, BYTES);
  t.teardown(() => {
    closeSync(fd);
    rmSync(path, { recursive: true });
  });
  return fd;
}

for (const [what, where] of [
  ['a plain file', tmpdir()],
  ['a file of /dev/shm', '/dev/shm'],
] as const) {
  test(`${what} could shrink: it is taken only where that is said`, (t) => {
    const fd = unsealed(t, where);
    const memory = new GuestMemory();
    t.teardown(() => memory.close());
    const region = { gpa: 0n, len: BigInt(BYTES), fd };
    const error = t.throws(() => memory.addRegion(region), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
    t.regex(error.message, /F_SEAL_SHRINK.*shrinkable: true/s);
    t.throws(() => memory.addRegion({ ...region, shrinkable: false }), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
    t.deepEqual(memory.ranges(), []);
    memory.addRegion({ ...region, shrinkable: true });
    memory.write(4096n, Uint8Array.of(1, 2, 3));
    t.deepEqual([...memory.read(4096n, 3)], [1, 2, 3]);
    // What it says of its length is still checked.
    t.throws(() => memory.addRegion({ gpa: 1n << 32n, len: BigInt(BYTES) * 2n, fd, shrinkable: true }), {
      code: 'ERR_TOWLINE_INVALID_ARGUMENT',
    });
  });
}

test('a sealed memfd needs no word', (t) => {
  const fd = memfd('sealed', BigInt(BYTES));
  t.teardown(() => closeSync(fd));
  const memory = new GuestMemory([{ gpa: 0n, len: BigInt(BYTES), fd }]);
  t.deepEqual(memory.ranges(), [{ gpa: 0n, len: BigInt(BYTES) }]);
  memory.close();
});
