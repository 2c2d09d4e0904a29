// The controlling PF of an embedded subsystem under Linux's nvme driver: towline in the guest commands it over /dev/nvmeN. What it provisions is
// plugged into the guest, used by the kernel, and moved to the subsystem of the other guest. Both guests run this.
import assert from 'node:assert/strict';
import { readdir, stat, writeFile } from 'node:fs/promises';
import { after, before, test } from 'node:test';

import {
  GuestMemory,
  Journal,
  migrate,
  NvmeDriver,
  NvmeFunction,
  provisionFunction,
  receive,
  type FunctionSpec,
} from '#towline/index.js';
import { devicesOpenIn } from '../descriptors.js';
import { ask } from '../ask.js';
import { controllerOf, diskOf, fio, nvme, run, secondaries, sys, tellLog, until } from '../nvme.js';

const role = process.env['TOWLINE_ROLE'] ?? '';
const isSource = role === 'source';
const PF = '0000:01:00.0';
const PLUGGED = '0000:02:00.0';
const MEMORY_BYTES = 4n << 20n;
/** The function keeps it on its way. */
const uuid = '6f1c2a34-8a1b-4c5d-9e0f-0123456789ab';
const spec: FunctionSpec = { kind: 'vf', uuid, queues: 2, vectors: 3, namespaces: [1], migration: true };

/** Tells the other guest, and waits for it. */
const tell = (what: string): Promise<void> => writeFile(`/towline/run/flag-${what}`, '');
const told = (what: string): Promise<unknown> =>
  until(what, async () => ((await stat(`/towline/run/flag-${what}`)).isFile() ? true : undefined), 240);

let name: string;
let controlling: Awaited<ReturnType<NvmeDriver['open']>>;
let fn: NvmeFunction;

before(async () => {
  name = await controllerOf(PF);
  controlling = await new NvmeDriver().open(`/dev/${name}`);
});
after(tellLog);

test("nvme-cli's view of the controlling function", async () => {
  const id = await nvme('id-ctrl', `/dev/${name}`);
  assert.equal(id['cntlid'], await ask('cntlid', role));
  const caps = await nvme('primary-ctrl-caps', `/dev/${name}`);
  assert.equal(caps['cntlid'], id['cntlid']);
  const all = await secondaries(name);
  assert.deepEqual(
    all.map(({ vf, online }) => [vf, online]),
    [
      [1, false],
      [2, false],
      [0, false],
    ],
  );
});

test('nvme virt-mgmt gives a secondary queues and vectors, takes it online and offline', async () => {
  const spare = (await secondaries(name)).find(({ vf }) => vf === 2);
  assert.ok(spare);
  const manage = (act: number, rt = 0, nr = 0): Promise<unknown> => {
    const words = ['-c', spare.id, '-r', rt, '-n', nr, '-a', act].map(String);
    return run('nvme', ['virt-mgmt', `/dev/${name}`, ...words]);
  };
  const now = async (): Promise<unknown[]> => {
    const entry = (await secondaries(name)).find(({ id }) => id === spare.id);
    return [entry?.online, entry?.queues, entry?.vectors];
  };
  await manage(8, 0, 2);
  await manage(8, 1, 1);
  await manage(9);
  assert.deepEqual(await now(), [true, 2, 1]);
  await assert.rejects(manage(8, 0, 3), 'an online one takes no resources');
  await manage(7);
  assert.deepEqual(await now(), [false, 0, 0]);
});

test('towline provisions a function by commands to /dev/nvme0, as nvme-cli sees it', async () => {
  const provisioned = await provisionFunction(controlling, spec);
  assert.ok(provisioned instanceof NvmeFunction);
  fn = provisioned;
  const entry = (await secondaries(name)).find(({ id }) => id === fn.cntlid);
  assert.deepEqual([entry?.online, entry?.queues, entry?.vectors], [true, 3, 3]);
  const attached = await nvme('list-ctrl', `/dev/${name}`, '-n', '1');
  assert.ok(JSON.stringify(attached).includes(String(fn.cntlid)), JSON.stringify(attached));
});

if (isSource) {
  test('the function is plugged into the guest, and its kernel writes and verifies', async () => {
    await ask('plug', role, fn.cntlid);
    await fio(await diskOf(PLUGGED), 'write', 31);
    await ask('unplug', role);
    await assert.rejects(readdir(sys(PLUGGED)));
  });
}

test("its state goes to the other kernel's subsystem by Migration Receive and Send", async () => {
  const memory = GuestMemory.anonymous(role, MEMORY_BYTES);
  const fence = new Journal(`/tmp/journal-${role}`);
  const what = Buffer.from('what the guest has in its memory');
  const to = 'tcp://10.7.0.2:7011';
  const plain = { allowRemotePlaintext: true } as const;
  try {
    if (isSource) {
      memory.write(8192n, what);
      await told('listening');
      const policy = { maxDowntimeMs: 60_000 };
      const { outcome } = await migrate(fn, { to, memory, fence, policy, ...plain }).result;
      assert.equal(outcome, 'committed');
      const entry = (await secondaries(name)).find(({ id }) => id === fn.cntlid);
      assert.equal(entry?.online, false, 'the source has released it');
    } else {
      const incoming = receive(fn, { from: to, memory, fence, onListening: () => void tell('listening'), ...plain });
      const { outcome } = await incoming.result;
      assert.equal(outcome, 'committed');
      assert.deepEqual(Buffer.from(memory.read(8192n, what.length)), what);
      const entry = (await secondaries(name)).find(({ id }) => id === fn.cntlid);
      assert.equal(entry?.online, true);
    }
  } finally {
    fence.close();
    memory.close();
  }
});

if (!isSource) {
  test('there, plugged into the other guest, it has what the first one wrote', async () => {
    await ask('plug', role, fn.cntlid);
    await fio(await diskOf(PLUGGED), 'read', 31);
    await fio(await diskOf(PLUGGED), 'write', 32);
  });
}

test('what was opened is closed', async () => {
  assert.notDeepEqual(devicesOpenIn(), []);
  await controlling.close();
  assert.deepEqual(devicesOpenIn(), []);
});
