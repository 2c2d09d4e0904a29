// BAR policies as a guest meets them under QEMU: registers read by mapping the BAR, beside the same registers of a function without a policy, and
// what Linux's nvme driver makes of it.
import assert from 'node:assert/strict';
import { readFile, readdir, writeFile } from 'node:fs/promises';
import { before, test } from 'node:test';

import { at, CLEARING, QUEUE_ENTRIES, VISIBLE_BYTES } from '../../host/policies.js';
import { controllerOf, diskOf, fio, run, sys, until } from '../nvme.js';
import { driverOf } from '../pci.js';

/** Where the machine `messages` plugs the functions; `open` has no policy. */
const address = { open: '0000:01:00.0', narrow: '0000:02:00.0', deaf: '0000:03:00.0' } as const;
type Name = keyof typeof address;
const program = '/tmp/bar';
const ONES = 0xffff_ffff;

before(async () => {
  await run('gcc', ['-Wall', '-Wextra', '-Werror', '-o', program, '/towline/checkout/test/kernel/guest/bar.c']);
  for (const name of ['open', 'narrow'] as const) {
    await controllerOf(address[name]);
    await writeFile('/sys/bus/pci/drivers/nvme/unbind', address[name]);
    await writeFile(`${sys(address[name])}/enable`, '1');
  }
});

/** Accesses in order, `OFFSET` or `OFFSET=VALUE`, with `.1` or `.2` for other widths than four bytes. What was read. */
async function bar(name: Name, ...accesses: (string | number)[]): Promise<number[]> {
  const { stdout } = await run(program, [`${sys(address[name])}/resource0`, '0x2000', ...accesses.map(String)]);
  return stdout.split('\n').filter(Boolean).map(Number);
}

test('a masked capability: the guest reads what is left, and its neighbours as they are', async () => {
  const [open = 0] = await bar('open', at.cap);
  const [narrow = 0] = await bar('narrow', at.cap);
  assert.ok((open & 0xffff) > QUEUE_ENTRIES, `${open}`);
  assert.equal(narrow, ((open & 0xffff_0000) | QUEUE_ENTRIES) >>> 0);
  // By every width, also of a single byte of it.
  assert.deepEqual(await bar('narrow', `${at.cap}.2`, `${at.cap}.1`, `${at.cap + 1}.1`, `${at.cap + 2}.2`), [
    QUEUE_ENTRIES,
    QUEUE_ENTRIES & 0xff,
    0,
    open >>> 16,
  ]);
});

test('denied and hidden ranges: ones and zeros up to their edges, and writes change nothing', async () => {
  const edges = [at.ones - 4, at.ones, at.hidden - 4, at.hidden, at.clearing - 4];
  assert.deepEqual(await bar('open', ...edges), [0, 0, 0, 0, 0]);
  assert.deepEqual(await bar('narrow', ...edges), [0, ONES, ONES, 0, 0]);
  // An access across an edge gets of each side what is there.
  assert.deepEqual(await bar('narrow', `${at.ones - 2}.4`, `${at.hidden - 1}.2`), [0xffff_0000, 0xff]);
  assert.deepEqual(await bar('narrow', `${at.ones}=0`, at.ones, `${at.hidden}=${ONES}`, at.hidden), [ONES, 0]);
});

test('a register that is cleared by ones', async () => {
  assert.deepEqual(await bar('open', at.clearing), [0]);
  assert.deepEqual(
    await bar('narrow', at.clearing, `${at.clearing}=0`, at.clearing, `${at.clearing}=0x0000000f`, at.clearing),
    [CLEARING, CLEARING, (CLEARING & ~0xf) >>> 0],
  );
  // One byte of it, and from then on nothing but that has changed.
  assert.deepEqual(await bar('narrow', `${at.clearing + 3}.1=0xff`, at.clearing), [CLEARING & 0x00ff_fff0]);
});

test('writes that are dropped do not reach the controller, reads of the same register do', async () => {
  const set = [`${at.interruptMaskSet}=5`, at.interruptMaskSet];
  assert.deepEqual(await bar('open', ...set), [5]);
  assert.deepEqual(await bar('narrow', ...set), [0]);
  assert.deepEqual(await bar('open', `${at.interruptMaskClear}=5`, at.interruptMaskSet), [0]);
});

test('where the BAR is cut off nobody answers', async () => {
  const end = Number(VISIBLE_BYTES);
  assert.deepEqual(await bar('open', end - 4, end, 0x1ffc), [0, 0, 0]);
  assert.deepEqual(await bar('narrow', end - 4, end, 0x1ffc, `${end}=0`, end), [0, ONES, ONES, ONES]);
});

for (const name of ['open', 'narrow'] as const) {
  test(`${name}: Linux's driver works with what it finds, and its data is intact`, async () => {
    await writeFile('/sys/bus/pci/drivers/nvme/bind', address[name]);
    await fio(await diskOf(address[name]), 'write', 17);
    const [controller] = await readdir(`${sys(address[name])}/nvme`);
    const entries = Number(await readFile(`/sys/class/nvme/${controller}/sqsize`, 'utf8'));
    if (name === 'narrow') assert.equal(entries, QUEUE_ENTRIES);
    else assert.ok(entries > QUEUE_ENTRIES, `${entries}`);
  });
}

test('a controller whose configuration can not be written is given up by the driver', async () => {
  await until('word of the driver', async () => {
    // What was looked through already is in the file.
    const { stdout } = await run('sh', ['-c', 'cat /towline/run/kernel-*.log; dmesg']);
    return /nvme nvme\d+: Device not ready; aborting initialisation/.test(stdout) ? true : undefined;
  });
  assert.equal(await driverOf(address.deaf), undefined);
  assert.deepEqual(await readdir(`${sys(address.deaf)}/nvme`).catch(() => []), []);
});
