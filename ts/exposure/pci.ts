/**
 * The exposures of a PCI function: it is bound to a VFIO driver, or to the kernel's own. Other functions stay as they are meanwhile.
 */
import { throwIfAborted, type WaitOptions } from '../abort.js';
import type { HostKernel, HostPort, PciFunction } from '../drivers/host/port.js';
import { pciFunction } from '../drivers/host/words.js';
import { checkNotOpen } from '../drivers/vfio/explain.js';
import { GENERIC_DRIVER, isVfioDriver, variantDriver } from '../drivers/vfio/variant.js';
import { TowlineError } from '../errors.js';
import type { ExposureName, Visibility } from '../function/types.js';
import { withUndo } from '../function/undo.js';

/** What the exposures of one PCI function need. */
export interface PciExposureOptions {
  readonly host: HostPort;
  readonly address: string;
  /** The kernel's own driver by name, where it is known; else whichever takes the device. */
  readonly kernelDriver?: string | undefined;
  /** Whether migration is enabled: then plain vfio-pci is not enough where there is a variant driver. */
  readonly migration: () => boolean;
  /** Lets go of what this process has open of it. */
  readonly letGo: () => Promise<void>;
}

function refuse(address: string, exposure: ExposureName, why: string): never {
  throw new TowlineError('ERR_TOWLINE_EXPOSURE', `exposure ${exposure} of ${address}: ${why}`);
}

/**
 * Lets the bus look for a driver. Without an override the kernel gives a VF none while its PF has `sriov_drivers_autoprobe` off
 * (`pci_device_can_probe`, drivers/pci/pci-driver.c), so that it is on for as long as this takes; it means new VFs and this one only.
 */
async function probe(host: HostPort, pci: PciFunction, override: string | null): Promise<void> {
  const pf = pci.physfn === null ? undefined : await pciFunction(host, pci.physfn);
  if (override !== null || pf?.sriov?.driversAutoprobe !== false) return host.probe(pci.address);
  const { address } = pf;
  await withUndo(async (steps) => {
    const off = (): Promise<void> => host.setAutoprobe(address, false);
    await steps.do(`switch sriov_drivers_autoprobe of ${address} on`, () => host.setAutoprobe(address, true), off);
    await host.probe(pci.address);
    await off();
  });
}

/** That no other process has it open by VFIO, where it is bound to that. */
async function checkUnused(host: HostPort, pci: PciFunction): Promise<void> {
  if (isVfioDriver(pci.driver, await host.kernel())) await checkNotOpen(host, pci.address, pci);
}

/** Unbinds it from whatever has it. */
async function unbound(host: HostPort, address: string): Promise<void> {
  if ((await pciFunction(host, address)).driver !== null) await host.unbind(address);
}

/** Binds by `override` and checks by `accept` what took it. Where that fails it is as it was before. */
async function bind(
  host: HostPort,
  address: string,
  override: string | null,
  accept: (driver: string | null) => string | undefined,
  exposure: ExposureName,
  { signal }: WaitOptions,
): Promise<void> {
  const before = await pciFunction(host, address);
  // Whatever its override: a driver that serves is not stopped for that.
  if (before.driver !== null && accept(before.driver) === undefined) return;
  if (before.driver !== null) await checkUnused(host, before);
  await withUndo(async (steps) => {
    if (before.driver !== null) {
      await steps.do(
        `unbind ${address} from ${before.driver}`,
        () => host.unbind(address),
        () => probe(host, before, before.driverOverride),
      );
    }
    throwIfAborted(signal);
    if (before.driverOverride !== override) {
      await steps.do(
        `set driver_override of ${address}`,
        () => host.setDriverOverride(address, override),
        () => host.setDriverOverride(address, before.driverOverride),
      );
    }
    throwIfAborted(signal);
    // A probe that fails may have bound it nevertheless.
    await steps.do(
      `probe ${address}`,
      async () => undefined,
      () => unbound(host, address),
    );
    await probe(host, before, override);
    const { driver } = await pciFunction(host, address);
    const wrong = accept(driver);
    if (wrong !== undefined) refuse(address, exposure, wrong);
  });
}

/** The VFIO driver for it, or why there is none. */
function vfioDriverFor(pci: PciFunction, kernel: HostKernel, migration: boolean): string {
  const { address } = pci;
  const variant = variantDriver(pci, kernel);
  if (variant?.driver !== undefined) return variant.driver;
  if (variant !== undefined && migration) {
    refuse(address, 'vfio', `its driver that migrates is not loaded: modprobe ${variant.module}`);
  }
  if (!kernel.pciDrivers.includes(GENERIC_DRIVER)) {
    refuse(address, 'vfio', `this kernel has no driver ${GENERIC_DRIVER} loaded: modprobe ${GENERIC_DRIVER}`);
  }
  return GENERIC_DRIVER;
}

/** `vfio` and `kernel` for a PCI function. Hidden, it is bound to no driver and has no override. */
export function pciVisibility(options: PciExposureOptions): Readonly<Partial<Record<ExposureName, Visibility>>> {
  const { host, address, kernelDriver = null } = options;
  const hide = async (): Promise<void> => {
    const now = (await host.pci(true)).find((f) => f.address === address);
    // Before it is closed here: who is refused still has all that he had.
    if (now !== undefined) await checkUnused(host, now);
    await options.letGo();
    await hidden(host, address);
  };
  return {
    vfio: {
      show: async (wait = {}) => {
        const kernel = await host.kernel();
        const pci = await pciFunction(host, address);
        if (pci.iommuGroup === null) {
          const why = kernel.iommu ? 'it is in no IOMMU group' : 'this kernel has no IOMMU groups';
          refuse(address, 'vfio', `${why}: switch the IOMMU on (intel_iommu=on, amd_iommu=on) in firmware and kernel`);
        }
        const driver = vfioDriverFor(pci, kernel, options.migration());
        const accept = (now: string | null): string | undefined =>
          now === driver ? undefined : `${driver} did not take it (${now ?? 'no driver'} has it): see the kernel's log`;
        await bind(host, address, driver, accept, 'vfio', wait);
      },
      hide,
    },
    kernel: {
      show: async (wait = {}) => {
        const kernel = await host.kernel();
        const accept = (now: string | null): string | undefined => {
          if (now === null) {
            return `no driver of this kernel took it${kernelDriver === null ? ': load the module of its driver' : ` (${kernelDriver})`}; see the kernel's log`;
          }
          return isVfioDriver(now, kernel) ? `${now} took it, which is no driver of the kernel's own` : undefined;
        };
        await bind(host, address, kernelDriver, accept, 'kernel', wait);
      },
      hide,
    },
  };
}

/** Binds it to no driver, with no override: whole or not at all. */
async function hidden(host: HostPort, address: string): Promise<void> {
  const before = (await host.pci(true)).find((f) => f.address === address);
  // Who is gone is hidden.
  if (before === undefined) return;
  await withUndo(async (steps) => {
    if (before.driver !== null) {
      await steps.do(
        `unbind ${address} from ${before.driver}`,
        () => host.unbind(address),
        () => probe(host, before, before.driverOverride),
      );
    }
    if (before.driverOverride !== null) await host.setDriverOverride(address, null);
  });
}
