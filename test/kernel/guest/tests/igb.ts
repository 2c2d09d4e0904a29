// A second kind of PF, igb, by the generic driver: nothing but sysfs. Judged by sysfs, lspci and the network devices that the kernel makes.
import assert from 'node:assert/strict';
import { readdir, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { provisionFunction, SriovDriver, type ControlledFunction, type FunctionSpec } from '#towline/index.js';
import { devicesOpenIn } from '../descriptors.js';
import { run, sys, until } from '../nvme.js';
import { attribute, driverOf, stateOf, vfsOf } from '../pci.js';

/** Where the machine `sriov` has it. */
const PF = '0000:02:00.0';
const NVME = '0000:01:00.0';
const controlling = await new SriovDriver({ vfs: 2 }).open(PF);
const spec = (more: Partial<FunctionSpec> = {}): FunctionSpec => ({ kind: 'vf', migration: false, ...more });
const addressOf = (fn: ControlledFunction): string => fn.location?.address ?? assert.fail(`${fn.name} has no address`);

before(async () => {
  await run('modprobe', ['igbvf']);
  assert.equal(await attribute(PF, 'sriov_numvfs'), '0');
});

test('both PFs are found, whatever they are', async () => {
  const found = (await new SriovDriver().discover()).map((d) => d.address);
  assert.ok(found.includes(PF) && found.includes(NVME), found.join(', '));
});

let fn: ControlledFunction;

test('a VF is provisioned to the driver of the kernel, which makes a network device of it', async () => {
  fn = await provisionFunction(controlling, spec({ expose: 'kernel' }));
  const address = addressOf(fn);
  assert.equal(await attribute(PF, 'sriov_numvfs'), '2');
  assert.equal(await attribute(PF, 'sriov_drivers_autoprobe'), '0');
  assert.equal(await driverOf(address), 'igbvf');
  await until('network device', async () => (await readdir(`${sys(address)}/net`))[0]);
  // The other VF of the pool is there, and nobody's.
  const other = (await vfsOf(PF)).find((vf) => vf !== address) ?? assert.fail('there is one VF');
  assert.equal(await driverOf(other), undefined);
});

test('to vfio-pci and back, while the other VF keeps its network device', async () => {
  const other = await provisionFunction(controlling, spec({ expose: 'kernel' }));
  await fn.expose('vfio');
  assert.equal(await driverOf(addressOf(fn)), 'vfio-pci');
  assert.match((await run('lspci', ['-k', '-s', addressOf(fn)])).stdout, /Kernel driver in use: vfio-pci/);
  assert.equal(await driverOf(addressOf(other)), 'igbvf');
  await fn.expose('kernel');
  assert.equal(await driverOf(addressOf(fn)), 'igbvf');
  await assert.rejects(provisionFunction(controlling, spec()), {
    code: 'ERR_TOWLINE_NO_RESOURCES',
    message: /--force/,
  });
  await other.release();
});

test('what this PF can not give is refused, and nothing is left', async () => {
  const earlier = await stateOf(PF);
  for (const more of [{ vectors: 2 }, { queues: 1 }, { migration: true }]) {
    await assert.rejects(provisionFunction(controlling, spec(more)), { code: 'ERR_TOWLINE_UNSUPPORTED' });
    assert.deepEqual(await stateOf(PF), earlier);
  }
});

test('a driver that refuses the VF is told, and the driver before has it again', async () => {
  const earlier = await stateOf(PF);
  await run('modprobe', ['-r', 'vfio-pci']);
  try {
    await assert.rejects(fn.expose('vfio'), { code: 'ERR_TOWLINE_EXPOSURE', message: /modprobe vfio-pci/ });
  } finally {
    await run('modprobe', ['vfio-pci']);
  }
  assert.equal(fn.exposure, 'kernel');
  assert.deepEqual(await stateOf(PF), earlier);
});

test('the comparison notices what is left behind', async () => {
  const earlier = await stateOf(PF);
  await writeFile(`${sys(addressOf(fn))}/driver_override`, 'vfio-pci');
  assert.notDeepEqual(await stateOf(PF), earlier);
  await writeFile(`${sys(addressOf(fn))}/driver_override`, '\n');
  assert.deepEqual(await stateOf(PF), earlier);
});

test('explain names the drivers that do not migrate it', async () => {
  const codes = (await fn.explain()).map((r) => r.code);
  assert.ok(codes.includes('no-variant-driver') && codes.includes('migration-not-enabled'), codes.join(', '));
});

test('VFs that are there are used, and their number is changed only by force', async () => {
  const more = await new SriovDriver({ vfs: 3 }).open(PF);
  assert.deepEqual(await more.capacity(), [{ kind: 'vf', total: 2, free: 1 }]);
  assert.deepEqual(await more.list(), [], 'what this process has provisioned is in one list only');
  // Somebody else has put the other one to use.
  const other = (await vfsOf(PF)).find((vf) => vf !== addressOf(fn)) ?? assert.fail('there is one VF');
  await writeFile(`${sys(other)}/driver_override`, 'igbvf');
  await writeFile('/sys/bus/pci/drivers_probe', other);
  assert.equal(await driverOf(other), 'igbvf');
  const found = (await more.list()).map(({ exposure, location }) => [exposure, location?.address]);
  assert.deepEqual(found, [['kernel', other]]);
  assert.deepEqual(await more.capacity(), [{ kind: 'vf', total: 2, free: 0 }]);
  await more.close();
  const forced = await new SriovDriver({ vfs: 3, force: true }).open(PF);
  // What this process has provisioned is not destroyed behind its back, by nobody.
  await assert.rejects(provisionFunction(forced, spec()), {
    code: 'ERR_TOWLINE_BUSY',
    message: new RegExp(addressOf(fn)),
  });
  assert.equal(await attribute(PF, 'sriov_numvfs'), '2');
  await fn.release();
  await (await forced.provision(spec())).release();
  assert.equal(await attribute(PF, 'sriov_numvfs'), '3');
  await forced.close();
});

after(async () => {
  await controlling.close();
  assert.deepEqual(devicesOpenIn(), []);
  await writeFile(`${sys(PF)}/sriov_numvfs`, '0');
  await writeFile(`${sys(PF)}/sriov_drivers_autoprobe`, '1');
});
