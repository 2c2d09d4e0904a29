import type { WaitOptions } from '../abort.js';
import type { DirtySource } from '../function/channel.js';
import type { MigratableFunction } from '../function/types.js';
import type { FaultPoints } from './faults.js';
import type { Fence } from './fence.js';
import type { Journal } from './journal.js';
import type { Link } from './link.js';
import type { GuestMemory } from './memory.js';
import type { SectionFds } from './sections.js';
import type { MigrationPolicy } from './policy.js';

/** Parts of the caller's own state that moved with the functions, by name: vCPU registers, say. */
export type Sections = Readonly<Record<string, Uint8Array>>;

/** What one of the caller's sections is made of: bytes, or bytes and file descriptors. */
export type SectionContent =
  | Uint8Array
  | {
      bytes: Uint8Array;
      /**
       * Descriptors by name, at most 64 in a section and 1024 in a session: sockets, eventfds, files. They stay the caller's. Only with
       * {@link MigrateOptions.sectionFds}.
       */
      fds?: Readonly<Record<string, number>>;
    };

/** All sections by one call, where each call costs: names, in the order in which they are sent, and what gives exactly those. */
export interface SectionsTogether {
  readonly names: readonly string[];
  /** Called once. What it gives beside the names is left out. */
  readonly take: () => Readonly<Record<string, SectionContent>> | Promise<Readonly<Record<string, SectionContent>>>;
}

/** How the caller's sections are taken, by name: each by itself, or {@link SectionsTogether}. */
export type SectionTakers = Readonly<Record<string, () => SectionContent | Promise<SectionContent>>> | SectionsTogether;

/** What both sides have in common. */
export interface SideOptions extends WaitOptions {
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
  /** The guest's memory. Without it only device state moves: the caller moves memory itself. It stays the caller's. */
  memory?: GuestMemory;
  /**
   * How memory gets there. `copy`, the default, sends its pages. `pass` is for another process of the same user on this host, over
   * `unix:///path`: it gets the descriptors of the files that memory lies in and maps the same memory, before anything stops. No page is
   * sent and nothing is tracked, so the downtime does not depend on how much memory there is. The other side says `memory: 'passed'`.
   *
   * Both processes have the memory mapped from then on, and who owns the guest alone writes it: here until COMMIT, so nothing of this process
   * may write it once the sections are taken, unless it was rolled back. After the commit this process closes it.
   */
  memoryTransfer?: 'copy' | 'pass';
  /**
   * How what exposures show gets there. `state`, the default, sends what they keep of the functions; a client connects to the destination by itself.
   * `pass` is for another process of the same user on this host, over `unix:///path`: the sockets go along with the client that is connected,
   * its memory and its eventfds, and the client notices no more than a pause. At the destination the functions were exposed with
   * `handover: 'awaited'`. At most 62 ranges of memory with files and eventfds together, a function. Functions that have no exposure have
   * none there either.
   */
  exposureTransfer?: 'state' | 'pass';
  policy?: MigrationPolicy;
  /** Dirty sources besides the functions' own and the memory's marked pages: vCPUs, other processes. */
  dirtySources?: readonly DirtySource[];
  /**
   * Takes so many percent of their time from the vCPUs, 0 to 99, where the guest writes faster than the link carries; 0 for none. Awaited.
   * Where it was called at all, it is called with 0 at the end, however that is. How far, and when: {@link MigrationPolicy.converge}.
   */
  throttle?: (percent: number) => void | Promise<void>;
  /** Stops the vCPUs; called before the functions are quiesced. The downtime begins after it. */
  pause?: () => void | Promise<void>;
  /** Lets the vCPUs run again, after a rollback. */
  resume?: () => void | Promise<void>;
  /** The caller's sections, taken after `pause`. Their names are offered before; at most 64 MiB together. */
  sections?: SectionTakers;
  /** Sections may have file descriptors: over `unix:///path`, to another process of the same user. Default false. */
  sectionFds?: boolean;
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
  /**
   * The guest's memory, with the ranges that it has at the source; or `'passed'` where the source passes it: then {@link ReceiveOptions.onMemory}
   * gets it. Without it only device state moves.
   */
  memory?: GuestMemory | 'passed';
  /**
   * Gets the memory that was passed, while the guest still runs at the source: build the VM and attach the functions to it here, the
   * source stops nothing before this resolves. What it throws refuses, and the source runs on.
   *
   * The memory is the caller's from here on: it closes it when the guest ends, and after a rollback. {@link GuestMemory.regions} has the
   * descriptors. Until the commit every write through it throws, and the functions' DMA through it fails, as the guest belongs to the source;
   * what the caller maps by itself out of the same files is not held up, and must not write either.
   */
  onMemory?: (memory: GuestMemory) => void | Promise<void>;
  /**
   * Takes passed memory out of files that could shrink, or lie on hugetlbfs, as `shrinkable` of a {@link GuestMemory} range: the files are looked at
   * again here, whatever the source was told. Default false.
   */
  shrinkable?: boolean;
  /** Plain TCP on other than loopback addresses. */
  allowRemotePlaintext?: boolean;
  /** Told the address that is listened on, once it is. */
  onListening?: (address: string) => void;
  /** How long to wait for the source to connect, in milliseconds. Default: forever. */
  acceptTimeoutMs?: number;
  /**
   * Gets the caller's sections once everything is loaded, before commit. What it throws refuses. Descriptors that came with them are closed
   * when it ends, but for those that it took.
   */
  restoreSections?: (sections: Sections, fds: SectionFds) => void | Promise<void>;
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
