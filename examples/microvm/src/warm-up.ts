/** What the VMM itself does while its guest stands still, done before it counts: code is compiled on its way when it first runs in a process. */
import { GuestMemory, warmUp as warmUpTowline } from 'towline';
import { Vm } from '#native';
import { restoreVcpus, vcpuSections } from './sections.js';

/** The least that a machine has. */
const MEMORY_BYTES = 64n << 20n;
/** So often is enough for what is called to be more than interpreted. */
const TIMES = 8;

/** Of a process that will migrate a guest or receive one, when it starts. */
export async function warmUp(logFd: number): Promise<void> {
  const memory = GuestMemory.anonymous('warm-up', MEMORY_BYTES);
  try {
    // It has a vCPU that never runs.
    using vm = new Vm({ vcpus: 1, memory: memory.regions(), dirtyRingEntries: 0, logFd, hostTag: 0 });
    for (let n = 0; n < TIMES; n++) restoreVcpus(vm, vcpuSections(vm).take());
  } finally {
    memory.close();
  }
  await warmUpTowline();
}
