/** Mode 4, the destination: a machine that was made and never ran gets what is in the file. */
import { restore, type Journal, type Migration, type RestoreOptions } from 'towline';
import type { Machine } from './machine.js';
import { restoreVcpus } from './sections.js';

/** What is not the same for every file. */
export interface FromFileOptions extends Pick<RestoreOptions, 'restoreSections' | 'resume' | 'signal'> {
  path: string;
  fence: Journal;
}

/** What can't be restored leaves the file as it was; afterwards it is used up. */
export function fromFile({ vm, fn, memory }: Machine, options: FromFileOptions): Migration {
  return restore(fn, {
    memory,
    restoreSections: (sections) => restoreVcpus(vm, sections),
    resume: () => vm.run(),
    ...options,
  });
}
