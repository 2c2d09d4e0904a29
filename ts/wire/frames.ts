/**
 * What a migration stream holds, frame by frame. The format is documented in crates/core/src/stream.
 */

/** What a section holds. */
export type SectionKind = 'device-state' | 'memory' | 'caller' | 'exposure';

/** One frame, described. Counts of pages and bytes are exact below 2^53. */
export type StreamFrame =
  | { readonly type: 'header'; readonly major: number; readonly minor: number; readonly session: string }
  | {
      readonly type: 'section-begin';
      readonly channel: number;
      readonly kind: SectionKind;
      /** UUID of the function; zeros for memory and the caller's sections. */
      readonly function: string;
      /** Declared format: 32 hexadecimal digits, zeros where none is declared. */
      readonly format: string;
      readonly name: string;
    }
  | { readonly type: 'state-chunk'; readonly channel: number; readonly bytes: number }
  | {
      readonly type: 'pages';
      readonly channel: number;
      readonly pageSizeBytes: number;
      /** Bytes of the pages that are not zero; they follow in the frame. */
      readonly dataBytes: number;
      /** Bytes of the pages that are zero; they do not follow. */
      readonly zeroBytes: number;
      /** First guest-physical address, decimal. */
      readonly from: string;
      /** One past the last one, decimal. */
      readonly to: string;
    }
  | { readonly type: 'section-data'; readonly channel: number; readonly bytes: number }
  | {
      readonly type: 'round-end';
      readonly channel: number;
      /** From 0. */
      readonly round: number;
      /** Made after every writer had stopped. */
      readonly final: boolean;
      readonly pages: number;
      readonly bytes: number;
    }
  | { readonly type: 'manifest'; readonly channel: number; readonly frames: number; readonly bytes: number }
  | {
      readonly type: 'dialogue';
      readonly bytes: number;
      /** Its type, where it has one. */ readonly message: string | null;
    }
  | {
      /** Bytes of no meaning, by which the source measured the bandwidth before it copied anything. */
      readonly type: 'filler';
      readonly channel: number;
      readonly bytes: number;
    }
  | {
      /** An optional frame of a type that this release does not know: passed over, and checked all the same. */
      readonly type: 'skipped';
      readonly channel: number;
      readonly frameType: number;
      readonly bytes: number;
    }
  | { readonly type: 'stream-end' };

/** Where and why a stream is not whole. Nothing after it is read. */
export interface StreamDamage {
  readonly type: 'damage';
  /** Bytes from the beginning to the frame at fault; decimal. */
  readonly offset: string;
  /** The sequence number that this frame has or should have; `null` in the header. */
  readonly sequence: number | null;
  readonly message: string;
}

/** What {@link inspect} yields. `damage` comes at most once, and last. */
export type StreamItem = StreamFrame | StreamDamage;

/** Caps that hold before anything is allocated. */
export interface StreamLimits {
  /** Payload bytes of one frame. Default: 16777216. */
  maxFrameBytes?: number | undefined;
  /** Sections in one stream. Default: 4096. */
  maxSections?: number | undefined;
  /** Runs in one frame of pages. Default: 65536. */
  maxRuns?: number | undefined;
}
