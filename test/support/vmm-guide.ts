/**
 * The code of docs/guides/vmm-session.md; test/docs/vmm-session.test.ts sees to it that it is this, and that it works.
 */
// guide: source
import {
  MigrationSession,
  type GuestMemory,
  type Journal,
  type Link,
  type MemoryRange,
  type MigratableFunction,
} from 'towline';

/** What the VMM has already: one connection, on which its own frames and towline's bytes share the way. */
export interface Vmm {
  /** towline's bytes inside of the VMM's framing. */
  link: Link;
  /** Reads runs of guest memory and sends them. */
  sendRuns(runs: readonly MemoryRange[]): void;
  /** Resolves once all that was sent is in guest memory; at the destination, all that came. */
  memoryIsThere(): Promise<void>;
  pauseVcpus(): Promise<void>;
  resumeVcpus(): Promise<void>;
  /** A message of the VMM's own, and the next one that it gets. */
  say(word: string): void;
  hear(): Promise<string>;
}

export async function migrateAway(
  vmm: Vmm,
  nic: MigratableFunction,
  memory: GuestMemory,
  fence: Journal,
): Promise<void> {
  await using session = MigrationSession.source(nic, { stream: vmm.link, memory, fence, commit: 'caller' });
  try {
    await session.offer();
    await session.startTracking();
    // All of memory is dirty at first. A real VMM goes on until what is left fits its downtime.
    for (let round = 0; round < 3; round++) {
      await session.harvest();
      await moveDirty();
      await session.precopyState();
    }
    await vmm.pauseVcpus();
    await session.stop();
    await moveDirty();
    await session.saveState();
    await vmm.memoryIsThere();
    await session.prepare();
  } catch (error) {
    await session.abort();
    await vmm.resumeVcpus();
    throw error;
  }
  const { epoch } = await session.intent();
  vmm.say(`commit ${epoch}`);
  const answer = await vmm.hear();
  if (answer === 'committed') {
    await session.release();
  } else if (answer === 'refused') {
    await session.refused();
    await session.abort();
    await vmm.resumeVcpus();
  } else {
    // Nobody can tell. The function and the vCPUs stay stopped; `recover` asks the destination.
    throw new Error('in doubt');
  }

  async function moveDirty(): Promise<void> {
    for (;;) {
      const runs = await session.dirtyRuns(256);
      if (runs.length === 0) return;
      vmm.sendRuns(runs);
    }
  }
}
// guide: end

// guide: destination
export async function takeIn(vmm: Vmm, nic: MigratableFunction, fence: Journal): Promise<void> {
  await using session = MigrationSession.destination(nic, { stream: vmm.link, fence, commit: 'caller' });
  const offer = await session.readOffer();
  // Somebody recovers an earlier session: it was answered.
  if (offer.type === 'asked') return;
  await session.answer();
  await Promise.all([session.receive(), vmm.memoryIsThere()]);
  await session.prepared();
  const epoch = /^commit (\d+)$/.exec(await vmm.hear())?.[1];
  try {
    await session.commit(Number(epoch));
  } catch (error) {
    // From the end of the abort on this epoch can never commit here: only then is it a refusal.
    if (session.state === 'prepared') await session.abort();
    if (session.state === 'aborted') vmm.say('refused');
    throw error;
  }
  vmm.say('committed');
  await session.resume();
  await vmm.resumeVcpus();
  await session.running();
}
// guide: end
