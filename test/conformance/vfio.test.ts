import test from 'ava';
import { conformVfio, type ConformVfioOptions } from '#towline/conformance/vfio.js';
import type { CheckResult } from '#towline/conformance/check.js';
import { FakeHost, mttyParent, pci } from '../support/fake-host.js';
import { MemoryDevice, type Defect } from '../support/memory-device.js';

const UUIDS = ['66666666-0000-4000-8000-000000000001', '66666666-0000-4000-8000-000000000002'] as const;

async function host(...defects: Defect[]): Promise<FakeHost> {
  const fake = new FakeHost(pci('0000:02:00.0', { driver: 'e1000e', vendor: 0x8086, device: 0x10d3 }));
  const parent = mttyParent();
  fake.parents = [parent];
  for (const uuid of UUIDS) {
    await fake.mdevCreate(parent.path, 'mtty-2', uuid);
    fake.devices.set(uuid, new MemoryDevice(undefined, defects));
  }
  return fake;
}

async function run(
  fake: FakeHost,
  names: readonly string[],
  options: Partial<ConformVfioOptions> = {},
): Promise<CheckResult[]> {
  const results: CheckResult[] = [];
  for await (const result of conformVfio(fake, names, { destructive: true, ...options })) results.push(result);
  return results;
}

test('two devices pass, and are closed', async (t) => {
  const fake = await host();
  const results = await run(fake, UUIDS);
  t.deepEqual(
    results.filter((r) => r.outcome === 'failed'),
    [],
  );
  t.true(results.filter((r) => r.outcome === 'passed').length > 10);
  t.true(results.some((r) => r.check.startsWith('dirty/') && r.outcome === 'passed'));
  for (const uuid of UUIDS)
    t.is(await fake.devices.get(uuid)?.channel.state(), 'running', 'none is left where a check had it');
  t.deepEqual([...fake.open], []);
});

test('with one device, what needs a second one is not exercised', async (t) => {
  const results = await run(await host(), [UUIDS[0]]);
  t.deepEqual(
    results.filter((r) => r.outcome === 'failed'),
    [],
  );
  t.is(results.find((r) => r.check === 'loading/same-behaviour')?.outcome, 'not-exercised');
  t.is(results.find((r) => r.check === 'loading/truncated')?.outcome, 'passed');
});

test('a device with a defect fails', async (t) => {
  for (const [defect, check] of [
    ['any-arc', 'channel/illegal-arcs'],
    ['accepts-cut', 'loading/truncated'],
    ['no-digest', 'loading/corrupted'],
  ] as const) {
    const fake = await host(defect);
    const results = await run(fake, UUIDS);
    t.is(results.find((r) => r.check === check)?.outcome, 'failed', defect);
    t.deepEqual([...fake.open], []);
  }
});

test('what is in use, not on VFIO, not there or not agreed to is refused before it is opened', async (t) => {
  const fake = await host();
  fake.opened.set('/dev/vfio/devices/vfio0', 4711);
  const opened = (): boolean => fake.log.some((line) => line.startsWith('open vfio'));
  const refused: [names: readonly string[], options: Partial<ConformVfioOptions>, code: string][] = [
    [[UUIDS[0]], {}, 'ERR_TOWLINE_BUSY'],
    [[UUIDS[1], UUIDS[0]], {}, 'ERR_TOWLINE_BUSY'],
    [[UUIDS[1]], { destructive: false }, 'ERR_TOWLINE_REFUSED'],
    [['0000:02:00.0'], {}, 'ERR_TOWLINE_UNSUPPORTED'],
    [['0000:07:00.0'], {}, 'ERR_TOWLINE_NOT_FOUND'],
    [[UUIDS[1], UUIDS[1]], {}, 'ERR_TOWLINE_INVALID_ARGUMENT'],
    [[], {}, 'ERR_TOWLINE_INVALID_ARGUMENT'],
  ];
  for (const [names, options, code] of refused) {
    await t.throwsAsync(run(fake, names, options), { code }, `${names.join()} ${code}`);
    t.false(opened(), code);
  }
});

test('a device that does not migrate is closed again', async (t) => {
  const fake = await host();
  const pciFn = pci('0000:03:00.0', { driver: 'vfio-pci', vfioDevice: 'vfio7' });
  fake.functions.set(pciFn.address, pciFn);
  await t.throwsAsync(run(fake, [pciFn.address]), { code: 'ERR_TOWLINE_UNSUPPORTED', message: /does not migrate/ });
  t.deepEqual([...fake.open], []);
});
