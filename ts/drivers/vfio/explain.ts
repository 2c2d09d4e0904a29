/**
 * Reasons why a function on VFIO can't be migrated: from sysfs, debugfs and what is known of drivers, and from the device itself only where
 * this process has it open.
 */
import { sameDriver, variantFor, variantOf } from '../../host/variants.js';
import type { Reason } from '../../function/types.js';
import type { HostKernel, HostPort, PciFunction } from '../host/port.js';
import type { VfioHandle } from './handle.js';
import { GENERIC_DRIVER, isVfioDriver, variantDriver } from './variant.js';

/** What this kernel lacks for any VFIO device. */
export function explainKernel(kernel: HostKernel): Reason[] {
  if (kernel.container || kernel.cdev) return [];
  return [
    {
      code: 'kernel-without-vfio',
      message: 'this kernel has no VFIO: neither /dev/vfio/vfio nor /dev/vfio/devices is there',
      mend: 'load it: modprobe vfio-pci (CONFIG_VFIO, CONFIG_VFIO_PCI)',
    },
  ];
}

function explainIommu(pci: PciFunction, kernel: HostKernel): Reason[] {
  if (pci.iommuGroup !== null) return [];
  if (kernel.iommu) {
    return [
      {
        code: 'no-iommu-group',
        message: `${pci.address} is in no IOMMU group, and VFIO takes only what an IOMMU confines`,
        mend: 'put it behind the IOMMU: see the settings of the firmware, and iommu=pt is no hindrance',
      },
    ];
  }
  return [
    {
      code: 'kernel-without-iommu',
      message: 'this kernel has no IOMMU groups',
      mend: 'switch the IOMMU on in the firmware and boot with intel_iommu=on or amd_iommu=on',
    },
  ];
}

function explainDriver(pci: PciFunction, kernel: HostKernel): Reason[] {
  const variant = variantDriver(pci, kernel);
  // The device would be migrated by a driver that this kernel was built without.
  const known = variant === undefined ? variantFor(pci) : undefined;
  const better = variant?.driver ?? variant?.module;
  const { address, driver } = pci;
  if (better === undefined) {
    return [
      {
        code: 'no-variant-driver',
        message: `no VFIO driver of this kernel migrates ${address} (${pci.modalias})`,
        mend:
          known === undefined
            ? 'use a device with a VFIO driver that migrates it, or one that its controlling function migrates'
            : `use a kernel with ${known.kconfig}`,
      },
    ];
  }
  if (driver === null) {
    return [
      {
        code: 'no-driver',
        message: `${address} is bound to no driver, and ${better} would migrate it`,
        mend: variant?.driver === undefined ? `modprobe ${better}, then expose it as vfio` : 'expose it as vfio',
      },
    ];
  }
  if (sameDriver(driver, better)) return [];
  return [
    {
      code: 'wrong-driver',
      message: isVfioDriver(driver, kernel)
        ? `${address} is bound to ${driver}, which does not migrate it; ${better} would`
        : `${address} is bound to the kernel's driver ${driver}, which uses it and does not migrate it`,
      mend: variant?.driver === undefined ? `modprobe ${better}, then expose it as vfio` : 'expose it as vfio',
    },
  ];
}

/** What keeps a PCI function from being migrated by VFIO. */
export async function explainPci(host: HostPort, address: string, handle: VfioHandle): Promise<Reason[]> {
  const kernel = await host.kernel();
  const pci = (await host.pci(true)).find((f) => f.address === address);
  if (pci === undefined) return [gone(address)];
  const reasons = [...explainKernel(kernel), ...explainIommu(pci, kernel)];
  // An open device has the last word; else debugfs, which has the state only of devices that migrate; else what is known of drivers.
  if (handle.info !== undefined) return [...reasons, ...explainOpen(handle)];
  if (pci.vfioState === null) reasons.push(...explainDriver(pci, kernel));
  const onVfio = isVfioDriver(pci.driver, kernel);
  if (onVfio) reasons.push(...(await explainOwner(host, address, handle, pci)));
  if (onVfio && pci.physfn !== null) {
    const pf = (await host.pci(true)).find((f) => f.address === pci.physfn);
    if (pf?.driver === GENERIC_DRIVER && !handle.hasToken) {
      reasons.push({
        code: 'vf-token-needed',
        message: `the PF ${pf.address} is bound to vfio-pci, so whoever opens ${address} has to give its VF token`,
        mend: 'open the driver with the token of the PF, or bind the PF to the kernel driver',
      });
    }
  }
  return reasons;
}

/** That the device is gone. */
export function gone(name: string): Reason {
  return {
    code: 'function-lost',
    message: `there is no device ${name} on this host any more`,
    mend: 'release the function and provision another',
  };
}

/** What an open device says of itself. */
export function explainOpen(handle: VfioHandle): Reason[] {
  if (handle.info === undefined || (handle.info.migration & 1) !== 0) return [];
  return [
    {
      code: 'driver-cannot-migrate',
      message: `the device ${handle.name} has no migration (VFIO_DEVICE_FEATURE_MIGRATION)`,
      mend: 'enable migration at its controlling function before it is bound, or use another device',
    },
  ];
}

/** Who else has it open, and whether it failed. */
export async function explainOwner(
  host: HostPort,
  name: string,
  handle: VfioHandle,
  device: { readonly iommuGroup: number | null; readonly vfioDevice: string | null; readonly vfioState: string | null },
): Promise<Reason[]> {
  const reasons: Reason[] = [];
  if (device.vfioState === 'ERROR') {
    reasons.push({
      code: 'function-failed',
      message: `${name} is in the migration state ERROR`,
      mend: 'reset it: its channel() has reset()',
    });
  }
  if (handle.borrowed) return reasons;
  const paths = [
    ...(device.vfioDevice === null ? [] : [`/dev/vfio/devices/${device.vfioDevice}`]),
    ...(device.iommuGroup === null ? [] : [`/dev/vfio/${device.iommuGroup}`]),
  ];
  const pids = await host.openers(paths);
  if (pids.length > 0) {
    reasons.push({
      code: 'in-use',
      message: `process ${pids.join(', ')} has ${paths.join(' or ')} open, which has a single owner`,
      mend: 'let that process end, or hand over its descriptor of the device',
    });
  }
  return reasons;
}

/** What is known of the driver of a mediated device, where neither debugfs nor the device itself tells. */
export function explainMdevDriver(parent: string, name: string): Reason[] {
  const known = variantOf(parent);
  if (known === undefined || known.states.stopCopy) return [];
  return [
    {
      code: 'driver-cannot-migrate',
      message: `the driver ${known.driver} of ${name} does not migrate its devices`,
      mend: 'use a mediated device whose driver does',
    },
  ];
}
