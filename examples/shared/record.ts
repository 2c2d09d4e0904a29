/**
 * What a tenant logs: records of 64 bytes, little-endian, one a completed write or flush and one for each unit (4 KiB) of a
 * completed read. The layout is written down in crates/tenant/src/record.rs; the witness reads it by itself.
 */

/** Bytes of a record. */
export const RECORD_BYTES = 64;

const KINDS = ['write', 'read', 'flush', 'duplicate', 'started', 'stopped', 'drained', 'error'] as const;

/** What a unit holds: a version, nothing yet (`seq` 0), or no valid block (`undefined`). */
export type Content = Version | undefined;

/** Tells what one command wrote from what any other wrote. Sequences count all commands of a tenant from 1. */
export interface Version {
  readonly seq: number;
  /** Epoch in which the command was submitted. */
  readonly epoch: number;
}

/** What a unit holds that was never written. */
export const BLANK: Version = { seq: 0, epoch: 0 };

/** One record. Which fields mean something depends on `kind`. */
export interface LogRecord {
  readonly kind: (typeof KINDS)[number];
  /** The process that the tenant ran in. */
  readonly host: number;
  /** Incarnation of the tenant: one more each time that it starts in a process. */
  readonly epoch: number;
  readonly seq: number;
  readonly unit: number;
  readonly units: number;
  /** Of a read: what the unit held; of a write: what it holds now. */
  readonly content: Content;
  /** Of an error: the opcode of the command. */
  readonly opcode: number;
  readonly status: number;
  /** `CLOCK_MONOTONIC`, as `process.hrtime.bigint()` tells it. */
  readonly timeNs: bigint;
  /** Sequence that the next command gets. */
  readonly nextSeq: number;
}

/** Reads a log. Throws where it is not one: a damaged log proves nothing. */
export function parseLog(bytes: Uint8Array): LogRecord[] {
  if (bytes.length % RECORD_BYTES !== 0) throw new Error(`a log ends within a record (${bytes.length} bytes)`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const records: LogRecord[] = [];
  for (let at = 0; at < bytes.length; at += RECORD_BYTES) records.push(parseRecord(view, at));
  return records;
}

function parseRecord(view: DataView, at: number): LogRecord {
  const kind = KINDS[view.getUint8(at) - 1];
  if (kind === undefined) throw new Error(`a record of unknown kind ${view.getUint8(at)} at byte ${at} of a log`);
  const found = view.getBigUint64(at + 24, true);
  return {
    kind,
    host: view.getUint8(at + 1),
    units: view.getUint8(at + 2),
    opcode: view.getUint8(at + 3) >> 4,
    epoch: view.getUint32(at + 4, true),
    seq: count(view, at + 8),
    unit: count(view, at + 16),
    content:
      found === 0xffff_ffff_ffff_ffffn ? undefined : { seq: Number(found), epoch: view.getUint32(at + 32, true) },
    status: view.getUint16(at + 36, true),
    timeNs: view.getBigUint64(at + 40, true),
    nextSeq: count(view, at + 48),
  };
}

function count(view: DataView, at: number): number {
  const value = view.getBigUint64(at, true);
  if (value > Number.MAX_SAFE_INTEGER) throw new Error(`a record holds the impossible number ${value}`);
  return Number(value);
}
