/**
 * The surroundings of the embedded controlling function: where a real one has sysfs and ioctls, this one has the model.
 */
import { resolve } from 'node:path';
import { throwIfAborted } from '../../abort.js';
import { native, nativeSync, TowlineError } from '../../errors.js';
import type { ExposureName, ExposeOptions, ExposureState, Visibility } from '../../function/types.js';
import type { EmbeddedController, NativeSubsystem } from '../../native/binding.js';
import type { NativeVfioUserServer } from '../../native/host-binding.js';
import { NativeNvmeAdmin } from '../nvme/admin.js';
import type { NvmeBackend, NvmeControllerInfo } from '../nvme/backend.js';

/** See {@link NvmeBackend}. */
export class EmbeddedBackend implements NvmeBackend {
  readonly address: string;
  readonly admin: NativeNvmeAdmin;
  readonly limits: { readonly vf: number; readonly siov: number };
  readonly #subsystem: NativeSubsystem;
  readonly #closed: () => Promise<void>;
  readonly #servers = new Map<number, { server: NativeVfioUserServer; path: string }>();
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

  /** Its socket is the only way for others to see a function of a subsystem in this process. */
  visibility(cntlid: number): Readonly<Partial<Record<ExposureName, Visibility | string>>> {
    let last: string | undefined;
    return {
      'vfio-user': {
        show: async ({ socketPath = last, filter, handover }: ExposeOptions = {}) => {
          if (this.#servers.has(cntlid)) return;
          const options = filter === undefined ? {} : { filter: filter.toBytes() };
          if (handover !== undefined) {
            const { fds, bytes } = handover;
            const server = await native(() => this.#subsystem.adoptVfioUser(cntlid, fds, bytes, options));
            const { path } = JSON.parse(server.status()) as { path: string };
            this.#servers.set(cntlid, { server, path });
            last = path;
            return;
          }
          if (socketPath === undefined) {
            throw new TowlineError(
              'ERR_TOWLINE_INVALID_ARGUMENT',
              'exposure vfio-user needs the path of a socket: socketPath, or --vfio-user PATH',
            );
          }
          const path = resolve(socketPath);
          const server = await native(() => this.#subsystem.exposeVfioUser(cntlid, path, options));
          this.#servers.set(cntlid, { server, path });
          last = path;
        },
        detach: () => native(() => this.#server(cntlid).detach()),
        resume: () => native(() => this.#server(cntlid).resume()),
        surrender: () => native(() => this.#server(cntlid).surrender()),
        hide: async () => {
          const served = this.#servers.get(cntlid);
          if (served === undefined) return;
          await native(() => served.server.close());
          this.#servers.delete(cntlid);
        },
      },
    };
  }

  #server(cntlid: number): NativeVfioUserServer {
    const served = this.#servers.get(cntlid);
    if (served !== undefined) return served.server;
    throw new TowlineError('ERR_TOWLINE_STATE', `controller ${cntlid} is on no socket`);
  }

  /** Config space and interrupts that are not delivered, of a function on a socket. */
  exposureState(cntlid: number): ExposureState | undefined {
    const server = this.#servers.get(cntlid)?.server;
    const format = server?.sectionFormat() ?? undefined;
    if (server === undefined || format === undefined) return undefined;
    return {
      format,
      save: async ({ signal } = {}) => {
        throwIfAborted(signal);
        return native(() => server.saveSection());
      },
      restore: async (section, { signal } = {}) => {
        throwIfAborted(signal);
        return native(() => server.restoreSection(section));
      },
      forget: () => native(() => server.forgetSection()),
    };
  }

  async close(): Promise<void> {
    for (const { server } of this.#servers.values()) await native(() => server.close()).catch(() => undefined);
    this.#servers.clear();
    this.admin.close();
    await this.#closed();
  }
}
