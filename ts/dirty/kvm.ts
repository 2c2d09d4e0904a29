/**
 * The pages that a KVM virtual machine's vCPUs wrote, by KVM's dirty log or its dirty rings.
 */
import type { WaitOptions } from '../abort.js';
import { nativeSync } from '../errors.js';
import type { DirtySource } from '../function/channel.js';
import { NativeSource } from '../function/native-channel.js';
import { binding } from '../native/api.js';
import type { NativeKvmDirty, NativeKvmSlot } from '../native/dirty-binding.js';

/** A memory slot as the VMM gave it to KVM by `KVM_SET_USER_MEMORY_REGION`. */
export interface KvmSlot {
  /** Number of the slot, with its address space in bits 16 to 31. */
  slot: number;
  /** First guest-physical address; a multiple of 4096. */
  gpa: bigint;
  /** Length in bytes; a multiple of 4096, less than 8 TiB. */
  len: bigint;
  /**
   * `userspace_addr` of the slot: where in this process its memory is mapped. Exactly what KVM was given: another address, and what
   * the flag is switched on for may be another slot, or a new one. What can be checked is: the memory is mapped here, all of it.
   */
  userspaceAddr: bigint;
  /**
   * `flags` of the slot. Default 0. With `KVM_MEM_LOG_DIRTY_PAGES` (1) the VMM has switched logging on itself: towline then leaves
   * the flag alone, and nobody else may read this slot's log. A slot with `KVM_MEM_READONLY` (2) is never written by a vCPU, and so not
   * tracked. Others are refused.
   */
  flags?: number;
}

/** Dirty rings, one a vCPU (`KVM_CAP_DIRTY_LOG_RING` or `KVM_CAP_DIRTY_LOG_RING_ACQ_REL`), which the VMM enabled before its first vCPU. */
export interface KvmRing {
  /** File descriptors of all vCPUs. They are duplicated. */
  ring: readonly number[];
  /** Entries of each ring, to be checked; KVM's own number is found out anyway. */
  entries?: number;
}

/** What a {@link KvmDirtySource} is made of. */
export interface KvmDirtyOptions {
  /** The VM's file descriptor, made by **this** process: KVM refuses its ioctls anywhere else. It is duplicated, and the VM lives until `close`. */
  vmFd: number;
  /** Every slot that vCPUs may write. */
  slots: readonly KvmSlot[];
  /** `log`, or the rings of all vCPUs. Default: `log`. A VM has one or the other. */
  mode?: 'log' | KvmRing;
  /**
   * Enable `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` with `KVM_DIRTY_LOG_INITIALLY_SET` where KVM has it: writes are then watched for again in
   * pieces of 128 MiB, and not for all of a slot under one lock. It stays on for the VM. `false` leaves the VM's setting alone, for a
   * VMM that also reads logs of other slots and has its own mind about it; the harvest is right either way. Default: true. With rings it is
   * enabled without `KVM_DIRTY_LOG_INITIALLY_SET` in any case: rings would miss what vCPUs have mapped already.
   */
  manualProtect?: boolean;
}

/**
 * The dirty source of a VM's vCPUs, for `dirtySources` of `migrate` and `MigrationSession`. One at a time for a VM.
 *
 * It sees what vCPUs write, and what KVM writes on behalf of one. It does not see what the VMM's own threads write through their
 * mapping (`processDirtySource`, `GuestMemory.markDirty`), nor what devices write.
 */
export interface KvmDirtySource extends DirtySource {
  /**
   * An eventfd, in ring mode. A vCPU's thread whose `KVM_RUN` ended with `KVM_EXIT_DIRTY_RING_FULL` (31) writes 8 bytes of it, the number
   * 1, and enters the guest again: towline empties the rings, and until then KVM refuses to run it with the same exit. Belongs to this
   * object: it is closed by `close`, so native code duplicates it.
   */
  readonly fullEventFd: number | undefined;
  /**
   * A slot that the VMM has just given to KVM. While tracking, all of its memory counts as written.
   * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT`, `ERR_TOWLINE_EXISTS` where the number or a part of the memory is taken.
   */
  addSlot(slot: KvmSlot, options?: WaitOptions): Promise<void>;
  /**
   * A slot that the VMM is about to take away or to change: call it **before**, and await it. While tracking, its last written pages are
   * taken first; as vCPUs may write between that and the VMM's own call, all of the slot then counts as written, unless `quiesced`
   * says that no vCPU runs until the slot is gone.
   * @throws TowlineError `ERR_TOWLINE_NOT_FOUND`.
   */
  removeSlot(slot: number, options?: WaitOptions & { quiesced?: boolean }): Promise<void>;
  /** As `close`. */
  [Symbol.asyncDispose](): Promise<void>;
}

class Source extends NativeSource implements KvmDirtySource {
  readonly fullEventFd: number | undefined;
  readonly #kvm: NativeKvmDirty;

  constructor(kvm: NativeKvmDirty) {
    super(
      nativeSync(() => kvm.source()),
      'kvm',
    );
    this.#kvm = kvm;
    this.fullEventFd = nativeSync(() => kvm.fullEventFd()) ?? undefined;
  }

  addSlot(slot: KvmSlot, options?: WaitOptions): Promise<void> {
    return this.queued(() => this.#kvm.addSlot(nativeSlot(slot)), options);
  }

  removeSlot(slot: number, options: WaitOptions & { quiesced?: boolean } = {}): Promise<void> {
    return this.queued(() => this.#kvm.removeSlot(slot, options.quiesced ?? false), options);
  }

  override async close(): Promise<void> {
    await super.close();
    nativeSync(() => this.#kvm.close());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function nativeSlot({ slot, gpa, len, userspaceAddr, flags = 0 }: KvmSlot): NativeKvmSlot {
  return { slot, gpa, len, userspaceAddr, flags };
}

/**
 * The dirty source of a KVM virtual machine that this process made. Nothing is tracked before `start`, which switches
 * `KVM_MEM_LOG_DIRTY_PAGES` on for the slots that it is asked for; `stop` and `close` switch it off again.
 *
 * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` for slots that can't be, or whose memory is not mapped here;
 * `ERR_TOWLINE_UNSUPPORTED` where `vmFd` is no VM of this process, or the VM has not the mode that is asked for.
 */
export function kvmDirtySource(options: KvmDirtyOptions): KvmDirtySource {
  const { vmFd, slots, mode = 'log', manualProtect = true } = options;
  const ring =
    mode === 'log'
      ? null
      : { vcpuFds: [...mode.ring], ...(mode.entries === undefined ? {} : { entries: mode.entries }) };
  return new Source(nativeSync(() => new (binding().KvmDirty)(vmFd, slots.map(nativeSlot), ring, manualProtect)));
}
