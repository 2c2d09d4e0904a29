/** Which pages the vCPUs write: KVM's own log, or its rings. */
import { kvmDirtySource, type KvmDirtySource } from 'towline';
import type { Vm } from '#native';

/** The VM's slots and descriptors are all that towline needs; it makes the ioctls itself, in this process. */
export function vcpuDirtySource(vm: Vm): KvmDirtySource {
  const source = kvmDirtySource({
    vmFd: vm.vmFd,
    slots: vm.slots().map(({ userspaceAddress, ...slot }) => ({ ...slot, userspaceAddr: userspaceAddress })),
    mode: vm.dirtyRingEntries === 0 ? 'log' : { ring: vm.vcpuFds, entries: vm.dirtyRingEntries },
  });
  // A vCPU whose ring is full waits until it was emptied.
  vm.setRingFullEvent(source.fullEventFd);
  return source;
}
