/**
 * The rules by which the witness judges: what the tenant was told, by its logs, against what is on the disk. No I/O here.
 *
 * The tenant never has two commands in flight that touch the same unit. So at any time, in the order of acknowledgements, each
 * unit has one **current version**: that of the last acknowledged write to it, or blank.
 *
 * - **lost**: a command below the final sequence that was never completed, or that ended with an error; an acknowledged write
 *   that a read or the disk does not show, though nothing else was there in its place but an older version or nothing.
 * - **duplicated**: a completion for a command that was not in flight; a command completed twice; an older version in a
 *   unit after a read had already shown the current one (it was on the disk, so the older write was executed again); a
 *   version that only a process wrote that was not the owner then, or that an earlier epoch wrote unknown to the tenant.
 * - **corrupted**: a unit that holds no valid block of its own address, or a version that was never its content.
 * - **owners**: the most incarnations (process and epoch) of the tenant that were active at the same time.
 *
 * What is wrong is counted once: by the first rule that it falls under, and one counter only. A write that was never completed
 * may or may not be on the disk; either is right, and it counts as one lost. After a power failure it counts as nothing: nobody
 * was told anything about it. It can only be newer than what was acknowledged in the same unit.
 *
 * The **owner** is the incarnation with the highest epoch so far, the first one among equals. What others were told counts for
 * `owners` alone: nothing about the contents follows from it.
 */
import { BLANK, type Content, type LogRecord, type Version } from './record.js';

/** A time in which the witness itself held the tenant up, in nanoseconds of `CLOCK_MONOTONIC`. */
export interface Hold {
  readonly fromNs: bigint;
  readonly toNs: bigint;
}

/** What the ledger says in the end. */
export interface Verdict {
  io: { completed: number; lost: number; duplicated: number; corrupted: number };
  owners: number;
  /** From the last completion before the last start of the tenant to the first one after it, without holds; 0 where it started once. */
  tenantPauseMs: number;
  /** Whether the owner's log ends with a drained tenant. If not, as after a power failure, what never completed is not known and not counted. */
  drained: boolean;
  /** Whether the owner's tenant did I/O between its last standing still and being drained: a pause that nobody ended is no service. */
  ranOn: boolean;
  /** Some of what is wrong, in words. */
  samples: string[];
}

interface Unit {
  current: Version;
  /** Versions that were current once. */
  readonly earlier: Version[];
  /** A read has shown the current version. */
  seen: boolean;
  /** What is wrong with the current version was counted. */
  settled: boolean;
  /** A write failed here: whatever is found may be right until the next one succeeds. */
  unknown: boolean;
}

interface Incarnation {
  readonly epoch: number;
  readonly firstNs: bigint;
  lastNs: bigint;
}

const MAX_SAMPLES = 16;
const WRITE = 0x01;

/** Puts the records of several logs into the order of time; those of one log stay in theirs. */
export function mergeLogs(logs: readonly (readonly LogRecord[])[]): LogRecord[] {
  // Sorting is stable, and the times of one log never go back.
  return logs.flat().toSorted((a, b) => (a.timeNs < b.timeNs ? -1 : a.timeNs > b.timeNs ? 1 : 0));
}

/** See the top of this file. Take all records in the order of time first, then look at every unit of the disk, then ask. */
export class Ledger {
  readonly #units = new Map<number, Unit>();
  readonly #completed = new Set<number>();
  readonly #failed = new Set<number>();
  readonly #incarnations = new Map<string, Incarnation>();
  readonly #strangeWrites = new Set<string>();
  readonly #lost = new Set<string>();
  readonly #duplicated = new Set<string>();
  readonly #corrupted = new Set<string>();
  readonly #samples: string[] = [];
  #owner: Incarnation | undefined;
  #finalSeq: number | undefined;
  #lastAckNs: bigint | undefined;
  #started = false;
  #ackedSinceStop = false;
  #ranOn = false;
  #pause: Hold | undefined;
  #taken = 0;

  /** The next record in the order of time. */
  take(record: LogRecord): void {
    this.#taken++;
    const isOwner = this.#incarnation(record) === this.#owner;
    if (!isOwner) {
      if (record.kind === 'write' && record.content) {
        for (let n = 0; n < record.units; n++) this.#strangeWrites.add(key(record.content, record.unit + n));
      }
      return;
    }
    this.#finalSeq =
      record.kind === 'drained' ? record.nextSeq : record.kind === 'stopped' ? this.#finalSeq : undefined;
    switch (record.kind) {
      case 'started':
        this.#started = true;
        return;
      case 'stopped':
        this.#ackedSinceStop = false;
        return;
      case 'drained':
        this.#ranOn = this.#ackedSinceStop;
        return;
      case 'duplicate':
        this.#count(this.#duplicated, `record ${this.#taken}`, 'a completion for a command that was not in flight');
        return;
      case 'error':
        this.#failedCommand(record);
        return;
      case 'write':
      case 'flush':
        if (this.#completed.has(record.seq)) {
          this.#count(this.#duplicated, `command ${record.seq}`, `command ${record.seq} was completed twice`);
          return;
        }
        this.#acknowledged(record);
        if (record.kind === 'write') this.#wrote(record);
        return;
      case 'read':
        this.#acknowledged(record);
        this.#found(record.unit, record.content, 'a read');
    }
  }

  /** What a unit of the disk holds after all is over. */
  look(unit: number, content: Content): void {
    const neverCompleted =
      content !== undefined &&
      content.seq > this.#unit(unit).current.seq &&
      !this.#completed.has(content.seq) &&
      (this.#finalSeq === undefined || content.seq < this.#finalSeq) &&
      !this.#strangeWrites.has(key(content, unit));
    if (!neverCompleted) this.#found(unit, content, 'the disk');
  }

  /** What is to be said of it all. `holds` are times that do not count as a pause. */
  verdict(holds: readonly Hold[] = []): Verdict {
    for (let seq = 1; seq < (this.#finalSeq ?? 0); seq++) {
      if (this.#completed.has(seq)) continue;
      if (!this.#failed.has(seq)) this.#count(this.#lost, `command ${seq}`, `command ${seq} was never completed`);
    }
    return {
      io: {
        completed: this.#completed.size,
        lost: this.#lost.size,
        duplicated: this.#duplicated.size,
        corrupted: this.#corrupted.size,
      },
      owners: mostAtOnce([...this.#incarnations.values()]),
      tenantPauseMs: this.#pause === undefined ? 0 : lengthMs(this.#pause, holds),
      drained: this.#finalSeq !== undefined,
      ranOn: this.#ranOn,
      samples: this.#samples,
    };
  }

  /** The incarnation that logged `record`; it is the owner from its first activity on if its epoch is above all before. */
  #incarnation(record: LogRecord): Incarnation | undefined {
    const name = `${record.host}/${record.epoch}`;
    const known = this.#incarnations.get(name);
    // That somebody stands still is no activity.
    if (record.kind === 'stopped' || record.kind === 'drained') return known;
    if (known) {
      known.lastNs = record.timeNs;
      return known;
    }
    const incarnation = { epoch: record.epoch, firstNs: record.timeNs, lastNs: record.timeNs };
    this.#incarnations.set(name, incarnation);
    if (this.#owner === undefined || record.epoch > this.#owner.epoch) this.#owner = incarnation;
    return incarnation;
  }

  #acknowledged(record: LogRecord): void {
    this.#completed.add(record.seq);
    this.#ackedSinceStop = true;
    if (this.#started && this.#lastAckNs !== undefined) this.#pause = { fromNs: this.#lastAckNs, toNs: record.timeNs };
    this.#started = false;
    this.#lastAckNs = record.timeNs;
  }

  #failedCommand(record: LogRecord): void {
    this.#failed.add(record.seq);
    const status = `status ${record.status.toString(16)}h`;
    this.#count(this.#lost, `command ${record.seq}`, `command ${record.seq} ended with ${status}`);
    if (record.opcode !== WRITE) return;
    for (let n = 0; n < record.units; n++) this.#unit(record.unit + n).unknown = true;
  }

  #wrote(record: LogRecord): void {
    for (let n = 0; n < record.units; n++) {
      const unit = this.#unit(record.unit + n);
      unit.earlier.push(unit.current);
      unit.current = record.content ?? BLANK;
      unit.seen = unit.settled = unit.unknown = false;
    }
  }

  /** `place` shows `content` in a unit in which nothing is in flight. */
  #found(number: number, content: Content, place: string): void {
    const unit = this.#unit(number);
    if (unit.unknown || unit.settled) return;
    const { current } = unit;
    if (content !== undefined && same(content, current)) {
      unit.seen = true;
      return;
    }
    unit.settled = true;
    const where = `unit ${number}: ${place} shows ${words(content)}, not ${words(current)}`;
    if (content === undefined) {
      this.#count(this.#corrupted, key(current, number), where);
    } else if (unit.earlier.some((version) => same(version, content))) {
      // Nobody writes blanks: what is blank again lost its write.
      if (unit.seen && content.seq !== 0) this.#count(this.#duplicated, `again ${key(content)}`, where);
      else this.#count(this.#lost, `write ${key(current)}`, where);
    } else if (
      this.#strangeWrites.has(key(content, number)) ||
      (content.seq !== 0 && !this.#completed.has(content.seq) && content.epoch < (this.#owner?.epoch ?? 0))
    ) {
      this.#count(this.#duplicated, `strange ${key(content)}`, where);
    } else {
      this.#count(this.#corrupted, key(current, number), where);
    }
  }

  #unit(number: number): Unit {
    let unit = this.#units.get(number);
    if (!unit) {
      unit = { current: BLANK, earlier: [], seen: false, settled: false, unknown: false };
      this.#units.set(number, unit);
    }
    return unit;
  }

  #count(counter: Set<string>, what: string, sample: string): void {
    if (counter.has(what)) return;
    counter.add(what);
    if (this.#samples.length < MAX_SAMPLES) this.#samples.push(sample);
  }
}

function same(a: Version, b: Version): boolean {
  return a.seq === b.seq && a.epoch === b.epoch;
}

function key(version: Version, unit?: number): string {
  return `${unit ?? ''}:${version.seq}/${version.epoch}`;
}

function words(content: Content): string {
  if (content === undefined) return 'no valid block';
  return content.seq === 0 ? 'nothing' : `version ${content.seq} of epoch ${content.epoch}`;
}

function mostAtOnce(spans: readonly Incarnation[]): number {
  // The most that overlap do so at the start of one of them.
  const active = (at: Incarnation) =>
    spans.filter((s) => s === at || (s.firstNs <= at.firstNs && at.firstNs < s.lastNs));
  return Math.max(0, ...spans.map((at) => active(at).length));
}

function lengthMs(span: Hold, holds: readonly Hold[]): number {
  let ns = span.toNs - span.fromNs;
  for (const hold of holds) {
    const from = hold.fromNs > span.fromNs ? hold.fromNs : span.fromNs;
    const to = hold.toNs < span.toNs ? hold.toNs : span.toNs;
    if (to > from) ns -= to - from;
  }
  return Number(ns) / 1e6;
}
