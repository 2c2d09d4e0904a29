/**
 * The code of docs/guides/same-host.md; test/docs/same-host.test.ts sees to it that it is this, and that it works.
 */
// guide: source
import { migrate, receive, type GuestMemory, type Journal, type MigratableFunction } from 'towline';

/** What a VMM does by itself; the new process runs the same program. */
export interface Vmm {
  pauseVcpus(): Promise<void>;
  resumeVcpus(): Promise<void>;
  saveVcpus(): Promise<Uint8Array>;
  restoreVcpus(state: Uint8Array): Promise<void>;
  /** Maps guest memory into a VM and attaches the device to it. */
  buildVm(memory: GuestMemory): Promise<void>;
}

export async function handOver(
  vmm: Vmm,
  nic: MigratableFunction,
  memory: GuestMemory,
  fence: Journal,
  socketPath: string,
): Promise<number> {
  const report = await migrate(nic, {
    to: `unix://${socketPath}`,
    memory,
    memoryTransfer: 'pass',
    fence,
    pause: () => vmm.pauseVcpus(),
    resume: () => vmm.resumeVcpus(),
    sections: { vcpus: () => vmm.saveVcpus() },
  }).result;
  // The guest is the other process's. Nothing here writes its memory from now on, and nothing needs it.
  memory.close();
  return report.downtimeMs;
}
// guide: end
// guide: destination
export async function takeOver(
  vmm: Vmm,
  nic: MigratableFunction,
  fence: Journal,
  socketPath: string,
): Promise<GuestMemory> {
  let guest: GuestMemory | undefined;
  try {
    await receive(nic, {
      from: `unix://${socketPath}`,
      memory: 'passed',
      onMemory: async (memory) => {
        guest = memory;
        // The guest runs on at the source meanwhile. What takes long belongs here: it is in no downtime.
        await vmm.buildVm(memory);
      },
      fence,
      restoreSections: async ({ vcpus }) => {
        if (vcpus === undefined) throw new Error('no vCPUs came');
        await vmm.restoreVcpus(vcpus);
      },
      resume: () => vmm.resumeVcpus(),
    }).result;
  } catch (error) {
    // Rolled back: the source runs on in this memory, and it is none of ours.
    guest?.close();
    throw error;
  }
  if (guest === undefined) throw new Error('no memory was passed');
  return guest;
}
// guide: end
