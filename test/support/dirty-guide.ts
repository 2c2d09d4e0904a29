/** The code of the guide about dirty sources. */
import {
  kvmDirtySource,
  processDirtySource,
  type DirtySource,
  type KvmDirtySource,
  type KvmSlot,
  type MemoryRange,
} from 'towline';

/** What the VMM of the guide knows by itself. */
export interface Vmm {
  vmFd: number;
  vcpuFds: number[];
  slots: KvmSlot[];
  ringsEnabled: boolean;
  /** Where its own threads write guest memory: a mapping that KVM does not have. */
  window: { address: bigint; len: bigint; gpa: bigint };
  tellVcpuThreads(fullEventFd: number | undefined): void;
  /** `KVM_SET_USER_MEMORY_REGION`. */
  setSlot(slot: KvmSlot): void;
  deleteSlot(slot: number): void;
}

// guide: kvm
export function vcpuWrites(vmm: Vmm): KvmDirtySource {
  const source = kvmDirtySource({
    vmFd: vmm.vmFd,
    slots: vmm.slots,
    mode: vmm.ringsEnabled ? { ring: vmm.vcpuFds } : 'log',
  });
  vmm.tellVcpuThreads(source.fullEventFd);
  return source;
}
// guide: end

// guide: slots
export async function replaceSlot(vmm: Vmm, source: KvmDirtySource, old: number, slot: KvmSlot): Promise<void> {
  await source.removeSlot(old);
  vmm.deleteSlot(old);
  vmm.setSlot(slot);
  await source.addSlot(slot);
}
// guide: end

// guide: process
export function ownWrites(vmm: Vmm): DirtySource {
  return processDirtySource({ ranges: [vmm.window] });
}
// guide: end

// guide: remote
export type Ask = (call: 'start' | 'harvest' | 'stop', ranges?: readonly MemoryRange[]) => Promise<MemoryRange[]>;

/** In the process that migrates. */
export function sourceElsewhere(ask: Ask, pageSizeBytes = 4096): DirtySource {
  return {
    start: async (ranges) => (await ask('start', ranges), pageSizeBytes),
    harvest: () => ask('harvest'),
    stop: async () => void (await ask('stop')),
    close: async () => undefined,
  };
}

/** In the VMM's process, which answers what it is asked. */
export async function serve(source: DirtySource, ...[call, ranges]: Parameters<Ask>): Promise<readonly MemoryRange[]> {
  if (call === 'harvest') return source.harvest();
  if (call === 'start') await source.start(ranges ?? [], 4096);
  else await source.stop();
  return [];
}
// guide: end
