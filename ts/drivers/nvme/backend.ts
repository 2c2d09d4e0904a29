/**
 * What of an NVMe controlling function is not an admin command: which functions its host sees, and how they come and go.
 */
import type { FunctionKind } from '../../function/types.js';
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

/** The surroundings of one controlling function: sysfs and ioctls for a real one, the model for the embedded one. */
export interface NvmeBackend {
  /** For people, and for `open`. */
  readonly address: string;
  readonly admin: NvmeAdmin;
  /** The functions that can be provisioned at most. SIOV-like ones exist only once they were made. */
  readonly limits: { readonly vf: number; readonly siov: number };
  /** Every controller that exists now. */
  controllers(): Promise<readonly NvmeControllerInfo[]>;
  /** Sizes the pool of VFs, once. Idempotent. */
  ensureVfs(): Promise<void>;
  /** Makes a SIOV-like function, offline and with nothing assigned. */
  createSiov(): Promise<number>;
  /** Removes a SIOV-like function; what it had returns to the pools. */
  removeSiov(cntlid: number): Promise<void>;
  /** Function level reset, or what stands for it. */
  reset(cntlid: number): Promise<void>;
  /** Idempotent. */
  close(): Promise<void>;
}
