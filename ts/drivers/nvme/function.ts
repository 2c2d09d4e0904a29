/**
 * A controlled NVMe function: its device state, its writes, what a destination must match, and why it can't be migrated.
 */
import { throwIfAborted, type WaitOptions } from '../../abort.js';
import type { DirtySource, StateChannel } from '../../function/channel.js';
import { TowlineError } from '../../errors.js';
import { BaseFunction } from '../../function/controlled.js';
import type {
  ExplainOptions,
  ExposureName,
  ExposureState,
  FunctionDescriptor,
  FunctionIdentity,
  FunctionLocation,
  FunctionSpec,
  Reason,
  Visibility,
} from '../../function/types.js';
import type { VfioHandle } from '../vfio/handle.js';
import type { ControllingFunction } from '../driver.js';
import type { NvmeNamespace } from './admin.js';
import type { NvmeBackend } from './backend.js';
import { explainController, explainCopiedNamespaces, explainNvme, explainNamespaces } from './explain.js';

/** What a destination compares of a namespace: nothing that differs between two views of one disk. */
function namespaceFact(n: NvmeNamespace): string {
  return `${n.nsid}:${n.nguid}:${n.uuid}:${n.sizeBytes}:${n.lbaSizeBytes}`;
}

/** See {@link BaseFunction}. */
export class NvmeFunction extends BaseFunction {
  /** Controller identifier; never the same thing at the destination. */
  readonly cntlid: number;
  readonly location: FunctionLocation | undefined;
  readonly visibility: Readonly<Partial<Record<ExposureName, Visibility | string>>> | undefined;
  readonly #backend: NvmeBackend;
  #left = false;

  constructor(
    controlling: ControllingFunction,
    backend: NvmeBackend,
    cntlid: number,
    identity: FunctionIdentity,
    spec: FunctionSpec,
  ) {
    super(controlling, identity, spec);
    this.#backend = backend;
    this.cntlid = cntlid;
    this.location = backend.location?.(cntlid);
    this.visibility = backend.visibility?.(cntlid, () => this.spec.migration === true);
  }

  /** @internal The VFIO device that carries its state; `undefined` where its controlling function does. */
  get handle(): VfioHandle | undefined {
    return this.#left ? undefined : this.#backend.migratesBy?.(this.cntlid);
  }

  /** Of the VFIO device that this process drives, or of its vfio-user socket. */
  get exposureState(): ExposureState | undefined {
    if (this.#left) return undefined;
    return this.handle?.exposureState ?? this.#backend.exposureState?.(this.cntlid);
  }

  protected openChannel(): StateChannel {
    return this.#backend.migratesBy?.(this.cntlid)?.channel ?? this.#backend.admin.stateChannel(this.cntlid);
  }

  protected openDirtySources(): readonly DirtySource[] {
    const vfio = this.#backend.migratesBy?.(this.cntlid);
    return vfio === undefined ? [this.#backend.admin.dirtySource(this.cntlid)] : vfio.dirtySources();
  }

  /** Those of its VFIO device as it is open now, where that carries its state. */
  override dirtySources(): readonly DirtySource[] {
    if (this.handle === undefined) return super.dirtySources();
    this.channel();
    return this.openDirtySources();
  }

  /** Opens its VFIO device, where that carries its state; the controlling function needs nothing. */
  async open(options: WaitOptions = {}): Promise<void> {
    throwIfAborted(options.signal);
    if (this.#left) throw new TowlineError('ERR_TOWLINE_CLOSED', `${this.name} is closed`, { function: this.uuid });
    await this.#backend.migratesBy?.(this.cntlid)?.open();
  }

  override async close(): Promise<void> {
    // Once: later its controller may be another function's.
    if (this.#left) return;
    this.#left = true;
    try {
      await super.close();
    } finally {
      await this.#backend.letGo?.(this.cntlid);
    }
  }

  /** Whether a host has it enabled now, or another process its VFIO device open. */
  async inUse(): Promise<boolean> {
    if ((await this.#backend.controllers()).some((c) => c.cntlid === this.cntlid && c.enabled)) return true;
    return (await this.#backend.isOpen?.(this.cntlid)) === true;
  }

  async descriptor(): Promise<FunctionDescriptor> {
    const { admin } = this.#backend;
    const identify = await admin.identify();
    const formats = await admin.stateFormats();
    const attached = (await admin.namespaces()).filter((n) => n.attached.includes(this.cntlid));
    const { queues = 0, vectors = 0 } = this.spec;
    return {
      technology: { value: 'nvme', rule: 'equal', why: 'device state of one technology means nothing to another' },
      kind: { value: this.kind, rule: 'equal', why: 'the guest sees another configuration space otherwise' },
      model: {
        value: identify.modelNumber,
        rule: 'equal',
        why: 'the guest read it, and vendor parts of the state belong to it',
      },
      'nvme-version': { value: identify.version, rule: 'equal', why: 'the guest drives the version that it read' },
      'state-versions': {
        value: formats.versions,
        rule: 'intersects',
        why: 'the destination has to read what the source writes',
      },
      'state-vendors': {
        value: formats.uuids,
        rule: formats.uuids.length === 0 ? 'superset' : 'intersects',
        why: 'vendor parts of the state are read by the same vendor only',
      },
      'max-transfer-bytes': {
        value: identify.mdtsBytes,
        rule: 'at-least',
        why: 'the guest sends commands as large as it read',
      },
      queues: { value: queues, rule: 'at-least', why: 'every I/O queue that the guest has made needs one' },
      vectors: { value: vectors, rule: 'at-least', why: 'every interrupt vector that the guest uses needs one' },
      namespaces: {
        value: attached.map(namespaceFact).sort(),
        rule: 'equal',
        why: 'both sides have to share the same disks under the same identifiers (nsid:nguid:uuid:bytes:block)',
      },
    };
  }

  protected async explainDevice(options: ExplainOptions = {}): Promise<readonly Reason[]> {
    const { admin } = this.#backend;
    const byController = explainController(await admin.identify(), await admin.stateFormats());
    // Where its VFIO driver migrates it, nothing is asked of the controlling function.
    const byVfio = (await this.#backend.hasVariantDriver?.(this.cntlid)) === true;
    return [
      ...(byVfio ? [] : byController),
      ...explainNvme(
        this.name,
        (await this.#backend.controllers()).find((c) => c.cntlid === this.cntlid),
        (await admin.secondaries()).find((s) => s.cntlid === this.cntlid),
      ),
      ...(options.copy ? explainCopiedNamespaces : explainNamespaces)(this.cntlid, await admin.namespaces()),
      ...((await this.#backend.explain?.(this.cntlid)) ?? []),
    ];
  }
}
