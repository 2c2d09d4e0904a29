import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { explainOn, type HostExplanation } from '#towline/host/explain.js';
import { aliasedModule, starMatch, variantDrivers } from '#towline/host/variants.js';
import { bareKernel, host, kernel, machine, pci, UUID, type Told } from './machine.js';

/** Sysfs files that the kernel would have, by path. */
async function sysfs(t: ExecutionContext, files: Readonly<Record<string, string>> = {}): Promise<string> {
  const root = await mkdtemp(join(tmpdir(), 'towline-sysfs-'));
  t.teardown(() => rm(root, { recursive: true, force: true }));
  for (const [path, text] of Object.entries(files)) {
    await mkdir(join(root, path, '..'), { recursive: true });
    await writeFile(join(root, path), text);
  }
  return root;
}

async function explain(
  t: ExecutionContext,
  address: string,
  told: Told = {},
  files: Readonly<Record<string, string>> = {},
): Promise<HostExplanation> {
  const reader = host(told);
  const answer = await explainOn(address, { reader, sysfs: await sysfs(t, files) });
  t.is(reader.nvmeOpen(), 0, 'what was opened was closed');
  for (const { message, mend } of [...answer.reasons, ...answer.limits]) {
    t.regex(message, /^\S.*[^.\s]$/s);
    t.regex(mend, /^\S.*[^.\s]$/s);
  }
  return answer;
}

const codes = (answer: HostExplanation): string[] => answer.reasons.map((r) => r.code);
const limits = (answer: HostExplanation): string[] => answer.limits.map((r) => r.code);

test('a VF on the driver of the kernel: which driver would migrate it, and that its port does not let it', async (t) => {
  const answer = await explain(t, '01:00.1');
  t.is(answer.function.address, '0000:01:00.1');
  t.deepEqual(codes(answer), ['wrong-driver', 'migration-not-enabled']);
  t.regex(answer.reasons[0]?.message ?? '', /bound to mlx5_core.*mlx5_vfio_pci of this kernel would/);
  t.regex(answer.reasons[0]?.mend ?? '', /driver_override.*drivers_probe/);
  t.regex(answer.reasons[1]?.mend ?? '', /devlink port function set pci\/0000:01:00\.0\/2 migratable enable/);
  t.is(answer.can, null);
  t.true(answer.quirks.some((q) => q.name === 'mlx5' && q.source.startsWith('drivers/vfio/pci/mlx5')));
});

test('a VF on its variant driver can move, by what is known of the driver', async (t) => {
  const answer = await explain(t, '0000:01:00.2');
  t.deepEqual(codes(answer), []);
  t.like(answer.can, { by: 'vfio', states: { stopCopy: true, p2p: true, preCopy: true }, dirty: 'unknown' });
  t.regex(answer.can?.evidence ?? '', /drivers\/vfio\/pci\/mlx5\/main\.c/);
  t.deepEqual(limits(answer), ['no-dirty-tracking', 'not-permitted']);
});

test('what the debugfs of the kernel tells is believed instead', async (t) => {
  const features = 'kernel/debug/vfio/0000:01:00.2/migration/features';
  const told = {
    kernel: { ...kernel, vfioDebugfs: true },
    pci: machine.pci.map((f) => (f.address === '0000:01:00.2' ? { ...f, vfioState: 'RUNNING' } : f)),
  };
  const answer = await explain(t, '0000:01:00.2', told, { [features]: 'stop-copy\np2p\ndirty-tracking\n' });
  t.deepEqual([codes(answer), limits(answer)], [[], []]);
  t.like(answer.can, {
    states: { stopCopy: true, p2p: true, preCopy: false },
    dirty: 'device',
    evidence: "this kernel's debugfs",
  });
  t.is(answer.function.migrationState, 'RUNNING');

  const none = await explain(t, '0000:01:00.2', { kernel: { ...kernel, vfioDebugfs: true } });
  t.deepEqual(codes(none), ['driver-cannot-migrate']);
  t.regex(none.reasons[0]?.mend ?? '', /migratable/);
});

test('the IOMMU tells by its registers whether it tracks', async (t) => {
  const told = {
    pci: machine.pci.map((f) =>
      f.address === '0000:01:00.2' ? { ...f, driver: 'qat_vfio_pci', vendor: 0x8086, device: 0x4941 } : f,
    ),
  };
  const at = (file: string): string => `bus/pci/devices/0000:01:00.2/iommu/${file}`;
  const dirty = async (files: Record<string, string>, more: Told = {}): Promise<unknown[]> => {
    const answer = await explain(t, '0000:01:00.2', { ...told, ...more }, files);
    return [answer.can?.dirty, answer.limits.find((l) => l.code === 'no-dirty-tracking')?.message];
  };
  const all = ((1n << 43n) | (1n << 45n) | (1n << 48n)).toString(16);
  t.deepEqual(await dirty({ [at('intel-iommu/ecap')]: `${all}\n` }), ['iommu', undefined]);
  for (const missing of [43n, 45n, 48n]) {
    const [who, why] = await dirty({ [at('intel-iommu/ecap')]: (BigInt(`0x${all}`) & ~(1n << missing)).toString(16) });
    t.is(who, 'nobody', `without bit ${missing}`);
    t.regex(String(why), /no dirty tracking.*every page of guest memory is sent again in the stop/);
  }
  t.deepEqual(await dirty({ [at('amd-iommu/features')]: '0010000000000000:0' }), ['iommu', undefined]);
  t.is((await dirty({ [at('amd-iommu/features')]: '0000000000000001:0' }))[0], 'nobody');
  t.is((await dirty({}))[0], 'unknown');
  t.is((await dirty({ [at('intel-iommu/ecap')]: 'garbage' }))[0], 'unknown');
  const [, why] = await dirty({ [at('intel-iommu/ecap')]: all }, { kernel: { ...kernel, iommufd: false } });
  t.regex(String(why), /lacks \/dev\/iommu/);
});

test('a kernel without VFIO, without an IOMMU, without the group', async (t) => {
  const bare = await explain(t, '0000:00:03.0', {
    kernel: bareKernel,
    pci: [pci('0000:00:03.0', { driver: 'virtio-pci', iommuGroup: null })],
    mdev: [],
  });
  t.deepEqual(codes(bare), ['kernel-without-vfio', 'kernel-without-iommu', 'no-variant-driver']);
  const groupless = machine.pci.map((f) => (f.address === '0000:01:00.2' ? { ...f, iommuGroup: null } : f));
  t.deepEqual(codes(await explain(t, '0000:01:00.2', { pci: groupless })), ['no-iommu-group']);
});

test('a group that is shared with a driver of the kernel', async (t) => {
  const answer = await explain(t, '0000:06:00.0');
  t.deepEqual(codes(answer), ['iommu-group-shared', 'no-variant-driver']);
  t.regex(answer.reasons[0]?.message ?? '', /0000:06:00\.1 \(e1000e\)/);
  const port = machine.pci.map((f) => (f.address === '0000:06:00.1' ? { ...f, driver: 'pcieport' } : f));
  t.deepEqual(codes(await explain(t, '0000:06:00.0', { pci: port })), ['no-variant-driver']);
});

test('a driver that this kernel lacks, and a device that none migrates', async (t) => {
  const without = { ...kernel, vfioAliases: [] };
  const lacks = await explain(t, '0000:01:00.1', { kernel: without });
  t.is(codes(lacks)[0], 'no-variant-driver');
  t.regex(lacks.reasons[0]?.mend ?? '', /CONFIG_MLX5_VFIO_PCI/);
  // The name of a driver is not always that of its module.
  const other = [
    { pattern: 'vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*', module: 'mlx5_vfio_pci', driver: 'mlx5-vfio' },
  ];
  const renamed = await explain(t, '0000:01:00.1', { kernel: { ...kernel, vfioAliases: other } });
  t.regex(renamed.reasons[0]?.mend ?? '', /modprobe mlx5_vfio_pci, echo mlx5-vfio > .*driver_override/);
  // Built in, it has no alias in the file.
  const builtin = await explain(t, '0000:01:00.1', { kernel: { ...without, pciDrivers: ['mlx5_vfio_pci'] } });
  t.is(codes(builtin)[0], 'wrong-driver');
  const free = machine.pci.map((f) => (f.address === '0000:01:00.1' ? { ...f, driver: null } : f));
  t.is(codes(await explain(t, '0000:01:00.1', { pci: free }))[0], 'no-driver');
  t.deepEqual(codes(await explain(t, '0000:05:00.0')), ['driver-cannot-migrate']);
});

test('a PF with the identity of VFs is none', async (t) => {
  const virtio = pci('0000:00:03.0', { vendor: 0x1af4, device: 0x1041, driver: 'virtio-pci' });
  const aliases = [{ pattern: 'vfio_pci:v00001AF4d00001041sv*sd*bc*sc*i*', module: 'virtio_vfio_pci', driver: null }];
  for (const vfioAliases of [aliases, []]) {
    const told = { kernel: { ...kernel, vfioAliases }, pci: [virtio] };
    const answer = await explain(t, '0000:00:03.0', told);
    t.deepEqual(codes(answer), ['no-variant-driver']);
    t.regex(answer.reasons[0]?.message ?? '', /no VFIO driver of kernel/);
    t.deepEqual(answer.quirks, []);
    const vf = await explain(t, '0000:00:03.0', { ...told, pci: [{ ...virtio, physfn: '0000:00:02.0', vfIndex: 0 }] });
    t.deepEqual(codes(vf), [vfioAliases.length > 0 ? 'wrong-driver' : 'no-variant-driver']);
    t.true(vf.quirks.length > 0);
  }
});

test('a VF whose PF is on vfio-pci needs a token', async (t) => {
  const answer = await explain(t, '0000:04:10.0');
  t.deepEqual(codes(answer), ['no-variant-driver']);
  t.true(limits(answer).includes('vf-token-needed'));
});

test('a function that another process has open', async (t) => {
  for (const path of ['/dev/vfio/devices/vfio0', '/dev/vfio/12']) {
    const answer = await explain(t, '0000:01:00.2', { open: { [path]: [process.pid] } });
    t.deepEqual(codes(answer), ['in-use']);
    t.regex(answer.reasons[0]?.message ?? '', new RegExp(`process ${process.pid} \\(\\w+`));
    t.not(answer.can, null, 'what it can do is told all the same');
  }
  t.deepEqual(codes(await explain(t, '0000:01:00.2', { open: { '/dev/vfio/devices/vfio7': [1] } })), []);
});

test('an NVMe PF tells whether it migrates what it controls', async (t) => {
  const not = await explain(t, 'nvme0', { identify: { hmlms: false } });
  t.deepEqual(codes(not), ['function-is-controlling', 'controlling-function-cannot-migrate']);
  t.regex(not.reasons[1]?.message ?? '', /OACS bit 11/);
  t.deepEqual(codes(await explain(t, '/dev/nvme0', { identify: { hmlms: true, trackMemory: true } })), [
    'function-is-controlling',
  ]);
  const unasked = await explain(t, '0000:02:00.0');
  t.deepEqual(limits(unasked), ['not-permitted']);
  t.regex(unasked.limits[0]?.message ?? '', /\/dev\/nvme0 could not be asked.*EACCES/);
});

test('an NVMe VF is migrated by its PF, where it is online', async (t) => {
  const secondary = (vfNumber: number, online: boolean) => ({
    cntlid: vfNumber,
    primaryCntlid: 0,
    online,
    vfNumber,
    vq: 0,
    vi: 0,
  });
  const secondaries = [secondary(1, true), secondary(2, false)];
  const online = await explain(t, '0000:02:00.1', { identify: { hmlms: true, trackMemory: true }, secondaries });
  t.deepEqual(codes(online), []);
  t.like(online.can, { by: 'nvme', dirty: 'controlling-function' });
  t.deepEqual(codes(await explain(t, '0000:02:00.2', { identify: { hmlms: true }, secondaries })), [
    'function-offline',
  ]);
  const without = await explain(t, '0000:02:00.1', { identify: {}, secondaries });
  t.deepEqual(codes(without), ['controlling-function-cannot-migrate', 'no-variant-driver']);
  t.is(without.can, null);
});

test('a mediated device needs no IOMMU', async (t) => {
  const answer = await explain(t, UUID.toUpperCase(), { kernel: { ...kernel, iommu: false } });
  t.deepEqual(codes(answer), []);
  t.like(answer.can, { by: 'vfio', dirty: 'device', states: { p2p: true } });
  t.true(answer.quirks.some((q) => q.name === 'mtty'));
  const [parent] = machine.mdev;
  if (parent === undefined) return t.fail();
  const with_ = (fields: object) => [{ ...parent, devices: parent.devices.map((d) => ({ ...d, ...fields })) }];
  t.deepEqual(codes(await explain(t, UUID, { mdev: with_({ driver: null }) })), ['no-driver']);
  t.deepEqual(codes(await explain(t, UUID, { mdev: with_({ driver: 'vfio_ccw_mdev' }) })), ['driver-cannot-migrate']);
  t.deepEqual(codes(await explain(t, UUID, { open: { '/dev/vfio/devices/vfio9': [1] } })), ['in-use']);
  t.deepEqual(codes(await explain(t, UUID, { kernel: bareKernel })), ['kernel-without-vfio']);
});

test('a subfunction and a port of elsewhere', async (t) => {
  t.deepEqual(codes(await explain(t, 'devlink:pci/0000:01:00.0/32768')), ['function-offline', 'no-variant-driver']);
  t.deepEqual(codes(await explain(t, 'netdevsim/netdevsim1/128')), ['other']);
  t.is(
    (await explain(t, 'pci/0000:01:00.0/3')).function.address,
    '0000:01:00.2',
    'the port of a VF of this host is the VF',
  );
});

test('what is not there is said so, with what could not be read', async (t) => {
  const root = await sysfs(t);
  for (const word of ['0000:99:00.0', 'nvme7', 'x', '', '0000:01:00.9']) {
    await t.throwsAsync(explainOn(word, { reader: host(), sysfs: root }), { code: 'ERR_TOWLINE_NOT_FOUND' }, word);
  }
  await t.throwsAsync(explainOn('mtty', { reader: host(), sysfs: root }), {
    message: new RegExp(`controlling function.*${UUID}`),
  });
});

test('modules are found by their aliases, in linear time', (t) => {
  const mlx5 = machine.pci.find((f) => f.address === '0000:01:00.1')?.modalias ?? '';
  t.is(aliasedModule(mlx5, kernel.vfioAliases)?.module, 'mlx5_vfio_pci');
  t.is(
    aliasedModule(mlx5.replace('101E', '101F'), kernel.vfioAliases),
    undefined,
    'vfio-pci takes everything and migrates nothing',
  );
  t.true(starMatch('a*b*c', 'a--b--c'));
  t.true(starMatch('a*', 'a'));
  t.false(starMatch('a*a', 'a'));
  t.false(starMatch('a*b*b', 'ab'));
  t.true(starMatch('abc', 'abc'));
  t.false(starMatch('abc', 'abcd'));
  const began = Date.now();
  t.false(starMatch('a*'.repeat(20_000) + 'b', 'a'.repeat(40_000)));
  t.true(Date.now() - began < 2000);
});

test('every driver that is known says where that comes from', (t) => {
  for (const v of variantDrivers) {
    t.regex(v.source, /^(drivers|samples)\/[\w/-]+\.c$/, v.driver);
    t.is(v.ids.length > 0, v.bus === 'pci', v.driver);
    t.false(!v.states.stopCopy && v.dirtyLog === 'yes', v.driver);
  }
});
