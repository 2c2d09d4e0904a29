/**
 * An NVMe PF with SR-IOV as QEMU has it (hw/nvme/ctrl.c), behind passthrough: every flexible resource is the PF's own until it gives them up and
 * is reset, each VF has a secondary controller whether the VF exists or not, and going offline drops what it had.
 */
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
import { FakeHost, pci } from './fake-host.js';
import { MemoryDevice } from './memory-device.js';

const PF = '0000:01:00.0';
const NQN = 'nqn.2019-08.org.qemu:abc';

interface Secondary {
  cntlid: number;
  vfNumber: number;
  online: boolean;
  vq: number;
  vi: number;
}

function status(what: string, nvmeStatus: number): TowlineError {
  return new TowlineError('ERR_TOWLINE_DEVICE', `${what} (status ${nvmeStatus.toString(16)})`, { nvmeStatus });
}

/** A host with such a PF, and QEMU's igb beside it. */
export class FakeNvmeHost extends FakeHost implements NvmeAdmin {
  hmlms = false;
  virtualizationManagement = true;
  /** The call that the next fault hits is one of the host's or one of the controller's. */
  readonly total = { vq: 8, vi: 4 };
  ofPrimary = { vq: 8, vi: 4 };
  #next: { vq: number; vi: number } | undefined;
  readonly secondary: Secondary[] = [1, 2, 3, 4].map((n) => ({ cntlid: n, vfNumber: n, online: false, vq: 0, vi: 0 }));
  readonly attached = new Map<number, Set<number>>([[1, new Set([0])]]);

  constructor() {
    super(
      pci(PF, {
        vendor: 0x1b36,
        device: 0x0010,
        class: 0x010802,
        driver: 'nvme',
        sriov: {
          totalVfs: 4,
          numVfs: 0,
          driversAutoprobe: true,
          offset: 1,
          stride: 1,
          vfDevice: 0x0010,
          vfTotalMsix: null,
        },
        nvme: { name: 'nvme0', cntlid: 0, subsystemNqn: NQN, state: 'live' },
      }),
    );
    this.kernelDrivers = new Map([[0x0010, 'nvme']]);
    this.nvme = this;
    this.onReset = (address) => {
      if (address === PF) this.#resetPrimary();
    };
    this.onNumVfs = (_, count) => {
      for (const s of this.secondary) if (s.vfNumber > count) this.#drop(s);
    };
  }

  /** Clears what a Controller Reset does not: the resources that it has are those that were allocated, and every secondary is offline. */
  #resetPrimary(): void {
    if (this.#next !== undefined) this.ofPrimary = this.#next;
    this.#next = undefined;
    for (const s of this.secondary) this.#drop(s);
  }

  override snapshot(): unknown {
    return structuredClone({
      host: super.snapshot(),
      secondary: this.secondary,
      ofPrimary: this.ofPrimary,
      attached: [...this.attached].map(([nsid, set]) => [nsid, [...set].sort()]),
    });
  }

  #find(cntlid: number): Secondary {
    const found = this.secondary.find((s) => s.cntlid === cntlid);
    if (found === undefined) throw status(`there is no secondary controller ${cntlid}`, 0x11f);
    return found;
  }

  #drop(s: Secondary): void {
    Object.assign(s, { online: false, vq: 0, vi: 0 });
  }

  #free(resource: 'vq' | 'vi'): number {
    return this.total[resource] - this.ofPrimary[resource] - this.secondary.reduce((sum, s) => sum + s[resource], 0);
  }

  async identify(): Promise<NvmeIdentify> {
    this.command('identify');
    return {
      cntlid: 0,
      subnqn: NQN,
      serialNumber: 'abc',
      modelNumber: 'QEMU NVMe Ctrl',
      firmwareRevision: '11.1',
      version: '1.4',
      mdtsBytes: 524_288,
      hmlms: this.hmlms,
      virtualizationManagement: this.virtualizationManagement,
      namespaceManagement: true,
      trackMemory: this.hmlms,
      maxNamespaces: 256,
    };
  }

  async primaryCaps(): Promise<NvmePrimaryCaps> {
    this.command('primary caps');
    const caps = (resource: 'vq' | 'vi', privateToPrimary: number): NvmePrimaryCaps['vq'] => ({
      flexibleTotal: this.total[resource],
      flexibleAssigned: this.secondary.reduce((sum, s) => sum + s[resource], 0),
      flexibleToPrimary: this.ofPrimary[resource],
      privateToPrimary,
      maxPerSecondary: this.total[resource],
      granularity: 1,
    });
    return { vq: caps('vq', 19), vi: caps('vi', 16) };
  }

  async secondaries(): Promise<NvmeSecondary[]> {
    this.command('secondaries');
    if (!this.virtualizationManagement) throw status('Identify', 0x2);
    return this.secondary.map((s) => ({ ...s, primaryCntlid: 0 }));
  }

  async stateFormats(): Promise<NvmeStateFormats> {
    this.command('state formats');
    if (!this.hmlms) throw status('Identify', 0x2);
    return { versions: [0], uuids: [] };
  }

  async namespaces(): Promise<NvmeNamespace[]> {
    this.command('namespaces');
    return [...this.attached].map(([nsid, set]) => ({
      nsid,
      sizeBytes: '1048576',
      lbaSizeBytes: 512,
      nguid: `0000000000000000000000000000000${nsid}`,
      uuid: '00000000-0000-0000-0000-000000000000',
      shared: true,
      attached: [...set],
    }));
  }

  async offline(cntlid: number): Promise<void> {
    this.command(`offline ${cntlid}`);
    this.#drop(this.#find(cntlid));
  }

  async online(cntlid: number): Promise<void> {
    this.command(`online ${cntlid}`);
    const s = this.#find(cntlid);
    const sriov = this.functions.get(PF)?.sriov;
    if (sriov && s.vfNumber > sriov.numVfs) throw status('its VF is not enabled', 0x120);
    if (s.vq < 2 || s.vi < 1) throw status('too few resources to be online', 0x120);
    s.online = true;
  }

  async assign(cntlid: number, resource: 'vq' | 'vi', count: number): Promise<number> {
    this.command(`assign ${cntlid} ${resource} ${count}`);
    const s = this.#find(cntlid);
    if (s.online) throw status('it is online', 0x120);
    if (count > this.#free(resource) + s[resource]) throw status('too many resources', 0x121);
    s[resource] = count;
    return count;
  }

  async allocatePrimary(_: number, resource: 'vq' | 'vi', count: number): Promise<number> {
    this.command(`primary ${resource} ${count}`);
    this.#next = { ...(this.#next ?? this.ofPrimary), [resource]: count };
    return count;
  }

  async attachNamespace(nsid: number, cntlid: number): Promise<void> {
    this.command(`attach ${nsid} ${cntlid}`);
    this.attached.get(nsid)?.add(cntlid);
  }

  async detachNamespace(nsid: number, cntlid: number): Promise<void> {
    this.command(`detach ${nsid} ${cntlid}`);
    this.attached.get(nsid)?.delete(cntlid);
  }

  stateChannel(): StateChannel {
    return new MemoryDevice().channel;
  }

  dirtySource(): DirtySource {
    return new MemoryDevice().source;
  }

  close(): void {
    this.log.push('close');
  }
}
