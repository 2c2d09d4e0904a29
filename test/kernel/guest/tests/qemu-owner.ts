// A QEMU that has the device, by its group and by its own node: list and explain say so, open nothing, and leave it alone. It runs in the
// guest, where the emulator needs no KVM; its own guest never starts, so that the device is in use and quiet.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdir, readFile, readlink } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { after, before, test } from 'node:test';

import { explainHost } from '#towline/index.js';
import { holder, openFiles, sh, towline, values } from '../host.js';

const NVME = '0000:01:00.0';
const UUID = '44444444-0000-4000-8000-000000000001';
let vf: string;
let descriptors: number;

before(async () => {
  descriptors = await openFiles();
  await sh('modprobe mtty; modprobe nvme 2>/dev/null; modprobe vfio-pci');
  await sh(`echo ${UUID} > /sys/devices/virtual/mtty/mtty/mdev_supported_types/mtty-2/create`);
  await sh(`cd /sys/bus/pci/devices/${NVME}; echo 0 > sriov_drivers_autoprobe; echo 1 > sriov_numvfs`);
  vf = await sh(`basename $(readlink /sys/bus/pci/devices/${NVME}/virtfn0)`);
  await sh(`echo vfio-pci > /sys/bus/pci/devices/${vf}/driver_override; echo ${vf} > /sys/bus/pci/drivers_probe`);
});

after(async () => {
  await sh(`cd /sys/bus/pci/devices/${NVME}; echo 0 > sriov_numvfs; echo 1 > sriov_drivers_autoprobe`);
  await sh(`echo 1 > /sys/bus/mdev/devices/${UUID}/remove`);
});

/** A QEMU with one device, whose processor stands still. */
class Qemu {
  readonly #child: ChildProcess;
  readonly #lines: AsyncIterator<string>;

  private constructor(child: ChildProcess) {
    this.#child = child;
    if (child.stdout === null) throw new Error('no monitor');
    this.#lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  }

  static async start(...device: string[]): Promise<Qemu> {
    const machine = [
      '-M',
      'q35',
      '-accel',
      'tcg',
      '-m',
      '16',
      '-S',
      '-nodefaults',
      '-display',
      'none',
      '-qmp',
      'stdio',
    ];
    const child = spawn('qemu-system-x86_64', [...machine, ...device], { stdio: ['pipe', 'pipe', 'inherit'] });
    const qemu = new Qemu(child);
    assert.match(await qemu.#line(), /"QMP"/);
    await qemu.execute('qmp_capabilities');
    return qemu;
  }

  get pid(): number {
    return this.#child.pid ?? 0;
  }

  async #line(): Promise<string> {
    const { done, value } = await this.#lines.next();
    if (done) throw new Error('QEMU ended');
    return value;
  }

  async execute(command: string, args: Record<string, unknown> = {}): Promise<unknown> {
    this.#child.stdin?.write(`${JSON.stringify({ execute: command, arguments: args })}\n`);
    for (;;) {
      const message = JSON.parse(await this.#line()) as { return?: unknown; error?: { desc: string }; event?: string };
      if (message.error !== undefined) throw new Error(`${command}: ${message.error.desc}`);
      if (message.event === undefined) return message.return;
    }
  }

  /** Vendor and device of what it emulates with this name, as its guest would find them. */
  async identity(name: string): Promise<string> {
    const buses = (await this.execute('query-pci')) as {
      devices: { qdev_id: string; id: { vendor: number; device: number } }[];
    }[];
    const found = buses.flatMap(({ devices }) => devices).find(({ qdev_id: id }) => id === name);
    return found === undefined ? '' : `${hex(found.id.vendor)}:${hex(found.id.device)}`;
  }

  /** What it has open of VFIO. */
  async holds(): Promise<string[]> {
    const directory = `/proc/${this.pid}/fd`;
    const links = await Promise.all(
      (await readdir(directory)).map((fd) => readlink(`${directory}/${fd}`).catch(() => '')),
    );
    return links.filter((link) => /vfio|iommu/.test(link)).toSorted();
  }

  async end(): Promise<void> {
    const exited = once(this.#child, 'exit');
    this.#child.stdin?.write('{"execute":"quit"}\n');
    assert.deepEqual(await exited, [0, null]);
  }
}

const hex = (n: number): string => n.toString(16).padStart(4, '0');
const idOf = async (address: string): Promise<string> => {
  const read = async (name: string): Promise<string> =>
    (await readFile(`/sys/bus/pci/devices/${address}/${name}`, 'utf8')).trim().slice(2);
  return `${await read('vendor')}:${await read('device')}`;
};
/** The kernel's word of the state, where it has debugfs for that. */
const state = (name: string): Promise<string> =>
  sh(`cat /sys/kernel/debug/vfio/${name}/migration/state 2>/dev/null || true`);

/** Writes a byte to its log for each open of the files that it is given: inotify_init1, inotify_add_watch with IN_OPEN. */
const WATCH =
  '$|=1; $fd=syscall(294,0); for(@ARGV){ syscall(254,$fd,$_,0x20)>=0 or die "$_: $!" } open(L,">","/tmp/opened"); open(F,"<&=",$fd); print "watching\\n"; while(sysread(F,$b,4096)){ syswrite(L,"o" x (length($b)/16)) }';

/** Asks everything about a function that QEMU has. */
async function ask(qemu: Qemu, name: string): Promise<void> {
  const found = { state: await state(name), holds: await qemu.holds(), identity: await qemu.identity('fn') };
  assert.notDeepEqual(found.holds, []);
  const files = await sh('find /dev/vfio -type c');
  const watcher = await holder(`exec perl -e '${WATCH}' ${files.replaceAll('\n', ' ')}`);
  try {
    assert.equal(watcher.said, 'watching');
    const owner = new RegExp(`process ${qemu.pid} \\(qemu-system-x86\\)`);
    const answer = await explainHost(name);
    const inUse = answer.reasons.find(({ code }) => code === 'in-use');
    assert.match(inUse?.message ?? JSON.stringify(answer.reasons), owner);
    const explained = await towline('explain', name, '--json');
    assert.equal(explained.code, 3, explained.err);
    assert.match(JSON.stringify(values(explained)), owner);
    const listed = await towline('list', '--json');
    assert.equal(listed.code, 0, listed.err);
    assert.ok(listed.out.includes(name));
    assert.equal(await sh('wc -c < /tmp/opened'), '0', 'something of VFIO was opened');
  } finally {
    await watcher.end();
  }
  // It has what it had, in the state in which it was, and it still works.
  assert.deepEqual({ state: await state(name), holds: await qemu.holds(), identity: await qemu.identity('fn') }, found);
  assert.deepEqual(await qemu.execute('query-status'), { running: false, status: 'prelaunch' });
}

test('a mediated device that QEMU has by its group', async () => {
  const qemu = await Qemu.start('-device', `vfio-pci,id=fn,sysfsdev=/sys/bus/mdev/devices/${UUID}`);
  try {
    assert.equal(await qemu.identity('fn'), '4348:3253');
    await ask(qemu, UUID);
  } finally {
    await qemu.end();
  }
  assert.equal(
    (await explainHost(UUID)).reasons.some(({ code }) => code === 'in-use'),
    false,
  );
});

test('a VF that QEMU has by its group, or by its own node where the kernel has one', async () => {
  // sysfs names the device also where the kernel makes no node for it.
  const node = await sh(
    `cd /sys/bus/pci/devices/${vf}/vfio-dev && for n in *; do [ -e /dev/vfio/devices/$n ] && echo $n; done || true`,
  );
  const byNode = node === '' ? [] : ['-object', 'iommufd,id=iommufd0'];
  const device = `vfio-pci,id=fn,host=${vf}${node === '' ? '' : ',iommufd=iommufd0'}`;
  const qemu = await Qemu.start(...byNode, '-device', device);
  try {
    assert.equal(
      (await qemu.holds()).some((link) => link === `/dev/vfio/devices/${node}`),
      node !== '',
    );
    // A VF has no identity of its own in config space; QEMU gives it the one that the kernel knows.
    assert.equal(await qemu.identity('fn'), await idOf(vf));
    await ask(qemu, vf);
  } finally {
    await qemu.end();
  }
  assert.equal(
    (await explainHost(vf)).reasons.some(({ code }) => code === 'in-use'),
    false,
  );
});

test('nothing is left open', async () => {
  assert.equal(await openFiles(), descriptors);
});
