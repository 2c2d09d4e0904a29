/**
 * The surroundings of a controlling function that the kernel's nvme driver has: admin commands go by passthrough, its VFs come and go in
 * sysfs. Secondary controllers that are no VFs of it on this host can be provisioned and migrated, and have no place here.
 */
import { setTimeout } from 'node:timers/promises';
import { abortError, throwIfAborted, type WaitOptions } from '../../abort.js';
import { TowlineError } from '../../errors.js';
import { pciVisibility } from '../../exposure/pci.js';
import type { ExposureName, FunctionLocation, Reason, Visibility } from '../../function/types.js';
import type { UndoStack } from '../../function/undo.js';
import type { DiscoveredController } from '../driver.js';
import { Claims } from '../host/claims.js';
import type { HostPort, PciFunction } from '../host/port.js';
import { pciAddress, pciFunction } from '../host/words.js';
import { VfPool, type PoolGuard, type UndoPool, type VfPoolOptions } from '../pool.js';
import { explainPci, vfioOpeners } from '../vfio/explain.js';
import { VfioHandle, type VfioOpenOptions } from '../vfio/handle.js';
import { isVfioDriver, variantDriver } from '../vfio/variant.js';
import type { NvmeAdmin, NvmeIdentify, NvmeResource } from './admin.js';
import type { NvmeBackend, NvmeControllerInfo, NvmeWanted } from './backend.js';
import { GuardedAdmin } from './guarded-admin.js';

/** Options of {@link NvmeDriver}. */
export interface NvmeOptions extends VfPoolOptions {
  /** How VFIO devices are opened. */
  vfio?: VfioOpenOptions | undefined;
  /** @internal For tests. */
  host?: HostPort | undefined;
}

/** How long a controller may take to be there again after its reset, in milliseconds: CAP.TO is 127.5 s at most (NVMe Base 2.1). */
const RESET_TIMEOUT_MS = 130_000;
const RESET_POLL_MS = 50;
/** How long it may be without driver meanwhile: a driver that lets go of it after a reset does not come back by itself. */
const WITHOUT_DRIVER_MS = 3000;

/** What a VF needs at least: the admin queue and one for I/O, and one vector. */
const LEAST: NvmeWanted = { vq: 2, vi: 1 };

/** NVMe controllers of the kernel's driver that are no VFs. */
export async function nvmeControllers(host: HostPort): Promise<readonly DiscoveredController[]> {
  const found = (await host.pci()).filter((f) => f.nvme !== null && f.physfn === null);
  return found.map((f) => ({
    address: f.address,
    description: `NVMe controller /dev/${f.nvme?.name ?? ''}${f.sriov === null ? '' : ` with ${f.sriov.numVfs} of ${f.sriov.totalVfs} VFs`}`,
    reasons:
      f.nvme?.state === 'live'
        ? []
        : [
            {
              code: 'function-failed',
              message: `the controller is ${f.nvme?.state ?? 'in no known state'}, and takes commands only when it is live`,
              mend: 'wait until it is live, or reset it (/sys/class/nvme)',
            },
          ],
  }));
}

/** The controller at `/dev/nvme0`, `nvme0` or a PCI address. */
export async function findNvme(host: HostPort, address: string): Promise<PciFunction> {
  const name = /^(?:\/dev\/)?(nvme\d+)$/.exec(address)?.[1];
  const wanted = pciAddress(address);
  const all = await host.pci();
  const found = all.find((f) => (name === undefined ? f.address === wanted : f.nvme?.name === name));
  if (found === undefined) {
    const known = all.filter((f) => f.nvme !== null && f.physfn === null).map((f) => f.address);
    throw new TowlineError(
      'ERR_TOWLINE_NOT_FOUND',
      `there is no NVMe controller ${JSON.stringify(address.slice(0, 80))}; there is: ${known.join(', ') || 'none'}`,
    );
  }
  if (found.nvme !== null) return found;
  throw new TowlineError(
    'ERR_TOWLINE_UNSUPPORTED',
    `${found.address} is bound to ${found.driver ?? 'no driver'}: the controlling function has to be the kernel's nvme driver's`,
  );
}

/** See the file's comment. */
export class HardwareBackend implements NvmeBackend {
  readonly address: string;
  readonly admin: NvmeAdmin;
  readonly claims: Claims;
  limits = { vf: 0, siov: 0 };
  readonly #host: HostPort;
  readonly #device: NvmeAdmin & { close(): void };
  readonly #identify: NvmeIdentify;
  readonly #pool: VfPool;
  readonly #options: NvmeOptions;
  readonly #handles = new Map<number, VfioHandle>();
  /** PCI addresses of VFs by controller identifier, as they were seen last. */
  #addresses = new Map<number, string>();

  private constructor(
    host: HostPort,
    address: string,
    device: NvmeAdmin & { close(): void },
    identify: NvmeIdentify,
    options: NvmeOptions,
  ) {
    this.#host = host;
    this.claims = new Claims(host);
    this.address = address;
    this.#device = device;
    this.#identify = identify;
    this.admin = new GuardedAdmin(device, identify);
    this.#pool = new VfPool(host, address, options);
    this.#options = options;
  }

  /** Opens its character device. */
  static async open(host: HostPort, pf: PciFunction, options: NvmeOptions): Promise<HardwareBackend> {
    const device = await host.openNvme(`/dev/${pf.nvme?.name ?? ''}`);
    try {
      const backend = new HardwareBackend(host, pf.address, device, await device.identify(), options);
      await backend.controllers();
      return backend;
    } catch (error) {
      device.close();
      throw error;
    }
  }

  async controllers(): Promise<readonly NvmeControllerInfo[]> {
    const all = await this.#host.pci();
    const pf = this.#pf(all);
    const secondaries = await this.admin.secondaries();
    const addresses = new Map<number, string>();
    const found: NvmeControllerInfo[] = [
      {
        cntlid: this.#identify.cntlid,
        kind: 'pf',
        controlling: true,
        fatal: false,
        enabled: true,
        ownQueues: 0,
        ownVectors: 0,
      },
    ];
    for (const { cntlid, vfNumber } of secondaries) {
      // A VF that the PF could have and has not is in the list of secondaries, too.
      if (pf.sriov !== null && vfNumber > pf.sriov.numVfs) continue;
      const address = vfNumber > 0 ? pf.virtfns[vfNumber - 1] : undefined;
      if (address !== undefined) addresses.set(cntlid, address);
      // One that is no VF of this PF here may be a device of its own, known by its name for as long as a driver has it.
      const here = all.find((f) =>
        address === undefined
          ? f.nvme?.cntlid === cntlid && f.nvme.subsystemNqn === this.#identify.subnqn && f.address !== pf.address
          : f.address === address,
      );
      const kind = vfNumber > 0 ? 'vf' : 'siov';
      const state = here?.nvme?.state ?? null;
      found.push({
        cntlid,
        kind,
        controlling: false,
        fatal: state === 'dead',
        enabled: state === 'live',
        ownQueues: 0,
        ownVectors: 0,
      });
    }
    this.#addresses = addresses;
    const count = (kind: string): number => found.filter((c) => c.kind === kind && !c.controlling).length;
    this.limits = { vf: pf.sriov === null ? count('vf') : this.#pool.size(pf), siov: count('siov') };
    return found;
  }

  #pf(all: readonly PciFunction[]): PciFunction {
    const pf = all.find((f) => f.address === this.address);
    if (pf === undefined)
      throw new TowlineError('ERR_TOWLINE_GONE', `there is no PCI function ${this.address} any more`);
    return pf;
  }

  async ensureVfs(wanted: NvmeWanted = LEAST, options: WaitOptions = {}): Promise<void | UndoPool> {
    const pf = await pciFunction(this.#host, this.address);
    // Secondary controllers of a PF without SR-IOV are what they are.
    if (pf.sriov === null || !this.#identify.virtualizationManagement) return;
    const size = this.#pool.size(pf);
    return this.#pool.ensure((steps) => this.#releasePrimary(steps, pf, { size, wanted }, options));
  }

  /**
   * Takes the flexible resources from the PF, where too few are free for its VFs: some controllers start with all of them there. It takes
   * effect with a reset other than Controller Reset (NVMe Base 2.1, Virtualization Management), which takes every secondary controller
   * offline: so only before there is any VF, and while no other secondary is online.
   */
  async #releasePrimary(
    steps: UndoStack,
    pf: PciFunction,
    { size, wanted }: { size: number; wanted: NvmeWanted },
    options: WaitOptions,
  ): Promise<void> {
    const caps = await this.admin.primaryCaps();
    const short = (['vq', 'vi'] as const).filter((resource) => {
      const { flexibleTotal, flexibleAssigned, flexibleToPrimary } = caps[resource];
      const free = flexibleTotal - flexibleAssigned - flexibleToPrimary;
      return flexibleToPrimary > 0 && free < Math.max(size * LEAST[resource], wanted[resource]);
    });
    if (short.length === 0) return;
    if (!pf.resetMethods.includes('flr')) {
      throw new TowlineError(
        'ERR_TOWLINE_UNSUPPORTED',
        `${this.address} has all of its flexible resources itself, and gives them up only by a function level reset, which it does not have`,
      );
    }
    await this.#refuseOnline();
    // Undone last, after the resources were given back.
    await steps.do(
      `reset ${this.address}`,
      async () => undefined,
      // The undo has to run also after the signal has fired, so it does not get it.
      () => this.#resetPf(),
    );
    for (const resource of short) await this.#release(steps, resource, caps[resource].flexibleToPrimary);
    await this.#resetPf(options);
  }

  async #release(steps: UndoStack, resource: NvmeResource, had: number): Promise<void> {
    const { cntlid } = this.#identify;
    await steps.do(
      `release the ${had} ${resource} of ${this.address}`,
      () => this.admin.allocatePrimary(cntlid, resource, 0),
      async () => void (await this.admin.allocatePrimary(cntlid, resource, had)),
    );
  }

  /** A secondary that is online may be in use by somebody of whom nothing shows here. */
  async #refuseOnline(): Promise<void> {
    const online = (await this.admin.secondaries()).filter((s) => s.online).map((s) => s.cntlid);
    if (online.length === 0) return;
    throw new TowlineError(
      'ERR_TOWLINE_BUSY',
      `${this.address} has to be reset to give up its flexible resources, which would take its secondary controllers offline, and online ${online.length === 1 ? 'is' : 'are'}: ${online.join(', ')}; release ${online.length === 1 ? 'it' : 'them'} first`,
    );
  }

  /** Resets the PF and waits until its driver has it going again. */
  async #resetPf({ signal }: WaitOptions = {}): Promise<void> {
    throwIfAborted(signal);
    // Asked again right before, also where this undoes: others command the controller as well.
    await this.#refuseOnline();
    await this.#host.reset(this.address);
    const began = performance.now();
    let driven = began;
    for (;;) {
      const state = this.#pf(await this.#host.pci()).nvme?.state ?? null;
      if (state === 'live') return;
      const now = performance.now();
      if (state !== null) driven = now;
      if (state === 'dead' || now - driven > WITHOUT_DRIVER_MS || now - began > RESET_TIMEOUT_MS) {
        throw new TowlineError('ERR_TOWLINE_DEVICE', `${this.address} is ${state ?? 'without driver'} after its reset`);
      }
      await setTimeout(RESET_POLL_MS, undefined, { signal }).catch((error: unknown) => {
        throw signal?.aborted ? abortError(signal) : error;
      });
    }
  }

  async reset(cntlid: number): Promise<void> {
    const address = this.#addresses.get(cntlid);
    // One without a place here is reset by going offline and online again.
    if (address !== undefined) await this.#host.reset(address);
  }

  async isTaken(cntlid: number): Promise<boolean> {
    const address = this.#addresses.get(cntlid);
    if (address === undefined) return false;
    const { driver, driverOverride } = await pciFunction(this.#host, address);
    // One with an override is kept for a driver by whoever wrote it.
    return driver !== null || driverOverride !== null;
  }

  take(cntlid: number): boolean {
    const address = this.#addresses.get(cntlid);
    return address === undefined || this.claims.take(address);
  }

  drop(cntlid: number): void {
    const address = this.#addresses.get(cntlid);
    if (address !== undefined) this.claims.drop(address);
  }

  guardPool(guard: PoolGuard): void {
    this.#pool.guard = guard;
  }

  async isOpen(cntlid: number): Promise<boolean> {
    const address = this.#addresses.get(cntlid);
    if (address === undefined) return false;
    const pci = await pciFunction(this.#host, address);
    return isVfioDriver(pci.driver, await this.#host.kernel()) && (await vfioOpeners(this.#host, pci)).length > 0;
  }

  location(cntlid: number): FunctionLocation | undefined {
    const address = this.#addresses.get(cntlid);
    return address === undefined ? undefined : { bus: 'pci', address };
  }

  visibility(cntlid: number, migration: () => boolean): Readonly<Partial<Record<ExposureName, Visibility | string>>> {
    const address = this.#addresses.get(cntlid);
    if (address === undefined) {
      const why = `controller ${cntlid} is no VF of ${this.address} on this host: it has no PCI address to bind a driver to`;
      return { kernel: why, vfio: why };
    }
    return pciVisibility({
      host: this.#host,
      address,
      kernelDriver: 'nvme',
      // Where the controlling function migrates it, any VFIO driver will do.
      migration: () => migration() && !this.#identify.hmlms,
      letGo: async () => this.#handles.get(cntlid)?.close(),
    });
  }

  async exposure(cntlid: number): Promise<ExposureName> {
    const address = this.#addresses.get(cntlid);
    if (address === undefined) return 'none';
    const { driver } = await pciFunction(this.#host, address);
    return driver === null ? 'none' : isVfioDriver(driver, await this.#host.kernel()) ? 'vfio' : 'kernel';
  }

  migratesBy(cntlid: number): VfioHandle | undefined {
    const address = this.#addresses.get(cntlid);
    if (this.#identify.hmlms || address === undefined) return undefined;
    const known = this.#handles.get(cntlid);
    if (known?.name === address) return known;
    const handle = new VfioHandle(this.#host, address, this.#options.vfio);
    this.#handles.set(cntlid, handle);
    return handle;
  }

  async letGo(cntlid: number): Promise<void> {
    const handle = this.#handles.get(cntlid);
    // Its channel is closed for good with the function that had it, so that the next one needs another.
    this.#handles.delete(cntlid);
    await handle?.close();
  }

  async hasVariantDriver(cntlid: number): Promise<boolean> {
    const handle = this.migratesBy(cntlid);
    if (handle === undefined) return false;
    const pci = await pciFunction(this.#host, handle.name);
    return pci.vfioState !== null || variantDriver(pci, await this.#host.kernel()) !== undefined;
  }

  async explain(cntlid: number): Promise<readonly Reason[]> {
    const handle = this.migratesBy(cntlid);
    return handle === undefined ? [] : explainPci(this.#host, handle.name, handle);
  }

  async close(): Promise<void> {
    const failures: unknown[] = [];
    // A VFIO device that does not close keeps neither the others nor the controller open.
    for (const handle of this.#handles.values()) {
      await handle.close().catch((error: unknown) => failures.push(error));
    }
    this.#device.close();
    if (failures.length > 0) throw failures[0];
  }
}
