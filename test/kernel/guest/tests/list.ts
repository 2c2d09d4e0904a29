// The host's tree as towline finds it, against what lspci, devlink and the kernel's own files say.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { discoverHost, type HostController, type HostFunction } from '../../../../dist/index.js';
import { openFiles, sh, towline, towlineAlone, values } from '../host.js';
import { api } from '../paths.js';

const NVME = '0000:01:00.0';
const IGB = '0000:02:00.0';
const UUIDS = ['22222222-0000-4000-8000-000000000001', '22222222-0000-4000-8000-000000000002'];
let before_: number;

before(async () => {
  before_ = await openFiles();
  await sh('modprobe mtty; modprobe nvme 2>/dev/null; modprobe netdevsim; echo 7 1 > /sys/bus/netdevsim/new_device');
  const types = '/sys/devices/virtual/mtty/mtty/mdev_supported_types';
  await sh(`echo ${UUIDS[0]} > ${types}/mtty-1/create; echo ${UUIDS[1]} > ${types}/mtty-2/create`);
  for (const pf of [NVME, IGB]) {
    await sh(`cd /sys/bus/pci/devices/${pf}; echo 0 > sriov_drivers_autoprobe; echo 2 > sriov_numvfs`);
  }
  await sh(
    `vf=$(basename $(readlink /sys/bus/pci/devices/${IGB}/virtfn1)); echo vfio-pci > /sys/bus/pci/devices/$vf/driver_override; echo $vf > /sys/bus/pci/drivers_probe`,
  );
});

after(async () => {
  for (const pf of [NVME, IGB]) {
    await sh(`cd /sys/bus/pci/devices/${pf}; echo 0 > sriov_numvfs; echo 1 > sriov_drivers_autoprobe`);
  }
  for (const uuid of UUIDS) await sh(`echo 1 > /sys/bus/mdev/devices/${uuid}/remove`);
  await sh('echo 7 > /sys/bus/netdevsim/del_device');
});

async function controller(address: string): Promise<HostController> {
  const tree = await discoverHost();
  assert.deepEqual(tree.problems, []);
  const found = tree.controlling.find((c) => c.address === address);
  assert.ok(found, `${address} is not in the tree: ${tree.controlling.map((c) => c.address).join(', ')}`);
  return found;
}

test('every PF with SR-IOV that lspci shows is in the tree, and nothing else as one', async () => {
  const shown = await sh(
    "lspci -Dvv | awk '/^[0-9a-f]{4}:/ || /^[0-9a-f]+:[0-9a-f]+:[0-9a-f]+\\.[0-7] /{a=$1} /Single Root I.O Virtualization/{print a}'",
  );
  const { controlling } = await discoverHost();
  assert.deepEqual(
    controlling.filter((c) => c.vfs !== null).map((c) => c.address),
    shown.split('\n'),
  );
});

test('VFs stand under their PF, in the order of virtfn, with the driver that lspci names', async () => {
  for (const pf of [NVME, IGB]) {
    const links = (
      await sh(`cd /sys/bus/pci/devices/${pf}; for n in 0 1; do basename $(readlink virtfn$n); done`)
    ).split('\n');
    const { functions, vfs } = await controller(pf);
    assert.deepEqual(
      functions.map((f) => f.address),
      links,
    );
    assert.deepEqual(
      functions.map((f) => f.vfIndex),
      [0, 1],
    );
    assert.equal(vfs?.enabled, 2);
    assert.equal(vfs?.total, Number(await sh(`cat /sys/bus/pci/devices/${pf}/sriov_totalvfs`)));
    for (const fn of functions) {
      const inUse = /Kernel driver in use: (\S+)/.exec(await sh(`lspci -Dk -s ${fn.address}`))?.[1] ?? null;
      assert.equal(fn.driver, inUse);
      assert.equal(fn.exposure, inUse === null ? 'none' : inUse === 'vfio-pci' ? 'vfio' : 'kernel');
      assert.equal(
        String(fn.iommuGroup),
        await sh(`basename $(readlink /sys/bus/pci/devices/${fn.address}/iommu_group)`),
      );
    }
  }
});

test('the NVMe controller has its name and its drivers', async () => {
  const found = await controller(NVME);
  assert.equal(found.nvme?.name, await sh(`ls /sys/bus/pci/devices/${NVME}/nvme`));
  assert.equal(found.nvme?.state, 'live');
  assert.deepEqual(found.controlling, [`nvme:${NVME}`, `sriov:${NVME}`]);
  const subsystem = (JSON.parse(await sh(`nvme id-ctrl /dev/${found.nvme?.name} -o json`)) as { subnqn: string })
    .subnqn;
  assert.equal(found.nvme?.subsystemNqn, subsystem);
});

test('a parent of mediated devices has its types and devices, and their state by debugfs', async () => {
  const mtty = await controller('devices/virtual/mtty/mtty');
  for (const type of mtty.types) {
    const left = await sh(`cat /sys/devices/virtual/mtty/mtty/mdev_supported_types/${type.id}/available_instances`);
    assert.equal(String(type.available), left);
  }
  assert.deepEqual(mtty.types.map((t) => t.id).toSorted(), ['mtty-1', 'mtty-2']);
  assert.deepEqual(mtty.functions.map((f) => f.address).toSorted(), UUIDS);
  assert.deepEqual(
    mtty.functions.map((f) => [f.kind, f.exposure, f.driver]),
    [
      ['siov', 'vfio', 'mtty'],
      ['siov', 'vfio', 'mtty'],
    ],
  );
  for (const fn of mtty.functions) {
    const told = await sh(`cat /sys/kernel/debug/vfio/${fn.address}/migration/state 2>/dev/null || true`);
    assert.equal(fn.migrationState ?? '', told);
  }
});

test('devlink: the ports of functions are those that devlink shows', async () => {
  const shown = async (): Promise<string[]> => {
    const { port } = JSON.parse(await sh('devlink -j port show')) as {
      port: Record<string, { flavour: string; vfnum?: number }>;
    };
    return Object.entries(port)
      .filter(([name, p]) => name.startsWith('netdevsim/netdevsim7/') && p.flavour === 'pcivf')
      .map(([name]) => name);
  };
  assert.deepEqual(await shown(), []);
  assert.deepEqual((await controller('netdevsim/netdevsim7')).functions, []);
  await sh(
    'echo 2 > /sys/bus/netdevsim/devices/netdevsim7/sriov_numvfs; devlink dev eswitch set netdevsim/netdevsim7 mode switchdev',
  );
  try {
    const ports = await shown();
    assert.equal(ports.length > 0, true, 'devlink shows VF ports in switchdev mode');
    const found = (await controller('netdevsim/netdevsim7')).functions;
    assert.deepEqual(found.map((f: HostFunction) => f.address).toSorted(), ports.toSorted());
  } finally {
    await sh(
      'devlink dev eswitch set netdevsim/netdevsim7 mode legacy; echo 0 > /sys/bus/netdevsim/devices/netdevsim7/sriov_numvfs',
    );
  }
});

test('the command shows the same, and words for people', async () => {
  const json = await towlineAlone('list', '--json');
  assert.equal(json.code, 0, json.err);
  const [told] = values<{ host: unknown; serving: boolean }>(json);
  assert.deepEqual(told?.host, JSON.parse(JSON.stringify(await discoverHost())));
  assert.equal(told?.serving, false);
  const shown = await towline('list');
  for (const word of [
    NVME,
    IGB,
    ...UUIDS,
    `--controlling nvme:${NVME} or sriov:${NVME}`,
    '--controlling mdev:mtty',
    'netdevsim7',
  ]) {
    assert.ok(shown.out.includes(word), `${word} in:\n${shown.out}`);
  }
});

test('somebody who is not root is told as much as that goes', async () => {
  const reader = `import('${api.href}').then(async (t) => console.log(JSON.stringify(await t.discoverHost())))`;
  const out = await sh(`setpriv --reuid 65534 --regid 65534 --clear-groups ${process.execPath} -e "${reader}"`);
  const { controlling } = JSON.parse(out) as { controlling: HostController[] };
  const all = (await discoverHost()).controlling;
  assert.deepEqual(
    controlling.map((c) => [c.address, c.functions.map((f) => f.address)]),
    all.map((c) => [c.address, c.functions.map((f) => f.address)]),
  );
});

test('no descriptor is left', async () => {
  await discoverHost();
  assert.equal(await openFiles(), before_);
});
