/**
 * What the steps of a native session tell, as JSON. Internal: the public shapes are in report.ts and progress.ts.
 */
import type { Mismatch } from './offer.js';

export interface OfferOutcome {
  epoch: string;
  mismatches: Mismatch[];
  rttMs: number;
}

/** What was measured before the first pass; samples where a figure varies. */
export interface Measured {
  memoryBytes: number;
  dirtyBytesPerSecond: number[];
  bandwidthBytesPerSecond: number[];
  stateBytes: number;
  rttMs: number;
  journalSyncMs: number;
  dirty: DirtySample;
}

/** Pages that one source dirtied that were not dirty before. */
export interface SourcePages {
  source: string;
  pages: number;
}

/** A sample of who dirties how much. */
export interface DirtySample {
  windows: number;
  ms: number;
  /** Bytes of distinct pages: of all windows together, each counted by itself, and of the whole. */
  sources: { source: string; windowBytes: number; wholeBytes: number }[];
}

export interface RoundStats {
  pages: number;
  zeroPages: number;
  holePages: number;
  pageSizeBytes: number;
  /** Bytes of guest memory that went over the wire as data. */
  memoryBytes: number;
  wireBytes: number;
  /** Of the whole session so far. */
  totalWireBytes: number;
  ms: number;
  dirtyPagesAfter: number;
  dirtyBySource: SourcePages[];
}

export interface FinalStats extends RoundStats {
  pagesMs: number;
  stateMs: number;
  stateBytes: number;
}

/** Device state where no pages go with it. */
export interface SavedState {
  stateBytes: number;
  saveMs: number;
}

/** What pre-copy of device state left, over all functions that have it. */
export interface PrecopyStats {
  functions: number;
  initialBytesLeft: number;
  dirtyBytesLeft: number;
  /** `null` where one of them can't tell. */
  stopCopyBytes: number | null;
}

export interface SourceTimings {
  epoch: string;
  /** Of the whole session. */
  totalWireBytes: number;
  /** The intent here and the commit there. */
  journalMs: number;
}
