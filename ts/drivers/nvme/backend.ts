/**
 * What of an NVMe controlling function is not an admin command: which functions its host sees, and how they come and go.
 */
import type { WaitOptions } from '../../abort.js';
import type {
  ExposureName,
  ExposureState,
  FunctionKind,
  FunctionLocation,
  Reason,
  Visibility,
} from '../../function/types.js';
import type { Claims } from '../host/claims.js';
import type { PoolGuard } from '../pool.js';
import type { VfioHandle } from '../vfio/handle.js';
import type { NvmeAdmin } from './admin.js';

/** One controller of the subsystem. */
export interface NvmeControllerInfo {
  /** Controller identifier. */
  readonly cntlid: number;
  readonly kind: FunctionKind;
  /** The one that commands the others; it is never migrated. */
  readonly controlling: boolean;
  /** CSTS.CFS: it failed, or is offline. */
  readonly fatal: boolean;
  /** CC.EN: a driver has set it going. */
  readonly enabled: boolean;
  /** I/O queue pairs that it has of its own, where none are assigned to it; 0 for a secondary controller. */
  readonly ownQueues: number;
  /** Vectors that it has of its own; 0 for a secondary controller. */
  readonly ownVectors: number;
}

/** Flexible resources that a function is about to be given. */
export interface NvmeWanted {
  /** Queue pairs, the admin queue included. */
  readonly vq: number;
  /** Interrupt vectors. */
  readonly vi: number;
}

/** The surroundings of one controlling function: sysfs and ioctls for a real one, the model for the embedded one. */
export interface NvmeBackend {
  /** For people, and for `open`. */
  readonly address: string;
  readonly admin: NvmeAdmin;
  /** The functions that can be provisioned at most. SIOV-like ones exist only once they were made, where they can be made. */
  readonly limits: { readonly vf: number; readonly siov: number };
  /** Every controller that exists now. */
  controllers(): Promise<readonly NvmeControllerInfo[]>;
  /**
   * Sizes the pool of VFs, once, so that one of them can be given `wanted`. Idempotent.
   * @returns what undoes it, where something was done and can be undone.
   */
  ensureVfs(wanted?: NvmeWanted, options?: WaitOptions): Promise<void | (() => Promise<void>)>;
  /** Makes a SIOV-like function, offline and with nothing assigned. Left out where those that exist are all there are. */
  createSiov?(): Promise<number>;
  /** Removes a SIOV-like function that was made; what it had returns to the pools. */
  removeSiov?(cntlid: number): Promise<void>;
  /** Function level reset, or what stands for it. */
  reset(cntlid: number): Promise<void>;
  /** Whether somebody has it, so that it is not free, whatever it was given. */
  isTaken?(cntlid: number): Promise<boolean>;
  /** Asks `guard` before VFs are destroyed. @internal */
  guardPool?(guard: PoolGuard): void;
  /** What is taken of the PCI functions of this host; other drivers of this process ask it, too. @internal */
  readonly claims?: Claims | undefined;
  /** Takes it from the other drivers of this process, at once. @returns whether none of them had it. */
  take?(cntlid: number): boolean;
  /** Undoes {@link NvmeBackend.take}. */
  drop?(cntlid: number): void;
  /** Whether another process has its VFIO device open. */
  isOpen?(cntlid: number): Promise<boolean>;
  /** Where it is on this host. */
  location?(cntlid: number): FunctionLocation | undefined;
  /** How it can be made visible. */
  visibility?(
    cntlid: number,
    migration: () => boolean,
  ): Readonly<Partial<Record<ExposureName, Visibility | string>>> | undefined;
  /** How it is visible now. */
  exposure?(cntlid: number): Promise<ExposureName>;
  /** What its exposure keeps of it now; `undefined` where that is nothing. */
  exposureState?(cntlid: number): ExposureState | undefined;
  /** The VFIO device that carries its state; `undefined` where the controlling function does, by Migration Send and Receive. @internal */
  migratesBy?(cntlid: number): VfioHandle | undefined;
  /** Closes that VFIO device for good: the function that had it is closed. */
  letGo?(cntlid: number): Promise<void>;
  /** Whether a VFIO driver of this kernel migrates it. */
  hasVariantDriver?(cntlid: number): Promise<boolean>;
  /** Why its place on this host keeps it from being migrated. */
  explain?(cntlid: number): Promise<readonly Reason[]>;
  /** Idempotent. */
  close(): Promise<void>;
}
