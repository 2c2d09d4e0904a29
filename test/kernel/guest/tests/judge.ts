// Linux's nvme driver, nvme-cli, fio and ext4 on the embedded controllers, each behind a vfio-user socket: PF, VF and SIOV-like function.
import assert from 'node:assert/strict';
import { execFile, spawn } from 'node:child_process';
import { mkdir, readFile, readdir, readlink, writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { after, before, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';

import { ask } from '../ask.js';

const run = promisify(execFile);
const kinds = ['pf', 'vf', 'siov'] as const;
/** Where the machine `judge` plugs each: behind its root ports, in their order. */
const addresses = { pf: '0000:01:00.0', vf: '0000:02:00.0', siov: '0000:03:00.0' } as const;
const diskBytes = 64 * 1024 * 1024;
let cntlids: Record<string, number>;

const sys = (address: string): string => `/sys/bus/pci/devices/${address}`;

/** Asks until it is so. */
async function until<T>(what: string, look: () => Promise<T | undefined>, seconds = 60): Promise<T> {
  for (let n = 0; n < seconds * 10; n++) {
    const found = await look().catch(() => undefined);
    if (found !== undefined) return found;
    await sleep(100);
  }
  throw new Error(`no ${what} within ${seconds} s`);
}

/** The controller's name, `nvme0`, once it is live. */
const controllerOf = (address: string): Promise<string> =>
  until(`live controller at ${address}`, async () => {
    const [name] = await readdir(`${sys(address)}/nvme`);
    const state = await readFile(`${sys(address)}/nvme/${name}/state`, 'utf8');
    return state.trim() === 'live' ? name : undefined;
  });

/** The device file of its one namespace. */
const diskOf = (address: string): Promise<string> =>
  until(`namespace of ${address}`, async () => {
    const controller = await controllerOf(address);
    const names = await readdir(`${sys(address)}/nvme/${controller}`);
    // With multipath the disk is nvmeXn1, the controller's own path to it nvmeXcYn1.
    const name = names.find((entry) => /^nvme\d+(c\d+)?n\d+$/.test(entry))?.replace(/c\d+/, '');
    return name === undefined ? undefined : `/dev/${name}`;
  });

async function nvme(...args: string[]): Promise<Record<string, unknown>> {
  const { stdout } = await run('nvme', [...args, '-o', 'json']);
  return JSON.parse(stdout) as Record<string, unknown>;
}

/** fio writes a pattern with checksums, or reads it back and checks these. */
const fioArgs = (file: string, how: 'write' | 'read' | 'load', seed: number): string[] => [
  '--name=v',
  `--filename=${file}`,
  '--bs=4k',
  '--size=8M',
  '--ioengine=libaio',
  '--iodepth=16',
  '--direct=1',
  '--verify=crc32c',
  '--verify_fatal=1',
  `--randseed=${seed}`,
  ...(how === 'load' ? ['--rw=randwrite', '--verify_backlog=128', '--time_based=1', '--runtime=12'] : [`--rw=${how}`]),
];
const fio = (file: string, how: 'write' | 'read', seed = 7): Promise<unknown> => run('fio', fioArgs(file, how, seed));

/** fio in the background; gives how it ends. */
function load(file: string): Promise<{ code: number | null; output: string }> {
  const child = spawn('fio', fioArgs(file, 'load', 11), { stdio: ['ignore', 'pipe', 'pipe'] });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) stream.setEncoding('utf8').on('data', (text) => (output += text));
  return new Promise((resolve) => child.on('close', (code) => resolve({ code, output })));
}

before(async () => {
  cntlids = (await ask('cntlids')) as Record<string, number>;
});

for (const kind of kinds) {
  const address = addresses[kind];
  test(`${kind}: Linux's driver has it, and what it identifies as`, async () => {
    const name = await controllerOf(address);
    assert.equal(basename(await readlink(`${sys(address)}/driver`)), 'nvme');
    const id = await nvme('id-ctrl', `/dev/${name}`);
    assert.equal(id['cntlid'], cntlids[kind]);
    const disk = await diskOf(address);
    const ns = (await nvme('id-ns', disk)) as { nsze: number; lbafs: { ds: number }[]; flbas: number };
    assert.equal(ns.nsze * 2 ** (ns.lbafs[ns.flbas & 0xf]?.ds ?? 0), diskBytes);
    const interrupts = await readFile('/proc/interrupts', 'utf8');
    assert.match(interrupts, new RegExp(`${name}q1`));
  });

  test(`${kind}: raw, written and verified`, async () => {
    await fio(await diskOf(address), 'write');
  });

  test(`${kind}: ext4, written, verified and checked`, async () => {
    const disk = await diskOf(address);
    await run('mkfs.ext4', ['-q', '-F', disk]);
    await mkdir('/tmp/mnt', { recursive: true });
    await run('mount', [disk, '/tmp/mnt']);
    try {
      await fio('/tmp/mnt/file', 'write');
      await run('sync');
    } finally {
      await run('umount', ['/tmp/mnt']);
    }
    await run('e2fsck', ['-fn', disk]);
  });

  test(`${kind}: unbound and bound again, the data is there`, async () => {
    await fio(await diskOf(address), 'write');
    await writeFile('/sys/bus/pci/drivers/nvme/unbind', address);
    await assert.rejects(readdir(`${sys(address)}/nvme`));
    await writeFile('/sys/bus/pci/drivers/nvme/bind', address);
    await fio(await diskOf(address), 'read');
  });

  test(`${kind}: the controller's reset, the data is there`, async () => {
    await run('nvme', ['reset', `/dev/${await controllerOf(address)}`]);
    await fio(await diskOf(address), 'read');
  });

  test(`${kind}: function level reset under load`, async () => {
    const disk = await diskOf(address);
    const methods = await readFile(`${sys(address)}/reset_method`, 'utf8');
    assert.match(methods, /flr/);
    const loading = load(disk);
    for (let n = 0; n < 3; n++) {
      await sleep(2500);
      await writeFile(`${sys(address)}/reset`, '1');
      await controllerOf(address);
    }
    const { code, output } = await loading;
    assert.equal(code, 0, output);
  });

  test(`${kind}: unplugged under load and plugged again`, async () => {
    await fio(await diskOf(address), 'write', 3);
    const loading = load(await diskOf(address));
    await sleep(2000);
    await ask('unplug', kind);
    await assert.rejects(readdir(sys(address)));
    await loading;
    await ask('plug', kind);
    await fio(await diskOf(address), 'write', 5);
  });
}

test('the secondary controllers and their resources', async () => {
  const name = await controllerOf(addresses.pf);
  const caps = await nvme('primary-ctrl-caps', `/dev/${name}`);
  assert.equal(caps['cntlid'], cntlids['pf']);
  const entries = await secondaries(name);
  for (const kind of ['vf', 'siov'] as const) {
    const entry = entries.find((one) => one.id === cntlids[kind]);
    assert.deepEqual([entry?.online, entry?.queues, entry?.vectors], [true, 3, 3], JSON.stringify(entries));
  }
});

test('a spare VF is given queues and vectors, goes online and offline', async () => {
  const name = await controllerOf(addresses.pf);
  const spare = (await secondaries(name)).find(({ online, vf }) => !online && vf > 0);
  assert.ok(spare);
  const manage = (act: number, rt = 0, nr = 0): Promise<unknown> =>
    run('nvme', [
      'virt-mgmt',
      `/dev/${name}`,
      '-c',
      String(spare.id),
      '-r',
      String(rt),
      '-n',
      String(nr),
      '-a',
      String(act),
    ]);
  await manage(8, 0, 2);
  await manage(8, 1, 1);
  await manage(9);
  const there = (await secondaries(name)).find(({ id }) => id === spare.id);
  assert.deepEqual([there?.online, there?.queues, there?.vectors], [true, 2, 1]);
  await assert.rejects(manage(8, 0, 3), 'an online one takes no resources');
  await manage(7);
  const gone = (await secondaries(name)).find(({ id }) => id === spare.id);
  assert.deepEqual([gone?.online, gone?.queues, gone?.vectors], [false, 0, 0]);
});

async function secondaries(
  name: string,
): Promise<{ id: number; online: boolean; vf: number; queues: number; vectors: number }[]> {
  const list = (await nvme('list-secondary', `/dev/${name}`)) as { 'secondary-controllers': Record<string, number>[] };
  return list['secondary-controllers'].map((entry) => ({
    id: entry['secondary-controller-identifier'] ?? -1,
    online: entry['secondary-controller-state'] === 1,
    vf: entry['virtual-function-number'] ?? -1,
    queues: entry['num-virtual-queues'] ?? -1,
    vectors: entry['num-virtual-interrupts'] ?? -1,
  }));
}

test('the guest survives it, and after unplug and plug the data is there', async () => {
  for (const kind of kinds) await fio(await diskOf(addresses[kind]), 'write', 21);
  const loading = load(await diskOf(addresses.vf));
  await sleep(1000);
  await ask('kill');
  const { code } = await loading;
  assert.notEqual(code, 0, 'I/O on a dead device succeeded');
  for (const kind of kinds) await ask('unplug', kind);
  await ask('start');
  for (const kind of kinds) await ask('plug', kind);
  for (const kind of kinds.filter((one) => one !== 'vf')) await fio(await diskOf(addresses[kind]), 'read', 21);
  await fio(await diskOf(addresses.vf), 'write', 22);
});

after(async () => {
  // What the kernel said about each, for who reads the console.
  const { stdout } = await run('sh', ['-c', 'dmesg | grep -i nvme | tail -40']);
  process.stderr.write(stdout.replaceAll(/^/gm, '# '));
});
