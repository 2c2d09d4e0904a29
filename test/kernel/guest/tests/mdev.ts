// Mediated devices: the kernel's mtty sample by the driver `mdev`. Judged by sysfs and by the kernel's own state in debugfs.
import assert from 'node:assert/strict';
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import { MdevDriver, provisionFunction, type ControlledFunction, type FunctionSpec } from '#towline/index.js';
import { conformDriver, conformFunction } from '#towline/conformance/index.js';
import { devicesOpenIn } from '../descriptors.js';
import { exists, hasDebugfs, kernelState } from '../mtty.js';
import { run } from '../nvme.js';

const types = '/sys/devices/virtual/mtty/mtty/mdev_supported_types';
const available = async (type: string): Promise<number> =>
  Number(await readFile(`${types}/${type}/available_instances`, 'utf8'));
const spec = (more: Partial<FunctionSpec> = {}): FunctionSpec => ({ kind: 'siov', type: 'mtty-2', ...more });
const controlling = await (async () => {
  await run('modprobe', ['mtty']);
  return new MdevDriver().open('mtty');
})();
let before2: number;

before(async () => {
  before2 = await available('mtty-2');
});

test('the kit of drivers passes on it', async () => {
  const driver = new MdevDriver({ type: 'mtty-1' });
  for await (const { check, outcome, why } of conformDriver({ driver, address: 'mtty', checkTimeoutMs: 120_000 })) {
    assert.equal(outcome, 'passed', `${check}: ${why}`);
  }
});

for (const by of ['group', 'cdev'] as const) {
  test(
    `by ${by}: made, opened, its state is the kernel's, released`,
    { skip: by === 'cdev' && !existsSync('/dev/iommu') && 'this kernel has no cdev' },
    async () => {
      const own = await new MdevDriver({ vfio: { by } }).open('mtty');
      const fn = await provisionFunction(own, spec({ expose: 'vfio' }));
      assert.ok(exists(fn.uuid));
      assert.equal(await available('mtty-2'), before2 - 1);
      assert.deepEqual(await fn.explain(), []);
      await fn.open?.();
      const channel = fn.channel();
      await channel.reset();
      assert.deepEqual(channel.flags, { stopCopy: true, p2p: true, preCopy: true });
      for (const to of ['running-p2p', 'stop', 'stop-copy', 'stop', 'running', 'pre-copy', 'running'] as const) {
        await channel.setState(to);
        assert.equal(await channel.state(), to);
        if (hasDebugfs()) assert.equal(await kernelState(fn.uuid), to);
      }
      // The kernel removes it only once nobody has it open: what was left open would make this wait.
      const begun = performance.now();
      await fn.release();
      assert.ok(performance.now() - begun < 30_000, 'something kept the device open');
      assert.equal(exists(fn.uuid), false);
      assert.equal(await available('mtty-2'), before2);
      await own.close();
    },
  );
}

test('a device that somebody else has is told without being opened', async () => {
  const fn = await provisionFunction(controlling, spec({ expose: 'vfio' }));
  const other = await new MdevDriver().open('mtty');
  const seen = (await other.list()).find((f) => f.uuid === fn.uuid) ?? assert.fail('it is not listed');
  await fn.open?.();
  // Both are this process, which is no stranger to itself: the kernel says who has it, by cdev with EINVAL at its second bind.
  await assert.rejects(
    async () => seen.open?.(),
    (error: { errno?: number }) => error.errno === 16 || error.errno === 22,
  );
  await other.close();
  await fn.release();
});

test('the kit of functions on a pair of them', async () => {
  const fn = await provisionFunction(controlling, spec({ expose: 'vfio' }));
  const failed: string[] = [];
  let passed = 0;
  for await (const { check, outcome, why } of conformFunction(controlling, fn, {
    destructive: true,
    checkTimeoutMs: 120_000,
  })) {
    if (outcome === 'failed') failed.push(`${check}: ${why}`);
    if (outcome === 'passed') passed += 1;
  }
  assert.deepEqual(failed, []);
  assert.ok(passed > 5, `${passed} checks passed`);
  await fn.release();
});

test('what a type does not give is refused, and nothing is left', async () => {
  const many: ControlledFunction[] = [];
  for (const more of [{ queues: 1 }, { vectors: 1 }, { expose: 'kernel' }, { type: 'mtty-9' }] as const) {
    await assert.rejects(provisionFunction(controlling, spec(more)));
    assert.equal(await available('mtty-2'), before2);
  }
  // Until none is left: the kernel's number is ours.
  for (let n = before2; n > 0; n -= 1) many.push(await provisionFunction(controlling, spec({ migration: false })));
  await assert.rejects(provisionFunction(controlling, spec()), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  for (const fn of many) await fn.release();
  assert.equal(await available('mtty-2'), before2);
});

after(async () => {
  await controlling.close();
  assert.deepEqual(devicesOpenIn(), []);
});
