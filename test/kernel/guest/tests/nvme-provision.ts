// NVMe functions provisioned by their controlling function, over the kernel's passthrough: QEMU's controller with SR-IOV, Linux's driver. What
// is there is judged by nvme-cli, by sysfs, and by the other way to the same disk.
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import {
  isTowlineError,
  NvmeDriver,
  provisionFunction,
  type ControlledFunction,
  type FunctionSpec,
} from '#towline/index.js';
import { devicesOpenIn } from '../descriptors.js';
import { controllerOf, diskOf, nvme, run, secondaries, sys, tellLog } from '../nvme.js';
import { attribute, driverOf, stateOf, vfsOf } from '../pci.js';

/** Where the machine `sriov` has it. */
const PF = '0000:01:00.0';
const driver = new NvmeDriver();
const controlling = await driver.open('/dev/nvme0');
/** Random bytes: no two blocks are alike. */
const data = randomBytes(1 << 20);

const spec = (more: Partial<FunctionSpec> = {}): FunctionSpec => ({
  kind: 'vf',
  queues: 1,
  vectors: 1,
  namespaces: [1],
  // This controller has no live migration: that it is refused is a test of its own.
  migration: false,
  ...more,
});

const addressOf = (fn: ControlledFunction): string => fn.location?.address ?? assert.fail(`${fn.name} has no address`);
const codes = async (fn: ControlledFunction): Promise<string[]> => (await fn.explain()).map((r) => r.code);

/** Everything that a provision changes, as others see it. */
async function everything(): Promise<unknown> {
  const attached = await nvme('list-ctrl', '/dev/nvme0', '-n', '1');
  return { pci: await stateOf(PF), secondaries: await secondaries('nvme0'), attached };
}

/** Writes and reads the disk around any cache. */
async function put(disk: string, bytes: Uint8Array): Promise<void> {
  await writeFile('/tmp/data', bytes);
  await run('dd', ['if=/tmp/data', `of=${disk}`, 'bs=64k', 'oflag=direct', 'conv=fsync']);
}
async function digest(disk: string): Promise<string> {
  await run('dd', [`if=${disk}`, 'of=/tmp/read', 'bs=64k', 'count=16', 'iflag=direct']);
  return createHash('sha256')
    .update(await readFile('/tmp/read'))
    .digest('hex');
}
const expected = createHash('sha256').update(data).digest('hex');

let fn: ControlledFunction;

before(async () => {
  assert.equal(await attribute(PF, 'sriov_numvfs'), '0');
  assert.equal(await attribute(PF, 'sriov_drivers_autoprobe'), '1');
});

test('a provision that fails after the pool was sized leaves the pool and nothing in it', async () => {
  await assert.rejects(provisionFunction(controlling, spec({ namespaces: [77] })), { code: 'ERR_TOWLINE_NOT_FOUND' });
  assert.equal(await attribute(PF, 'sriov_numvfs'), '4');
  assert.equal(await attribute(PF, 'sriov_drivers_autoprobe'), '0');
  for (const s of await secondaries('nvme0')) assert.deepEqual([s.online, s.queues, s.vectors], [false, 0, 0]);
  for (const vf of await vfsOf(PF)) assert.equal(await driverOf(vf), undefined);
});

test('one provision: resources of the PF, VFs, queues, vectors, reset, namespace, online, driver', async () => {
  fn = await provisionFunction(controlling, spec({ expose: 'kernel' }));
  const address = addressOf(fn);
  assert.equal(address, (await vfsOf(PF))[0]);
  const [first, ...rest] = await secondaries('nvme0');
  assert.deepEqual(first, { id: first?.id, online: true, vf: 1, queues: 2, vectors: 1 });
  for (const s of rest) assert.equal(s.online, false);
  assert.equal(await driverOf(address), 'nvme');
  const caps = (await nvme('primary-ctrl-caps', '/dev/nvme0')) as { vqrfap: number; virfap: number };
  assert.deepEqual([caps.vqrfap, caps.virfap], [0, 0], 'the PF has given up its flexible resources');
  const { stdout } = await run('lspci', ['-k', '-s', address]);
  assert.match(stdout, /Kernel driver in use: nvme/);
});

test("the kernel's driver uses the VF, and what it wrote is on the disk", async () => {
  const disk = await diskOf(addressOf(fn));
  const other = await diskOf(PF);
  assert.notEqual(disk, other);
  await put(disk, data);
  assert.equal(await digest(other), expected);
  await run('mkfs.ext4', ['-q', '-F', disk, '32M']);
  await mkdir('/tmp/mnt', { recursive: true });
  await run('mount', [disk, '/tmp/mnt']);
  try {
    await writeFile('/tmp/mnt/file', data);
  } finally {
    await run('umount', ['/tmp/mnt']);
  }
  // The other controller has its own cache of the disk.
  await run('blockdev', ['--flushbufs', other]);
  await run('e2fsck', ['-fn', other]);
  await put(disk, data);
});

test('the comparison of digests trips over one changed byte', async () => {
  const changed = Buffer.from(data);
  changed[12_345] = (changed[12_345] ?? 0) ^ 1;
  const other = await diskOf(PF);
  await put(other, changed);
  assert.notEqual(await digest(await diskOf(addressOf(fn))), expected);
  await put(other, data);
  assert.equal(await digest(await diskOf(addressOf(fn))), expected);
});

test('another VF stays up while the first goes to vfio-pci and back, with its data intact', async () => {
  const second = await provisionFunction(controlling, spec({ expose: 'kernel' }));
  const address = addressOf(fn);
  // Further in than the data, for as long as the first one moves.
  const disk = await diskOf(addressOf(second));
  const some = `dd if=/dev/zero of=${disk} bs=64k seek=512 count=256 oflag=direct`;
  const load = run('sh', ['-ec', `${some}; ${some}; ${some}`]);
  try {
    await fn.expose('vfio');
    assert.equal(await driverOf(address), 'vfio-pci');
    assert.match((await run('lspci', ['-k', '-s', address])).stdout, /Kernel driver in use: vfio-pci/);
    await fn.expose('kernel');
  } finally {
    await load;
  }
  assert.equal(await driverOf(addressOf(second)), 'nvme');
  assert.equal(await digest(disk), expected);
  await second.release();
  assert.equal(await digest(await diskOf(address)), expected);
  await fn.expose('none');
  assert.equal(await driverOf(address), undefined);
  assert.equal(await attribute(address, 'driver_override'), '(null)');
  await fn.expose('kernel');
  assert.equal(await digest(await diskOf(address)), expected);
});

test('explain says that this PF has no live migration by its controlling function', async () => {
  const of = (await controlling.explain()).find((r) => r.code === 'controlling-function-cannot-migrate');
  assert.match(of?.message ?? '', /OACS bit 11/);
  // The same bit as another reads it.
  const { oacs } = (await nvme('id-ctrl', '/dev/nvme0')) as { oacs: number };
  assert.equal(oacs & (1 << 11), 0);
  const found = await codes(fn);
  for (const code of ['controlling-function-cannot-migrate', 'no-variant-driver', 'migration-not-enabled']) {
    assert.ok(found.includes(code), `${code} is among ${found.join(', ')}`);
  }
  await assert.rejects(controlling.enableMigration(fn), { code: 'ERR_TOWLINE_UNSUPPORTED' });
});

test('pools that are exhausted: told, and nothing is left of it', async () => {
  const earlier = await everything();
  for (const more of [{ queues: 7 }, { vectors: 4 }, { queues: 300 }]) {
    await assert.rejects(provisionFunction(controlling, spec(more)), (error) => {
      assert.ok(isTowlineError(error));
      assert.ok(['ERR_TOWLINE_DEVICE', 'ERR_TOWLINE_NO_RESOURCES'].includes(error.code), error.message);
      return true;
    });
    assert.deepEqual(await everything(), earlier);
  }
});

test('the comparison notices what is left behind', async () => {
  const earlier = await everything();
  const free = (await secondaries('nvme0')).find((s) => !s.online)?.id ?? assert.fail('none is free');
  const change = (act: string): Promise<unknown> =>
    run('nvme', ['virt-mgmt', '/dev/nvme0', '-c', String(free), '-r', '1', '-a', act, '-n', '1']);
  await change('8');
  assert.notDeepEqual(await everything(), earlier);
  await change('7');
  assert.deepEqual(await everything(), earlier);
});

test('the wrong order is refused before anything is touched', async () => {
  const earlier = await everything();
  await assert.rejects(fn.configure(spec()), { code: 'ERR_TOWLINE_STATE' });
  const bare = await controlling.provision(spec());
  await assert.rejects(bare.expose('kernel'), { code: 'ERR_TOWLINE_STATE' });
  await bare.release();
  assert.deepEqual(await everything(), earlier);
});

test('an online function that the kernel does not take is told, and hidden as before', async () => {
  const bare = await provisionFunction(controlling, spec());
  const earlier = await everything();
  // Behind its back it goes offline: the kernel's probe finds CSTS.CFS.
  const id = (await secondaries('nvme0')).findLast((s) => s.online)?.id ?? -1;
  await run('nvme', ['virt-mgmt', '/dev/nvme0', '-c', String(id), '-r', '0', '-a', '7', '-n', '0']);
  await assert.rejects(bare.expose('kernel'), { code: 'ERR_TOWLINE_DEVICE', message: /driver nvme refused/ });
  assert.equal(await driverOf(addressOf(bare)), undefined);
  assert.equal(await attribute(addressOf(bare), 'driver_override'), '(null)');
  assert.ok((await codes(bare)).includes('function-offline'));
  await bare.configure(bare.spec);
  assert.deepEqual(await everything(), earlier);
  await bare.release();
});

test('a reset of the PF in between takes every function offline: told, and configured again', async () => {
  await fn.expose('none');
  await writeFile(`${sys(PF)}/reset`, '1');
  await controllerOf(PF);
  for (const s of await secondaries('nvme0')) assert.equal(s.online, false);
  assert.ok((await codes(fn)).includes('function-offline'));
  await fn.configure(fn.spec);
  await fn.expose('kernel');
  assert.equal(await digest(await diskOf(addressOf(fn))), expected);
});

test('released: no driver, no resources, no namespace', async () => {
  const address = addressOf(fn);
  await fn.release();
  assert.equal(await driverOf(address), undefined);
  for (const s of await secondaries('nvme0')) assert.deepEqual([s.online, s.queues, s.vectors], [false, 0, 0]);
  const vf = (await controlling.capacity()).find((c) => c.kind === 'vf');
  assert.deepEqual(vf, { kind: 'vf', total: 4, free: 4 });
});

after(async () => {
  await controlling.close();
  assert.deepEqual(devicesOpenIn(), []);
  await tellLog();
  // The next suite finds the machine as this one did.
  await writeFile(`${sys(PF)}/sriov_numvfs`, '0');
  await writeFile(`${sys(PF)}/sriov_drivers_autoprobe`, '1');
});
