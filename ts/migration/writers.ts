/**
 * Who dirties guest memory: the names of dirty sources, and what they told, split into functions and all others.
 */
import type { DirtySource } from '../function/channel.js';
import type { Count, DirtyWriter } from './forecast.js';
import { dirtyWriter } from './forecast.js';
import type { DirtyRates } from './means.js';
import type { DirtySample, SourcePages } from './steps.js';

/** Pages by the name of their writer. */
export type DirtyBySource = Readonly<Record<string, number>>;

/** The sources of one session: those of its functions first, as native code names them. */
export class SourceNames {
  readonly #extra: readonly string[];

  /** @param extra - Besides the functions' own; the marked pages of the memory among them. */
  constructor(extra: readonly DirtySource[]) {
    this.#extra = extra.map((source, i) => source.name ?? `other-${i}`);
  }

  /** Whether native `source` is a function's. */
  isDevice(source: string): boolean {
    return !source.startsWith('extra#');
  }

  /** What events call it: `device:UUID`, or the source's own name. */
  of(source: string): string {
    const [owner = '', number = '0'] = source.split('#');
    return this.isDevice(source) ? `device:${owner}` : (this.#extra[Number(number)] ?? source);
  }

  /** Pages by name; a function's several sources together. */
  pages(counts: readonly SourcePages[]): DirtyBySource {
    const by: Record<string, number> = {};
    for (const { source, pages } of counts) by[this.of(source)] = (by[this.of(source)] ?? 0) + pages;
    return by;
  }

  /** The share of the functions in what was dirtied, 0 to 1. */
  deviceShare(counts: readonly SourcePages[]): number {
    const sum = (list: readonly SourcePages[]): number => list.reduce((all, { pages }) => all + pages, 0);
    const all = sum(counts);
    return all === 0 ? 0 : sum(counts.filter(({ source }) => this.isDevice(source))) / all;
  }

  /** What a sample counted: a mean window, and the whole, each for devices and all others. */
  counts(sample: DirtySample): { devices: Count[]; others: Count[] } {
    const of = (devices: boolean): Count[] => {
      const list = sample.sources.filter(({ source }) => this.isDevice(source) === devices);
      const windows = Math.max(1, sample.windows);
      const window = list.reduce((all, s) => all + s.windowBytes, 0) / windows;
      const whole = list.reduce((all, s) => all + s.wholeBytes, 0);
      return [
        { ms: sample.ms / windows, bytes: window },
        { ms: sample.ms, bytes: whole },
      ];
    };
    return { devices: of(true), others: of(false) };
  }

  /** What each function dirties, in bytes a second, by UUID. */
  byFunction(sample: DirtySample): ReadonlyMap<string, number> {
    const by = new Map<string, number>();
    for (const { source, windowBytes } of sample.sources) {
      const [owner = ''] = source.split('#');
      if (this.isDevice(source)) by.set(owner, (by.get(owner) ?? 0) + (windowBytes * 1000) / Math.max(1, sample.ms));
    }
    return by;
  }
}

/** Distinct bytes a second, as the windows of a sample showed them. */
export function ratesOf(counts: { devices: readonly Count[]; others: readonly Count[] }): DirtyRates {
  const rate = ([window]: readonly Count[]): number =>
    window && window.ms > 0 ? (window.bytes / window.ms) * 1000 : 0;
  return { devices: rate(counts.devices), others: rate(counts.others) };
}

/** What a forecast is made from, of what was measured before the first pass: samples of all are split by what the sources told. */
export function writersInput(
  counts: { devices: readonly Count[]; others: readonly Count[] },
  samples: readonly number[],
): {
  dirtyBytesPerSecond: number[];
  hot: DirtyWriter;
  deviceDirtyBytesPerSecond: number[];
  deviceHot: DirtyWriter;
} {
  const seen = ratesOf(counts);
  const all = seen.devices + seen.others;
  const of = (list: readonly Count[], rate: number): { samples: number[]; hot: DirtyWriter } => {
    const hot = dirtyWriter(list);
    return { samples: samples.map((s) => (all > 0 ? (s * hot.bytesPerSecond) / all : 0) * (rate > 0 ? 1 : 0)), hot };
  };
  const [others, devices] = [of(counts.others, seen.others), of(counts.devices, seen.devices)];
  return {
    dirtyBytesPerSecond: others.samples,
    hot: others.hot,
    deviceDirtyBytesPerSecond: devices.samples,
    deviceHot: devices.hot,
  };
}
