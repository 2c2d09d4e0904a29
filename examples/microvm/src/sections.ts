/** The VMM's own state in a migration: vCPUs, interrupt controllers, clock. Opaque to towline, which carries it by name. */
import type { Sections, SectionsTogether } from 'towline';
import type { Vm } from '#native';

/** What {@link vcpuSections} gives. */
export interface VcpuSections extends SectionsTogether {
  readonly take: () => Record<string, Uint8Array>;
}

/** They are taken when towline asks for them: the vCPUs have stopped by then, and so has the device. */
export function vcpuSections(vm: Vm): VcpuSections {
  return { names: vm.sectionNames(), take: () => vm.save() };
}

/** Interrupts of the device are handed to KVM only once there is an interrupt controller that takes them. */
export function restoreVcpus(vm: Vm, sections: Sections): void {
  vm.restore(sections);
  vm.armInterrupts();
}
