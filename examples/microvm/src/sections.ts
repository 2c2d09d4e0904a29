/** The VMM's own state in a migration: vCPUs, interrupt controllers, clock. Opaque to towline, which carries it by name. */
import type { Sections } from 'towline';
import type { Vm } from '#native';

/** Each is taken when towline asks for it: the vCPUs have stopped by then, and so has the device. */
export function vcpuSections(vm: Vm): Record<string, () => Uint8Array> {
  return Object.fromEntries(vm.sectionNames().map((name) => [name, () => vm.saveSection(name)]));
}

/** Interrupts of the device are handed to KVM only once there is an interrupt controller that takes them. */
export function restoreVcpus(vm: Vm, sections: Sections): void {
  vm.restore(sections);
  vm.armInterrupts();
}
