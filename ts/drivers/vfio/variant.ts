/**
 * Which VFIO driver of this kernel takes a PCI function: a variant driver by its alias, vfio-pci otherwise.
 */
import { aliasedModule, sameDriver, variantOf } from '../../host/variants.js';
import type { HostKernel, PciFunction } from '../host/port.js';

/** The driver of every device, without migration. */
export const GENERIC_DRIVER = 'vfio-pci';

/** Whether a driver is vfio-pci or a variant of it, by its name. */
export function isVfioDriver(driver: string | null, kernel: HostKernel): boolean {
  if (driver === null) return false;
  return (
    sameDriver(driver, GENERIC_DRIVER) ||
    variantOf(driver)?.bus === 'pci' ||
    kernel.vfioAliases.some((a) => sameDriver(a.driver ?? a.module, driver))
  );
}

/** A variant driver of a function. */
export interface VariantDriver {
  readonly module: string;
  /** Its name among the drivers of this kernel; `undefined` where its module is not loaded. */
  readonly driver: string | undefined;
}

/** The variant driver that names this device; `undefined` where only vfio-pci takes it. */
export function variantDriver(pci: PciFunction, kernel: HostKernel): VariantDriver | undefined {
  const alias = aliasedModule(pci.modalias, kernel.vfioAliases);
  if (alias === undefined) return undefined;
  const { module, driver } = alias;
  return { module, driver: driver ?? kernel.pciDrivers.find((d) => sameDriver(d, module)) };
}
