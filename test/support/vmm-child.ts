/**
 * The source of a VMM's migration in a process of its own, which dies by SIGKILL in the middle of its commit. Arguments: the socket to
 * connect to, its journal, the function's UUID, and where to die.
 */
import { connect } from 'node:net';
import { fileURLToPath } from 'node:url';
import { MigrationSession } from '#towline/migration/session.js';
import { Journal } from '#towline/migration/journal.js';
import { GuestMemory } from '#towline/migration/memory.js';
import { TsDevice } from './ts-function.js';
import { Vmm } from './vmm.js';

/** Before the intent, with it durable and nothing said, with it said, or with the answer heard and nothing released. */
export const DEATHS = ['prepared', 'intended', 'said', 'heard'] as const;
export type Death = (typeof DEATHS)[number];

async function main(path: string, journal: string, uuid: string, death: string): Promise<void> {
  const memory = GuestMemory.anonymous('child', 4n << 20n);
  memory.write(0n, new Uint8Array(1 << 16).fill(0x5a));
  const device = new TsDevice('nic', { uuid });
  device.device.register = 7n;
  const vmm = new Vmm(memory, connect(path));
  const dieAt = (here: Death) => {
    if (here === death) process.kill(process.pid, 'SIGKILL');
  };
  const session = MigrationSession.source(device, {
    stream: vmm.link,
    memory,
    fence: new Journal(journal),
    commit: 'caller',
  });
  await session.offer();
  await session.startTracking();
  await session.stop();
  await session.saveState();
  for (;;) {
    const runs = await session.dirtyRuns(256);
    if (runs.length === 0) break;
    vmm.sendRuns(runs);
  }
  vmm.say('memory is complete');
  await session.prepare();
  dieAt('prepared');
  const { epoch } = await session.intent();
  dieAt('intended');
  vmm.say(`commit ${epoch}`);
  // What was said may be in a buffer of this process still.
  if (death === 'said') setTimeout(() => dieAt('said'), 200);
  await vmm.hear();
  dieAt('heard');
  await session.release();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const [path, journal, uuid, death] = process.argv.slice(2);
  if (path === undefined || journal === undefined || uuid === undefined || death === undefined)
    throw new Error('four arguments');
  await main(path, journal, uuid, death);
}
