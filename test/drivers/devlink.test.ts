import test from 'ava';
import { conformDriver } from '#towline/conformance/index.js';
import { DevlinkDriver, type DevlinkControllingFunction, type DevlinkOptions } from '#towline/drivers/devlink.js';
import { SriovDriver } from '#towline/drivers/sriov.js';
import { provisionFunction } from '#towline/function/lifecycle.js';
import type { FunctionSpec } from '#towline/function/types.js';
import { devlinkPort, FakeHost, mlx5Pf } from '../support/fake-host.js';
import { failEach } from './undo.js';

const PF = '0000:01:00.0';
const VF = '0000:01:00.1';
const ADDRESS = `pci/${PF}`;
const MAC = '02:00:00:00:00:01';

/** A PF in switchdev mode: the ports of its VFs come with them. */
function switchdev(): FakeHost {
  const host = new FakeHost(mlx5Pf());
  host.devlink = [{ bus: 'pci', device: PF, mode: 'switchdev' }];
  host.onNumVfs = (address, count) => {
    host.ports = host.ports.filter((p) => p.flavour !== 'pci-vf');
    for (let vf = 0; vf < count; vf += 1) host.ports.push(devlinkPort('pci', address, 1 + vf, { vf }));
  };
  return host;
}

async function opened(
  options: DevlinkOptions = {},
  host = switchdev(),
): Promise<{ host: FakeHost; controlling: DevlinkControllingFunction }> {
  return { host, controlling: await new DevlinkDriver({ ...options, host }).open(ADDRESS) };
}

const vf = (more: Partial<FunctionSpec> = {}): FunctionSpec => ({ kind: 'vf', hwAddress: MAC, ...more });
const codesOf = (reasons: readonly { code: string }[]): string[] => reasons.map((r) => r.code);
const portOf = (host: FakeHost, index: number) => host.ports.find((p) => p.index === index)?.function;

test('it passes the kit of drivers', async (t) => {
  const driver = new DevlinkDriver({ host: switchdev() });
  for await (const { check, outcome, why } of conformDriver({ driver, address: ADDRESS }))
    t.is(outcome, 'passed', `${check}: ${why}`);
});

test('a VF is migratable and has its address before anybody sees it', async (t) => {
  const { host, controlling } = await opened();
  const fn = await provisionFunction(controlling, vf({ expose: 'vfio' }));
  t.deepEqual(
    host.log.filter((l) => /^(port|numvfs|autoprobe|override|probe)/.test(l)),
    [
      `autoprobe ${PF} false`,
      `numvfs ${PF} 3`,
      `port pci/${PF}/1 {"hwAddr":"${MAC}"}`,
      `port pci/${PF}/1 {"migratable":true}`,
      `override ${VF} mlx5_vfio_pci`,
      `probe ${VF}`,
    ],
  );
  t.like(portOf(host, 1), { hwAddr: MAC, migratable: true });
  t.deepEqual(await fn.explain(), []);
  await t.throwsAsync(fn.configure({ hwAddress: '02:00:00:00:00:02' }), {
    code: 'ERR_TOWLINE_STATE',
    message: /hide it first/,
  });
  await fn.release();
  t.like(portOf(host, 1), { hwAddr: '00:00:00:00:00:00', migratable: false });
  t.is(host.functions.get(VF)?.driver, null);
});

test('a subfunction is made, becomes visible by its state, and is deleted', async (t) => {
  const { host, controlling } = await opened({ sfs: 1 });
  const fn = await provisionFunction(controlling, { kind: 'siov', hwAddress: MAC, migration: false, expose: 'kernel' });
  const index = host.ports[0]?.index ?? 0;
  t.like(portOf(host, index), { hwAddr: MAC, state: 'active', opstate: 'attached' });
  await t.throwsAsync(provisionFunction(controlling, { kind: 'siov', migration: false }), {
    code: 'ERR_TOWLINE_NO_RESOURCES',
  });
  await fn.expose('none');
  t.like(portOf(host, index), { state: 'inactive' });
  await t.throwsAsync(fn.expose('vfio'), { code: 'ERR_TOWLINE_EXPOSURE', message: /no PCI function/ });
  await t.throwsAsync(controlling.enableMigration(fn), { code: 'ERR_TOWLINE_UNSUPPORTED' });
  await t.throwsAsync(async () => fn.open?.(), { code: 'ERR_TOWLINE_UNSUPPORTED' });
  await fn.release();
  t.deepEqual(host.ports, []);
});

for (const spec of [
  vf({ expose: 'vfio' }),
  { kind: 'siov', hwAddress: MAC, migration: false, expose: 'kernel' } as const,
]) {
  test(`${spec.kind}: a failure of any call leaves nothing`, async (t) => {
    const count = await failEach(t, async () => {
      const { host, controlling } = await opened();
      // The pool of VFs is sized once and stays: it is no part of what a failure undoes.
      await (await controlling.provision({ kind: 'vf' })).release();
      return { host, work: () => provisionFunction(controlling, spec) };
    });
    t.true(count > 5, `${count} calls`);
  });
}

test('a VF that is kept for a driver, or that the driver sriov has, is not free', async (t) => {
  const { host, controlling } = await opened();
  await (await controlling.provision({ kind: 'vf' })).release();
  await host.setDriverOverride(VF, 'vfio-pci');
  const sriov = await new SriovDriver({ host }).open(PF);
  const other = await sriov.provision({ kind: 'vf' });
  t.is(other.location?.address, '0000:01:00.2');
  t.deepEqual((await controlling.capacity())[0], { kind: 'vf', total: 3, free: 1 });
  t.deepEqual(await controlling.list(), []);
  t.is((await controlling.provision({ kind: 'vf' })).location?.address, '0000:01:00.3');
  await t.throwsAsync(sriov.provision({ kind: 'vf' }), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  await t.throwsAsync(controlling.provision({ kind: 'vf' }), { code: 'ERR_TOWLINE_NO_RESOURCES' });
  await other.release();
  t.is((await controlling.provision({ kind: 'vf' })).location?.address, '0000:01:00.2');
});

test('nothing of its tenant stays in a VF that is released', async (t) => {
  for (const [resetMethods, resets] of [
    [['flr'], [`reset ${VF}`]],
    [[], []],
  ] as const) {
    const { host, controlling } = await opened();
    const fn = await provisionFunction(controlling, vf({ expose: 'vfio' }));
    Object.assign(host.functions.get(VF) ?? {}, { resetMethods: [...resetMethods] });
    const calls = host.calls;
    await fn.release();
    t.deepEqual(
      host.log.slice(calls).filter((l) => l.startsWith('reset')),
      [...resets],
    );
    t.is(fn.state, 'released');
  }
});

test('the comparison notices what is left behind', async (t) => {
  const { host, controlling } = await opened();
  await (await controlling.provision({ kind: 'vf' })).release();
  for (const left of [{ hwAddr: MAC }, { migratable: true }]) {
    const before = host.snapshot();
    await host.devlinkSetPort('pci', PF, 1, left);
    t.notDeepEqual(host.snapshot(), before);
  }
});

test('what the driver of the device lacks is told as such, and undone', async (t) => {
  const { host, controlling } = await opened();
  await (await controlling.provision({ kind: 'vf' })).release();
  const before = host.snapshot();
  for (const [op, spec] of [
    ['hwAddr', vf()],
    ['migratable', vf()],
    ['new', { kind: 'siov', migration: false }],
  ] as const) {
    host.portOps[op] = false;
    const error = await t.throwsAsync(provisionFunction(controlling, spec), {
      code: 'ERR_TOWLINE_UNSUPPORTED',
      message: /EOPNOTSUPP/,
    });
    t.is((error as { errno?: number } | undefined)?.errno, 95);
    host.portOps[op] = true;
    t.deepEqual(host.snapshot(), before);
  }
});

test('without ports of VFs the mode of the switch is named', async (t) => {
  const host = new FakeHost(mlx5Pf());
  host.devlink = [{ bus: 'pci', device: PF, mode: 'legacy' }];
  const { controlling } = await opened({}, host);
  t.regex((await controlling.explain()).at(-1)?.mend ?? '', /switchdev/);
  await t.throwsAsync(provisionFunction(controlling, vf()), {
    code: 'ERR_TOWLINE_UNSUPPORTED',
    message: /legacy.*switchdev/,
  });
  t.is(host.functions.get(PF)?.sriov?.numVfs, 0);
});

test('ports without a PCI function here have no exposure', async (t) => {
  const host = new FakeHost();
  host.devlink = [{ bus: 'netdevsim', device: 'netdevsim1', mode: 'switchdev' }];
  host.ports = [devlinkPort('netdevsim', 'netdevsim1', 128, { vf: 0, function: null })];
  const controlling = await new DevlinkDriver({ host }).open('netdevsim/netdevsim1');
  await t.throwsAsync(provisionFunction(controlling, { kind: 'vf', hwAddress: MAC }), {
    code: 'ERR_TOWLINE_UNSUPPORTED',
    message: /EOPNOTSUPP/,
  });
  const fn = await provisionFunction(controlling, { kind: 'vf', migration: false });
  t.deepEqual(fn.location, { bus: 'devlink', address: 'netdevsim/netdevsim1/128' });
  t.true(codesOf(await fn.explain()).includes('no-variant-driver'));
  await t.throwsAsync(fn.expose('kernel'), { code: 'ERR_TOWLINE_EXPOSURE' });
});

test('an instance that is not there is refused', async (t) => {
  await t.throwsAsync(new DevlinkDriver({ host: switchdev() }).open('pci/0000:09:00.0'), {
    code: 'ERR_TOWLINE_NOT_FOUND',
  });
});

test('a hardware address is checked before anything is touched', async (t) => {
  const { host, controlling } = await opened();
  const calls = host.calls;
  for (const hwAddress of ['02:00', '01:00:00:00:00:01', '00:00:00:00:00:00', 'x']) {
    await t.throwsAsync(provisionFunction(controlling, { kind: 'vf', hwAddress }), {
      code: 'ERR_TOWLINE_INVALID_ARGUMENT',
    });
  }
  t.is(host.calls, calls);
});
