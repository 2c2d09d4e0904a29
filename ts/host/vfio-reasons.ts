/**
 * Reasons of VFIO: what the kernel, the IOMMU and the driver of a function lack for it to be migrated, and what would mend each.
 */
import { hex } from '../drivers/host/words.js';
import type { HostKernel, PciFunction } from '../drivers/host/port.js';
import type { MigrationFlags } from '../function/state.js';
import type { Reason } from '../function/types.js';
import type { DebugfsFeatures, IommuTracking, Opener } from './evidence.js';
import type { HostFacts } from './read.js';
import { aliasedModule, refusesPf, sameDriver, variantFor, variantOf, type VariantDriver } from './variants.js';

/** What is looked at of a host. */
export type PciFacts = Pick<HostFacts, 'kernel' | 'pci'>;

const identity = (fn: PciFunction): string => `${hex(fn.vendor)}:${hex(fn.device)}`;

/** What the kernel lacks. `iommu`: whether the function needs one; mediated devices do not. */
export function kernelReasons(kernel: HostKernel, iommu: boolean): Reason[] {
  const reasons: Reason[] = [];
  if (!kernel.container && !kernel.cdev) {
    reasons.push({
      code: 'kernel-without-vfio',
      message: `kernel ${kernel.release} has no VFIO: there is neither /dev/vfio/vfio nor /dev/vfio/devices`,
      mend: 'load it (modprobe vfio-pci), or use a kernel with CONFIG_VFIO and CONFIG_VFIO_PCI; CONFIG_VFIO_DEVICE_CDEV and CONFIG_IOMMUFD for dirty tracking by the IOMMU',
    });
  }
  if (iommu && !kernel.iommu) {
    reasons.push({
      code: 'kernel-without-iommu',
      message: `kernel ${kernel.release} has no IOMMU groups: /sys/kernel/iommu_groups is empty`,
      mend: 'enable the IOMMU in the firmware and the kernel (intel_iommu=on, or CONFIG_INTEL_IOMMU, CONFIG_AMD_IOMMU, CONFIG_ARM_SMMU_V3); inside of a VM its VMM has to give one',
    });
  }
  return reasons;
}

/** Drivers that VFIO takes for harmless in a group (drivers/vfio/group.c, drivers/iommu/iommu.c: those that manage no DMA). */
const HARMLESS = ['vfio-pci', 'pcieport', 'shpchp', 'pci-stub'];

/** What is the matter with its IOMMU group. */
export function groupReasons(facts: PciFacts, fn: PciFunction): Reason[] {
  if (!facts.kernel.iommu) return [];
  if (fn.iommuGroup === null) {
    return [
      {
        code: 'no-iommu-group',
        message: `${fn.address} is in no IOMMU group, so that VFIO does not take it`,
        mend: 'put it behind an IOMMU: another slot, or the setting of the firmware; without one there is only vfio.enable_unsafe_noiommu_mode, which does not migrate',
      },
    ];
  }
  const others = facts.pci.filter(
    (o) =>
      o.address !== fn.address &&
      o.iommuGroup === fn.iommuGroup &&
      o.driver !== null &&
      !HARMLESS.some((d) => sameDriver(d, o.driver ?? '')) &&
      o.vfioDevice === null &&
      variantOf(o.driver)?.bus !== 'pci',
  );
  if (others.length === 0) return [];
  return [
    {
      code: 'iommu-group-shared',
      message: `${fn.address} shares IOMMU group ${fn.iommuGroup} with ${others.map((o) => `${o.address} (${o.driver})`).join(', ')}, which ${others.length === 1 ? 'is' : 'are'} bound to the kernel's drivers`,
      mend: `unbind ${others.map((o) => o.address).join(', ')}, or bind it to vfio-pci; with ACS on the way the groups are smaller`,
    },
  ];
}

/** The way by which VFIO would migrate a function, or why there is none. */
export interface VfioWay {
  /** Arcs, where it can be migrated as it is bound now. */
  readonly states: MigrationFlags | null;
  readonly dirtyLog: 'yes' | 'no' | 'unknown';
  /** Where that comes from. */
  readonly evidence: string;
  readonly reasons: readonly Reason[];
}

const NO_WAY = { states: null, dirtyLog: 'unknown', evidence: '' } as const;

const article = (driver: string | null): string => (driver === null ? 'no driver' : driver);

/** A driver that could be bound, and the module that has it. */
interface Candidate {
  readonly driver: string;
  readonly module: string;
}

function bindTo(address: string, { driver, module }: Candidate, now: string | null): string {
  const load = `modprobe ${module}`;
  const free = now === null ? '' : `, echo ${address} > /sys/bus/pci/devices/${address}/driver/unbind`;
  return `${load}, echo ${driver} > /sys/bus/pci/devices/${address}/driver_override${free}, echo ${address} > /sys/bus/pci/drivers_probe; for a function of a serving process towline expose --as vfio does it`;
}

/** What is known of the right driver for it, where it is bound to it. */
function bound(
  name: string,
  kernel: HostKernel,
  variant: VariantDriver | undefined,
  driver: string,
  features: DebugfsFeatures | undefined,
  state: string | null,
): VfioWay {
  if (features?.states.stopCopy === true) {
    return {
      states: features.states,
      dirtyLog: features.dirtyTracking ? 'yes' : 'no',
      evidence: "this kernel's debugfs",
      reasons: [],
    };
  }
  const none = variant !== undefined && !variant.states.stopCopy;
  if (none || (kernel.vfioDebugfs && state === null)) {
    const reason: Reason = none
      ? {
          code: 'driver-cannot-migrate',
          message: `${driver}, which has ${name}, migrates nothing (${variant.source})`,
          mend: 'there is no other driver for it: it can not be migrated',
        }
      : {
          code: 'driver-cannot-migrate',
          message: `${name} is bound to ${driver}, and this kernel's debugfs shows no migration for it`,
          mend:
            variant?.needs === undefined || variant.needs === null
              ? 'see what the driver says in the kernel log'
              : `it needs: ${variant.needs}`,
        };
    return { ...NO_WAY, reasons: [reason] };
  }
  if (variant === undefined && state !== null) {
    // The state is shown only of what migrates (drivers/vfio/debugfs.c); which arcs it has besides is not told.
    return {
      states: { stopCopy: true, p2p: false, preCopy: false },
      dirtyLog: 'unknown',
      evidence: "this kernel's debugfs, which shows a migration state",
      reasons: [],
    };
  }
  if (variant === undefined)
    return { ...NO_WAY, evidence: 'nothing: this kernel does not tell, and the driver is not known', reasons: [] };
  return {
    states: variant.states,
    dirtyLog: variant.dirtyLog === 'depends' ? 'unknown' : variant.dirtyLog,
    evidence: `what ${driver} can do (${variant.source})`,
    reasons: [],
  };
}

/** By which driver a PCI function is migrated over VFIO. */
export function pciWay(facts: PciFacts, fn: PciFunction, features: DebugfsFeatures | undefined): VfioWay {
  const { kernel } = facts;
  const known = variantFor(fn);
  const named = aliasedModule(fn.modalias, kernel.vfioAliases);
  const alias = named !== undefined && refusesPf(named.module, fn) ? undefined : named;
  // What is built in has no alias in the file.
  const there = kernel.pciDrivers.find((d) => known !== undefined && sameDriver(d, known.driver));
  const candidate: Candidate | undefined =
    alias !== undefined
      ? { module: alias.module, driver: alias.driver ?? there ?? alias.module }
      : there !== undefined
        ? { module: there, driver: there }
        : undefined;
  const { driver } = fn;
  if (driver !== null) {
    const variant = variantOf(driver);
    const isVariant = variant?.bus === 'pci' || (candidate !== undefined && sameDriver(candidate.driver, driver));
    const strange = fn.vfioDevice !== null && !sameDriver(driver, 'vfio-pci');
    if (isVariant || strange || features !== undefined) {
      return bound(fn.address, kernel, variant ?? (isVariant ? known : undefined), driver, features, fn.vfioState);
    }
  }
  if (candidate !== undefined) {
    const reason: Reason =
      driver === null
        ? {
            code: 'no-driver',
            message: `${fn.address} is bound to no driver; ${candidate.driver} of this kernel migrates a ${identity(fn)}`,
            mend: bindTo(fn.address, candidate, driver),
          }
        : {
            code: 'wrong-driver',
            message: `${fn.address} is bound to ${driver}, which does not migrate it; ${candidate.driver} of this kernel would`,
            mend: bindTo(fn.address, candidate, driver),
          };
    return { ...NO_WAY, reasons: [reason] };
  }
  if (known?.states.stopCopy === true) {
    return {
      ...NO_WAY,
      reasons: [
        {
          code: 'no-variant-driver',
          message: `${fn.address} (bound to ${article(driver)}) would be migrated by ${known.driver}, which kernel ${kernel.release} does not have`,
          mend: `install the module, or build the kernel with CONFIG_${known.kconfig}; then it needs: ${known.needs ?? 'nothing more'}`,
        },
      ],
    };
  }
  return {
    ...NO_WAY,
    reasons: [
      {
        code: 'no-variant-driver',
        message: `${fn.address} (bound to ${article(driver)}): no VFIO driver of kernel ${kernel.release} migrates a ${identity(fn)}, by its modules.alias`,
        mend: 'see whether its vendor has a VFIO variant driver, or a controlling function that migrates it; vfio-pci alone migrates nothing',
      },
    ],
  };
}

/** By which driver a mediated device is migrated. */
export function mdevWay(
  kernel: HostKernel,
  device: { readonly uuid: string; readonly driver: string | null; readonly vfioState: string | null },
  features: DebugfsFeatures | undefined,
): VfioWay {
  const { driver, uuid } = device;
  if (driver === null) {
    return {
      ...NO_WAY,
      reasons: [
        {
          code: 'no-driver',
          message: `mediated device ${uuid} is bound to no driver`,
          mend: `echo ${uuid} > /sys/bus/mdev/drivers/NAME/bind, NAME being the driver of its parent, or remove it and provision it again`,
        },
      ],
    };
  }
  return bound(`mediated device ${uuid}`, kernel, variantOf(driver), driver, features, device.vfioState);
}

/** Who has it open. */
export function inUseReasons(name: string, openers: readonly Opener[]): Reason[] {
  if (openers.length === 0) return [];
  const who = openers.map((o) => `${o.pid}${o.name === null ? '' : ` (${o.name})`}`).join(', ');
  return [
    {
      code: 'in-use',
      message: `${name} is open in process ${who}: a VFIO device has one owner`,
      mend: 'let that process migrate it (a MigrationSession, or openVfio with its descriptor), or stop it',
    },
  ];
}

/** That it failed, by the kernel's debugfs. */
export function failedReasons(name: string, state: string | null): Reason[] {
  if (state !== 'ERROR') return [];
  return [
    {
      code: 'function-failed',
      message: `${name} is in the migration state ERROR`,
      mend: 'reset it: its owner by VFIO_DEVICE_RESET, or echo 1 > /sys/bus/pci/devices/ADDRESS/reset',
    },
  ];
}

/** What would slow it down: nobody tells which pages it writes. `null`: somebody does. */
export function dirtyLimit(
  name: string,
  kernel: HostKernel,
  dirtyLog: VfioWay['dirtyLog'],
  iommu: IommuTracking | 'none',
): Reason | null {
  if (dirtyLog === 'yes' || (iommu === 'yes' && kernel.cdev && kernel.iommufd)) return null;
  const by =
    dirtyLog === 'unknown'
      ? `whether ${name} logs its writes is told only once it is open`
      : `${name} does not log which pages it writes`;
  const [message, mend] =
    iommu === 'none'
      ? [
          `${by}, and a mediated device has no IOMMU to do it`,
          'nothing here would: the memory that it may write is sent in the stop',
        ]
      : !kernel.cdev || !kernel.iommufd
        ? [
            `${by}, and kernel ${kernel.release} lacks ${kernel.iommufd ? '/dev/vfio/devices' : '/dev/iommu'}, by which an IOMMU would`,
            'use a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV',
          ]
        : iommu === 'no'
          ? [
              `${by}, and its IOMMU has no dirty tracking (VT-d: ECAP.SLADS, AMD: HDSup)`,
              'use a machine whose IOMMU tracks dirty pages',
            ]
          : [`${by}, and whether its IOMMU does can't be read from sysfs`, 'towline tries it when it opens the device'];
  return {
    code: 'no-dirty-tracking',
    message: `${message}: ${dirtyLog === 'unknown' || iommu === 'unknown' ? 'if nobody does, ' : ''}every page of guest memory is sent again in the stop`,
    mend,
  };
}
