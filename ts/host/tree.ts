/**
 * The controlling functions of a host with the functions that they control, as a tree.
 */
import type { FunctionKind } from '../function/types.js';
import type { DevlinkPort, MdevParent, PciFunction } from '../drivers/host/port.js';
import { describePci } from './names.js';
import { readHost, type HostFacts, type HostOptions, type HostProblem, type ReadOptions } from './read.js';
import { sameDriver, variantOf } from './variants.js';

/** What a devlink port tells of its function. `null`: the port does not tell. */
export interface HostPortInfo {
  /** `pci/0000:01:00.0/98304` */
  readonly address: string;
  readonly flavour: DevlinkPort['flavour'];
  readonly netdev: string | null;
  readonly hwAddress: string | null;
  readonly state: 'inactive' | 'active' | null;
  readonly migratable: boolean | null;
}

/** A function of this host. */
export interface HostFunction {
  readonly kind: FunctionKind;
  /** PCI address, UUID of the mediated device, or `pci/0000:01:00.0/98304` of a devlink port. */
  readonly address: string;
  readonly bus: 'pci' | 'mdev' | 'devlink';
  /** For people. */
  readonly description: string;
  /** Kernel driver that it is bound to. */
  readonly driver: string | null;
  /** How it is visible: `vfio` where it is bound to a VFIO driver, `kernel` where to another, `none` where to none. */
  readonly exposure: 'none' | 'kernel' | 'vfio';
  readonly iommuGroup: number | null;
  /** Name below `/dev/vfio/devices`. */
  readonly vfioDevice: string | null;
  /** Migration state as the kernel's debugfs tells it; `null` where it does not. */
  readonly migrationState: string | null;
  /** Type of a mediated device. */
  readonly type: string | null;
  /** Index of a VF among those of its PF, from 0. */
  readonly vfIndex: number | null;
  /** Name of an NVMe controller, `nvme1`. */
  readonly nvme: string | null;
  readonly port: HostPortInfo | null;
}

/** A type of mediated devices of which more can be made. */
export interface HostMdevType {
  readonly id: string;
  readonly name: string | null;
  readonly deviceApi: string;
  readonly available: number;
}

/** A controlling function of this host. */
export interface HostController {
  /** PCI address, path of an mdev parent below the root of sysfs, or `netdevsim/netdevsim1` of a devlink instance without a PCI device. */
  readonly address: string;
  readonly bus: 'pci' | 'mdev' | 'devlink';
  /** For people. */
  readonly description: string;
  readonly driver: string | null;
  /** What `towline serve --controlling` takes, the one that can do most first. */
  readonly controlling: readonly string[];
  /** Of an NVMe controller. */
  readonly nvme: null | { readonly name: string; readonly state: string | null; readonly subsystemNqn: string | null };
  /** Of an SR-IOV PF. */
  readonly vfs: null | { readonly total: number; readonly enabled: number; readonly autoprobe: boolean };
  /** Of an mdev parent. */
  readonly types: readonly HostMdevType[];
  /** What it controls now. */
  readonly functions: readonly HostFunction[];
}

/** What the kernel of this host has. */
export interface HostKernelInfo {
  readonly release: string;
  readonly iommu: boolean;
  /** `/dev/vfio/vfio` */
  readonly container: boolean;
  /** `/dev/vfio/devices` */
  readonly cdev: boolean;
  /** `/dev/iommu` */
  readonly iommufd: boolean;
  readonly mdev: boolean;
  /** Devlink over generic netlink. */
  readonly devlink: boolean;
  /** The kernel's debugfs of VFIO is there and may be read. */
  readonly vfioDebugfs: boolean;
}

/** What {@link discoverHost} found. */
export interface HostTree {
  readonly kernel: HostKernelInfo;
  readonly controlling: readonly HostController[];
  /** Functions on VFIO whose controlling function is none of `controlling`. */
  readonly others: readonly HostFunction[];
  /** What could not be read, and is missing above. */
  readonly problems: readonly HostProblem[];
}

/** Whether a driver is VFIO's. Variant drivers of other kernels are told by their `vfio-dev` directory. */
function onVfio(driver: string | null, vfioDevice: string | null): boolean {
  return (
    vfioDevice !== null || (driver !== null && (sameDriver(driver, 'vfio-pci') || variantOf(driver)?.bus === 'pci'))
  );
}

function portInfo(port: DevlinkPort): HostPortInfo {
  return {
    address: `${port.bus}/${port.device}/${port.index}`,
    flavour: port.flavour,
    netdev: port.netdev,
    hwAddress: port.function?.hwAddr ?? null,
    state: port.function?.state ?? null,
    migratable: port.function?.migratable ?? null,
  };
}

/** The port of a VF: of the devlink instance of its PF, on the local controller. */
function portOfVf(facts: HostFacts, fn: PciFunction): DevlinkPort | undefined {
  if (fn.physfn === null || fn.vfIndex === null) return undefined;
  const pf = Number.parseInt(fn.physfn.slice(-1), 16);
  return facts.ports.find(
    (p) =>
      p.bus === 'pci' &&
      p.flavour === 'pci-vf' &&
      p.vf === fn.vfIndex &&
      (p.controller ?? 0) === 0 &&
      // One instance may have the ports of several PFs: the number of the PF is that of its PCI function.
      (p.device === fn.physfn || (p.pf === pf && p.device.slice(0, -1) === fn.physfn?.slice(0, -1))),
  );
}

/** A PCI function as it is shown. */
export function pciHostFunction(facts: HostFacts, fn: PciFunction): HostFunction {
  const port = portOfVf(facts, fn);
  return {
    kind: fn.physfn === null ? 'pf' : 'vf',
    address: fn.address,
    bus: 'pci',
    description: describePci(fn),
    driver: fn.driver,
    exposure: fn.driver === null ? 'none' : onVfio(fn.driver, fn.vfioDevice) ? 'vfio' : 'kernel',
    iommuGroup: fn.iommuGroup,
    vfioDevice: fn.vfioDevice,
    migrationState: fn.vfioState,
    type: null,
    vfIndex: fn.vfIndex,
    nvme: fn.nvme?.name ?? null,
    port: port === undefined ? null : portInfo(port),
  };
}

/** A mediated device as it is shown. */
export function mdevHostFunction(device: MdevParent['devices'][number]): HostFunction {
  return {
    kind: 'siov',
    address: device.uuid,
    bus: 'mdev',
    description: `mediated device of type ${device.type}`,
    driver: device.driver,
    exposure: device.driver === null ? 'none' : 'vfio',
    iommuGroup: device.iommuGroup,
    vfioDevice: device.vfioDevice,
    migrationState: device.vfioState,
    type: device.type,
    vfIndex: null,
    nvme: null,
    port: null,
  };
}

/** The function behind a devlink port that is no PCI function of this host: a subfunction, or one of another controller. */
export function portHostFunction(port: DevlinkPort): HostFunction {
  const info = portInfo(port);
  const which = [
    port.controller === null ? '' : `controller ${port.controller}`,
    port.pf === null ? '' : `PF ${port.pf}`,
    port.vf === null ? '' : `VF ${port.vf}`,
    port.sf === null ? '' : `SF ${port.sf}`,
  ].filter((part) => part !== '');
  return {
    kind: port.flavour === 'pci-sf' ? 'siov' : port.flavour === 'pci-pf' ? 'pf' : 'vf',
    address: info.address,
    bus: 'devlink',
    description: `devlink port${which.length === 0 ? '' : ` (${which.join(', ')})`}`,
    driver: null,
    exposure: 'none',
    iommuGroup: null,
    vfioDevice: null,
    migrationState: null,
    type: null,
    vfIndex: null,
    nvme: null,
    port: info,
  };
}

const FUNCTION_PORTS: ReadonlySet<DevlinkPort['flavour']> = new Set(['pci-pf', 'pci-vf', 'pci-sf']);

function kernelInfo({ kernel, hasDevlink: devlink }: HostFacts): HostKernelInfo {
  const { release, iommu, container, cdev, iommufd, mdev, vfioDebugfs } = kernel;
  return { release, iommu, container, cdev, iommufd, mdev, devlink, vfioDebugfs };
}

/** Ascending, with numbers in them by their value. */
const byAddress = (a: { address: string }, b: { address: string }): number =>
  a.address.localeCompare(b.address, 'en', { numeric: true });

/** The last PCI address in a path of sysfs. */
function pciOf(path: string): string | undefined {
  return [...path.matchAll(/[\da-f]{4,8}:[\da-f]{2}:[\da-f]{2}\.[0-7]/g)].at(-1)?.[0];
}

/** The tree of what was read. */
export function hostTree(facts: HostFacts): HostTree {
  const shown = new Set<string>();
  const show = (fn: HostFunction): HostFunction => {
    shown.add(fn.address);
    if (fn.port !== null) shown.add(fn.port.address);
    return fn;
  };
  const mdevFunctions = (parent: MdevParent): HostFunction[] =>
    parent.devices.map((device) => show(mdevHostFunction(device)));
  const types = (parent: MdevParent | undefined): HostMdevType[] =>
    (parent?.types ?? []).map(({ id, name, deviceApi, availableInstances }) => ({
      id,
      name,
      deviceApi,
      available: availableInstances,
    }));
  const portsOf = (bus: string, device: string): HostFunction[] =>
    facts.ports
      .filter((p) => p.bus === bus && p.device === device && FUNCTION_PORTS.has(p.flavour))
      .map(portHostFunction)
      // The eswitch has a port for the PF itself, and a VF of this host was shown already.
      .filter((fn) => !shown.has(fn.address) && !(fn.kind === 'pf' && fn.port?.hwAddress === null))
      .map(show);

  const controlling: HostController[] = [];
  for (const fn of facts.pci) {
    const parent = facts.mdev.find((m) => pciOf(m.path) === fn.address);
    const devlink = facts.devlink.some((d) => d.bus === 'pci' && d.device === fn.address);
    const isNvme = fn.class === NVME_CLASS && fn.physfn === null;
    if (fn.sriov === null && !isNvme && parent === undefined && !(devlink && portsOfFunction(facts, fn).length > 0))
      continue;
    const vfs = facts.pci.filter((vf) => vf.physfn === fn.address).sort((a, b) => (a.vfIndex ?? 0) - (b.vfIndex ?? 0));
    const functions = vfs.map((vf) => show(pciHostFunction(facts, vf)));
    if (parent !== undefined) functions.push(...mdevFunctions(parent));
    if (devlink) functions.push(...portsOf('pci', fn.address));
    controlling.push({
      address: fn.address,
      bus: 'pci',
      description: describePci(fn),
      driver: fn.driver,
      controlling: [
        ...(isNvme && fn.nvme !== null ? [`nvme:${fn.address}`] : []),
        ...(devlink ? [`devlink:pci/${fn.address}`] : []),
        ...(fn.sriov === null ? [] : [`sriov:${fn.address}`]),
        ...(parent === undefined ? [] : [`mdev:${parent.path}`]),
      ],
      nvme: fn.nvme === null ? null : { name: fn.nvme.name, state: fn.nvme.state, subsystemNqn: fn.nvme.subsystemNqn },
      vfs:
        fn.sriov === null
          ? null
          : { total: fn.sriov.totalVfs, enabled: fn.sriov.numVfs, autoprobe: fn.sriov.driversAutoprobe },
      types: types(parent),
      functions,
    });
  }
  for (const parent of facts.mdev) {
    const pci = pciOf(parent.path);
    if (pci !== undefined && controlling.some((c) => c.address === pci)) continue;
    controlling.push({
      address: parent.path,
      bus: 'mdev',
      description: `parent of mediated devices ${parent.name}`,
      driver: null,
      controlling: [`mdev:${parent.name}`],
      nvme: null,
      vfs: null,
      types: types(parent),
      functions: mdevFunctions(parent),
    });
  }
  for (const { bus, device } of facts.devlink) {
    if (bus === 'pci' && controlling.some((c) => c.address === device)) continue;
    const functions = portsOf(bus, device);
    // An instance without functions, a plain network card say, controls nothing.
    if (functions.length === 0 && bus === 'pci') continue;
    controlling.push({
      address: `${bus}/${device}`,
      bus: 'devlink',
      description: `devlink instance ${bus}/${device}`,
      driver: null,
      controlling: [`devlink:${bus}/${device}`],
      nvme: null,
      vfs: null,
      types: [],
      functions,
    });
  }
  const controllers = new Set(controlling.map((c) => c.address));
  const others = facts.pci
    .filter((fn) => !shown.has(fn.address) && !controllers.has(fn.address) && onVfio(fn.driver, fn.vfioDevice))
    .map((fn) => show(pciHostFunction(facts, fn)));
  return {
    kernel: kernelInfo(facts),
    controlling: controlling.sort(byAddress),
    others: others.sort(byAddress),
    problems: facts.problems,
  };
}

/** Class, subclass and programming interface of an NVMe controller for I/O (PCI Code and ID Assignment, 01h 08h 02h). */
export const NVME_CLASS = 0x01_08_02;

function portsOfFunction(facts: HostFacts, fn: PciFunction): readonly DevlinkPort[] {
  return facts.ports.filter((p) => p.bus === 'pci' && p.device === fn.address && FUNCTION_PORTS.has(p.flavour));
}

/**
 * Every controlling function of this host with the functions that it controls. Read-only, without root as far as that goes, and without
 * opening any device: it works while a VMM owns them.
 * @throws TowlineError `ERR_TOWLINE_UNSUPPORTED` or `ERR_TOWLINE_NATIVE_LOAD` where there is no native part; what can't be read is told in `problems`.
 */
export async function discoverHost(options: HostOptions = {}): Promise<HostTree> {
  return discover(options);
}

/** {@link discoverHost} on any host. */
export async function discover(options: ReadOptions): Promise<HostTree> {
  return hostTree(await readHost(options));
}
