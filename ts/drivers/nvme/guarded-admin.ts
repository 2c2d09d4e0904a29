/**
 * Admin commands of a real controller: what it says that it does not have is not asked for. A command that fails is an error in its log, and
 * for monitoring a reason to worry.
 */
import type { DirtySource, StateChannel } from '../../function/channel.js';
import type {
  NvmeAdmin,
  NvmeIdentify,
  NvmeNamespace,
  NvmePrimaryCaps,
  NvmeResource,
  NvmeSecondary,
  NvmeStateFormats,
} from './admin.js';

/** See the file's comment. */
export class GuardedAdmin implements NvmeAdmin {
  readonly #admin: NvmeAdmin;
  readonly #has: NvmeIdentify;

  constructor(admin: NvmeAdmin, identify: NvmeIdentify) {
    this.#admin = admin;
    this.#has = identify;
  }

  identify(): Promise<NvmeIdentify> {
    return this.#admin.identify();
  }

  primaryCaps(): Promise<NvmePrimaryCaps> {
    return this.#admin.primaryCaps();
  }

  async secondaries(): Promise<NvmeSecondary[]> {
    return this.#has.virtualizationManagement ? this.#admin.secondaries() : [];
  }

  async stateFormats(): Promise<NvmeStateFormats> {
    return this.#has.hmlms ? this.#admin.stateFormats() : { versions: [], uuids: [] };
  }

  async namespaces(): Promise<NvmeNamespace[]> {
    return this.#has.namespaceManagement ? this.#admin.namespaces() : [];
  }

  offline(cntlid: number): Promise<void> {
    return this.#admin.offline(cntlid);
  }

  online(cntlid: number): Promise<void> {
    return this.#admin.online(cntlid);
  }

  assign(cntlid: number, resource: NvmeResource, count: number): Promise<number> {
    return this.#admin.assign(cntlid, resource, count);
  }

  allocatePrimary(cntlid: number, resource: NvmeResource, count: number): Promise<number> {
    return this.#admin.allocatePrimary(cntlid, resource, count);
  }

  attachNamespace(nsid: number, cntlid: number): Promise<void> {
    return this.#admin.attachNamespace(nsid, cntlid);
  }

  detachNamespace(nsid: number, cntlid: number): Promise<void> {
    return this.#admin.detachNamespace(nsid, cntlid);
  }

  /** What a device without migration lists nothing for, it is not asked for. */
  async hasRateLimit(): Promise<boolean> {
    return this.#has.hmlms && (await this.#admin.hasRateLimit?.()) === true;
  }

  async setRateLimit(cntlid: number, bytesPerSecond: bigint, commandsPerSecond: number): Promise<void> {
    await this.#admin.setRateLimit?.(cntlid, bytesPerSecond, commandsPerSecond);
  }

  async rateLimit(cntlid: number): Promise<{ bytesPerSecond: bigint; commandsPerSecond: number }> {
    return (await this.#admin.rateLimit?.(cntlid)) ?? { bytesPerSecond: 0n, commandsPerSecond: 0 };
  }

  stateChannel(cntlid: number): StateChannel {
    return this.#admin.stateChannel(cntlid);
  }

  dirtySource(cntlid: number): DirtySource {
    return this.#admin.dirtySource(cntlid);
  }
}
