// Guest memory that has no descriptor: QEMU maps it without one, and every byte that the controller reads or writes goes as a message the
// other way on the socket on which QEMU's own come. Linux's nvme driver and fio above it.
import assert from 'node:assert/strict';
import { readFile, readlink, writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { after, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { ask } from '../ask.js';
import { controllerOf, diskOf, fio, load, nvme, run, sys, tellLog } from '../nvme.js';

/** Where the machine `messages` plugs the function without a policy. */
const address = '0000:01:00.0';

test("Linux's driver has it, with an interrupt for its queue, and all guest memory goes by messages", async () => {
  const name = await controllerOf(address);
  assert.equal(basename(await readlink(`${sys(address)}/driver`)), 'nvme');
  assert.match(await readFile('/proc/interrupts', 'utf8'), new RegExp(`${name}q1`));
  assert.equal(typeof (await nvme('id-ctrl', `/dev/${name}`))['cntlid'], 'number');
  const status = (await ask('status', 'open')) as { connected: boolean; dmaRegions: number; messageRegions: number };
  assert.ok(status.connected && status.messageRegions > 0, JSON.stringify(status));
  assert.equal(status.messageRegions, status.dmaRegions, 'a range has a descriptor');
});

test('raw, written and verified', async () => {
  await fio(await diskOf(address), 'write');
});

test('transfers of many pages come back as they were', async () => {
  const disk = await diskOf(address);
  const pattern = '/tmp/pattern';
  await run('dd', ['if=/dev/urandom', `of=${pattern}`, 'bs=1M', 'count=4']);
  await run('dd', [`if=${pattern}`, `of=${disk}`, 'bs=512K', 'seek=32', 'oflag=direct']);
  const back = await run('sh', ['-c', `dd if=${disk} bs=512K skip=32 count=8 iflag=direct | cmp - ${pattern}`]);
  assert.equal(back.stdout, '');
  // The comparison trips over one byte.
  await run('sh', ['-c', `printf x | dd of=${pattern} bs=1 seek=1000000 conv=notrunc`]);
  await assert.rejects(run('sh', ['-c', `dd if=${disk} bs=512K skip=32 count=8 iflag=direct | cmp - ${pattern}`]));
});

test("the controller's reset and a function level reset under load, the data is there", async () => {
  const disk = await diskOf(address);
  await fio(disk, 'write', 9);
  await run('nvme', ['reset', `/dev/${await controllerOf(address)}`]);
  await fio(await diskOf(address), 'read', 9);
  const loading = load(disk);
  await sleep(3000);
  await writeFile(`${sys(address)}/reset`, '1');
  await controllerOf(address);
  const { code, output } = await loading;
  assert.equal(code, 0, output);
});

test('unbound and bound again, the data is there', async () => {
  await fio(await diskOf(address), 'write', 13);
  await writeFile('/sys/bus/pci/drivers/nvme/unbind', address);
  await writeFile('/sys/bus/pci/drivers/nvme/bind', address);
  await fio(await diskOf(address), 'read', 13);
});

after(tellLog);
