// The exposure `vfio` of a VF: opened by group and by cdev, its config space and registers read, its memory mapped for DMA. Judged by sysfs, by
// what lspci and nvme-cli read of the same device, and by who the kernel lets in.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { open, readFile, writeFile } from 'node:fs/promises';
import { after, test } from 'node:test';

import { GuestMemory, NvmeDriver, provisionFunction, type ControlledFunction } from '#towline/index.js';
import { binding } from '#towline/native/api.js';
import type { NativeVfioInfo } from '#towline/native/host-binding.js';
import { devicesOpenIn } from '../descriptors.js';
import { diskOf, nvme, run, sys } from '../nvme.js';
import { attribute, driverOf, stateOf } from '../pci.js';

/** Where the machine `sriov` has it. */
const PF = '0000:01:00.0';
/** Indices of regions (include/uapi/linux/vfio.h). */
const BAR0 = 0;
const CONFIG = 7;
const controlling = await new NvmeDriver({ vfs: 2 }).open(PF);
const spec = { kind: 'vf', queues: 1, vectors: 1, namespaces: [1], migration: false, expose: 'vfio' } as const;
const fn: ControlledFunction = await provisionFunction(controlling, spec);
const address = fn.location?.address ?? assert.fail('it has no address');
/** The folder comes with the first device. */
const hasCdev = existsSync('/dev/vfio/devices');

for (const by of ['group', 'cdev'] as const) {
  const skip = by === 'cdev' && !hasCdev && 'this kernel has no cdev';
  test(`by ${by}: config space and registers are what others read of it`, { skip }, async () => {
    const device = await binding().openVfio(JSON.stringify({ name: address, by }), null);
    try {
      const info = JSON.parse(device.info()) as NativeVfioInfo;
      assert.equal(info.by, by);
      assert.equal(info.migration, 0, 'QEMU and vfio-pci migrate no NVMe VF');
      // sysfs shows the VF's own identity; the config space of a VF has none, and vfio-pci puts the real one there.
      const config = await device.readRegion(CONFIG, 0n, 64);
      const ids = Buffer.from(config);
      assert.equal(`0x${ids.readUInt16LE(0).toString(16)}`, await attribute(address, 'vendor'));
      assert.equal(`0x${ids.readUInt16LE(2).toString(16).padStart(4, '0')}`, await attribute(address, 'device'));
      // Memory has to be enabled before its registers can be read: nobody has done so yet.
      const command = Buffer.alloc(2);
      command.writeUInt16LE(ids.readUInt16LE(4) | 2);
      await device.writeRegion(CONFIG, 4n, command);
      const registers = Buffer.from(await device.readRegion(BAR0, 0n, 16));
      // nvme-cli reads the same model's registers at the PF.
      const shown = (await nvme('show-regs', '/dev/nvme0')) as { cap?: number; vs?: number };
      assert.equal(registers.readUInt32LE(8), shown.vs ?? assert.fail('no VS'));
      const bar = info.regions.find((r) => r.index === BAR0) ?? assert.fail('no BAR 0');
      const [start = '0', end = '0'] = ((await attribute(address, 'resource')) ?? '').split('\n')[0]?.split(' ') ?? [];
      assert.equal(BigInt(bar.sizeBytes), BigInt(end) - BigInt(start) + 1n);
      assert.ok(bar.mmap.length > 0, 'BAR 0 can be mapped');
    } finally {
      device.close();
    }
    assert.deepEqual(devicesOpenIn(), controllingOnly());
  });

  test(`by ${by}: its DMA gets guest memory, and nobody else gets in`, { skip }, async () => {
    const device = await binding().openVfio(JSON.stringify({ name: address, by }), null);
    const memory = GuestMemory.anonymous('vfio-exposure', 4n << 20n);
    try {
      await device.mapMemory(memory.native());
      await assert.rejects(
        binding().openVfio(JSON.stringify({ name: address, by }), null),
        /EBUSY|has the device open/,
      );
      const path = by === 'cdev' ? `/dev/vfio/devices/${await cdevOf()}` : `/dev/vfio/${await groupOf()}`;
      // The kernel's own word, without towline.
      if (by === 'group') await assert.rejects(open(path, 'r+'), { code: 'EBUSY' });
      await device.unmapMemory();
      await device.reset();
    } finally {
      device.close();
      memory.close();
    }
  });
}

/** What this process has open of devices besides: the controlling function's. */
const controllingOnly = (): string[] => ['/dev/nvme0'];
const cdevOf = async (): Promise<string> => (await run('ls', [`${sys(address)}/vfio-dev`])).stdout.trim();
const groupOf = async (): Promise<string> =>
  (await run('sh', ['-c', `basename $(readlink ${sys(address)}/iommu_group)`])).stdout.trim();

test('a process that has it open is named by explain, which opens nothing', async () => {
  const path = hasCdev ? `/dev/vfio/devices/${await cdevOf()}` : `/dev/vfio/${await groupOf()}`;
  assert.equal(
    (await fn.explain()).some((r) => r.code === 'in-use'),
    false,
  );
  const { spawn } = await import('node:child_process');
  const child = spawn('sh', ['-c', `exec 9<>${path}; echo open; read line`], { stdio: ['pipe', 'pipe', 'inherit'] });
  try {
    await new Promise((resolve) => child.stdout.once('data', resolve));
    const found = (await fn.explain()).find((r) => r.code === 'in-use');
    assert.match(found?.message ?? '', new RegExp(`\\b${child.pid}\\b`));
    assert.equal(await fn.inUse?.(), true);
  } finally {
    child.kill();
    await new Promise((resolve) => child.once('close', resolve));
  }
  assert.equal(
    (await fn.explain()).some((r) => r.code === 'in-use'),
    false,
  );
});

test('the disk is intact when the kernel has it back', async () => {
  await fn.expose('kernel');
  const disk = await diskOf(address);
  await writeFile('/tmp/data', Buffer.alloc(65_536, 'towline'));
  await run('dd', ['if=/tmp/data', `of=${disk}`, 'bs=64k', 'oflag=direct']);
  await fn.expose('vfio');
  const device = await binding().openVfio(JSON.stringify({ name: address }), null);
  await device.reset();
  device.close();
  await fn.expose('kernel');
  await run('dd', [`if=${await diskOf(address)}`, 'of=/tmp/read', 'bs=64k', 'count=1', 'iflag=direct']);
  await run('cmp', ['/tmp/data', '/tmp/read']);
  // The comparison trips over one byte.
  const changed = await readFile('/tmp/data');
  changed[1000] = 0;
  await writeFile('/tmp/data', changed);
  await assert.rejects(run('cmp', ['/tmp/data', '/tmp/read']));
});

test('a driver that is gone while it is exposed is told, and hiding it works nevertheless', async () => {
  await writeFile(`${sys(address)}/driver/unbind`, address);
  assert.equal(await driverOf(address), undefined);
  await fn.expose('none');
  assert.equal(fn.exposure, 'none');
  await fn.expose('vfio');
  assert.equal(await driverOf(address), 'vfio-pci');
});

test('released: no driver and no override', async () => {
  await fn.release();
  const state = (await stateOf(PF)) as { vfs: { address: string; driver?: string; override?: string }[] };
  const own = state.vfs.find((vf) => vf.address === address);
  assert.deepEqual([own?.driver, own?.override], [undefined, '(null)']);
});

after(async () => {
  await controlling.close();
  assert.deepEqual(devicesOpenIn(), []);
  await writeFile(`${sys(PF)}/sriov_numvfs`, '0');
  await writeFile(`${sys(PF)}/sriov_drivers_autoprobe`, '1');
});
