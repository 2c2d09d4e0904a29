/** Mode 1, the source: towline moves RAM, the function and the sections. The VMM pauses, and tells who writes. */
import { migrate, type DirtySource, type Journal, type MigrateOptions, type Migration } from 'towline';
import type { Machine } from './machine.js';
import { vcpuSections } from './sections.js';

/** What is not the same for every migration. */
export interface AwayOptions extends Pick<
  MigrateOptions,
  'policy' | 'verify' | 'signal' | 'release' | 'faults' | 'sections' | 'pause' | 'memoryTransfer'
> {
  /** `tcp://host:port` of the destination, or `unix:///path`. */
  to: string;
  fence: Journal;
  /** Default: what KVM tells of the vCPUs. */
  dirtySources?: readonly DirtySource[];
}

/** After a commit the machine is for nothing but closing; after a rollback it runs on. */
export function migrateAway({ vm, fn, memory, vcpuDirty }: Machine, options: AwayOptions): Migration {
  return migrate(fn, {
    memory,
    dirtySources: [vcpuDirty],
    sections: vcpuSections(vm),
    pause: () => vm.pause(),
    resume: () => vm.run(),
    throttle: (percent) => vm.setThrottle(percent),
    ...options,
  });
}
