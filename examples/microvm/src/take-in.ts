/** Mode 1, the destination: a machine that was made and never ran takes over. */
import { receive, type Journal, type Migration, type ReceiveOptions } from 'towline';
import type { Machine } from './machine.js';
import { restoreVcpus } from './sections.js';

/** What is not the same for every migration. */
export interface InOptions extends Pick<ReceiveOptions, 'onListening' | 'restoreSections' | 'resume' | 'signal'> {
  /** `tcp://host:port` to listen on. */
  from: string;
  fence: Journal;
}

/** Sections are restored before commit, so that one that can't be restored refuses; the vCPUs run after the function does. */
export function takeIn({ vm, fn, memory }: Machine, options: InOptions): Migration {
  return receive(fn, {
    memory,
    restoreSections: (sections) => restoreVcpus(vm, sections),
    resume: () => vm.run(),
    ...options,
  });
}
