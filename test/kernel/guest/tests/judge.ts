// Linux's nvme driver, nvme-cli, fio and ext4 on the embedded controllers, each behind a vfio-user socket: PF, VF and SIOV-like function.
import assert from 'node:assert/strict';
import { mkdir, readFile, readdir, readlink, writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import type { Descriptors } from '../../host/servers.js';
import { ask } from '../ask.js';
import { controllerOf, diskOf, fio, load, nvme, run, sys, tellLog } from '../nvme.js';

const kinds = ['pf', 'vf', 'siov'] as const;
/** Where the machine `judge` plugs each: behind its root ports, in their order. */
const addresses = { pf: '0000:01:00.0', vf: '0000:02:00.0', siov: '0000:03:00.0' } as const;
const diskBytes = 64 * 1024 * 1024;
let cntlids: Record<string, number>;
/** What the server has open while all of them are live. */
let descriptors: Descriptors;

before(async () => {
  for (const kind of kinds) await controllerOf(addresses[kind]);
  descriptors = (await ask('descriptors')) as Descriptors;
  assert.ok(descriptors.memory > 0 && descriptors.eventfd > 0, JSON.stringify(descriptors));
  cntlids = (await ask('cntlids')) as Record<string, number>;
});

for (const kind of kinds) {
  const address = addresses[kind];
  test(`${kind}: Linux's driver has it, and what it identifies as`, async () => {
    const name = await controllerOf(address);
    assert.equal(basename(await readlink(`${sys(address)}/driver`)), 'nvme');
    const id = await nvme('id-ctrl', `/dev/${name}`);
    assert.equal(id['cntlid'], cntlids[kind]);
    const disk = await diskOf(address);
    const ns = (await nvme('id-ns', disk)) as { nsze: number; lbafs: { ds: number }[]; flbas: number };
    assert.equal(ns.nsze * 2 ** (ns.lbafs[ns.flbas & 0xf]?.ds ?? 0), diskBytes);
    const interrupts = await readFile('/proc/interrupts', 'utf8');
    assert.match(interrupts, new RegExp(`${name}q1`));
    // Guest memory is mapped; the suite `messages` has the same without.
    const { dmaRegions, messageRegions } = (await ask('status', kind)) as {
      dmaRegions: number;
      messageRegions: number;
    };
    assert.ok(messageRegions < dmaRegions, `${messageRegions} of ${dmaRegions} by messages`);
  });

  test(`${kind}: raw, written and verified`, async () => {
    await fio(await diskOf(address), 'write');
  });

  test(`${kind}: ext4, written, verified and checked`, async () => {
    const disk = await diskOf(address);
    await run('mkfs.ext4', ['-q', '-F', disk]);
    await mkdir('/tmp/mnt', { recursive: true });
    await run('mount', [disk, '/tmp/mnt']);
    try {
      await fio('/tmp/mnt/file', 'write');
      await run('sync');
    } finally {
      await run('umount', ['/tmp/mnt']);
    }
    await run('e2fsck', ['-fn', disk]);
  });

  test(`${kind}: unbound and bound again, the data is there`, async () => {
    await fio(await diskOf(address), 'write');
    await writeFile('/sys/bus/pci/drivers/nvme/unbind', address);
    await assert.rejects(readdir(`${sys(address)}/nvme`));
    await writeFile('/sys/bus/pci/drivers/nvme/bind', address);
    await fio(await diskOf(address), 'read');
  });

  test(`${kind}: the controller's reset, the data is there`, async () => {
    await run('nvme', ['reset', `/dev/${await controllerOf(address)}`]);
    await fio(await diskOf(address), 'read');
  });

  test(`${kind}: function level reset under load`, async () => {
    const disk = await diskOf(address);
    const methods = await readFile(`${sys(address)}/reset_method`, 'utf8');
    assert.match(methods, /flr/);
    const loading = load(disk);
    for (let n = 0; n < 3; n++) {
      await sleep(2500);
      await writeFile(`${sys(address)}/reset`, '1');
      await controllerOf(address);
    }
    const { code, output } = await loading;
    assert.equal(code, 0, output);
  });

  test(`${kind}: unplugged under load and plugged again`, async () => {
    await fio(await diskOf(address), 'write', 3);
    const loading = load(await diskOf(address));
    await sleep(2000);
    await ask('unplug', kind);
    await assert.rejects(readdir(sys(address)));
    await loading;
    await ask('plug', kind);
    await fio(await diskOf(address), 'write', 5);
  });
}

test('the server has as much open as in the beginning, after all of that', async () => {
  const now = (await ask('descriptors')) as Descriptors;
  const connections = ({ socket, memory }: Descriptors): number[] => [socket, memory];
  assert.deepEqual(connections(now), connections(descriptors));
  // A server that was closed keeps its own one until its JavaScript object is collected; interrupts are many more.
  assert.ok(
    now.eventfd <= descriptors.eventfd + kinds.length,
    `${now.eventfd}, ${descriptors.eventfd} in the beginning`,
  );
});

test('the server is killed: the guest survives it, and after unplug and plug the data is there', async () => {
  for (const kind of kinds) await fio(await diskOf(addresses[kind]), 'write', 21);
  const loading = load(await diskOf(addresses.vf));
  await sleep(1000);
  await ask('kill');
  const { code } = await loading;
  assert.notEqual(code, 0, 'I/O on a dead device succeeded');
  for (const kind of kinds) await ask('unplug', kind);
  await ask('start');
  for (const kind of kinds) await ask('plug', kind);
  for (const kind of kinds.filter((one) => one !== 'vf')) await fio(await diskOf(addresses[kind]), 'read', 21);
  await fio(await diskOf(addresses.vf), 'write', 22);
});

after(tellLog);
