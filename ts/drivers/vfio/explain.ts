/**
 * Reasons why a function on VFIO can't be migrated: from sysfs, debugfs and what is known of drivers, and from the device itself only where
 * this process has it open.
 */
import { TowlineError } from '../../errors.js';
import type { Reason } from '../../function/types.js';
import { groupReasons, inUseReasons, kernelReasons, mdevWay, pciWay } from '../../host/vfio-reasons.js';
import type { HostKernel, HostPort, MdevParent } from '../host/port.js';
import type { VfioHandle } from './handle.js';
import { GENERIC_DRIVER, isVfioDriver } from './variant.js';

/** What keeps a PCI function from being migrated by VFIO. */
export async function explainPci(host: HostPort, address: string, handle: VfioHandle): Promise<Reason[]> {
  const kernel = await host.kernel();
  const all = await host.pci(true);
  const pci = all.find((f) => f.address === address);
  if (pci === undefined) return [gone(address)];
  const facts = { kernel, pci: all, mdev: [], devlink: [], ports: [], problems: [] };
  const reasons = [...kernelReasons(kernel, true), ...groupReasons(facts, pci)];
  // An open device has the last word.
  if (handle.info !== undefined) return [...reasons, ...explainOpen(handle)];
  reasons.push(...pciWay(facts, pci, undefined).reasons);
  if (!isVfioDriver(pci.driver, kernel)) return reasons;
  reasons.push(...(await explainOwner(host, address, handle, pci)));
  const pf = all.find((f) => f.address === pci.physfn);
  if (pf?.driver === GENERIC_DRIVER && !handle.hasToken && !handle.borrowed) {
    reasons.push({
      code: 'vf-token-needed',
      message: `the PF ${pf.address} is bound to vfio-pci, so whoever opens ${address} has to give its VF token`,
      mend: 'open the driver with the token of the PF, or bind the PF to its kernel driver',
    });
  }
  return reasons;
}

/** What keeps a mediated device from being migrated. */
export async function explainMdev(
  host: HostPort,
  kernel: HostKernel,
  device: MdevParent['devices'][number],
  handle: VfioHandle,
): Promise<Reason[]> {
  const reasons = kernelReasons(kernel, false);
  if (handle.info !== undefined) return [...reasons, ...explainOpen(handle)];
  reasons.push(...mdevWay(kernel, device, undefined).reasons);
  return [...reasons, ...(await explainOwner(host, device.uuid, handle, device))];
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
function explainOpen(handle: VfioHandle): Reason[] {
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
async function explainOwner(
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
  // Who lent its descriptor has it open, and knows.
  if (handle.borrowed) return reasons;
  const pids = await vfioOpeners(host, device);
  return [
    ...reasons,
    ...inUseReasons(
      name,
      pids.map((pid) => ({ pid, name: null })),
    ),
  ];
}

/** Other processes that have its VFIO device or its group open. */
export function vfioOpeners(
  host: HostPort,
  device: { readonly iommuGroup: number | null; readonly vfioDevice: string | null },
): Promise<readonly number[]> {
  return host.openers([
    ...(device.vfioDevice === null ? [] : [`/dev/vfio/devices/${device.vfioDevice}`]),
    ...(device.iommuGroup === null ? [] : [`/dev/vfio/${device.iommuGroup}`]),
  ]);
}

/**
 * Refuses to take a device away from who has it open: the kernel would ask that process to close it, and wait for it without limit
 * (`vfio_unregister_group_dev`, drivers/vfio/vfio_main.c).
 * @throws TowlineError `ERR_TOWLINE_BUSY` with the processes, also as `details.pids`.
 */
export async function checkNotOpen(
  host: HostPort,
  name: string,
  device: { readonly iommuGroup: number | null; readonly vfioDevice: string | null },
): Promise<void> {
  const pids = await vfioOpeners(host, device);
  if (pids.length === 0) return;
  throw new TowlineError(
    'ERR_TOWLINE_BUSY',
    `${name} is open in process ${pids.join(', ')} (its VFIO device or group), and the kernel would wait for that one without limit: ` +
      'let it close the device, or stop it, first',
    { details: { pids: [...pids] } },
  );
}
