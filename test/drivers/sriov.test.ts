import test from 'ava';
import { conformDriver } from '#towline/conformance/index.js';
import { NvmeDriver } from '#towline/drivers/nvme.js';
import { SriovDriver, type SriovControllingFunction, type SriovOptions } from '#towline/drivers/sriov.js';
import { kNative } from '#towline/function/channel.js';
import { provisionFunction } from '#towline/function/lifecycle.js';
import type { ExposureName, FunctionSpec } from '#towline/function/types.js';
import { FakeNvmeHost } from '../support/fake-nvme-device.js';
import { FakeHost, mlx5Pf, pci } from '../support/fake-host.js';
import { failEach } from './undo.js';

const PF = '0000:01:00.0';
const VF = '0000:01:00.1';
const spec = (expose: ExposureName = 'none'): FunctionSpec => ({ kind: 'vf', vectors: 16, expose });

async function opened(
  options: SriovOptions = {},
  host = new FakeHost(mlx5Pf()),
): Promise<{ host: FakeHost; controlling: SriovControllingFunction }> {
  return { host, controlling: await new SriovDriver({ ...options, host }).open(PF) };
}

async function withPool(): Promise<{ host: FakeHost; controlling: SriovControllingFunction }> {
  const made = await opened();
  // The pool of VFs is sized once and stays: it is no part of what a failure undoes.
  await (await made.controlling.provision({ kind: 'vf' })).release();
  return made;
}

const codesOf = (reasons: readonly { code: string }[]): string[] => reasons.map((r) => r.code);

test('it passes the kit of drivers', async (t) => {
  const host = new FakeHost(mlx5Pf());
  const driver = new SriovDriver({ host });
  for await (const { check, outcome, why } of conformDriver({ driver, address: PF }))
    t.is(outcome, 'passed', `${check}: ${why}`);
});

test('VFs come from a pool that is sized once, with autoprobe off before', async (t) => {
  const { host, controlling } = await opened({ vfs: 2 });
  const first = await provisionFunction(controlling, spec());
  t.deepEqual(
    host.log.filter((l) => /numvfs|autoprobe/.test(l)),
    [`autoprobe ${PF} false`, `numvfs ${PF} 2`],
  );
  t.is(host.functions.get(VF)?.driver, null);
  t.like(first, { state: 'migration-enabled', exposure: 'none', location: { bus: 'pci', address: VF } });
  t.is(host.functions.get(VF)?.vfMsixCount, 16);
  await provisionFunction(controlling, spec());
  t.is(host.log.filter((l) => l.startsWith('numvfs')).length, 1);
  await t.throwsAsync(provisionFunction(controlling, spec()), {
    code: 'ERR_TOWLINE_NO_RESOURCES',
    message: /no free VF.*--force/,
  });
});

test('a VF is taken to its variant driver, to the kernel and back while the others stay', async (t) => {
  const { host, controlling } = await opened();
  const [a, b] = [
    await provisionFunction(controlling, spec('vfio')),
    await provisionFunction(controlling, spec('kernel')),
  ];
  const driverOf = (n: number): string | null | undefined => host.functions.get(`0000:01:00.${n}`)?.driver;
  t.deepEqual([driverOf(1), driverOf(2), driverOf(3)], ['mlx5_vfio_pci', 'mlx5_core', null]);
  await a.expose('kernel');
  t.deepEqual([driverOf(1), driverOf(2)], ['mlx5_core', 'mlx5_core']);
  t.is(host.functions.get(PF)?.sriov?.driversAutoprobe, false);
  await a.expose('vfio');
  await b.expose('none');
  t.deepEqual([driverOf(1), driverOf(2)], ['mlx5_vfio_pci', null]);
  t.is(b.state, 'migration-enabled');
  t.is(host.log.filter((l) => l.startsWith('numvfs')).length, 1);
  await a.release();
  t.like(host.functions.get(VF), { driver: null, driverOverride: null, vfMsixCount: 8 });
});

test('without migration vfio-pci is enough where the variant driver is not loaded', async (t) => {
  const { host, controlling } = await opened();
  host.kernelFacts.pciDrivers = ['vfio-pci'];
  await t.throwsAsync(provisionFunction(controlling, spec('vfio')), {
    code: 'ERR_TOWLINE_EXPOSURE',
    message: /modprobe mlx5_vfio_pci/,
  });
  await provisionFunction(controlling, { ...spec('vfio'), migration: false });
  t.is(host.functions.get(VF)?.driver, 'vfio-pci');
});

for (const expose of ['none', 'vfio', 'kernel'] as const) {
  test(`provision to ${expose}: a failure of any call leaves nothing`, async (t) => {
    const count = await failEach(t, async () => {
      const { host, controlling } = await withPool();
      return { host, work: () => provisionFunction(controlling, spec(expose)) };
    });
    t.true(count > 5, `${count} calls`);
  });
}

for (const [from, to] of [
  ['vfio', 'kernel'],
  ['kernel', 'vfio'],
  ['vfio', 'none'],
  ['none', 'kernel'],
] as const) {
  test(`${from} to ${to}: a failure of any call leaves it ${from}`, async (t) => {
    await failEach(t, async () => {
      const { host, controlling } = await withPool();
      const fn = await provisionFunction(controlling, spec(from));
      return {
        host,
        work: async () => {
          await fn.expose(to).catch((error: unknown) => {
            t.is(fn.exposure, from);
            throw error;
          });
          t.is(fn.exposure, to);
        },
      };
    });
  });
}

test('the pool: a failure of any call leaves no VF, and autoprobe as it was', async (t) => {
  await failEach(t, async () => {
    const { host, controlling } = await opened();
    return { host, work: () => controlling.provision({ kind: 'vf' }) };
  });
});

test('the pool: VFs that came with a failure go with it', async (t) => {
  const { host, controlling } = await opened({ vfs: 3 });
  host.mostVfs = 2;
  const before = host.snapshot();
  const error = await t.throwsAsync(controlling.provision({ kind: 'vf' }), { code: 'ERR_TOWLINE_DEVICE' });
  t.notRegex(error?.message ?? '', /not undone/);
  t.deepEqual(host.snapshot(), before);
  host.mostVfs = Infinity;
  await controlling.provision({ kind: 'vf' });
  t.is(host.functions.get(PF)?.sriov?.numVfs, 3);
});

test('a release that failed is finished by another one', async (t) => {
  const count = await (async () => {
    const { host, controlling } = await withPool();
    const fn = await provisionFunction(controlling, spec('vfio'));
    const first = host.calls;
    await fn.release();
    return host.calls - first;
  })();
  for (let n = 0; n < count; n += 1) {
    const { host, controlling } = await withPool();
    const before = host.snapshot();
    const fn = await provisionFunction(controlling, spec('vfio'));
    host.failAt = host.calls + n;
    await t.throwsAsync(fn.release());
    await fn.release();
    t.is(fn.state, 'released');
    t.deepEqual(host.snapshot(), before);
  }
});

test('the comparison notices what is left behind', async (t) => {
  const { host } = await withPool();
  for (const change of [
    () => host.setDriverOverride(VF, 'vfio-pci'),
    () => host.setVfMsix(VF, 3),
    () => host.setAutoprobe(PF, true),
  ]) {
    const before = host.snapshot();
    await change();
    t.notDeepEqual(host.snapshot(), before);
  }
});

test('VFs that are there are used as they are, and destroyed only by force', async (t) => {
  const host = new FakeHost(mlx5Pf());
  await host.setNumVfs(PF, 1);
  const busy = await opened({ vfs: 3 }, host);
  // Autoprobe was on: a driver has it.
  t.is(host.functions.get(VF)?.driver, 'mlx5_core');
  t.deepEqual(await busy.controlling.capacity(), [{ kind: 'vf', total: 1, free: 0 }]);
  await t.throwsAsync(busy.controlling.provision({ kind: 'vf' }), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  t.is(host.functions.get(PF)?.sriov?.numVfs, 1);
  const [found] = await busy.controlling.list();
  t.like(found, { state: 'exposed', exposure: 'kernel' });
  const forced = await opened({ vfs: 3, force: true }, host);
  t.deepEqual(await forced.controlling.capacity(), [{ kind: 'vf', total: 3, free: 3 }]);
  await forced.controlling.provision({ kind: 'vf' });
  t.is(host.functions.get(PF)?.sriov?.numVfs, 3);
});

test('force destroys no VF that is used here, and those that it destroys are lost', async (t) => {
  const host = new FakeHost(mlx5Pf());
  const { controlling } = await opened({ vfs: 3, force: true }, host);
  const fn = await provisionFunction(controlling, spec('vfio'));
  // Somebody changed what the PF has: it is to be sized once more.
  Object.assign(host.functions.get(PF)?.sriov ?? {}, { numVfs: 2 });
  const again = (): Promise<unknown> => controlling.provision({ kind: 'vf' });
  await t.throwsAsync(again(), { code: 'ERR_TOWLINE_BUSY', message: /exposed by this process \(vfio\)/ });
  await fn.open?.();
  await t.throwsAsync(again(), { code: 'ERR_TOWLINE_BUSY', message: /open in this process/ });
  await fn.expose('none');
  const other = await opened({ vfs: 3, force: true }, host);
  await t.throwsAsync(other.controlling.provision({ kind: 'vf' }), {
    code: 'ERR_TOWLINE_BUSY',
    message: /another driver of this process/,
  });
  t.is(fn.state, 'migration-enabled');
  const next = await controlling.provision({ kind: 'vf' });
  t.is(fn.state, 'lost');
  t.is(next.location?.address, VF);
  t.is(host.functions.get(PF)?.sriov?.numVfs, 3);
  t.deepEqual(await controlling.list(), [next]);
});

test('what can not be given is refused with the reason', async (t) => {
  const { host, controlling } = await withPool();
  const before = host.snapshot();
  for (const [more, message] of [
    [{ queues: 4 }, /queues/],
    [{ namespaces: [1] }, /namespaces/],
    [{ hwAddress: '02:00:00:00:00:01' }, /hwAddress/],
  ] as const) {
    await t.throwsAsync(provisionFunction(controlling, { kind: 'vf', ...more }), {
      code: 'ERR_TOWLINE_UNSUPPORTED',
      message,
    });
  }
  await t.throwsAsync(provisionFunction(controlling, { kind: 'vf', vectors: 2000 }), { message: /EINVAL/ });
  await t.throwsAsync(provisionFunction(controlling, { kind: 'pf' }), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  await t.throwsAsync(provisionFunction(controlling, { kind: 'vf', expose: 'vfio-user' }), {
    code: 'ERR_TOWLINE_EXPOSURE',
  });
  t.deepEqual(host.snapshot(), before);
});

test('a PF without such counts, without migration and without driver says so', async (t) => {
  const pf = pci(PF, {
    vendor: 0x8086,
    device: 0x10c9,
    driver: 'igb',
    sriov: {
      totalVfs: 7,
      numVfs: 0,
      driversAutoprobe: true,
      offset: 128,
      stride: 2,
      vfDevice: 0x10ca,
      vfTotalMsix: null,
    },
  });
  const { controlling } = await opened({}, new FakeHost(pf));
  await t.throwsAsync(provisionFunction(controlling, { kind: 'vf', vectors: 3, migration: false }), {
    code: 'ERR_TOWLINE_UNSUPPORTED',
    message: /sriov_vf_msix_count/,
  });
  await t.throwsAsync(provisionFunction(controlling, { kind: 'vf' }), {
    code: 'ERR_TOWLINE_UNSUPPORTED',
    message: /--migration off/,
  });
  const unbound = await opened({}, new FakeHost({ ...pf, driver: null }));
  t.deepEqual(codesOf(await unbound.controlling.explain()), ['no-driver']);
  await t.throwsAsync(unbound.controlling.provision({ kind: 'vf' }), {
    code: 'ERR_TOWLINE_UNSUPPORTED',
    message: /bound to no driver/,
  });
});

test('explain opens nothing and names every reason with its mend', async (t) => {
  const { host, controlling } = await opened();
  const fn = await provisionFunction(controlling, { ...spec(), vectors: undefined });
  const codes = async (): Promise<string[]> => {
    for (const reason of await fn.explain()) t.true(reason.mend.length > 0);
    return codesOf(await fn.explain());
  };
  t.deepEqual(await codes(), ['no-driver']);
  await fn.expose('kernel');
  t.deepEqual(await codes(), ['wrong-driver']);
  await fn.expose('vfio');
  t.deepEqual(await codes(), []);
  host.opened.set('/dev/vfio/devices/vfio0', 4711);
  t.deepEqual(await codes(), ['in-use']);
  t.true(await fn.inUse?.());
  t.regex((await fn.explain())[0]?.message ?? '', /4711/);
  host.opened.clear();
  const vf = host.functions.get(VF);
  if (vf !== undefined) vf.vfioState = 'ERROR';
  t.deepEqual(await codes(), ['function-failed']);
  if (vf !== undefined) Object.assign(vf, { vfioState: null, iommuGroup: null, driver: 'vfio-pci' });
  Object.assign(host.kernelFacts, {
    iommu: false,
    container: false,
    cdev: false,
    vfioAliases: [],
    pciDrivers: ['vfio-pci'],
  });
  t.deepEqual(await codes(), ['kernel-without-vfio', 'kernel-without-iommu', 'no-variant-driver']);
  t.is(host.log.filter((l) => l.startsWith('open vfio')).length, 0);
});

test("VFs of a PF on vfio-pci are no one's until they are exposed", async (t) => {
  const attempt = async () => {
    const host = new FakeHost({ ...mlx5Pf(), driver: 'vfio-pci' });
    return opened({ vfs: 2 }, host);
  };
  const { host, controlling } = await attempt();
  const fn = await provisionFunction(controlling, spec());
  for (const vf of [VF, '0000:01:00.2']) t.like(host.functions.get(vf), { driver: null, driverOverride: null });
  await fn.expose('vfio');
  t.is(host.functions.get(VF)?.driver, 'mlx5_vfio_pci');
  await failEach(t, async () => {
    const made = await attempt();
    return { host: made.host, work: () => made.controlling.provision({ kind: 'vf' }) };
  });
});

test('what VFIO needs is asked for before anything is touched', async (t) => {
  for (const [spoil, message] of [
    [(host: FakeHost) => Object.assign(host.functions.get(VF) ?? {}, { iommuGroup: null }), /no IOMMU group/],
    [
      (host: FakeHost) => {
        Object.assign(host.functions.get(VF) ?? {}, { iommuGroup: null });
        host.kernelFacts.iommu = false;
      },
      /intel_iommu=on/,
    ],
    [(host: FakeHost) => Object.assign(host.kernelFacts, { pciDrivers: [], vfioAliases: [] }), /modprobe vfio-pci/],
  ] as const) {
    const { host, controlling } = await withPool();
    spoil(host);
    const fn = await provisionFunction(controlling, { ...spec(), migration: false });
    const before = host.snapshot();
    const first = host.calls;
    await t.throwsAsync(fn.expose('vfio'), { code: 'ERR_TOWLINE_EXPOSURE', message });
    t.deepEqual(host.snapshot(), before);
    t.deepEqual(
      host.log.slice(first).filter((l) => !['kernel', 'pci'].includes(l)),
      [],
    );
  }
});

test('a driver that refuses the VF is told, and the one before has it again', async (t) => {
  const { host, controlling } = await withPool();
  const fn = await provisionFunction(controlling, spec('kernel'));
  host.refusing.add('mlx5_vfio_pci');
  const before = host.snapshot();
  await t.throwsAsync(fn.expose('vfio'), { code: 'ERR_TOWLINE_EXPOSURE', message: /did not take it/ });
  t.deepEqual(host.snapshot(), before);
  t.like(fn, { exposure: 'kernel', state: 'exposed' });
});

test('a VF whose PF is on vfio-pci needs its token', async (t) => {
  for (const [token, expected] of [
    [undefined, ['vf-token-needed']],
    ['11111111-2222-4333-8444-555555555555', []],
  ] as const) {
    const { host, controlling } = await opened({ vfio: { token } });
    const fn = await provisionFunction(controlling, spec('vfio'));
    Object.assign(host.functions.get(PF) ?? {}, { driver: 'vfio-pci' });
    t.deepEqual(codesOf(await fn.explain()), expected);
  }
});

test('its channel opens the device once, and hiding it lets go', async (t) => {
  const { host, controlling } = await opened();
  const fn = await provisionFunction(controlling, spec('vfio'));
  t.throws(() => fn.dirtySources(), { code: 'ERR_TOWLINE_STATE' });
  t.throws(() => fn.channel().flags, { code: 'ERR_TOWLINE_STATE' });
  t.throws(() => fn.channel()[kNative], { code: 'ERR_TOWLINE_STATE' });
  await fn.open?.();
  await fn.open?.();
  t.is(await fn.channel().state(), 'running');
  t.deepEqual(fn.channel().flags, { stopCopy: true, p2p: true, preCopy: true });
  t.is(fn.dirtySources().length, 1);
  t.is(host.log.filter((l) => l.startsWith('open vfio')).length, 1);
  const facts = Object.keys(await fn.descriptor());
  for (const fact of ['pci-id', 'pci-subsystem', 'pci-revision', 'driver', 'vectors', 'migration-flags'])
    t.true(facts.includes(fact));
  await fn.expose('none');
  t.is(host.open.size, 0);
  await fn.expose('vfio');
  t.is(await fn.channel().state(), 'running');
  await fn.release();
  t.is(host.open.size, 0);
});

test('where nobody tells what it wrote, all of memory counts as written, every time', async (t) => {
  const { host, controlling } = await opened();
  host.untracked = true;
  const fn = await provisionFunction(controlling, spec('vfio'));
  await fn.open?.();
  const [source, ...more] = fn.dirtySources();
  t.deepEqual(more, []);
  const ranges = [
    { gpa: 0n, len: 0xa0000n },
    { gpa: 0x100000n, len: 0x200000n },
  ];
  t.is(await source?.start(ranges, 4096), 4096);
  for (let round = 0; round < 3; round++) t.deepEqual(await source?.harvest(), ranges);
  await source?.stop();
  t.deepEqual(await source?.harvest(), []);
});

test('whoever lends a device may track its writes by other means, and says so', async (t) => {
  for (const [dirtyTracking, sources] of [
    [undefined, 1],
    [false, 0],
  ] as const) {
    const { host, controlling } = await opened({ vfio: { dirtyTracking } });
    host.untracked = true;
    const fn = await provisionFunction(controlling, spec('vfio'));
    const [known] = (await controlling.list()) as unknown as { useDevice(fd: number): void }[];
    known?.useDevice(7);
    await fn.open?.();
    t.is(fn.dirtySources().length, sources);
  }
});

test('a device that somebody else has is told, and taken by its descriptor', async (t) => {
  const { host, controlling } = await opened();
  const fn = await provisionFunction(controlling, spec('vfio'));
  host.opened.set('/dev/vfio/devices/vfio0', 4711);
  await t.throwsAsync(async () => fn.open?.(), { message: /EBUSY/ });
  const [known] = (await controlling.list()) as unknown as { useDevice(fd: number): void }[];
  known?.useDevice(7);
  t.deepEqual(codesOf(await fn.explain()), []);
  await fn.open?.();
  t.true(host.log.includes(`open vfio ${VF} by 7`));
});

test('a VF that another process has open is not taken away from it', async (t) => {
  for (const path of ['/dev/vfio/devices/vfio0', '/dev/vfio/10']) {
    const { host, controlling } = await opened();
    const fn = await provisionFunction(controlling, spec('vfio'));
    host.opened.set(path, 4711);
    const before = host.snapshot();
    const busy = { code: 'ERR_TOWLINE_BUSY', message: /4711/ } as const;
    await t.throwsAsync(fn.release(), busy);
    await t.throwsAsync(fn.expose('none'), busy);
    await t.throwsAsync(fn.expose('kernel'), busy);
    t.deepEqual(host.snapshot(), before);
    t.like(fn, { state: 'exposed', exposure: 'vfio' });
    host.opened.clear();
    await fn.release();
    t.is(host.functions.get(VF)?.driver, null);
  }
});

test('who has a VF that was bound behind our back keeps it', async (t) => {
  const { host, controlling } = await opened();
  const fn = await provisionFunction(controlling, spec());
  await host.setDriverOverride(VF, 'vfio-pci');
  await host.probe(VF);
  host.opened.set('/dev/vfio/devices/vfio0', 4711);
  await t.throwsAsync(fn.expose('kernel'), { code: 'ERR_TOWLINE_BUSY', message: /4711/ });
  t.is(host.functions.get(VF)?.driver, 'vfio-pci');
});

test('a VF that is kept for a driver is not free', async (t) => {
  const { host, controlling } = await withPool();
  await host.setDriverOverride(VF, 'vfio-pci');
  t.deepEqual(await controlling.capacity(), [{ kind: 'vf', total: 3, free: 2 }]);
  t.is((await controlling.provision({ kind: 'vf' })).location?.address, '0000:01:00.2');
  t.is(host.functions.get(VF)?.driverOverride, 'vfio-pci');
});

test('two drivers of one PF in one process do not take VFs from each other', async (t) => {
  const host = new FakeNvmeHost();
  await host.setAutoprobe(PF, false);
  const size = host.functions.get(PF)?.sriov?.totalVfs ?? 0;
  const nvme = await new NvmeDriver({ host }).open(PF);
  const sriov = await new SriovDriver({ host }).open(PF);
  const wanted = { kind: 'vf', migration: false } as const;
  await (await nvme.provision(wanted)).release();
  const other = await sriov.provision(wanted);
  const taken = await Promise.all(
    [...Array(size - 1).keys()].map((n) => (n % 2 === 0 ? nvme : sriov).provision(wanted)),
  );
  const addresses = [other, ...taken].map((fn) => fn.location?.address);
  t.is(new Set(addresses).size, size);
  t.deepEqual(await sriov.capacity(), [{ kind: 'vf', total: size, free: 0 }]);
  await t.throwsAsync(sriov.provision(wanted), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  await t.throwsAsync(nvme.provision(wanted), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  // What one has is no find of the other.
  await other.configure({});
  await other.expose('vfio');
  t.false((await nvme.list()).some((fn) => fn.location?.address === other.location?.address));
  const [own] = taken;
  await own?.configure({ queues: 1, vectors: 1 });
  await own?.expose('vfio');
  t.false((await sriov.list()).some((fn) => fn.location?.address === own?.location?.address));
  await other.release();
  t.is((await nvme.provision(wanted)).location?.address, other.location?.address);
  await nvme.close();
  t.true((await sriov.capacity())[0]?.free !== 0);
});

test('a driver that was unbound behind our back is bound again by the same exposure', async (t) => {
  for (const [exposure, driver] of [
    ['kernel', 'mlx5_core'],
    ['vfio', 'mlx5_vfio_pci'],
  ] as const) {
    const { host, controlling } = await opened();
    const fn = await provisionFunction(controlling, spec(exposure));
    const before = host.snapshot();
    const calls = host.calls;
    await fn.expose(exposure);
    t.deepEqual(
      host.log.slice(calls).filter((l) => !['kernel', 'pci'].includes(l)),
      [],
    );
    await host.unbind(VF);
    await fn.expose(exposure);
    t.is(host.functions.get(VF)?.driver, driver);
    t.deepEqual(host.snapshot(), before);
    await host.unbind(VF);
    host.refusing.add(driver);
    await t.throwsAsync(fn.expose(exposure), { code: 'ERR_TOWLINE_EXPOSURE' });
  }
});

test('a VF that is gone is lost', async (t) => {
  const { host, controlling } = await opened();
  const fn = await provisionFunction(controlling, spec());
  await host.setNumVfs(PF, 0);
  t.deepEqual(codesOf(await fn.explain()), ['function-lost']);
  t.deepEqual(await controlling.list(), []);
  t.is(fn.state, 'lost');
  await fn.release();
});

test('addresses are read as people write them', async (t) => {
  const driver = new SriovDriver({ host: new FakeHost(mlx5Pf(), pci('0000:02:00.0')) });
  t.is((await driver.open('01:00.0')).address, PF);
  await t.throwsAsync(driver.open('0000:02:00.0'), { code: 'ERR_TOWLINE_UNSUPPORTED' });
  await t.throwsAsync(driver.open('0000:09:00.0'), { code: 'ERR_TOWLINE_NOT_FOUND' });
  await t.throwsAsync(driver.open('eth0'), { code: 'ERR_TOWLINE_INVALID_ARGUMENT' });
});
