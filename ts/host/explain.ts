/**
 * Why a function of this host can't be migrated, and what can be done with it, told from outside: it works while another process owns
 * the function, and opens nothing that has a single owner.
 */
import { TowlineError } from '../errors.js';
import { quirksFor } from '../bar/quirks/index.js';
import { pciAddress } from '../drivers/host/words.js';
import type { DevlinkPort, MdevParent, PciFunction } from '../drivers/host/port.js';
import type { MigrationFlags } from '../function/state.js';
import type { Reason } from '../function/types.js';
import { debugfsFeatures, iommuTracking, openersOf, type IommuTracking } from './evidence.js';
import { nvmeWay } from './nvme-reasons.js';
import { hostReader, readHost, type HostFacts, type HostOptions, type HostReader, type ReadOptions } from './read.js';
import { mdevHostFunction, NVME_CLASS, pciHostFunction, portHostFunction, type HostFunction } from './tree.js';
import { sameDriver } from './variants.js';
import {
  dirtyLimit,
  failedReasons,
  groupReasons,
  inUseReasons,
  kernelReasons,
  mdevWay,
  pciWay,
  type VfioWay,
} from './vfio-reasons.js';

/** What can be done with a function. */
export interface HostAbility {
  /** `vfio`: by its VFIO driver. `nvme`: by commands of its controlling function. */
  readonly by: 'vfio' | 'nvme';
  readonly states: MigrationFlags;
  /** Who tells which pages it writes. */
  readonly dirty: 'device' | 'iommu' | 'controlling-function' | 'nobody' | 'unknown';
  /** Where that comes from. */
  readonly evidence: string;
}

/** A quirk that a function has. */
export interface HostQuirk {
  readonly name: string;
  readonly notes: readonly string[];
  readonly source: string;
}

/** What {@link explainHost} says. */
export interface HostExplanation {
  readonly function: HostFunction;
  /** What can be done with it as it is bound now; `null`: nothing, or nothing that is known from outside. */
  readonly can: HostAbility | null;
  /** Every reason why it can't be migrated now; empty where nothing known is in the way. */
  readonly reasons: readonly Reason[];
  /** What makes it slower or needs care, or could not be found out, but does not prevent it. */
  readonly limits: readonly Reason[];
  readonly quirks: readonly HostQuirk[];
}

type Found =
  | { readonly what: 'pci'; readonly fn: PciFunction }
  | { readonly what: 'mdev'; readonly device: MdevParent['devices'][number] }
  | { readonly what: 'port'; readonly port: DevlinkPort };

/** Finds what a word names: a PCI address with or without its domain, a UUID, `nvme0`, a devlink port, each also as `DRIVER:ADDRESS`. */
function find(facts: HostFacts, word: string): Found | undefined {
  const name = word.replace(/^(?:nvme|sriov|mdev|devlink):(?=.)/, '').replace(/^\/dev\//, '');
  const address = pciAddress(name) ?? pciAddress(name.replace(/^pci\//, ''));
  const fn = facts.pci.find((f) => f.address === address || (f.nvme !== null && f.nvme.name === name));
  if (fn !== undefined) return { what: 'pci', fn };
  for (const parent of facts.mdev) {
    const device = parent.devices.find((d) => d.uuid === name.toLowerCase());
    if (device !== undefined) return { what: 'mdev', device };
  }
  const port = facts.ports.find((p) => `${p.bus}/${p.device}/${p.index}` === name);
  if (port === undefined) return undefined;
  const vf = facts.pci.find((f) => pciHostFunction(facts, f).port?.address === name);
  return vf === undefined ? { what: 'port', port } : { what: 'pci', fn: vf };
}

function quirksOf(subject: Parameters<typeof quirksFor>[0]): HostQuirk[] {
  return quirksFor(subject).map(({ name, notes, source, bars, reset }) => ({
    name,
    notes: [
      ...bars.map((b) => `BAR ${b.bar}: ${b.why}.`),
      ...(reset === null ? [] : [`Reset: ${reset.note}.`]),
      ...notes,
    ],
    source,
  }));
}

/** Paths in /dev by which VFIO gives a function to its one owner. */
function vfioPaths(fn: { iommuGroup: number | null; vfioDevice: string | null }): string[] {
  return [
    ...(fn.vfioDevice === null ? [] : [`/dev/vfio/devices/${fn.vfioDevice}`]),
    ...(fn.iommuGroup === null ? [] : [`/dev/vfio/${fn.iommuGroup}`, `/dev/vfio/noiommu-${fn.iommuGroup}`]),
  ];
}

function vfioAbility(way: VfioWay, iommu: IommuTracking | 'none', iommufd: boolean): HostAbility | null {
  if (way.states === null) return null;
  const dirty =
    way.dirtyLog === 'yes'
      ? 'device'
      : iommufd && iommu === 'yes'
        ? 'iommu'
        : way.dirtyLog === 'unknown' || (iommufd && iommu === 'unknown')
          ? 'unknown'
          : 'nobody';
  return { by: 'vfio', states: way.states, dirty, evidence: way.evidence };
}

function debugfsLimit(way: VfioWay, vfioDebugfs: boolean): Reason[] {
  if (vfioDebugfs || way.reasons.length > 0) return [];
  return [
    {
      code: 'not-permitted',
      message: `the kernel's debugfs of VFIO is not there, or may not be read: what is said of migration comes from ${way.evidence}`,
      mend: 'ask as root, with debugfs mounted and CONFIG_VFIO_DEBUGFS, to have it from the kernel',
    },
  ];
}

function portReasons(port: HostFunction['port']): Reason[] {
  const reasons: Reason[] = [];
  if (port?.state === 'inactive') {
    reasons.push({
      code: 'function-offline',
      message: `devlink port ${port.address} is inactive`,
      mend: `devlink port function set ${port.address} state active`,
    });
  }
  if (port?.migratable === false) {
    reasons.push({
      code: 'migration-not-enabled',
      message: `devlink port ${port.address} is not migratable`,
      mend: `devlink port function set ${port.address} migratable enable, while its function is bound to no driver`,
    });
  }
  return reasons;
}

async function explainPci(
  reader: HostReader,
  facts: HostFacts,
  sysfs: string,
  fn: PciFunction,
): Promise<HostExplanation> {
  const shown = pciHostFunction(facts, fn);
  const isNvme = fn.class === NVME_CLASS;
  const [features, iommu, openers, nvme] = await Promise.all([
    debugfsFeatures(sysfs, fn.address),
    iommuTracking(sysfs, fn.address),
    openersOf(reader, vfioPaths(fn)),
    isNvme ? nvmeWay(reader, facts, fn) : undefined,
  ]);
  const quirks = quirksOf({ ...fn, vf: fn.physfn !== null });
  const way = pciWay(facts, fn, features);
  const controls = facts.pci.filter((vf) => vf.physfn === fn.address).length;
  if (fn.physfn === null && (fn.sriov !== null || nvme?.migrates === 'yes') && way.states === null) {
    // It is what commands, not what is moved; what it lacks for that is told.
    const reasons: Reason[] = [
      {
        code: 'function-is-controlling',
        message: `${fn.address} is a controlling function${fn.sriov === null ? '' : `, with ${controls} of ${fn.sriov.totalVfs} VFs`}, which is never migrated itself`,
        mend: 'migrate the functions that it controls',
      },
      ...(nvme?.reasons ?? []),
    ];
    return { function: shown, can: null, reasons, limits: nvme?.limits ?? [], quirks };
  }
  const { kernel } = facts;
  const inUse = inUseReasons(fn.address, openers);
  if (nvme?.migrates === 'yes') {
    const can: HostAbility = {
      by: 'nvme',
      states: { stopCopy: true, p2p: false, preCopy: false },
      dirty: nvme.tracks ? 'controlling-function' : 'nobody',
      evidence: 'Identify Controller of its controlling function',
    };
    return { function: shown, can, reasons: [...nvme.reasons, ...inUse], limits: nvme.limits, quirks };
  }
  const limits: Reason[] = [...(nvme?.limits ?? [])];
  const pf = facts.pci.find((f) => f.address === fn.physfn);
  if (sameDriver(pf?.driver ?? '', 'vfio-pci') && shown.exposure === 'vfio') {
    limits.push({
      code: 'vf-token-needed',
      message: `PF ${fn.physfn} is bound to vfio-pci: who opens ${fn.address} has to give the token that the owner of the PF has set`,
      mend: 'give the token (a UUID) when it is opened, or bind the PF to its own driver',
    });
  }
  const can = vfioAbility(way, iommu, kernel.cdev && kernel.iommufd);
  if (can !== null) {
    const dirty = dirtyLimit(fn.address, kernel, way.dirtyLog, iommu);
    if (dirty !== null) limits.push(dirty);
  }
  limits.push(...debugfsLimit(way, kernel.vfioDebugfs));
  const reasons = [
    ...kernelReasons(kernel, true),
    ...groupReasons(facts, fn),
    ...(nvme?.reasons ?? []),
    ...way.reasons,
    ...portReasons(shown.port),
    ...failedReasons(fn.address, fn.vfioState),
    ...inUse,
  ];
  return { function: shown, can, reasons, limits, quirks };
}

async function explainMdev(
  reader: HostReader,
  facts: HostFacts,
  sysfs: string,
  device: MdevParent['devices'][number],
): Promise<HostExplanation> {
  const { kernel } = facts;
  const [features, openers] = await Promise.all([
    debugfsFeatures(sysfs, device.uuid),
    openersOf(reader, vfioPaths(device)),
  ]);
  const name = `mediated device ${device.uuid}`;
  const way = mdevWay(kernel, device, features);
  const can = vfioAbility(way, 'none', false);
  const dirty = can === null ? null : dirtyLimit(name, kernel, way.dirtyLog, 'none');
  return {
    function: mdevHostFunction(device),
    can,
    reasons: [
      ...kernelReasons(kernel, false),
      ...way.reasons,
      ...failedReasons(name, device.vfioState),
      ...inUseReasons(name, openers),
    ],
    limits: [...(dirty === null ? [] : [dirty]), ...debugfsLimit(way, kernel.vfioDebugfs)],
    quirks: quirksOf({ driver: device.driver }),
  };
}

function explainPort(port: DevlinkPort): HostExplanation {
  const fn = portHostFunction(port);
  const elsewhere: Reason =
    port.flavour === 'pci-sf'
      ? {
          code: 'no-variant-driver',
          message: `${fn.address} is a subfunction, a device of the auxiliary bus, which no driver of the kernel gives to VFIO`,
          mend: 'use a VF where it has to be migrated',
        }
      : {
          code: 'other',
          message: `the function of devlink port ${fn.address} is no PCI function of this host`,
          mend: 'create its VF (sriov_numvfs), or ask on the host on which it is',
        };
  return { function: fn, can: null, reasons: [...portReasons(fn.port), elsewhere], limits: [], quirks: [] };
}

/**
 * Every reason why the function at `address` can't be migrated, each with what would mend it, and what can be done with it. Read-only.
 * @param address - PCI address (`0000:01:00.1` or `01:00.1`), UUID of a mediated device, NVMe controller (`nvme0`) or devlink port
 * (`pci/0000:01:00.0/1`); `DRIVER:` may stand before it.
 * @throws TowlineError `ERR_TOWLINE_NOT_FOUND` where this host has no such function.
 */
export async function explainHost(address: string, options: HostOptions = {}): Promise<HostExplanation> {
  return explainOn(address, options);
}

/** {@link explainHost} on any host. */
export async function explainOn(address: string, options: ReadOptions): Promise<HostExplanation> {
  const facts = await readHost(options);
  const reader = hostReader(options);
  const found = find(facts, address);
  if (found === undefined) {
    const parent = facts.mdev.find(
      (m) => address === `mdev:${m.name}` || address === m.name || address.endsWith(m.path),
    );
    const unread = facts.problems.map((p) => `; ${p.part} could not be read: ${p.error.message}`).join('');
    throw new TowlineError(
      'ERR_TOWLINE_NOT_FOUND',
      parent === undefined
        ? `this host has no function ${address}${unread}`
        : `${parent.name} is a controlling function: name one of its functions: ${parent.devices.map((d) => d.uuid).join(', ') || 'it has none'}`,
    );
  }
  const sysfs = options.sysfs ?? '/sys';
  if (found.what === 'pci') return explainPci(reader, facts, sysfs, found.fn);
  if (found.what === 'mdev') return explainMdev(reader, facts, sysfs, found.device);
  return explainPort(found.port);
}
