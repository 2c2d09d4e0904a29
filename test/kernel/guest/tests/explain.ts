// Why functions of this host can't be migrated, and that asking opens nothing that has a single owner: judged by the kernel's debugfs, its
// errno, nvme-cli, and inotify on the devices themselves.
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';

import { explainHost, type HostExplanation } from '../../../../dist/index.js';
import { holder, openFiles, sh, towline, values } from '../host.js';

const NVME = '0000:01:00.0';
const IGB = '0000:02:00.0';
const UUID = '33333333-0000-4000-8000-000000000001';
let vf: string;
let group: string;
let descriptors: number;

before(async () => {
  descriptors = await openFiles();
  await sh(
    'modprobe mtty; modprobe nvme 2>/dev/null; until [ "$(cat /sys/class/nvme/nvme0/state)" = live ]; do sleep 0.1; done',
  );
  await sh(`echo ${UUID} > /sys/devices/virtual/mtty/mtty/mdev_supported_types/mtty-2/create`);
  for (const pf of [NVME, IGB]) {
    await sh(`cd /sys/bus/pci/devices/${pf}; echo 0 > sriov_drivers_autoprobe; echo 2 > sriov_numvfs`);
  }
  vf = await sh(`basename $(readlink /sys/bus/pci/devices/${IGB}/virtfn0)`);
  group = await sh(`basename $(readlink /sys/bus/mdev/devices/${UUID}/iommu_group)`);
});

after(async () => {
  for (const pf of [NVME, IGB]) {
    await sh(`cd /sys/bus/pci/devices/${pf}; echo 0 > sriov_numvfs; echo 1 > sriov_drivers_autoprobe`);
  }
  await sh(`echo 1 > /sys/bus/mdev/devices/${UUID}/remove`);
});

const codes = ({ reasons }: HostExplanation): string[] => reasons.map((r) => r.code);

async function bind(address: string, driver: string | null): Promise<void> {
  const device = `/sys/bus/pci/devices/${address}`;
  await sh(
    `[ ! -e ${device}/driver ] || echo ${address} > ${device}/driver/unbind; echo ${driver ?? ''} > ${device}/driver_override`,
  );
  if (driver !== null) await sh(`echo ${address} > /sys/bus/pci/drivers_probe`);
}

test('mtty: what it can do is what the kernel says', async () => {
  const answer = await explainHost(UUID);
  assert.deepEqual(codes(answer), []);
  const features = await sh(`cat /sys/kernel/debug/vfio/${UUID}/migration/features 2>/dev/null || true`);
  // Debian's kernel has no VFIO in debugfs; what is known of the driver has to be the same.
  const words = features === '' ? ['stop-copy', 'p2p', 'pre-copy', 'dirty-tracking'] : features.split('\n');
  assert.deepEqual(answer.can?.states, {
    stopCopy: words.includes('stop-copy'),
    p2p: words.includes('p2p'),
    preCopy: words.includes('pre-copy'),
  });
  assert.equal(answer.can?.dirty, words.includes('dirty-tracking') ? 'device' : 'nobody');
  assert.equal(answer.can?.evidence === "this kernel's debugfs", features !== '');
  assert.equal(
    answer.limits.some((l) => l.code === 'not-permitted'),
    features === '',
  );
});

test('a VF goes from no driver to the kernel and to vfio-pci, and what is said follows', async () => {
  assert.deepEqual(codes(await explainHost(vf)), ['no-variant-driver']);
  await bind(vf, 'vfio-pci');
  const answer = await explainHost(vf);
  assert.equal(answer.function.exposure, 'vfio');
  assert.deepEqual(codes(answer), ['no-variant-driver']);
  assert.equal(answer.can, null);
  assert.equal(
    answer.limits.some((l) => l.code === 'vf-token-needed'),
    false,
  );
  await bind(vf, null);
});

test('a VF whose PF is on vfio-pci needs a token, as the kernel asks for one', async () => {
  await sh(
    `echo 0 > /sys/bus/pci/devices/${IGB}/sriov_numvfs; echo 1 > /sys/module/vfio_pci/parameters/enable_sriov 2>/dev/null || { modprobe -r vfio-pci; modprobe vfio-pci enable_sriov=1; }`,
  );
  await bind(IGB, 'vfio-pci');
  await sh(`echo 1 > /sys/bus/pci/devices/${IGB}/sriov_numvfs`);
  await bind(vf, 'vfio-pci');
  const answer = await explainHost(vf);
  assert.ok(
    answer.limits.some((l) => l.code === 'vf-token-needed'),
    JSON.stringify(answer.limits),
  );
  await sh(`echo 0 > /sys/bus/pci/devices/${IGB}/sriov_numvfs`);
  await bind(IGB, null);
  await bind(IGB, 'igb');
  await sh(
    `echo > /sys/bus/pci/devices/${IGB}/driver_override; cd /sys/bus/pci/devices/${IGB}; echo 0 > sriov_drivers_autoprobe; echo 2 > sriov_numvfs`,
  );
});

test('the NVMe PF has no host managed live migration, as nvme-cli finds', async () => {
  const answer = await explainHost(NVME);
  const { oacs } = JSON.parse(await sh('nvme id-ctrl /dev/nvme0 -o json')) as { oacs: number };
  assert.equal(codes(answer).includes('controlling-function-cannot-migrate'), ((oacs >> 11) & 1) === 0);
  assert.ok(codes(answer).includes('function-is-controlling'));
});

test('an NVMe VF is offline until nvme-cli takes it online', async () => {
  const first = await sh(`basename $(readlink /sys/bus/pci/devices/${NVME}/virtfn0)`);
  const offline = await explainHost(first);
  assert.ok(codes(offline).includes('function-offline'), JSON.stringify(offline.reasons));
  assert.ok(codes(offline).includes('controlling-function-cannot-migrate'));
  const list = JSON.parse(await sh('nvme list-secondary /dev/nvme0 -o json')) as {
    'secondary-controllers': { 'secondary-controller-identifier': number; 'virtual-function-number': number }[];
  };
  const id = list['secondary-controllers'].find((s) => s['virtual-function-number'] === 1)?.[
    'secondary-controller-identifier'
  ];
  // QEMU starts with every flexible resource at the PF, until a reset after they were taken from it.
  await sh('nvme virt-mgmt /dev/nvme0 -c 0 -r 0 -a 1 -n 0; nvme virt-mgmt /dev/nvme0 -c 0 -r 1 -a 1 -n 0');
  await sh(`cd /sys/bus/pci/devices/${NVME}; echo 0 > sriov_numvfs; echo 1 > reset; sleep 1; echo 2 > sriov_numvfs`);
  await sh(
    `nvme virt-mgmt /dev/nvme0 -c ${id} -r 1 -a 8 -n 1; nvme virt-mgmt /dev/nvme0 -c ${id} -r 0 -a 8 -n 2; nvme virt-mgmt /dev/nvme0 -c ${id} -a 9`,
  );
  const online = await explainHost(first);
  assert.equal(codes(online).includes('function-offline'), false, JSON.stringify(online.reasons));
});

test('while another process owns the device, list and explain go on and say who', async () => {
  const open = `exec 9<>/dev/vfio/${group} && echo open`;
  const owner = await holder(open);
  try {
    assert.equal(owner.said, 'open');
    // A group has one owner: that the kernel refuses a second one shows that this one is it.
    await assert.rejects(sh(`${open} 2>&1`), /busy/i);
    const answer = await explainHost(UUID);
    assert.deepEqual(codes(answer), ['in-use']);
    assert.match(answer.reasons[0]?.message ?? '', new RegExp(`process ${owner.pid} \\(bash\\)`));
    assert.notEqual(answer.can, null);
    const command = await towline('explain', UUID, '--json');
    assert.equal(command.code, 3);
    assert.deepEqual(codes(values<HostExplanation>(command)[0] ?? answer), ['in-use']);
    const listed = await towline('list', '--json');
    assert.equal(listed.code, 0);
    assert.ok(listed.out.includes(UUID));
  } finally {
    await owner.end();
  }
  assert.deepEqual(codes(await explainHost(UUID)), []);
});

/** Writes a byte to its log for each open of the files that it is given: inotify_init1, inotify_add_watch with IN_OPEN. */
const WATCH =
  '$|=1; $fd=syscall(294,0); for(@ARGV){ syscall(254,$fd,$_,0x20)>=0 or die "$_: $!" } open(L,">","/tmp/opened"); open(F,"<&=",$fd); print "watching\\n"; while(sysread(F,$b,4096)){ syswrite(L,"o" x (length($b)/16)) }';

test('nothing below /dev/vfio is opened, by inotify', async () => {
  const watched = (await sh('ls -d /dev/vfio/* /dev/vfio/devices/* 2>/dev/null || true'))
    .split('\n')
    .filter((path) => path !== '/dev/vfio/devices');
  const watcher = await holder(`exec perl -e '${WATCH}' ${watched.join(' ')}`);
  const opened = (): Promise<string> => sh('wc -c < /tmp/opened');
  try {
    assert.equal(watcher.said, 'watching');
    await explainHost(UUID);
    await explainHost(vf);
    for (const args of [['list'], ['explain', UUID]]) assert.notEqual((await towline(...args)).code, 1);
    await sleep(300);
    assert.equal(await opened(), '0');
    // An open shows.
    await sh(`exec 9</dev/vfio/${group}`);
    for (let n = 0; n < 50 && (await opened()) === '0'; n += 1) await sleep(100);
    assert.notEqual(await opened(), '0');
  } finally {
    await watcher.end();
  }
});

test('the state of the device is left alone', async () => {
  const state = await sh(`cat /sys/kernel/debug/vfio/${UUID}/migration/state 2>/dev/null || true`);
  await explainHost(UUID);
  assert.equal(await sh(`cat /sys/kernel/debug/vfio/${UUID}/migration/state 2>/dev/null || true`), state);
});

test('what is not there is told, and nothing is left open', async () => {
  const ended = await towline('explain', '0000:77:00.0');
  assert.equal(ended.code, 5);
  assert.match(ended.err, /this host has no function 0000:77:00\.0/);
  assert.doesNotMatch(ended.err, /^\s+at /m);
  assert.equal(await openFiles(), descriptors);
});
