import type { WaitOptions } from '../abort.js';
import type { DirtySource } from '../function/channel.js';
import type { MigratableFunction } from '../function/types.js';
import type { FaultPoints } from './faults.js';
import type { Fence } from './fence.js';
import type { Journal } from './journal.js';
import type { Link } from './link.js';
import type { GuestMemory } from './memory.js';
import type { MigrationPolicy } from './policy.js';

/** Parts of the caller's own state that moved with the functions, by name: vCPU registers, say. */
export type Sections = Readonly<Record<string, Uint8Array>>;

/** What both sides have in common. */
export interface SideOptions extends WaitOptions {
  /** The guest's memory. Without it only device state moves: the caller moves memory itself. */
  memory?: GuestMemory;
  /** Who decides about ownership: a {@link Journal}, or one's own {@link Fence}. */
  fence: Journal | Fence;
  /** A link that goes silent for so long is broken, in milliseconds. Default 30000. */
  linkTimeoutMs?: number;
  /** Rehearsed damage; see `towline/rehearsal`. */
  faults?: FaultPoints;
}

/** How to migrate functions of one guest away. */
export interface MigrateOptions extends SideOptions {
  /** `tcp://host:port`, `unix:///path`, or a byte stream of the caller's. */
  to: string | Link;
  /** The session's UUID; a random one by default. */
  session?: string;
  policy?: MigrationPolicy;
  /** Dirty sources besides the functions' own and the memory's marked pages: vCPUs, other processes. */
  dirtySources?: readonly DirtySource[];
  /** Stops the vCPUs; called before the functions are quiesced. The downtime begins after it. */
  pause?: () => void | Promise<void>;
  /** Lets the vCPUs run again, after a rollback. */
  resume?: () => void | Promise<void>;
  /** The caller's sections by name, each taken after `pause`. Names are offered before; at most 64 MiB together. */
  sections?: Readonly<Record<string, () => Uint8Array | Promise<Uint8Array>>>;
  /**
   * Called when the destination has everything loaded and nothing runs on either side, before COMMIT-INTENT. What it throws rolls
   * back. Its time is the phase `hold` and counts in no figure.
   */
  verify?: () => void | Promise<void>;
  /** Ends after the forecast; nothing stops and nothing moves. The session is in both journals, as one that was given up. */
  dryRun?: boolean;
  /**
   * Whether to give the functions back to their controlling function once the destination runs them, as their `release` does.
   * Default: true.
   */
  release?: boolean;
  /** Also writes the stream to this file, for `towline inspect`. */
  record?: string;
}

/** How to receive functions. */
export interface ReceiveOptions extends SideOptions {
  /** `tcp://host:port` (loopback unless `allowRemotePlaintext`), `unix:///path`, or a byte stream of the caller's. */
  from: string | Link;
  /** Plain TCP on other than loopback addresses. */
  allowRemotePlaintext?: boolean;
  /** Told the address that is listened on, once it is. */
  onListening?: (address: string) => void;
  /** How long to wait for the source to connect, in milliseconds. Default: forever. */
  acceptTimeoutMs?: number;
  /** Gets the caller's sections once everything is loaded, before commit. What it throws refuses. */
  restoreSections?: (sections: Sections) => void | Promise<void>;
  /** Lets the vCPUs run, after the functions run. */
  resume?: () => void | Promise<void>;
}

/** The functions of one session; one alone may be given as it is. */
export type Functions = MigratableFunction | readonly MigratableFunction[];

/** As a list, never empty. */
export function functionList(functions: Functions): readonly MigratableFunction[] {
  return 'uuid' in functions ? [functions] : functions;
}

/** How long a link may be silent unless the caller says otherwise, in milliseconds. */
export const DEFAULT_LINK_TIMEOUT_MS = 30_000;
