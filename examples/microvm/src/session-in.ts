/** Mode 2, the destination: RAM comes over the VMM's own connection, and the VMM carries the commit. */
import { MigrationSession, type Journal, type Sections } from 'towline';
import type { Connection } from './connection.js';
import type { Machine } from './machine.js';
import { restoreVcpus } from './sections.js';

/** What a VMM asks for. */
export interface SessionInOptions {
  fence: Journal;
  restoreSections?: (sections: Sections) => void;
  /** Lets the machine run; default: its vCPUs. */
  resume?: () => void | Promise<void>;
}

/** Resolves once the machine runs here; rejects where it stays at the source. */
export async function sessionIn({ vm, fn }: Machine, wire: Connection, options: SessionInOptions): Promise<void> {
  await using session = MigrationSession.destination(fn, { stream: wire.link, fence: options.fence, commit: 'caller' });
  const offer = await session.readOffer();
  if (offer.type === 'asked') throw new Error('somebody asked about an earlier session');
  await session.answer();
  const [{ sections }] = await Promise.all([session.receive(), allOfRam(wire)]);
  try {
    (options.restoreSections ?? ((s) => restoreVcpus(vm, s)))(sections);
  } catch (error) {
    await session.abort(String(error));
    throw error;
  }
  await session.prepared();
  const epoch = /^commit (\d+)$/.exec(await wire.hear())?.[1];
  try {
    await session.commit(Number(epoch));
  } catch (error) {
    // Only once the abort has resolved can this epoch never commit here.
    if (session.state === 'prepared') await session.abort();
    if (session.state === 'aborted') await wire.say('refused');
    throw error;
  }
  await wire.say('committed');
  await session.resume();
  if (options.resume) await options.resume();
  else vm.run();
  await session.running();
}

/** Frames are taken in order: with these words all of RAM is in place. */
async function allOfRam(wire: Connection): Promise<void> {
  const word = await wire.hear();
  if (word !== 'memory is complete') throw new Error(`the source says ${word}`);
  await wire.say('memory is there');
}
