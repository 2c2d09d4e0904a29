/**
 * The surroundings of the embedded controlling function: where a real one has sysfs and ioctls, this one has the model.
 */
import { native, nativeSync } from '../../errors.js';
import type { EmbeddedController, NativeSubsystem } from '../../native/binding.js';
import { NativeNvmeAdmin } from '../nvme/admin.js';
import type { NvmeBackend, NvmeControllerInfo } from '../nvme/backend.js';

/** I/O queue pairs and vectors of a PF, by the model's default (crates/nvme `SubsystemConfig`): 9 queue pairs, the admin queue included. */
const PF_QUEUES = 8;
const PF_VECTORS = 9;

/** See {@link NvmeBackend}. */
export class EmbeddedBackend implements NvmeBackend {
  readonly address: string;
  readonly admin: NativeNvmeAdmin;
  readonly limits: { readonly vf: number; readonly siov: number };
  readonly #subsystem: NativeSubsystem;
  readonly #closed: () => Promise<void>;
  #vfs = false;

  constructor(
    address: string,
    subsystem: NativeSubsystem,
    limits: { vf: number; siov: number },
    onClose: () => Promise<void>,
  ) {
    this.address = address;
    this.limits = limits;
    this.#subsystem = subsystem;
    this.#closed = onClose;
    this.admin = new NativeNvmeAdmin(nativeSync(() => subsystem.admin()));
  }

  async controllers(): Promise<readonly NvmeControllerInfo[]> {
    const all = JSON.parse(nativeSync(() => this.#subsystem.controllers())) as EmbeddedController[];
    return all.map(({ cntlid, kind, controlling, fatal, enabled }) => ({
      cntlid,
      kind,
      controlling,
      fatal,
      enabled,
      ownQueues: kind === 'pf' ? PF_QUEUES : 0,
      ownVectors: kind === 'pf' ? PF_VECTORS : 0,
    }));
  }

  async ensureVfs(): Promise<void> {
    if (this.#vfs || this.limits.vf === 0) return;
    // The number of VFs changes from 0 only, as in sysfs: the pool gets its full size at once.
    nativeSync(() => this.#subsystem.setNumVfs(this.limits.vf));
    this.#vfs = true;
  }

  async createSiov(): Promise<number> {
    return nativeSync(() => this.#subsystem.createSiov());
  }

  async removeSiov(cntlid: number): Promise<void> {
    nativeSync(() => this.#subsystem.removeSiov(cntlid));
  }

  reset(cntlid: number): Promise<void> {
    return native(() => this.#subsystem.flr(cntlid));
  }

  async close(): Promise<void> {
    this.admin.close();
    await this.#closed();
  }
}
