/** Mode 3, the destination: another process of the same host. RAM is the very same, by its descriptors: nothing of it moves. */
import { receive, type ControlledFunction, type GuestMemory, type Migration } from 'towline';
import type { Machine } from './machine.js';
import { restoreVcpus } from './sections.js';
import type { InOptions } from './take-in.js';

/** What is not the same for every handoff. */
export interface OverOptions extends InOptions {
  /** Makes the machine around the memory that was passed, while the guest still runs at the source. */
  make: (memory: GuestMemory) => Promise<Machine>;
}

/** The source is `migrateAway` with `memoryTransfer: 'pass'`, over a UNIX socket. */
export function takeOver(fn: ControlledFunction, { make, ...options }: OverOptions): Migration {
  let machine: Machine | undefined;
  const made = (): Machine => {
    if (machine === undefined) throw new Error('no memory has come');
    return machine;
  };
  return receive(fn, {
    memory: 'passed',
    onMemory: async (memory) => void (machine = await make(memory)),
    restoreSections: (sections) => restoreVcpus(made().vm, sections),
    resume: () => made().vm.run(),
    ...options,
  });
}
