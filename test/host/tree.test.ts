import test from 'ava';
import { discover } from '#towline/host/tree.js';
import { TowlineError } from '#towline/errors.js';
import { bareKernel, host, pci, UUID } from './machine.js';

test('controlling functions are found with what they control', async (t) => {
  const tree = await discover({ reader: host() });
  t.deepEqual(tree.problems, []);
  t.deepEqual(
    tree.controlling.map((c) => [c.address, c.controlling, c.functions.map((f) => f.address)]),
    [
      [
        '0000:01:00.0',
        ['devlink:pci/0000:01:00.0', 'sriov:0000:01:00.0'],
        ['0000:01:00.1', '0000:01:00.2', 'pci/0000:01:00.0/32768'],
      ],
      ['0000:02:00.0', ['nvme:0000:02:00.0', 'sriov:0000:02:00.0'], ['0000:02:00.1', '0000:02:00.2']],
      ['0000:03:00.0', ['mdev:devices/pci0000:00/0000:03:00.0'], []],
      ['0000:04:00.0', ['sriov:0000:04:00.0'], ['0000:04:10.0']],
      ['devices/virtual/mtty/mtty', ['mdev:mtty'], [UUID]],
      ['netdevsim/netdevsim1', ['devlink:netdevsim/netdevsim1'], ['netdevsim/netdevsim1/128']],
    ],
  );
  t.deepEqual(
    tree.others.map((f) => f.address),
    ['0000:05:00.0', '0000:06:00.0'],
    'on VFIO, and nobody controls them',
  );
});

test('a function is shown with its driver, its port and how it is visible', async (t) => {
  const { controlling } = await discover({ reader: host() });
  const [net, nvme, gpu, , mtty] = controlling;
  t.like(net?.functions[0], {
    kind: 'vf',
    exposure: 'kernel',
    driver: 'mlx5_core',
    vfIndex: 0,
    port: { migratable: false, hwAddress: '02:00:00:00:00:01' },
  });
  t.like(net?.functions[1], {
    exposure: 'vfio',
    vfioDevice: 'vfio0',
    port: { address: 'pci/0000:01:00.0/3', migratable: true },
  });
  t.like(net?.functions[2], { kind: 'siov', bus: 'devlink', port: { state: 'inactive', flavour: 'pci-sf' } });
  t.like(nvme, {
    description: 'NVMe controller 1b36:0010',
    nvme: { name: 'nvme0', state: 'live' },
    vfs: { total: 4, enabled: 2 },
  });
  t.is(nvme?.functions[1]?.exposure, 'none');
  t.deepEqual(gpu?.types, [{ id: 'i915-GVTg_V5_4', name: null, deviceApi: 'vfio-pci', available: 1 }]);
  t.like(mtty?.functions[0], { kind: 'siov', bus: 'mdev', type: 'mtty-2', exposure: 'vfio' });
});

test('a host without any of it gives an empty tree, and says what it has', async (t) => {
  const reader = host({
    kernel: bareKernel,
    pci: [pci('0000:00:03.0', { driver: 'virtio-pci' })],
    mdev: [],
    ports: [],
    devlink: [],
  });
  const tree = await discover({ reader });
  t.deepEqual([tree.controlling, tree.others, tree.problems], [[], [], []]);
  t.like(tree.kernel, { release: '6.18.0', iommu: false, container: false });
});

test('a part that can not be read is told and leaves the others', async (t) => {
  const reader = host();
  const refuse = async (): Promise<never> => {
    throw new TowlineError('ERR_TOWLINE_PERMISSION', 'devlink: EPERM', { errno: 1 });
  };
  const tree = await discover({
    reader: {
      kernel: () => reader.kernel(),
      pci: () => reader.pci(true),
      mdev: () => Promise.reject(new Error('sysfs is gone')),
      devlinkDevices: refuse,
      devlinkPorts: refuse,
      openers: (paths) => reader.openers(paths),
      openNvme: (path) => reader.openNvme(path),
    },
  });
  t.deepEqual(tree.problems.map((p) => `${p.part} ${p.error.code}`).toSorted(), [
    'devlink ERR_TOWLINE_PERMISSION',
    'mdev ERR_TOWLINE_INTERNAL',
  ]);
  t.deepEqual(
    tree.controlling.map((c) => c.address),
    ['0000:01:00.0', '0000:02:00.0', '0000:04:00.0'],
  );
});

test('a kernel without devlink is no problem, and told', async (t) => {
  const reader = host();
  const absent = async (): Promise<never> => {
    throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', 'no devlink');
  };
  const tree = await discover({
    reader: Object.assign(Object.create(reader) as typeof reader, { devlinkDevices: absent, devlinkPorts: absent }),
  });
  t.deepEqual([tree.problems, tree.kernel.devlink], [[], false]);
  t.true((await discover({ reader })).kernel.devlink);
});

test('a fired signal ends it', async (t) => {
  await t.throwsAsync(discover({ reader: host(), signal: AbortSignal.abort() }), { name: 'AbortError' });
});
