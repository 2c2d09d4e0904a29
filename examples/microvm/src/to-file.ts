/** Mode 4, the source: guest and function move into a file, which owns them until somebody makes a guest of it again. */
import { checkpoint, type CheckpointOptions, type DirtySource, type Journal, type Migration } from 'towline';
import type { Machine } from './machine.js';
import { vcpuSections } from './sections.js';

/** What is not the same for every checkpoint. */
export interface ToFileOptions extends Pick<CheckpointOptions, 'policy' | 'verify' | 'signal' | 'sections' | 'pause'> {
  path: string;
  fence: Journal;
  /** Default: what KVM tells of the vCPUs. */
  dirtySources?: readonly DirtySource[];
}

/** Once the file is durable the machine is for nothing but closing; after a rollback it runs on. */
export function toFile({ vm, fn, memory, vcpuDirty }: Machine, options: ToFileOptions): Migration {
  return checkpoint(fn, {
    mode: 'move',
    memory,
    dirtySources: [vcpuDirty],
    sections: vcpuSections(vm),
    pause: () => vm.pause(),
    resume: () => vm.run(),
    ...options,
  });
}
