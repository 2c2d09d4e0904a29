/**
 * The dirty source of a device whose writes nobody tracks: not its own log, not the IOMMU. Every harvest is all of guest memory, so that what
 * it wrote last is sent in the stop. No source at all would read as a device that writes nothing.
 */
import type { DirtySource, MemoryRange } from '../../function/channel.js';

/** See the file's comment. */
export class UntrackedWrites implements DirtySource {
  #ranges: readonly MemoryRange[] = [];

  async start(ranges: readonly MemoryRange[], pageSizeBytes: number): Promise<number> {
    this.#ranges = [...ranges];
    return pageSizeBytes;
  }

  async harvest(): Promise<readonly MemoryRange[]> {
    return this.#ranges;
  }

  async stop(): Promise<void> {
    this.#ranges = [];
  }

  close(): Promise<void> {
    return this.stop();
  }
}
