// The conformance kit on VFIO devices that towline opens itself: the kernel's mtty, by group and by cdev.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { after, before, test } from 'node:test';

import { holder, sh, towline, values } from '../host.js';

const UUIDS = ['44444444-0000-4000-8000-000000000001', '44444444-0000-4000-8000-000000000002'] as const;

interface Check {
  check: string;
  outcome: 'passed' | 'failed' | 'not-exercised';
  why: string;
}

before(async () => {
  await sh('modprobe mtty');
  for (const uuid of UUIDS)
    await sh(`echo ${uuid} > /sys/devices/virtual/mtty/mtty/mdev_supported_types/mtty-2/create`);
});

after(async () => {
  for (const uuid of UUIDS) await sh(`echo 1 > /sys/bus/mdev/devices/${uuid}/remove`);
});

// The folder of devices comes with the first one; iommufd is what opening them takes.
const ways = existsSync('/dev/iommu') ? (['group', 'cdev'] as const) : (['group'] as const);

for (const by of ways) {
  test(`two mtty pass, by ${by}`, async () => {
    const ended = await towline(
      'conformance',
      '--json',
      '--destructive',
      '--vfio',
      UUIDS[0],
      '--second',
      UUIDS[1],
      '--vfio-by',
      by,
      // An emulated machine that has much else to do.
      '--check-timeout',
      '300000',
    );
    const told = values<Check>(ended);
    const checks = told.filter((c) => c.check !== undefined && typeof c.check === 'string');
    const failed = checks.filter((c) => c.outcome === 'failed');
    assert.deepEqual(failed, []);
    assert.equal(ended.code, 0, ended.out + ended.err);
    assert.ok(checks.filter((c) => c.outcome === 'passed').length > 10, ended.out);
    for (const name of ['channel/arcs', 'channel/illegal-arcs', 'loading/truncated', 'loading/foreign']) {
      assert.equal(checks.find((c) => c.check === name)?.outcome, 'passed', name);
    }
    for (const uuid of UUIDS) {
      const state = `/sys/kernel/debug/vfio/${uuid}/migration/state`;
      if (existsSync(state)) assert.equal(await sh(`cat ${state}`), 'RUNNING');
    }
  });
}

test('a device that somebody has is refused before it is touched', async () => {
  const group = await sh(`basename $(readlink /sys/bus/mdev/devices/${UUIDS[0]}/iommu_group)`);
  const owner = await holder(`exec 9<>/dev/vfio/${group} && echo open`);
  try {
    const ended = await towline('conformance', '--json', '--destructive', '--vfio', UUIDS[0]);
    assert.equal(ended.code, 3, ended.out);
    assert.equal(values<{ error: { code: string } }>(ended)[0]?.error.code, 'ERR_TOWLINE_BUSY');
  } finally {
    await owner.end();
  }
});

test('without --destructive, and for what is not on VFIO or does not migrate, it refuses', async () => {
  const code = async (...args: string[]): Promise<string | undefined> =>
    values<{ error?: { code: string } }>(await towline('conformance', '--json', ...args))[0]?.error?.code;
  assert.equal(await code('--vfio', UUIDS[0]), 'ERR_TOWLINE_REFUSED');
  assert.equal(await code('--destructive', '--vfio', '0000:01:00.0'), 'ERR_TOWLINE_UNSUPPORTED');
  assert.equal(await code('--destructive', '--vfio', UUIDS[0], '--second', UUIDS[0]), 'ERR_TOWLINE_INVALID_ARGUMENT');
  assert.equal(await code('--destructive', '--vfio', '0000:77:00.0'), 'ERR_TOWLINE_NOT_FOUND');
});
