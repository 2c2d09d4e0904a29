/**
 * The surroundings of the embedded controlling function: where a real one has sysfs and ioctls, this one has the model.
 */
import { resolve } from 'node:path';
import { throwIfAborted } from '../../abort.js';
import { native, nativeSync, TowlineError } from '../../errors.js';
import type { ExposureHandover, ExposureName, ExposeOptions, ExposureState, Visibility } from '../../function/types.js';
import type { EmbeddedController, NativeSubsystem } from '../../native/binding.js';
import type { NativeVfioUserOptions, NativeVfioUserServer, NativeVfioUserVacancy } from '../../native/host-binding.js';
import { NativeNvmeAdmin } from '../nvme/admin.js';
import type { NvmeBackend, NvmeControllerInfo } from '../nvme/backend.js';

/** A controller on a socket, or one that waits for a socket of another process. */
type Served =
  /** `awaited`: it came for a function that waited, was so served, and is not resumed yet. */
  | { readonly server: NativeVfioUserServer; awaited?: NativeVfioUserOptions | undefined }
  | { readonly vacancy: NativeVfioUserVacancy; readonly options: NativeVfioUserOptions };

/** See {@link NvmeBackend}. */
export class EmbeddedBackend implements NvmeBackend {
  readonly address: string;
  readonly admin: NativeNvmeAdmin;
  readonly limits: { readonly vf: number; readonly siov: number };
  readonly #subsystem: NativeSubsystem;
  readonly #closed: () => Promise<void>;
  readonly #served = new Map<number, Served>();
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
          if (this.#served.has(cntlid)) return;
          const options = filter === undefined ? {} : { filter: filter.toBytes() };
          if (handover !== undefined) {
            await this.#await(cntlid, options);
            if (handover === 'awaited') return;
            try {
              last = await this.#adopt(cntlid, handover);
            } catch (error) {
              await this.#hide(cntlid);
              throw error;
            }
            const served = this.#served.get(cntlid);
            if (served !== undefined && 'server' in served) served.awaited = undefined;
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
          this.#served.set(cntlid, { server });
          last = path;
        },
        detach: () => native(() => this.#server(cntlid).detach()),
        adopt: async (handover) => {
          last = await this.#adopt(cntlid, handover);
        },
        resume: async () => {
          await native(() => this.#server(cntlid).resume());
          const served = this.#served.get(cntlid);
          if (served !== undefined && 'server' in served) served.awaited = undefined;
        },
        surrender: () => native(() => this.#server(cntlid).surrender()),
        hide: () => this.#hide(cntlid),
      },
    };
  }

  async #await(cntlid: number, options: NativeVfioUserOptions): Promise<void> {
    const vacancy = await native(() => this.#subsystem.awaitVfioUser(cntlid, options));
    this.#served.set(cntlid, { vacancy, options });
  }

  /** Gives the path of the socket. */
  async #adopt(cntlid: number, { fds, bytes }: ExposureHandover): Promise<string> {
    const served = this.#served.get(cntlid);
    if (served === undefined || !('vacancy' in served))
      throw new TowlineError(
        'ERR_TOWLINE_EXPOSURE',
        `controller ${cntlid} awaits no connection: expose it with handover: 'awaited'`,
      );
    const server = await native(() => served.vacancy.adopt(fds, bytes));
    this.#served.set(cntlid, { server, awaited: served.options });
    return (JSON.parse(server.status()) as { path: string }).path;
  }

  async #hide(cntlid: number): Promise<void> {
    const served = this.#served.get(cntlid);
    if (served === undefined) return;
    if ('server' in served) await native(() => served.server.close());
    else nativeSync(() => served.vacancy.close());
    this.#served.delete(cntlid);
  }

  #server(cntlid: number): NativeVfioUserServer {
    const served = this.#served.get(cntlid);
    if (served !== undefined && 'server' in served) return served.server;
    throw new TowlineError('ERR_TOWLINE_STATE', `controller ${cntlid} is on no socket`);
  }

  /** Config space and interrupts that are not delivered, of a function on a socket. */
  exposureState(cntlid: number): ExposureState | undefined {
    const served = this.#served.get(cntlid);
    const format = served && ('server' in served ? served.server : served.vacancy).sectionFormat();
    if (served === undefined || typeof format !== 'string') return undefined;
    return {
      format,
      handover: 'server' in served ? 'possible' : 'awaited',
      save: async ({ signal } = {}) => {
        throwIfAborted(signal);
        return native(() => this.#server(cntlid).saveSection());
      },
      restore: async (section, { signal } = {}) => {
        throwIfAborted(signal);
        return native(() => this.#server(cntlid).restoreSection(section));
      },
      forget: async () => {
        const now = this.#served.get(cntlid);
        if (now === undefined || !('server' in now)) return;
        if (now.awaited === undefined) return native(() => now.server.forgetSection());
        await this.#hide(cntlid);
        await this.#await(cntlid, now.awaited);
      },
    };
  }

  async close(): Promise<void> {
    for (const cntlid of this.#served.keys()) await this.#hide(cntlid).catch(() => undefined);
    this.#served.clear();
    this.admin.close();
    await this.#closed();
  }
}
