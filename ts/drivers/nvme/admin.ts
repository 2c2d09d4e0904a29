/**
 * Typed admin commands of an NVMe controlling function (NVMe Base 2.1: Identify, Virtualization Management, Namespace
 * Attachment, Migration Send and Receive, Track Send and Receive). Only the transport behind them differs: an ioctl on
 * a real device, the admin queue of the embedded one.
 */
import { wrapDirtySource, wrapStateChannel } from '../../function/bridge.js';
import type { DirtySource, StateChannel } from '../../function/channel.js';
import { native, nativeSync } from '../../errors.js';
import type {
  NativeAdmin,
  NvmeIdentify,
  NvmeNamespace,
  NvmePrimaryCaps,
  NvmeSecondary,
  NvmeStateFormats,
} from '../../native/binding.js';

export type {
  NvmeIdentify,
  NvmeNamespace,
  NvmePrimaryCaps,
  NvmeSecondary,
  NvmeStateFormats,
} from '../../native/binding.js';

/** The two flexible resources of a controller: queue pairs (VQ, admin included) and interrupt vectors (VI). */
export type NvmeResource = 'vq' | 'vi';

/** What the `nvme` driver asks of a controlling function. */
export interface NvmeAdmin {
  /** Identify Controller, CNS 01h. */
  identify(): Promise<NvmeIdentify>;
  /** Primary Controller Capabilities, CNS 14h. */
  primaryCaps(): Promise<NvmePrimaryCaps>;
  /** Secondary Controller List, CNS 15h. */
  secondaries(): Promise<NvmeSecondary[]>;
  /** Supported Controller State Formats, CNS 20h. */
  stateFormats(): Promise<NvmeStateFormats>;
  /** Every namespace with the controllers it is attached to. */
  namespaces(): Promise<NvmeNamespace[]>;
  /** Virtualization Management, ACT 7h. Drops what is assigned. */
  offline(cntlid: number): Promise<void>;
  /** Virtualization Management, ACT 9h. */
  online(cntlid: number): Promise<void>;
  /** Virtualization Management, ACT 8h; returns how many there are now (NRM), which may differ from `count`. */
  assign(cntlid: number, resource: NvmeResource, count: number): Promise<number>;
  /**
   * Virtualization Management, ACT 1h, to the primary controller `cntlid`: how many flexible resources it has itself after its next reset.
   * Returns how many it will have (NRM).
   */
  allocatePrimary(cntlid: number, resource: NvmeResource, count: number): Promise<number>;
  /** Namespace Attachment, SEL 0. */
  attachNamespace(nsid: number, cntlid: number): Promise<void>;
  /** Namespace Attachment, SEL 1. */
  detachNamespace(nsid: number, cntlid: number): Promise<void>;
  /** Whether the device has the vendor specific feature that limits rates, as the embedded subsystem has. Left out: it has not. */
  hasRateLimit?(): Promise<boolean>;
  /** Limits what a controlled function does in a second; 0 for no limit. */
  setRateLimit?(cntlid: number, bytesPerSecond: bigint, commandsPerSecond: number): Promise<void>;
  /** What was set; 0 for no limit. */
  rateLimit?(cntlid: number): Promise<{ bytesPerSecond: bigint; commandsPerSecond: number }>;
  /** Device state of a controlled function by Migration Send and Receive. */
  stateChannel(cntlid: number): StateChannel;
  /** Its writes to guest memory by Track Send and Receive. */
  dirtySource(cntlid: number): DirtySource;
}

/** {@link NvmeAdmin} over the native part. */
export class NativeNvmeAdmin implements NvmeAdmin {
  readonly #handle: NativeAdmin;

  constructor(handle: NativeAdmin) {
    this.#handle = handle;
  }

  /** Native code made the JSON; its shape is part of the private native surface. */
  async #json<T>(call: () => Promise<string>): Promise<T> {
    return JSON.parse(await native(call)) as T;
  }

  identify(): Promise<NvmeIdentify> {
    return this.#json(() => this.#handle.identify(null));
  }

  primaryCaps(): Promise<NvmePrimaryCaps> {
    return this.#json(() => this.#handle.primaryCaps());
  }

  secondaries(): Promise<NvmeSecondary[]> {
    return this.#json(() => this.#handle.secondaryList());
  }

  stateFormats(): Promise<NvmeStateFormats> {
    return this.#json(() => this.#handle.stateFormats());
  }

  namespaces(): Promise<NvmeNamespace[]> {
    return this.#json(() => this.#handle.namespaces());
  }

  async offline(cntlid: number): Promise<void> {
    // The resource and the count mean nothing to this action.
    await native(() => this.#handle.virtualizationManage('offline', cntlid, 'vq', 0));
  }

  async online(cntlid: number): Promise<void> {
    await native(() => this.#handle.virtualizationManage('online', cntlid, 'vq', 0));
  }

  assign(cntlid: number, resource: NvmeResource, count: number): Promise<number> {
    return native(() => this.#handle.virtualizationManage('assign', cntlid, resource, count));
  }

  allocatePrimary(cntlid: number, resource: NvmeResource, count: number): Promise<number> {
    return native(() => this.#handle.virtualizationManage('primary', cntlid, resource, count));
  }

  attachNamespace(nsid: number, cntlid: number): Promise<void> {
    return native(() => this.#handle.attachNamespace(nsid, [cntlid]));
  }

  detachNamespace(nsid: number, cntlid: number): Promise<void> {
    return native(() => this.#handle.detachNamespace(nsid, [cntlid]));
  }

  hasRateLimit(): Promise<boolean> {
    return native(() => this.#handle.hasRateLimit());
  }

  async setRateLimit(cntlid: number, bytesPerSecond: bigint, commandsPerSecond: number): Promise<void> {
    await native(() => this.#handle.setRateLimit(cntlid, bytesPerSecond, commandsPerSecond));
  }

  async rateLimit(cntlid: number): Promise<{ bytesPerSecond: bigint; commandsPerSecond: number }> {
    type Limit = { bytesPerSecond: string; commandsPerSecond: number };
    const limit = await this.#json<Limit>(() => this.#handle.rateLimit(cntlid));
    return { ...limit, bytesPerSecond: BigInt(limit.bytesPerSecond) };
  }

  stateChannel(cntlid: number): StateChannel {
    return wrapStateChannel(nativeSync(() => this.#handle.stateChannel(cntlid)));
  }

  dirtySource(cntlid: number): DirtySource {
    return wrapDirtySource(nativeSync(() => this.#handle.dirtySource(cntlid)));
  }

  /** Idempotent. */
  close(): void {
    nativeSync(() => this.#handle.close());
  }
}
