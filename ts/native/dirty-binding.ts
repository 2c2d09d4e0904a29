/**
 * The part of the native addon's surface that is about dirty sources over memory of this process. Conventions as in `./binding.ts`.
 */
import type { NativeDirtySource } from './binding.js';

/** See `KvmSlot` in `../dirty/kvm.ts`. */
export interface NativeKvmSlot {
  slot: number;
  gpa: bigint;
  len: bigint;
  userspaceAddr: bigint;
  flags: number;
}

/** A KVM virtual machine whose vCPUs' writes are tracked. */
export interface NativeKvmDirty {
  /** The source. Once. */
  source(): NativeDirtySource;
  fullEventFd(): number | null;
  addSlot(slot: NativeKvmSlot): Promise<void>;
  removeSlot(slot: number, quiesced: boolean): Promise<void>;
  close(): void;
}

/** See `WatchedRange` in `../dirty/process.ts`. */
export interface NativeWatchedRange {
  address: bigint;
  len: bigint;
  gpa: bigint;
}

/** Mappings of this process that are watched for writes. */
export interface NativeProcessDirty {
  /** The source. Once. */
  source(): NativeDirtySource;
  addRange(range: NativeWatchedRange): Promise<void>;
  removeRange(range: NativeWatchedRange): Promise<void>;
}

/** What of `NativeBinding` makes dirty sources. */
export interface NativeDirtyBinding {
  ProcessDirty: new (ranges: NativeWatchedRange[]) => NativeProcessDirty;
  KvmDirty: new (
    vmFd: number,
    slots: NativeKvmSlot[],
    ring: { vcpuFds: number[]; entries?: number } | null,
    manualProtect: boolean,
  ) => NativeKvmDirty;
}
