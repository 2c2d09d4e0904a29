/**
 * Migrates an adding machine from one box to another: node dist-examples/typescript-driver/main.js
 */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { GuestMemory, Journal, migrate, provisionFunction, receive } from 'towline';
import { TallyDriver, type TallyFunction } from './driver.js';

const directory = await mkdtemp(join(tmpdir(), 'tally-'));
const driver = new TallyDriver({ here: 4, there: 4 });
const uuid = crypto.randomUUID();

async function side(name: string) {
  const box = await driver.open(`tally:${name}`);
  const fn = (await provisionFunction(box, { kind: 'vf', uuid })) as TallyFunction;
  const memory = GuestMemory.anonymous(name, 1n << 20n);
  fn.device.memory = memory;
  const fence = new Journal(join(directory, name));
  return { box, fn, memory, fence };
}

try {
  const [here, there] = [await side('here'), await side('there')];
  for (let n = 1n; n <= 100n; n += 1n) here.fn.device.add(n);

  const address = `unix://${join(directory, 'link')}`;
  const received = receive(there.fn, { from: address, memory: there.memory, fence: there.fence });
  const policy = { maxDowntimeMs: 10_000 };
  const report = await migrate(here.fn, { to: address, memory: here.memory, fence: here.fence, policy }).result;
  await received.result;

  there.fn.device.add(1000n);
  const slots = new DataView(there.memory.read(0n, 101 * 8).buffer);
  const sums = Array.from({ length: 101 }, (_, at) => slots.getBigUint64(at * 8, true));
  console.log(`${report.outcome}: total ${there.fn.device.total}, in memory ${sums[99]} and ${sums[100]}`);
  for (const { box, memory, fence } of [here, there]) {
    await box.close();
    memory.close();
    fence.close();
  }
} finally {
  await rm(directory, { recursive: true, force: true });
}
