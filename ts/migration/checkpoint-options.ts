import type { DirtySource } from '../function/channel.js';
import type { GuestMemory } from './memory.js';
import type { Sections, SectionTakers, SideOptions } from './options.js';
import type { MigrationPolicy } from './policy.js';

/**
 * What a checkpoint is.
 *
 * - `move`: the functions move into the file. They are released here once it is durable, and it is restorable once.
 * - `copy`: the functions go on here. The file is restored into other functions, as often as wished.
 */
export type CheckpointMode = 'move' | 'copy';

/** The modes, for checking a word from outside. */
export const checkpointModes = ['move', 'copy'] as const satisfies readonly CheckpointMode[];

/** How long the functions may be paused at the end, and how much is written before. */
export type CheckpointPolicy = Pick<
  MigrationPolicy,
  'maxDowntimeMs' | 'maxRounds' | 'maxTotalMs' | 'bandwidthBytesPerSecond' | 'onNoConvergence'
>;

/** What both ends of a checkpoint have in common. */
export interface CheckpointFileOptions extends Omit<SideOptions, 'linkTimeoutMs'> {
  /** Path of the file. A symbolic link stands for what it points to. Its name has at most 160 bytes. */
  path: string;
}

/** How to write a checkpoint. */
export interface CheckpointOptions extends CheckpointFileOptions {
  mode: CheckpointMode;
  /** The guest's memory. Without it only device state is in the checkpoint: the caller keeps memory itself. */
  memory?: GuestMemory;
  /** The session's UUID; a random one by default. */
  session?: string;
  /** Replaces what is at `path`, as long as that is a file and nobody restores from it. Default: false. */
  overwrite?: boolean;
  /**
   * Writes memory while the functions run, and only what is dirty then while they are stopped. Default: true. Without it the functions are
   * stopped for all of it, and no page is written twice.
   */
  live?: boolean;
  /**
   * As of a migration, but for `maxRounds` (default 4, since pages that are written again make the file larger) and `onNoConvergence`
   * (default `stop`). The pages that are written while the functions are stopped have no limit of bandwidth.
   */
  policy?: CheckpointPolicy;
  /** Dirty sources besides the functions' own and the memory's marked pages: vCPUs, other processes. */
  dirtySources?: readonly DirtySource[];
  /** Stops the vCPUs; called before the functions are quiesced. */
  pause?: () => void | Promise<void>;
  /** Lets the vCPUs run again: after a `copy`, and after a rollback. */
  resume?: () => void | Promise<void>;
  /** The caller's sections, taken after `pause`; at most 64 MiB together. None of them has descriptors. */
  sections?: SectionTakers;
  /**
   * Called while everything has stopped and is in the file, before that is sealed: here the caller copies what the file does not hold,
   * a private disk say. What it throws rolls back. Its time is the phase `hold` and counts in no figure.
   */
  verify?: () => void | Promise<void>;
  /** `move`: whether to give the functions back to their controlling function once the file is durable. Default: true. */
  release?: boolean;
}

/** How to restore a checkpoint. */
export interface RestoreOptions extends CheckpointFileOptions {
  /** The guest's memory, with the ranges that the checkpoint was taken of. What is in it goes. */
  memory?: GuestMemory;
  /** Gets the caller's sections once everything is loaded, before commit. What it throws refuses; the checkpoint stays restorable. */
  restoreSections?: (sections: Sections) => void | Promise<void>;
  /** Lets the vCPUs run, after the functions run. */
  resume?: () => void | Promise<void>;
}
