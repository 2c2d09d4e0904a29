/** Mode 2, the source: the VMM moves RAM over its own connection and owns the commit; towline tracks, and moves the function. */
import { MigrationSession, type DirtySource, type Harvest, type Journal } from 'towline';
import type { Connection } from './connection.js';
import type { Machine } from './machine.js';
import type { VcpuSections } from './sections.js';

/** What a VMM asks for. */
export interface SessionAwayOptions {
  fence: Journal;
  /** Default: what KVM tells of the vCPUs. */
  dirtySources?: readonly DirtySource[];
  /** How the vCPUs' state is taken. */
  sections: VcpuSections;
  /** The destination's RAM was never written. */
  freshDestination: boolean;
  /** Stops once no more pages than that are dirty, or after so many passes. */
  fewPages: number;
  mostPasses: number;
  signal?: AbortSignal;
  /** Stops the vCPUs. Default: just that. */
  pause?: () => Promise<void>;
  /** Everything is at the destination, and nothing runs; what it throws rolls back. */
  verify?: () => Promise<void>;
  onPass?: (pass: number, pages: number, harvest: Harvest) => void;
}

/** How many pages one batch has: a MiB, so that a frame is never longer than the other side takes. */
const BATCH_PAGES = 256;

/** After a commit the machine is for nothing but closing. What fails before the intent rolls back: the machine runs on, and this rejects. */
export async function sessionAway(
  { vm, fn, memory, vcpuDirty }: Machine,
  wire: Connection,
  options: SessionAwayOptions,
) {
  await using session = MigrationSession.source(fn, {
    stream: wire.link,
    memory,
    fence: options.fence,
    commit: 'caller',
    freshDestination: options.freshDestination,
    dirtySources: options.dirtySources ?? [vcpuDirty],
    sections: options.sections.names,
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  });
  const times = { started: performance.now(), stopped: 0, held: 0 };
  let passes = 0;
  let deviceState = 0;
  let harvest: Harvest;
  let paused = false;
  try {
    await session.offer();
    await session.startTracking();
    for (;;) {
      harvest = await session.harvest();
      options.onPass?.(passes, harvest.dirtyPages, harvest);
      if (passes > 0 && (harvest.dirtyPages <= options.fewPages || passes === options.mostPasses)) break;
      await moveDirty();
      passes += 1;
      await session.precopyState();
    }
    // The vCPUs first: they may still write to the device, the device no longer to them.
    paused = true;
    await (options.pause?.() ?? vm.pause());
    times.stopped = performance.now();
    harvest = await session.stop();
    options.onPass?.(passes, harvest.dirtyPages, harvest);
    await moveDirty();
    deviceState = (await session.saveState()).stateBytes;
    await session.sendSections(options.sections.take());
    await wire.say('memory is complete');
    if ((await wire.hear()) !== 'memory is there') throw new Error('the destination has not all of RAM');
    await session.prepare();
    const held = performance.now();
    await options.verify?.();
    times.held = performance.now() - held;
  } catch (error) {
    await session.abort();
    if (paused) vm.run();
    throw error;
  }
  // From here on the machine may belong to the destination: it runs here again only where that has refused.
  const { epoch } = await session.intent();
  await wire.say(`commit ${epoch}`);
  const answer = await wire.hear();
  if (answer === 'refused') {
    await session.refused();
    await session.abort();
    vm.run();
    throw new Error('the destination has refused');
  }
  if (answer !== 'committed') throw new Error('in doubt: recover asks the destination');
  await session.waitRunning();
  const running = performance.now();
  await session.release();
  return {
    passes,
    downtimeMs: running - times.stopped - times.held,
    totalMs: performance.now() - times.started - times.held,
    heldMs: times.held,
    bytes: { memory: wire.sentMemoryBytes, deviceState, wire: wire.sentBytes },
    phases: session.timings(),
  };

  async function moveDirty(): Promise<void> {
    for (;;) {
      const runs = await session.dirtyRuns(BATCH_PAGES);
      if (runs.length === 0) return;
      await wire.sendRuns(runs);
    }
  }
}
