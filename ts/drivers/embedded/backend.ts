/**
 * The surroundings of the embedded controlling function: where a real one has sysfs and ioctls, this one has the model.
 */
import { native, nativeSync } from '../../errors.js';
import type { EmbeddedController, NativeSubsystem } from '../../native/binding.js';
import { NativeNvmeAdmin } from '../nvme/admin.js';
import type { NvmeBackend, NvmeControllerInfo } from '../nvme/backend.js';

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
    return all.map(({ cntlid, kind, controlling, fatal, enabled, queues, vectors }) => ({
      cntlid,
      kind,
      controlling,
      fatal,
      enabled,
      // The model counts the admin queue. What a secondary controller has was assigned to it, and is not its own.
      ownQueues: kind === 'pf' ? Math.max(0, queues - 1) : 0,
      ownVectors: kind === 'pf' ? vectors : 0,
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
