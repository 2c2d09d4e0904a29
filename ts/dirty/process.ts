/**
 * The pages that this process wrote through mappings of its own, as the kernel noted them.
 */
import type { WaitOptions } from '../abort.js';
import { nativeSync } from '../errors.js';
import type { DirtySource } from '../function/channel.js';
import { NativeSource } from '../function/native-channel.js';
import { binding } from '../native/api.js';
import type { NativeProcessDirty } from '../native/dirty-binding.js';

/** Where a piece of guest memory is mapped in this process. */
export interface WatchedRange {
  /** First address in this process; as far into a page as `gpa` is. */
  address: bigint;
  /** Length in bytes, more than 0. What is not a whole page is told as one. */
  len: bigint;
  /** First guest-physical address. */
  gpa: bigint;
}

/** What a {@link ProcessDirtySource} is made of. */
export interface ProcessDirtyOptions {
  /**
   * Mappings of this process, all of each mapped and writable; that is checked against `/proc/self/maps`, and nothing else can be: wrong
   * addresses watch other memory, which costs its writers a page fault for each page and tells pages as dirty that are not.
   */
  ranges: readonly WatchedRange[];
}

/**
 * The dirty source of mappings of this process, for `dirtySources` of `migrate` and `MigrationSession`.
 *
 * It sees what any thread of this process writes through these addresses, the kernel on its behalf (`read`, `recv`) included. It does not see
 * what goes through another mapping of the same memory, what other processes write, DMA (direct I/O among it: mark that by
 * `GuestMemory.markDirty` once it is complete), or pages that are taken away (a hole punched, `MADV_REMOVE`). KVM writes guest memory through the
 * addresses that the VMM gave it: where they are watched here, this source sees vCPUs too, at the cost of an exit for each page.
 */
export interface ProcessDirtySource extends DirtySource {
  /**
   * A range that is mapped now. While tracking, all of it counts as written.
   * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT`, `ERR_TOWLINE_EXISTS`.
   */
  addRange(range: WatchedRange, options?: WaitOptions): Promise<void>;
  /**
   * A range, as it was given, that is about to be unmapped and that nobody writes any more: call it **before**, and await it. While tracking,
   * its last written pages are taken first. What is unmapped without this makes the next harvest fail with `ERR_TOWLINE_GONE`.
   * @throws TowlineError `ERR_TOWLINE_NOT_FOUND`.
   */
  removeRange(range: WatchedRange, options?: WaitOptions): Promise<void>;
  /** As `close`. */
  [Symbol.asyncDispose](): Promise<void>;
}

class Source extends NativeSource implements ProcessDirtySource {
  readonly #process: NativeProcessDirty;

  constructor(process: NativeProcessDirty) {
    super(nativeSync(() => process.source()));
    this.#process = process;
  }

  addRange(range: WatchedRange, options?: WaitOptions): Promise<void> {
    return this.queued(() => this.#process.addRange(range), options);
  }

  removeRange(range: WatchedRange, options?: WaitOptions): Promise<void> {
    return this.queued(() => this.#process.removeRange(range), options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * The dirty source of what this process writes through mappings of its own (userfaultfd write protection in asynchronous mode and
 * `PAGEMAP_SCAN`, Linux 6.7). Between `start` and `stop` the first write to each page after a harvest costs its thread about a microsecond.
 * A mapping that is registered with another userfaultfd can't be watched.
 *
 * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` for what is not mapped and writable here. `start` fails with `ERR_TOWLINE_UNSUPPORTED`
 * where the kernel can't do it, or does not let this process; the message says which.
 */
export function processDirtySource(options: ProcessDirtyOptions): ProcessDirtySource {
  return new Source(nativeSync(() => new (binding().ProcessDirty)([...options.ranges])));
}
