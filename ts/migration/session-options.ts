/**
 * What a `MigrationSession` is made of, and what its steps tell.
 */
import type { WaitOptions } from '../abort.js';
import type { DirtySource } from '../function/channel.js';
import type { DeviceState } from '../function/state.js';
import type { Fence } from './fence.js';
import type { Journal } from './journal.js';
import type { GuestMemory } from './memory.js';
import type { Mismatch } from './offer.js';
import type { Link } from './link.js';
import type { DirtyBySource } from './writers.js';
import type { SendHalf, ReceiveHalf } from './session-stream.js';

/** What both sides of a session say. */
export interface SessionOptions extends WaitOptions {
  /** Who decides about ownership: a {@link Journal}, or one's own {@link Fence}. */
  fence: Journal | Fence;
  /**
   * Who carries the commit over: the session, by COMMIT and COMMITTED on its stream, or the caller, by whatever its own migration has.
   * The records in the fence are the same, in the same order. Default `session`, which needs a stream that goes both ways.
   */
  commit?: 'session' | 'caller';
  /**
   * A wait on the stream in which nothing moves fails after so many milliseconds; 0 for never. Default 0: between the steps a
   * stream may be silent for as long as the caller's memory takes, and the caller sees by itself when its connection ends.
   */
  idleTimeoutMs?: number;
}

/** The source's part of a session. */
export interface SourceSessionOptions extends SessionOptions {
  /** Takes towline's bytes to the other side: both ways, or one way with `commit: 'caller'`. */
  stream: Link | SendHalf;
  /** The guest's memory. It is tracked and never sent: moving it is the caller's. Without it nothing is tracked. */
  memory?: GuestMemory;
  /** The destination's memory was never written: then pages that were never written here are not dirty at first. Default false. */
  freshDestination?: boolean;
  /** Dirty sources besides the functions' own and the memory's marked pages: vCPUs, other processes. */
  dirtySources?: readonly DirtySource[];
  /** Names of the caller's sections, in the order in which they will be sent. */
  sections?: readonly string[];
  /** The session's UUID; a random one by default. */
  session?: string;
  /**
   * An epoch of at least this, up to 2^53 - 1. Over a one-way stream the destination can't tell which epochs it has seen, and refuses one
   * that does not exceed them; its `epoch-stale` mismatch says what would.
   */
  leastEpoch?: number;
}

/** The destination's part of a session. */
export interface DestinationSessionOptions extends SessionOptions {
  /** Brings towline's bytes from the other side. */
  stream: Link | ReceiveHalf;
}

/** What a harvest gave. */
export interface Harvest {
  /** Pages that wait for {@link SourceSession.dirtyRuns}, former ones included. */
  dirtyPages: number;
  /**
   * Pages that became dirty since the harvest before, by who told of them: `device:UUID`, `marked`, or the name of a source. What several told of
   * counts for the first.
   */
  dirtyBySource: DirtyBySource;
  /** The functions had stopped before: once these pages are moved, and nobody else writes, memory is complete. */
  isLast: boolean;
  /** Dirty sources that failed after the stop. All of memory is dirty for them, so nothing is missing. */
  failedSources: number;
}

/** One round of reading device state while the functions run. Estimates come from the devices and may be garbage. */
export interface PrecopyState {
  /** Functions that have PRE_COPY at all. */
  functions: number;
  /** Sent in this round. */
  bytes: number;
  initialBytesLeft: number;
  dirtyBytesLeft: number;
  /** Expected in `stop-copy`; `null` where one of them can't tell. */
  stopCopyBytes: number | null;
}

/** A section of the stream as one side has seen it. */
export interface SectionDigest {
  /** `state:<function>` or `section:<name>`. */
  section: string;
  /** Bytes of payload. */
  bytes: number;
  /** 64 bits, as `0x` and hexadecimal digits. */
  digest: string;
}

/** What a function is in after a session gave it up. */
export interface FunctionOutcome {
  /** Its UUID. */
  function: string;
  /** Missing where nobody can tell. */
  state?: DeviceState;
  /** It had to be reset and has lost what it was doing. */
  wasReset: boolean;
  /** What went wrong on the way. */
  error?: string;
}

/** What the source offers. */
export interface SessionOffer {
  type: 'offer';
  session: string;
  epoch: number;
  functions: { uuid: string; name: string }[];
  /** Names of the caller's sections that will come. */
  sections: string[];
  /** Every reason against it that is known before the answer. */
  mismatches: Mismatch[];
}

/** Somebody asked what became of an earlier session, and was answered; this one is over. */
export interface SessionAsked {
  type: 'asked';
  session: string;
  epoch: number;
  /** Durable, other than `unknown`. */
  outcome: 'committed' | 'refused' | 'unknown';
}

/** How long one phase of a session took, all times together. `journal-…` and `device-…` overlap the phase that they happen in. */
export interface SessionTiming {
  name: string;
  ms: number;
  times: number;
}
