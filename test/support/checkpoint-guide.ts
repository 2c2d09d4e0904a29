/**
 * The code of docs/guides/checkpoints.md; test/docs/checkpoints.test.ts sees to it that it is this, and that it works.
 */
// guide: move
import { checkpoint, recover, restore, type GuestMemory, type Journal, type MigratableFunction } from 'towline';

/** The guest's own state, as its VMM has it. */
export interface Vmm {
  pauseVcpus(): Promise<void>;
  resumeVcpus(): Promise<void>;
  saveVcpus(): Promise<Uint8Array>;
  loadVcpus(state: Uint8Array | undefined): Promise<void>;
  /** For people. */
  tell(words: string): void;
}

export async function suspendToFile(
  path: string,
  vmm: Vmm,
  nic: MigratableFunction,
  memory: GuestMemory,
  fence: Journal,
): Promise<number> {
  const suspending = checkpoint(nic, {
    path,
    mode: 'move',
    memory,
    fence,
    pause: () => vmm.pauseVcpus(),
    resume: () => vmm.resumeVcpus(), // only where it was rolled back
    sections: { vcpus: () => vmm.saveVcpus() },
  });
  for await (const event of suspending) if (event.type === 'pages') vmm.tell(`${event.wireBytes} bytes in the file`);
  const report = await suspending.result;
  return report.checkpoint?.bytes ?? 0;
}
// guide: end

// guide: restore
export async function resumeFromFile(
  path: string,
  vmm: Vmm,
  nic: MigratableFunction,
  memory: GuestMemory,
  fence: Journal,
): Promise<void> {
  // What an earlier process has left open in this journal, a checkpoint of its own above all.
  await recover({ journal: fence });
  const report = await restore(nic, {
    path,
    memory,
    fence,
    restoreSections: (sections) => vmm.loadVcpus(sections['vcpus']),
    resume: () => vmm.resumeVcpus(),
  }).result;
  vmm.tell(`${report.outcome} after ${report.totalMs} ms`);
}
// guide: end

// guide: copy
export async function snapshot(
  path: string,
  vmm: Vmm,
  nic: MigratableFunction,
  memory: GuestMemory,
  fence: Journal,
  copyDisk: () => Promise<void>,
): Promise<void> {
  const [first] = await nic.explain({ copy: true });
  if (first !== undefined) throw new Error(`${first.message}: ${first.mend}`);
  const report = await checkpoint(nic, {
    path,
    mode: 'copy',
    memory,
    fence,
    policy: { maxDowntimeMs: 100, bandwidthBytesPerSecond: 500 << 20 },
    pause: () => vmm.pauseVcpus(),
    sections: { vcpus: () => vmm.saveVcpus() },
    verify: copyDisk, // nothing writes the private disk now
    resume: () => vmm.resumeVcpus(),
  }).result;
  vmm.tell(`${report.outcome}, ${report.downtimeMs} ms of pause`);
}
// guide: end
