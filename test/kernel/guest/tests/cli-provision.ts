// One `towline provision` at a real NVMe controller: everything from the resources of the PF to the kernel's driver, and what explain and
// release say of it. Judged by nvme-cli and sysfs.
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { mkdir, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';

import { devicesOpenIn } from '../descriptors.js';
import { towline as command } from '../host.js';
import { cli as main } from '../paths.js';
import { diskOf, run, secondaries, sys } from '../nvme.js';
import { attribute, driverOf, vfsOf } from '../pci.js';

/** Where the machine `sriov` has it. */
const PF = '0000:01:00.0';
const cli = fileURLToPath(main);
/** Its folder has to be this user's alone. */
const folder = '/tmp/provision';
const socket = ['--socket', `${folder}/socket`];
let serving: ChildProcess;
/** What it has open of devices while it has no function. */
let idle: string[];
const open = (): string[] => devicesOpenIn(serving.pid ?? 0);

/** What the command prints, and its exit code. */
async function towline(...args: string[]): Promise<{ code: number; text: string }> {
  const [name = '', ...rest] = args;
  const { code, out, err } = await command(name, ...socket, '--json', ...rest);
  return { code, text: out + err };
}

before(async () => {
  await mkdir(folder, { mode: 0o700 });
  const args = ['serve', ...socket, '--journal', `${folder}/journal`, '--memory', '0', '--controlling', `nvme:${PF}`];
  serving = spawn(process.execPath, [cli, ...args, '--json'], { stdio: ['ignore', 'pipe', 'inherit'] });
  await new Promise<void>((resolve, reject) => {
    serving.stdout
      ?.setEncoding('utf8')
      .once('data', (text: string) => (text.includes('"serving"') ? resolve() : reject(new Error(text))));
    serving.once('exit', (code) => reject(new Error(`serve ended with ${code}`)));
  });
  idle = open();
});

test('one command provisions a VF to the driver of the kernel', async () => {
  assert.equal(await attribute(PF, 'sriov_numvfs'), '0');
  const resources = ['--queues', '1', '--vectors', '1', '--namespace', '1'];
  const made = await towline(
    'provision',
    '--kind',
    'vf',
    '--name',
    'one',
    ...resources,
    '--migration',
    'off',
    '--expose',
    'kernel',
  );
  assert.equal(made.code, 0, made.text);
  const [vf = ''] = await vfsOf(PF);
  assert.equal(await driverOf(vf), 'nvme');
  const [first] = await secondaries('nvme0');
  assert.deepEqual([first?.online, first?.queues, first?.vectors], [true, 2, 1]);
  await run('dd', [`if=${await diskOf(vf)}`, 'of=/dev/null', 'bs=64k', 'count=4', 'iflag=direct']);
});

test('it is taken to vfio-pci, explained, and given back', async () => {
  const [vf = ''] = await vfsOf(PF);
  const exposed = await towline('expose', 'one', '--as', 'vfio');
  assert.equal(exposed.code, 0, exposed.text);
  assert.equal(await driverOf(vf), 'vfio-pci');
  const explained = await towline('explain', 'one');
  assert.match(explained.text, /controlling-function-cannot-migrate/);
  const released = await towline('release', 'one');
  assert.equal(released.code, 0, released.text);
  assert.equal(await driverOf(vf), undefined);
  assert.deepEqual(open(), idle, 'descriptors are left');
  for (const s of await secondaries('nvme0')) assert.deepEqual([s.online, s.queues, s.vectors], [false, 0, 0]);
});

test('what can not be is told in words, and leaves nothing', async () => {
  for (const [args, words] of [
    [['--namespace', '77', '--migration', 'off'], /has no namespace 77/],
    [['--queues', '30', '--migration', 'off'], /VQ|queue|resource/i],
    [['--namespace', '1'], /OACS bit 11/],
  ] as const) {
    const refused = await towline('provision', '--kind', 'vf', ...args);
    assert.notEqual(refused.code, 0);
    assert.match(refused.text, words);
    assert.doesNotMatch(refused.text, /\n\s+at /, 'no stack trace');
    assert.deepEqual(open(), idle, 'descriptors are left');
    for (const s of await secondaries('nvme0')) assert.deepEqual([s.online, s.queues, s.vectors], [false, 0, 0]);
  }
});

after(async () => {
  serving.removeAllListeners('exit');
  const ended = new Promise((resolve) => serving.once('exit', resolve));
  serving.kill('SIGINT');
  await ended;
  await writeFile(`${sys(PF)}/sriov_numvfs`, '0');
  await writeFile(`${sys(PF)}/sriov_drivers_autoprobe`, '1');
});
