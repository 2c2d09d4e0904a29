import test from 'ava';
import { conformDriver } from '#towline/conformance/index.js';
import { NvmeDriver, type NvmeControllingFunction, type NvmeOptions } from '#towline/drivers/nvme.js';
import { TowlineError } from '#towline/errors.js';
import { provisionFunction } from '#towline/function/lifecycle.js';
import type { ExposureName, FunctionSpec } from '#towline/function/types.js';
import { pci } from '../support/fake-host.js';
import { FakeNvmeHost } from '../support/fake-nvme-device.js';
import { failEach } from './undo.js';

const PF = '0000:01:00.0';
const VF = '0000:01:00.1';
const spec = (expose: ExposureName = 'none'): FunctionSpec => ({
  kind: 'vf',
  queues: 1,
  vectors: 1,
  namespaces: [1],
  migration: false,
  expose,
});

/** A host with a variant driver for the VFs. */
function withVariant(): FakeNvmeHost {
  const host = new FakeNvmeHost();
  host.kernelFacts.vfioAliases.push({
    pattern: 'vfio_pci:v00001B36d00000010sv*',
    module: 'nvme_vfio_pci',
    driver: null,
  });
  host.kernelFacts.pciDrivers.push('nvme_vfio_pci');
  return host;
}

async function opened(
  options: NvmeOptions = {},
  host = new FakeNvmeHost(),
): Promise<{ host: FakeNvmeHost; controlling: NvmeControllingFunction }> {
  return { host, controlling: await new NvmeDriver({ ...options, host }).open('/dev/nvme0') };
}

/** What changes something, in order. */
const changes = (host: FakeNvmeHost): string[] =>
  host.log.filter((l) =>
    /^(primary [vq]|reset|autoprobe|numvfs|offline|online|assign|attach|detach|override|probe|unbind)/.test(l),
  );

const codesOf = (reasons: readonly { code: string }[]): string[] => reasons.map((r) => r.code);

test('it passes the kit of drivers, with migration by the controlling function', async (t) => {
  const host = new FakeNvmeHost();
  host.hmlms = true;
  const driver = new NvmeDriver({ host });
  for await (const { check, outcome, why } of conformDriver({ driver, address: PF }))
    t.is(outcome, 'passed', `${check}: ${why}`);
});

test('one provision does the whole sequence in its order', async (t) => {
  const { host, controlling } = await opened();
  const fn = await provisionFunction(controlling, spec('kernel'));
  t.deepEqual(changes(host), [
    'primary vq 0',
    'primary vi 0',
    `reset ${PF}`,
    `autoprobe ${PF} false`,
    `numvfs ${PF} 4`,
    'offline 1',
    'offline 1',
    'assign 1 vi 1',
    'assign 1 vq 2',
    `reset ${VF}`,
    'attach 1 1',
    'online 1',
    `override ${VF} nvme`,
    `probe ${VF}`,
  ]);
  t.like(fn, { state: 'exposed', exposure: 'kernel', location: { bus: 'pci', address: VF } });
  t.is(host.functions.get(VF)?.driver, 'nvme');
  const first = host.log.length;
  await provisionFunction(controlling, spec());
  t.deepEqual(
    host.log.slice(first).filter((l) => /numvfs|primary [vq]|reset 0000:01:00\.0/.test(l)),
    [],
  );
});

test('flexible resources stay with the PF where enough are free', async (t) => {
  const host = new FakeNvmeHost();
  host.ofPrimary = { vq: 0, vi: 0 };
  await provisionFunction((await opened({}, host)).controlling, spec());
  t.false(host.log.includes(`reset ${PF}`));
});

test('a PF is not reset while a secondary that is no VF is online', async (t) => {
  const host = new FakeNvmeHost();
  host.secondary.push({ cntlid: 9, vfNumber: 0, online: true, vq: 2, vi: 1 });
  const { controlling } = await opened({}, host);
  const before = host.snapshot();
  await t.throwsAsync(provisionFunction(controlling, spec()), {
    code: 'ERR_TOWLINE_BUSY',
    message: /secondary controllers offline, and online is: 9; release it first/,
  });
  t.deepEqual(host.snapshot(), before);
  t.false(host.log.includes(`reset ${PF}`));
  await host.offline(9);
  await provisionFunction(controlling, spec());
  t.true(host.log.includes(`reset ${PF}`));
});

test('a signal ends the wait for a PF that does not come back from its reset', async (t) => {
  const { host, controlling } = await opened();
  const before = host.snapshot();
  const reset = host.onReset;
  let first = true;
  const abort = new AbortController();
  host.onReset = (address) => {
    reset(address);
    const { nvme } = host.functions.get(PF) ?? {};
    if (nvme) nvme.state = first ? 'resetting' : 'live';
    if (first) setTimeout(() => abort.abort('enough'), 200);
    first = false;
  };
  const began = performance.now();
  await t.throwsAsync(provisionFunction(controlling, spec(), { signal: abort.signal }), {
    code: 'ERR_TOWLINE_ABORTED',
    message: 'enough',
  });
  t.true(performance.now() - began < 10_000);
  t.deepEqual(host.snapshot(), before);
});

test('a PF that has lost its driver by its reset is told after seconds', async (t) => {
  const { host, controlling } = await opened();
  const reset = host.onReset;
  host.onReset = (address) => {
    reset(address);
    Object.assign(host.functions.get(PF) ?? {}, { driver: null, nvme: null });
  };
  const began = performance.now();
  await t.throwsAsync(provisionFunction(controlling, spec()), {
    code: 'ERR_TOWLINE_DEVICE',
    message: /without driver after its reset/,
  });
  t.true(performance.now() - began < 20_000);
});

test('one that comes online while resources are released keeps the PF from being reset, also by the undo', async (t) => {
  const host = new FakeNvmeHost();
  host.secondary.push({ cntlid: 9, vfNumber: 0, online: false, vq: 0, vi: 0 });
  const { controlling } = await opened({}, host);
  const allocate = host.allocatePrimary.bind(host);
  host.allocatePrimary = async (...args) => {
    Object.assign(host.secondary.at(-1) ?? {}, { online: true });
    return allocate(...args);
  };
  await t.throwsAsync(provisionFunction(controlling, spec()), {
    code: 'ERR_TOWLINE_BUSY',
    message: /not undone: reset/,
  });
  t.false(host.log.includes(`reset ${PF}`));
  t.true(host.secondary.at(-1)?.online);
});

for (const expose of ['none', 'vfio', 'kernel'] as const) {
  test(`provision to ${expose}: a failure of any call leaves nothing but the pool`, async (t) => {
    const count = await failEach(t, async () => {
      const { host, controlling } = await opened();
      return { host, work: () => provisionOrNothing(controlling, host, expose) };
    });
    t.true(count > 20, `${count} calls`);
  });
}

/** Once the pool is sized it stays; a provision that fails after that is compared with a host that has it. */
async function provisionOrNothing(
  controlling: NvmeControllingFunction,
  host: FakeNvmeHost,
  expose: ExposureName,
): Promise<void> {
  const sized = (): boolean => (host.functions.get(PF)?.sriov?.numVfs ?? 0) > 0;
  if (sized()) return void (await provisionFunction(controlling, spec(expose)));
  try {
    await provisionFunction(controlling, spec(expose));
  } catch (error) {
    if (sized()) {
      for (const vf of host.secondary)
        if (vf.online || vf.vq > 0) throw new Error('a secondary kept something', { cause: error });
      await host.setNumVfs(PF, 0);
      await host.setAutoprobe(PF, true);
      host.ofPrimary = { vq: 8, vi: 4 };
    }
    throw error;
  }
}

test('a pool that is exhausted is told, and what was half done is undone', async (t) => {
  const { host, controlling } = await opened();
  await provisionFunction(controlling, { ...spec(), vectors: 3 });
  const before = host.snapshot();
  await t.throwsAsync(provisionFunction(controlling, { ...spec(), vectors: 2 }), { code: 'ERR_TOWLINE_DEVICE' });
  t.deepEqual(host.snapshot(), before);
});

test('a reset of the PF in between is told, and configured again', async (t) => {
  const { host, controlling } = await opened();
  const fn = await provisionFunction(controlling, spec());
  await host.reset(PF);
  t.true(codesOf(await fn.explain()).includes('function-offline'));
  await fn.configure(fn.spec);
  t.false(codesOf(await fn.explain()).includes('function-offline'));
});

test('a VF that somebody has bound is not taken', async (t) => {
  const { host, controlling } = await opened();
  await (await provisionFunction(controlling, spec())).release();
  await host.setDriverOverride(VF, 'vfio-pci');
  await host.probe(VF);
  const fn = await provisionFunction(controlling, spec());
  t.is(fn.location?.address, '0000:01:00.2');
});

test('what others have set up is not free', async (t) => {
  const { host, controlling } = await opened();
  await (await provisionFunction(controlling, spec())).release();
  const free = async (): Promise<number | undefined> =>
    (await controlling.capacity()).find((c) => c.kind === 'vf')?.free;
  t.is(await free(), 4);
  await host.assign(2, 'vq', 2);
  t.is(await free(), 3);
  await provisionFunction(controlling, spec());
  t.is(await free(), 2);
});

test('explain says that a PF without it has no host managed live migration, and asks for nothing it lacks', async (t) => {
  const { host, controlling } = await opened();
  t.deepEqual(codesOf(await controlling.explain()), ['controlling-function-cannot-migrate', 'no-dirty-tracking']);
  const fn = await provisionFunction(controlling, spec('vfio'));
  t.deepEqual(codesOf(await fn.explain()), [
    'controlling-function-cannot-migrate',
    'no-dirty-tracking',
    'no-variant-driver',
    'migration-not-enabled',
  ]);
  t.false(host.log.includes('state formats'));
  await t.throwsAsync(controlling.enableMigration(fn), { code: 'ERR_TOWLINE_UNSUPPORTED' });
  t.is(fn.exposure, 'vfio');
});

test('a process that has its VFIO device open uses it', async (t) => {
  const { host, controlling } = await opened();
  const fn = await provisionFunction(controlling, spec('vfio'));
  t.false(await fn.inUse?.());
  host.opened.set('/dev/vfio/devices/vfio0', 4711);
  t.true(await fn.inUse?.());
});

test('without host managed live migration a variant driver migrates its VFs', async (t) => {
  const { host, controlling } = await opened({}, withVariant());
  const fn = await provisionFunction(controlling, { ...spec('vfio'), migration: true });
  t.is(host.functions.get(VF)?.driver, 'nvme_vfio_pci');
  t.deepEqual(await fn.explain(), []);
  await fn.open?.();
  t.is(await fn.channel().state(), 'running');
  t.is(fn.dirtySources().length, 1);
  await fn.release();
  t.is(host.open.size, 0);
});

test('the next function of a controller has a VFIO device of its own, which the one before does not close', async (t) => {
  const { host, controlling } = await opened({}, withVariant());
  const migratable = { ...spec('vfio'), migration: true };
  const before = await provisionFunction(controlling, migratable);
  t.is(await before.channel().state(), 'running');
  await before.release();
  const fn = await provisionFunction(controlling, migratable);
  t.is(fn.location?.address, VF);
  t.is(await fn.channel().state(), 'running');
  await before.close();
  await t.throwsAsync(async () => before.open?.(), { code: 'ERR_TOWLINE_CLOSED' });
  t.deepEqual([...host.open], [VF]);
  await fn.close();
  t.deepEqual([...host.open], []);
});

test('a VFIO device that does not close keeps the controller from nothing', async (t) => {
  const { host, controlling } = await opened({}, withVariant());
  const open = host.openVfio.bind(host);
  host.openVfio = async (...args) => ({
    ...(await open(...args)),
    close: async () => {
      throw new TowlineError('ERR_TOWLINE_DEVICE', 'it does not close');
    },
  });
  const fn = await provisionFunction(controlling, { ...spec('vfio'), migration: true });
  await fn.open?.();
  await t.throwsAsync(controlling.close(), { code: 'ERR_TOWLINE_DEVICE', message: 'it does not close' });
  t.is(host.log.at(-1), 'close');
});

test('functions whose VFs were destroyed are lost, and what they had open is closed', async (t) => {
  const { host, controlling } = await opened({}, withVariant());
  const fn = await provisionFunction(controlling, { ...spec('vfio'), migration: true });
  await fn.open?.();
  await host.setNumVfs(PF, 0);
  t.deepEqual(await controlling.list(), []);
  t.like(fn, { state: 'lost', exposure: 'none' });
  t.deepEqual(codesOf(await fn.explain()), ['function-lost']);
  t.deepEqual([...host.open], []);
  await fn.release();
  t.is((await controlling.capacity()).find((c) => c.kind === 'vf')?.free, 4);
});

test('secondaries that are no VFs here are provisioned and migrated, and have no place', async (t) => {
  const host = new FakeNvmeHost();
  host.hmlms = true;
  host.ofPrimary = { vq: 0, vi: 0 };
  Object.assign(host.functions.get(PF) ?? {}, { sriov: null });
  host.secondary.splice(2, 2, { cntlid: 3, vfNumber: 0, online: false, vq: 0, vi: 0 });
  const { controlling } = await opened({}, host);
  t.deepEqual(
    (await controlling.capacity()).map(({ kind, free }) => [kind, free]),
    [
      ['pf', 0],
      ['vf', 2],
      ['siov', 1],
    ],
  );
  for (const kind of ['vf', 'siov'] as const) {
    const before = host.snapshot();
    for (const expose of ['kernel', 'vfio'] as const) {
      await t.throwsAsync(provisionFunction(controlling, { ...spec(expose), kind }), {
        code: 'ERR_TOWLINE_EXPOSURE',
        message: /no PCI address/,
      });
      t.deepEqual(host.snapshot(), before);
    }
    const fn = await provisionFunction(controlling, { ...spec(), kind, migration: true });
    t.like(fn, { state: 'migration-enabled', location: undefined });
    t.deepEqual(await fn.explain(), []);
    t.is(await fn.channel().state(), 'running');
    // As a device of its own under the kernel's driver it is known by its identity.
    const cntlid = host.secondary.find((s) => s.online)?.cntlid ?? -1;
    host.functions.set(
      '0000:05:00.0',
      pci('0000:05:00.0', {
        driver: 'nvme',
        nvme: { name: 'nvme7', cntlid, subsystemNqn: 'nqn.2019-08.org.qemu:abc', state: 'live' },
      }),
    );
    t.true(await fn.inUse?.());
    host.functions.delete('0000:05:00.0');
    await fn.release();
    t.deepEqual(host.snapshot(), before);
  }
});

test('a controller without virtualization management has no functions, and says so', async (t) => {
  const host = new FakeNvmeHost();
  host.virtualizationManagement = false;
  Object.assign(host.functions.get(PF) ?? {}, { sriov: null });
  const { controlling } = await opened({}, host);
  t.deepEqual(await controlling.list(), []);
  await t.throwsAsync(provisionFunction(controlling, spec()), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  t.false(host.log.includes('secondaries'));
});

test('a controller is found by its device, its name and its address', async (t) => {
  const host = new FakeNvmeHost();
  host.functions.set('0000:02:00.0', pci('0000:02:00.0', { driver: 'vfio-pci' }));
  const driver = new NvmeDriver({ host });
  for (const address of ['/dev/nvme0', 'nvme0', PF, '01:00.0']) t.is((await driver.open(address)).address, PF);
  await t.throwsAsync(driver.open('nvme9'), { code: 'ERR_TOWLINE_NOT_FOUND' });
  await t.throwsAsync(driver.open('0000:02:00.0'), { code: 'ERR_TOWLINE_UNSUPPORTED', message: /bound to vfio-pci/ });
});
