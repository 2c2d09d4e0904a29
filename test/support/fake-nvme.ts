/** An NVMe subsystem in memory that counts its calls and fails the one it is told to: no device, only its rules. */
import { TowlineError } from '#towline/errors.js';
import type { DirtySource, StateChannel } from '#towline/function/channel.js';
import type {
  NvmeAdmin,
  NvmeIdentify,
  NvmeNamespace,
  NvmePrimaryCaps,
  NvmeSecondary,
  NvmeStateFormats,
} from '#towline/drivers/nvme.js';
import type { NvmeBackend, NvmeControllerInfo } from '#towline/drivers/nvme.js';
import type { FunctionKind } from '#towline/function/types.js';
import { MemoryDevice } from './memory-device.js';

interface Controller {
  kind: FunctionKind;
  controlling: boolean;
  online: boolean;
  vq: number;
  vi: number;
  vfNumber: number;
}

/** What is compared before and after: everything that a step may change. */
export interface Snapshot {
  controllers: [number, Controller][];
  attachments: [number, number[]][];
  poolVq: number;
  poolVi: number;
}

export class FakeNvme implements NvmeBackend, NvmeAdmin {
  readonly address = 'fake:0';
  readonly limits = { vf: 2, siov: 2 };
  readonly admin: NvmeAdmin = this;
  readonly log: string[] = [];
  /** Fails the call with this index (from 0) among those that change something. */
  failAt = -1;
  /** How far below what is asked an assignment stays. */
  short = 0;
  hmlms = true;
  trackMemory = true;
  fatal = false;
  #changes = 0;
  #next = 100;
  #poolVq = 16;
  #poolVi = 16;
  readonly #controllers = new Map<number, Controller>([
    [1, { kind: 'pf', controlling: true, online: true, vq: 0, vi: 0, vfNumber: 0 }],
    [2, { kind: 'pf', controlling: false, online: true, vq: 0, vi: 0, vfNumber: 0 }],
  ]);
  readonly #attached = new Map<number, Set<number>>([
    [1, new Set()],
    [2, new Set()],
  ]);

  snapshot(): Snapshot {
    return structuredClone({
      controllers: [...this.#controllers],
      attachments: [...this.#attached].map(([nsid, set]): [number, number[]] => [nsid, [...set].sort()]),
      poolVq: this.#poolVq,
      poolVi: this.#poolVi,
    });
  }

  get changes(): number {
    return this.#changes;
  }

  #change(what: string): void {
    this.log.push(what);
    const index = this.#changes++;
    if (index === this.failAt)
      throw new TowlineError('ERR_TOWLINE_DEVICE', `${what} fails on purpose`, { nvmeStatus: 0x0006 });
  }

  #secondary(cntlid: number): Controller {
    const controller = this.#controllers.get(cntlid);
    if (controller === undefined || controller.kind === 'pf')
      throw new TowlineError('ERR_TOWLINE_DEVICE', `${cntlid} is no secondary`, { nvmeStatus: 0x011f });
    return controller;
  }

  async identify(): Promise<NvmeIdentify> {
    return {
      cntlid: 1,
      subnqn: 'nqn.2014-08.org.nvmexpress:uuid:fake',
      serialNumber: 'FAKE',
      modelNumber: 'Fake',
      firmwareRevision: '1',
      version: '2.1',
      mdtsBytes: 131_072,
      hmlms: this.hmlms,
      virtualizationManagement: true,
      namespaceManagement: true,
      trackMemory: this.trackMemory,
      maxNamespaces: 16,
    };
  }

  async primaryCaps(): Promise<NvmePrimaryCaps> {
    const one = {
      flexibleTotal: 16,
      flexibleAssigned: 0,
      flexibleToPrimary: 0,
      privateToPrimary: 9,
      maxPerSecondary: 9,
      granularity: 1,
    };
    return { vq: one, vi: one };
  }

  async secondaries(): Promise<NvmeSecondary[]> {
    return [...this.#controllers]
      .filter(([, c]) => c.kind !== 'pf')
      .map(([cntlid, { online, vq, vi, vfNumber }]) => ({ cntlid, primaryCntlid: 1, online, vfNumber, vq, vi }));
  }

  async stateFormats(): Promise<NvmeStateFormats> {
    return this.hmlms ? { versions: [0], uuids: [] } : { versions: [], uuids: [] };
  }

  async namespaces(): Promise<NvmeNamespace[]> {
    return [...this.#attached].map(([nsid, set]) => ({
      nsid,
      sizeBytes: '1048576',
      lbaSizeBytes: 4096,
      nguid: `0000000000000000000000000000000${nsid}`,
      uuid: `00000000-0000-4000-8000-00000000000${nsid}`,
      shared: true,
      attached: [...set],
    }));
  }

  async offline(cntlid: number): Promise<void> {
    this.#change(`offline ${cntlid}`);
    const c = this.#secondary(cntlid);
    this.#poolVq += c.vq;
    this.#poolVi += c.vi;
    Object.assign(c, { online: false, vq: 0, vi: 0 });
  }

  async online(cntlid: number): Promise<void> {
    this.#change(`online ${cntlid}`);
    const c = this.#secondary(cntlid);
    if (c.vq < 2 || c.vi < 1)
      throw new TowlineError('ERR_TOWLINE_DEVICE', 'too few resources to be online', { nvmeStatus: 0x0120 });
    c.online = true;
  }

  async assign(cntlid: number, resource: 'vq' | 'vi', count: number): Promise<number> {
    this.#change(`assign ${cntlid} ${resource} ${count}`);
    const c = this.#secondary(cntlid);
    if (c.online)
      throw new TowlineError('ERR_TOWLINE_DEVICE', 'assigning to an online controller', { nvmeStatus: 0x0120 });
    const pool = resource === 'vq' ? this.#poolVq + c.vq : this.#poolVi + c.vi;
    const got = Math.max(0, Math.min(count - (count > 0 ? this.short : 0), pool));
    if (resource === 'vq') [this.#poolVq, c.vq] = [pool - got, got];
    else [this.#poolVi, c.vi] = [pool - got, got];
    return got;
  }

  async allocatePrimary(cntlid: number, resource: 'vq' | 'vi', count: number): Promise<number> {
    this.#change(`primary ${cntlid} ${resource} ${count}`);
    return count;
  }

  async attachNamespace(nsid: number, cntlid: number): Promise<void> {
    this.#change(`attach ${nsid} ${cntlid}`);
    this.#attached.get(nsid)?.add(cntlid);
  }

  async detachNamespace(nsid: number, cntlid: number): Promise<void> {
    this.#change(`detach ${nsid} ${cntlid}`);
    this.#attached.get(nsid)?.delete(cntlid);
  }

  stateChannel(): StateChannel {
    return new MemoryDevice().channel;
  }

  dirtySource(): DirtySource {
    return new MemoryDevice().source;
  }

  async controllers(): Promise<NvmeControllerInfo[]> {
    return [...this.#controllers].map(([cntlid, { kind, controlling }]) => ({
      cntlid,
      kind,
      controlling,
      fatal: this.fatal,
      enabled: false,
      ownQueues: kind === 'pf' ? 8 : 0,
      ownVectors: kind === 'pf' ? 9 : 0,
    }));
  }

  async ensureVfs(): Promise<void> {
    if (this.#controllers.has(11)) return;
    for (const n of [1, 2]) {
      this.#controllers.set(10 + n, { kind: 'vf', controlling: false, online: false, vq: 0, vi: 0, vfNumber: n });
    }
  }

  async createSiov(): Promise<number> {
    this.#change('create siov');
    const cntlid = this.#next++;
    this.#controllers.set(cntlid, { kind: 'siov', controlling: false, online: false, vq: 0, vi: 0, vfNumber: 0 });
    return cntlid;
  }

  async removeSiov(cntlid: number): Promise<void> {
    this.#change(`remove siov ${cntlid}`);
    if (this.#controllers.get(cntlid)?.online) throw new TowlineError('ERR_TOWLINE_DEVICE', 'it is online');
    this.#controllers.delete(cntlid);
  }

  async reset(cntlid: number): Promise<void> {
    this.#change(`reset ${cntlid}`);
  }

  async close(): Promise<void> {
    this.log.push('close');
  }
}
