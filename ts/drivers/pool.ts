/**
 * The pool of VFs of one PF. It is sized once, since the kernel changes their number only by way of none (`sriov_numvfs_store`,
 * drivers/pci/iov.c): VFs that are there are used as they are, and destroyed only where that was asked for in so many words.
 */
import { TowlineError, unwrapFault } from '../errors.js';
import { withUndo, type UndoStack } from '../function/undo.js';
import type { HostPort, PciFunction } from './host/port.js';
import { pciFunction, reworded } from './host/words.js';

/** How the pool of VFs is sized. */
export interface VfPoolOptions {
  /** VFs in the pool, where it is sized by this driver. Default: as many as the PF has at most. */
  vfs?: number | undefined;
  /** Destroy VFs that are there where their number is not `vfs`, whoever uses them. Default: false. */
  force?: boolean | undefined;
}

/** Brings a pool back to what it was. */
export type UndoPool = () => Promise<void>;

/** Who has functions in a pool whose VFs are about to be destroyed. */
export interface PoolGuard {
  /** @throws TowlineError `ERR_TOWLINE_BUSY` where these VFs are in use here. */
  check(addresses: readonly string[]): void;
  /** They are gone, those that come after them under the same addresses are others. */
  destroyed(): void;
}

/** See the file's comment. */
export class VfPool {
  guard: PoolGuard | undefined;
  readonly #host: HostPort;
  readonly #address: string;
  readonly #options: VfPoolOptions;

  constructor(host: HostPort, address: string, options: VfPoolOptions) {
    const { vfs } = options;
    if (vfs !== undefined && (!Number.isSafeInteger(vfs) || vfs < 1 || vfs > 65_535)) {
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        `vfs is ${vfs}; it has to be a whole number from 1 to 65535`,
      );
    }
    this.#host = host;
    this.#address = address;
    this.#options = options;
  }

  /** How many VFs there are, or will be once it is sized. */
  size(pf: PciFunction): number {
    if (pf.sriov === null) return 0;
    const wanted = Math.min(this.#options.vfs ?? pf.sriov.totalVfs, pf.sriov.totalVfs);
    return pf.sriov.numVfs > 0 && this.#options.force !== true ? pf.sriov.numVfs : wanted;
  }

  /** Whether {@link VfPool.ensure} has something to do. */
  needsSizing(pf: PciFunction): boolean {
    return pf.sriov !== null && pf.sriov.numVfs !== this.size(pf);
  }

  /**
   * Sizes the pool, where that is still to be done; whole or not at all.
   * @param before - Runs before there is any VF, with what undoes it.
   * @returns what undoes all of it, for a caller who fails later; nothing where there was nothing to do.
   * @throws TowlineError `ERR_TOWLINE_BUSY` where VFs that this process uses would be destroyed, `ERR_TOWLINE_UNSUPPORTED` where the PF can
   * have none, `ERR_TOWLINE_NO_RESOURCES` where `vfs` is more than it can have.
   */
  async ensure(before: (steps: UndoStack) => Promise<void> = async () => undefined): Promise<UndoPool> {
    const host = this.#host;
    const pf = await pciFunction(host, this.#address);
    const { sriov, address } = pf;
    if (sriov === null || sriov.totalVfs === 0) {
      throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `${address} has no SR-IOV, so there are no VFs of it`);
    }
    if ((this.#options.vfs ?? 0) > sriov.totalVfs) {
      throw new TowlineError(
        'ERR_TOWLINE_NO_RESOURCES',
        `${address} can have ${sriov.totalVfs} VFs, and ${this.#options.vfs} were asked for`,
      );
    }
    if (!this.needsSizing(pf)) return async () => undefined;
    const size = this.size(pf);
    this.guard?.check(pf.virtfns);
    return withUndo(async (steps) => {
      if (sriov.numVfs > 0) {
        // What was in them is gone; only their number can come back.
        await steps.do(
          `destroy the ${sriov.numVfs} VFs of ${address}`,
          () => host.setNumVfs(address, 0),
          () => host.setNumVfs(address, sriov.numVfs),
        );
        this.guard?.destroyed();
      }
      await before(steps);
      // No driver may take a VF before it has its resources.
      if (sriov.driversAutoprobe) {
        await steps.do(
          `switch sriov_drivers_autoprobe of ${address} off`,
          () => host.setAutoprobe(address, false),
          () => host.setAutoprobe(address, true),
        );
      }
      // The driver may make fewer than it was asked for, and fail: these go, too.
      await steps.do(
        `make ${size} VFs of ${address}`,
        async () => undefined,
        () => this.#unmake(),
      );
      await this.#make(pf, size);
      await this.#hide();
      return () => steps.undo();
    });
  }

  /** A PF on vfio-pci binds its VFs to vfio-pci as they come, whatever its autoprobe says (`vfio_pci_bus_notifier`). */
  async #hide(): Promise<void> {
    const all = await this.#host.pci(true);
    const vfs = all.filter((f) => f.physfn === this.#address);
    for (const { address, driver, driverOverride } of vfs) {
      if (driver !== null) await this.#host.unbind(address);
      if (driverOverride !== null) await this.#host.setDriverOverride(address, null);
    }
  }

  async #unmake(): Promise<void> {
    const { sriov } = await pciFunction(this.#host, this.#address);
    if ((sriov?.numVfs ?? 0) > 0) await this.#host.setNumVfs(this.#address, 0);
  }

  async #make(pf: PciFunction, size: number): Promise<void> {
    try {
      await this.#host.setNumVfs(pf.address, size);
    } catch (thrown) {
      const error = unwrapFault(thrown);
      if (pf.driver !== null) throw error;
      throw reworded(
        error,
        'ERR_TOWLINE_UNSUPPORTED',
        `${pf.address} is bound to no driver, and only its driver can make VFs: bind it first (${error.message})`,
      );
    }
  }
}
