/**
 * Reads what there is on this host: from sysfs, devlink and the kernel's facts, all of it read-only. Nothing here opens a device that
 * has a single owner.
 */
import { throwIfAborted, type WaitOptions } from '../abort.js';
import { native, TowlineError, unwrapFault, type TowlineErrorJson } from '../errors.js';
import {
  NativeHostPort,
  type DevlinkPort,
  type HostKernel,
  type HostPort,
  type MdevParent,
  type PciFunction,
} from '../drivers/host/port.js';
import { binding } from '../native/api.js';

/** What of a host this needs: nothing that opens a device with a single owner. An NVMe controller has many owners. */
export type HostReader = Pick<
  HostPort,
  'kernel' | 'pci' | 'mdev' | 'devlinkDevices' | 'devlinkPorts' | 'openers' | 'openNvme'
>;

/** Options of {@link discoverHost} and {@link explainHost}. */
export interface HostOptions extends WaitOptions {
  /** Root of sysfs. Default: `/sys`. */
  readonly sysfs?: string | undefined;
}

/** {@link HostOptions}, and what tests put in place of this host. */
export interface ReadOptions extends HostOptions {
  readonly reader?: HostReader | undefined;
}

/** A part of this host that could not be read. */
export interface HostProblem {
  /** Which part. */
  readonly part: 'kernel' | 'pci' | 'mdev' | 'devlink';
  readonly error: TowlineErrorJson;
}

/** Everything as it was read. */
export interface HostFacts {
  readonly kernel: HostKernel;
  /** The kernel has devlink. */
  readonly hasDevlink: boolean;
  /** Every PCI function: who shares an IOMMU group can't be told from less. */
  readonly pci: readonly PciFunction[];
  readonly mdev: readonly MdevParent[];
  readonly devlink: readonly { readonly bus: string; readonly device: string }[];
  readonly ports: readonly DevlinkPort[];
  readonly problems: readonly HostProblem[];
}

const UNKNOWN: HostKernel = {
  release: 'unknown',
  iommu: false,
  container: false,
  cdev: false,
  iommufd: false,
  pciDrivers: [],
  mdev: false,
  vfioDebugfs: false,
  vfioAliases: [],
};

/**
 * The host of this process.
 * @throws TowlineError `ERR_TOWLINE_UNSUPPORTED` where the native part has nothing for hosts, `ERR_TOWLINE_NATIVE_LOAD` where there is none.
 */
export function hostReader({ reader, sysfs }: ReadOptions): HostReader {
  if (reader !== undefined) return reader;
  if (typeof (binding() as Partial<ReturnType<typeof binding>>).hostKernel !== 'function') {
    throw new TowlineError(
      'ERR_TOWLINE_UNSUPPORTED',
      'the native part of this platform can not read the devices of a host',
    );
  }
  return new NativeHostPort(sysfs ?? null);
}

/** Reads each part by itself: one that fails is told in `problems` and leaves the others. */
export async function readHost(options: ReadOptions = {}): Promise<HostFacts> {
  throwIfAborted(options.signal);
  const reader = hostReader(options);
  const problems: HostProblem[] = [];
  let hasDevlink = true;
  const part = async <T>(name: HostProblem['part'], call: () => Promise<T>, empty: T): Promise<T> => {
    try {
      return await native(call);
    } catch (error) {
      const fault = unwrapFault(error);
      // A kernel without devlink has no ports: nothing is missing in what is told.
      if (name === 'devlink' && fault.code === 'ERR_TOWLINE_UNSUPPORTED') {
        hasDevlink = false;
        return empty;
      }
      // Both questions about devlink fail for one reason.
      if (!problems.some((p) => p.part === name)) problems.push({ part: name, error: fault.toJSON() });
      return empty;
    }
  };
  const [kernel, pci, mdev, devlink, ports] = await Promise.all([
    part('kernel', () => reader.kernel(), UNKNOWN),
    part('pci', () => reader.pci(true), []),
    part('mdev', () => reader.mdev(), []),
    part('devlink', () => reader.devlinkDevices(), []),
    part('devlink', () => reader.devlinkPorts(), []),
  ]);
  throwIfAborted(options.signal);
  return { kernel, hasDevlink, pci, mdev, devlink, ports, problems };
}
