import { closeSync } from 'node:fs';
import { native, nativeSync, TowlineError } from '../errors.js';
import type { DirtySource, MemoryRange } from '../function/channel.js';
import { wrapDirtySource } from '../function/bridge.js';
import { binding } from '../native/api.js';
import type { NativeGuestMemory } from '../native/binding.js';

/** One range of guest memory and the file descriptor behind it. */
export interface MemoryRegion {
  /** First guest-physical address; a multiple of 4096. */
  gpa: bigint;
  /** Length in bytes; a multiple of 4096. */
  len: bigint;
  /** A file descriptor that can be mapped shared (a memfd, hugetlbfs, a file). It is duplicated: closing it stays with the caller. */
  fd: number;
  /** Where in the file the range begins; a multiple of 4096. Default 0. */
  fdOffset?: bigint;
  /**
   * Takes a descriptor that is not sealed against shrinking (`F_SEAL_SHRINK`): `/dev/shm` and plain files, which can't be sealed, memfds
   * that were not, and hugetlbfs with or without a seal, since an access fails there too where no huge page is left. Whoever can shrink such a file kills this process at its next access beyond the new end
   * (`SIGBUS`, which can't be caught here), and every guest that it holds. Only for files that nobody else may write. Default: false.
   */
  shrinkable?: boolean;
}

/** What the constructor takes in place of new memory; set within {@link GuestMemory.of} only. */
let adopting: NativeGuestMemory | undefined;

/**
 * The memory of one guest. Regions come and go while devices run; removing one drains the DMA into it first.
 *
 * Whoever writes guest memory without a dirty source of its own says so by {@link GuestMemory.markDirty}, after the write.
 */
export class GuestMemory {
  readonly #native: NativeGuestMemory;
  #marked: DirtySource | undefined;
  #closed = false;

  /** @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` for ranges that overlap or are not aligned. */
  constructor(regions: readonly MemoryRegion[] = []) {
    this.#native = adopting ?? nativeSync(() => new (binding().GuestMemory)());
    for (const region of regions) this.addRegion(region);
  }

  /** Anonymous memory of `lenBytes` from guest address 0, kept in a memfd. For rehearsals, and guests that are started here. */
  static anonymous(name: string, lenBytes: bigint): GuestMemory {
    const fd = nativeSync(() => binding().memfd(name, lenBytes));
    try {
      return new GuestMemory([{ gpa: 0n, len: lenBytes, fd }]);
    } finally {
      closeSync(fd);
    }
  }

  /** @internal Memory that native code has made. */
  static of(memory: NativeGuestMemory): GuestMemory {
    adopting = memory;
    try {
      return new GuestMemory();
    } finally {
      adopting = undefined;
    }
  }

  /**
   * Adds a range.
   * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` where it is not aligned, overlaps, ends beyond the file, or the file could
   * shrink and {@link MemoryRegion.shrinkable} does not take that; `ERR_TOWLINE_SYSTEM` where it can't be mapped.
   */
  addRegion(region: MemoryRegion): void {
    const { gpa, fd, len, fdOffset = 0n, shrinkable = false } = region;
    nativeSync(() => this.native().addRegion(gpa, fd, fdOffset, len, shrinkable));
  }

  /** Removes a range that was added, after the accesses under way have ended. */
  async removeRegion(gpa: bigint, len: bigint): Promise<void> {
    await native(() => this.native().removeRegion(gpa, len));
  }

  /** The ranges as they are now, ascending. */
  ranges(): readonly MemoryRange[] {
    return nativeSync(() => this.native().ranges());
  }

  /**
   * The ranges and the files that they lie in, ascending: for a VM's memory slots, and for whoever maps the same memory. The descriptors
   * stay this memory's: they are open until the range is removed or this is closed, and are never to be closed by who asked for them.
   */
  regions(): readonly (MemoryRegion & { fdOffset: bigint })[] {
    return nativeSync(() => this.native().regions());
  }

  /** Copies `len` bytes out. */
  read(gpa: bigint, len: number): Uint8Array {
    return nativeSync(() => this.native().read(gpa, len));
  }

  /**
   * Copies `data` in and marks the pages dirty.
   * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` also for memory that was passed by a source which still owns the guest.
   */
  write(gpa: bigint, data: Uint8Array): void {
    nativeSync(() => this.native().write(gpa, data));
  }

  /** `len` bytes from `gpa` were written by other means. Write first, then mark. */
  markDirty(gpa: bigint, len: bigint): void {
    nativeSync(() => this.native().markDirty(gpa, len));
  }

  /** The dirty source of {@link write} and {@link markDirty}. A migration of this memory uses it by itself. */
  markedSource(): DirtySource {
    this.#marked ??= wrapDirtySource(
      nativeSync(() => this.native().markedSource()),
      'marked',
    );
    return this.#marked;
  }

  /**
   * A new dirty source of what this process writes through **this object's own** mapping, told by the kernel: {@link write}, and device
   * models of this process whose memory it is. For whoever would rather not rely on marks; it takes Linux 6.7. What goes through another
   * mapping (KVM's and the VMM's, another process's) it does not see: see `processDirtySource`. One at a time tracks.
   */
  watchedSource(): DirtySource {
    return wrapDirtySource(nativeSync(() => this.native().watchedSource()));
  }

  /** The native object, for the rest of towline. */
  native(): NativeGuestMemory {
    if (this.#closed) throw new TowlineError('ERR_TOWLINE_CLOSED', 'this guest memory is closed');
    return this.#native;
  }

  /** Unmaps everything once no device uses it. Idempotent. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#native.close();
  }

  /** As {@link GuestMemory.close}. */
  [Symbol.dispose](): void {
    this.close();
  }
}
