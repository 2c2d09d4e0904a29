// The driver `devlink` on the kernel's netdevsim, which has ports of VFs and no operation on the functions behind them. Judged by the devlink
// tool and by the kernel's errno.
import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { DevlinkDriver, isTowlineError, provisionFunction, type FunctionSpec } from '#towline/index.js';
import { openFiles } from '../host.js';
import { run } from '../nvme.js';

const DEVICE = 'netdevsim7';
const ADDRESS = `netdevsim/${DEVICE}`;
const driver = new DevlinkDriver();
let descriptors: number;

/** Ports as the devlink tool shows them. */
async function ports(): Promise<Record<string, { flavour?: string }>> {
  const { stdout } = await run('devlink', ['-j', 'port', 'show']);
  const { port } = JSON.parse(stdout) as { port: Record<string, { flavour?: string }> };
  return Object.fromEntries(Object.entries(port).filter(([name]) => name.startsWith(`${ADDRESS}/`)));
}

before(async () => {
  await run('modprobe', ['netdevsim']);
  await writeFile('/sys/bus/netdevsim/new_device', '7 1');
});

test('the instance is found, and without VFs it says what to do', async () => {
  assert.ok((await driver.discover()).some((d) => d.address === ADDRESS));
  descriptors = await openFiles();
  const controlling = await driver.open(ADDRESS);
  const reason = (await controlling.explain()).find((r) => r.message.includes(ADDRESS));
  assert.match(reason?.mend ?? '', /switchdev/);
  await assert.rejects(provisionFunction(controlling, { kind: 'vf', migration: false }), {
    code: 'ERR_TOWLINE_UNSUPPORTED',
  });
  await controlling.close();
});

test('in switchdev mode its VFs have ports, which are listed as capacity', async () => {
  await writeFile(`/sys/bus/netdevsim/devices/${DEVICE}/sriov_numvfs`, '3');
  await run('devlink', ['dev', 'eswitch', 'set', ADDRESS, 'mode', 'switchdev']);
  const vfs = Object.values(await ports()).filter((p) => p.flavour === 'pcivf').length;
  assert.equal(vfs, 3);
  const controlling = await driver.open(ADDRESS);
  assert.deepEqual((await controlling.capacity())[0], { kind: 'vf', total: vfs, free: vfs });
  const fn = await provisionFunction(controlling, { kind: 'vf', migration: false });
  const { bus, address } = fn.location ?? assert.fail('it has no location');
  assert.equal(bus, 'devlink');
  assert.ok(address in (await ports()), address);
  for (const expose of ['kernel', 'vfio'] as const) {
    await assert.rejects(fn.expose(expose), { code: 'ERR_TOWLINE_EXPOSURE', message: /no PCI function of this host/ });
  }
  await fn.release();
  assert.equal((await controlling.capacity())[0]?.free, vfs);
  await controlling.close();
});

test('what the driver of the device lacks is told with its errno, and nothing changes', async () => {
  const controlling = await driver.open(ADDRESS);
  const earlier = await ports();
  const specs: FunctionSpec[] = [
    { kind: 'vf', hwAddress: '02:00:00:00:00:01', migration: false },
    { kind: 'vf' },
    { kind: 'siov', migration: false },
  ];
  for (const spec of specs) {
    await assert.rejects(provisionFunction(controlling, spec), (error) => {
      assert.ok(isTowlineError(error, 'ERR_TOWLINE_UNSUPPORTED'), String(error));
      assert.equal(error.errno, 95, error.message);
      return true;
    });
    assert.deepEqual(await ports(), earlier);
  }
  // The same refusals to another.
  const port = Object.entries(earlier).find(([, p]) => p.flavour === 'pcivf')?.[0] ?? assert.fail('no port of a VF');
  const set = ['port', 'function', 'set', port, 'hw_addr', '02:00:00:00:00:01'];
  await assert.rejects(run('devlink', set), /not supported/i);
  await controlling.close();
});

test('no descriptor is left open', async () => {
  assert.equal(await openFiles(), descriptors);
});

after(async () => {
  await writeFile('/sys/bus/netdevsim/del_device', '7');
});
