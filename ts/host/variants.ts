/**
 * What the kernel's VFIO drivers can do, as data: an open device tells it by itself, but opening takes it away from whoever owns it.
 * Where the kernel's debugfs tells, it is believed instead.
 */
import type { MigrationFlags } from '../function/state.js';

/** A VFIO driver for one family of devices: a variant driver of vfio-pci, or the driver of a parent of mediated devices. */
export interface VariantDriver {
  /** Name of the kernel driver. */
  readonly driver: string;
  /** `pci`: bound to the function itself. `mdev`: it made the mediated device. */
  readonly bus: 'pci' | 'mdev';
  /** Option of the kernel's configuration that builds it. */
  readonly kconfig: string;
  /** What it is for. */
  readonly devices: string;
  /** PCI identities that it takes; empty for `mdev`. */
  readonly ids: readonly { readonly vendor: number; readonly device: number }[];
  /** It takes VFs only, though its PCI identities are those of PFs as well. */
  readonly vfsOnly: boolean;
  /** The most that it can do; all false where it does not migrate. */
  readonly states: MigrationFlags;
  /** Whether the device logs the pages that it writes. `depends`: on the device. */
  readonly dirtyLog: 'yes' | 'no' | 'depends';
  /** On what migration depends besides the driver. */
  readonly needs: string | null;
  /** File of the Linux kernel (7.2). */
  readonly source: string;
}

const NONE: MigrationFlags = { stopCopy: false, p2p: false, preCopy: false };
const P2P: MigrationFlags = { stopCopy: true, p2p: true, preCopy: false };
const ALL: MigrationFlags = { stopCopy: true, p2p: true, preCopy: true };

const ids = (vendor: number, ...devices: number[]) => devices.map((device) => ({ vendor, device }));

/** The drivers of Linux 7.2. */
export const variantDrivers: readonly VariantDriver[] = [
  {
    driver: 'mlx5_vfio_pci',
    bus: 'pci',
    kconfig: 'MLX5_VFIO_PCI',
    devices: 'VFs of NVIDIA ConnectX and BlueField',
    ids: ids(0x15b3, 0x101e),
    vfsOnly: false,
    states: ALL,
    dirtyLog: 'depends',
    needs:
      'the port of the VF has to be migratable (devlink port function) before the VF is bound, and the PF on mlx5_core',
    source: 'drivers/vfio/pci/mlx5/main.c',
  },
  {
    driver: 'hisi_acc_vfio_pci',
    bus: 'pci',
    kconfig: 'HISI_ACC_VFIO_PCI',
    devices: 'VFs of HiSilicon accelerators (SEC, HPRE, ZIP)',
    ids: ids(0x19e5, 0xa251, 0xa256, 0xa259),
    vfsOnly: false,
    states: { stopCopy: true, p2p: false, preCopy: true },
    dirtyLog: 'no',
    needs: 'a queue manager of version 3 or newer, and the PF on its hisi driver',
    source: 'drivers/vfio/pci/hisilicon/hisi_acc_vfio_pci.c',
  },
  {
    driver: 'pds_vfio_pci',
    bus: 'pci',
    kconfig: 'PDS_VFIO_PCI',
    devices: 'VFs of AMD Pensando DSC',
    ids: ids(0x1dd8, 0x1003),
    vfsOnly: false,
    states: P2P,
    dirtyLog: 'yes',
    needs: 'the PF on pds_core',
    source: 'drivers/vfio/pci/pds/vfio_dev.c',
  },
  {
    driver: 'qat_vfio_pci',
    bus: 'pci',
    kconfig: 'QAT_VFIO_PCI',
    devices: 'VFs of Intel QuickAssist (4xxx, 401xx, 402xx, 420xx, 6xxx)',
    ids: ids(0x8086, 0x4941, 0x4943, 0x4945, 0x4947, 0x4949),
    vfsOnly: false,
    states: ALL,
    dirtyLog: 'no',
    needs: 'the PF on its qat driver',
    source: 'drivers/vfio/pci/qat/main.c',
  },
  {
    driver: 'virtio_vfio_pci',
    bus: 'pci',
    kconfig: 'VIRTIO_VFIO_PCI',
    devices: 'VFs of virtio network and block devices',
    ids: ids(0x1af4, 0x1041, 0x1042),
    vfsOnly: true,
    states: ALL,
    dirtyLog: 'no',
    needs: 'a PF on virtio-pci whose admin queue has the commands for device parts',
    source: 'drivers/vfio/pci/virtio/migrate.c',
  },
  {
    driver: 'xe-vfio-pci',
    bus: 'pci',
    kconfig: 'XE_VFIO_PCI',
    devices: 'VFs of Intel GPUs (Panther Lake, Wildcat Lake, Battlemage)',
    ids: ids(
      0x8086,
      0xb080,
      0xb081,
      0xb082,
      0xb083,
      0xb084,
      0xb085,
      0xb086,
      0xb087,
      0xb08f,
      0xb090,
      0xb0a0,
      0xb0b0,
      0xfd80,
      0xfd81,
      0xe202,
      0xe209,
      0xe20b,
      0xe20c,
      0xe20d,
      0xe210,
      0xe211,
      0xe212,
      0xe216,
      0xe220,
      0xe221,
      0xe222,
      0xe223,
    ),
    vfsOnly: true,
    states: P2P,
    dirtyLog: 'no',
    needs: 'the PF on xe, with migration of VFs',
    source: 'drivers/vfio/pci/xe/main.c',
  },
  {
    driver: 'nvgrace_gpu_vfio_pci',
    bus: 'pci',
    kconfig: 'NVGRACE_GPU_VFIO_PCI',
    devices: 'NVIDIA Grace Hopper and Grace Blackwell GPUs',
    ids: ids(0x10de, 0x2342, 0x2345, 0x2348, 0x2941, 0x31c2),
    vfsOnly: false,
    states: NONE,
    dirtyLog: 'no',
    needs: null,
    source: 'drivers/vfio/pci/nvgrace-gpu/main.c',
  },
  {
    driver: 'ism_vfio_pci',
    bus: 'pci',
    kconfig: 'ISM_VFIO_PCI',
    devices: 'ISM of IBM Z',
    ids: ids(0x1014, 0x04ed),
    vfsOnly: false,
    states: NONE,
    dirtyLog: 'no',
    needs: null,
    source: 'drivers/vfio/pci/ism/main.c',
  },
  {
    driver: 'mtty',
    bus: 'mdev',
    kconfig: 'SAMPLE_VFIO_MDEV_MTTY',
    devices: 'the sample of a mediated serial port',
    ids: [],
    vfsOnly: false,
    states: ALL,
    dirtyLog: 'yes',
    needs: null,
    source: 'samples/vfio-mdev/mtty.c',
  },
  {
    driver: 'i915',
    bus: 'mdev',
    kconfig: 'DRM_I915_GVT_KVMGT',
    devices: 'GVT-g shares of Intel GPUs',
    ids: [],
    vfsOnly: false,
    states: NONE,
    dirtyLog: 'no',
    needs: null,
    source: 'drivers/gpu/drm/i915/gvt/kvmgt.c',
  },
  {
    driver: 'vfio_ap_mdev',
    bus: 'mdev',
    kconfig: 'VFIO_AP',
    devices: 'crypto adapters of IBM Z',
    ids: [],
    vfsOnly: false,
    states: NONE,
    dirtyLog: 'no',
    needs: null,
    source: 'drivers/s390/crypto/vfio_ap_ops.c',
  },
  {
    driver: 'vfio_ccw_mdev',
    bus: 'mdev',
    kconfig: 'VFIO_CCW',
    devices: 'channel devices of IBM Z',
    ids: [],
    vfsOnly: false,
    states: NONE,
    dirtyLog: 'no',
    needs: null,
    source: 'drivers/s390/cio/vfio_ccw_ops.c',
  },
];

/** A module has underscores where a driver may have dashes. */
export function sameDriver(a: string, b: string): boolean {
  return a.replaceAll('-', '_') === b.replaceAll('-', '_');
}

/** What is known of a driver. */
export function variantOf(driver: string | null): VariantDriver | undefined {
  return driver === null ? undefined : variantDrivers.find((v) => sameDriver(v.driver, driver));
}

/** The driver that would be the right one for a PCI function, whether this kernel has it or not. */
export function variantFor(fn: {
  readonly vendor: number;
  readonly device: number;
  readonly physfn: string | null;
}): VariantDriver | undefined {
  return variantDrivers.find(
    (v) => (fn.physfn !== null || !v.vfsOnly) && v.ids.some((id) => id.vendor === fn.vendor && id.device === fn.device),
  );
}

/** Whether a driver would refuse a function since it is no VF. */
export function refusesPf(driver: string, fn: { readonly physfn: string | null }): boolean {
  return fn.physfn === null && variantOf(driver)?.vfsOnly === true;
}

/**
 * The module of this kernel that `modules.alias` names for a function, beside vfio-pci itself, which takes everything. An alias is a
 * shell pattern with nothing but stars; the alias of a device begins with `pci:`, that of a VFIO driver with `vfio_pci:`
 * (scripts/mod/file2alias.c).
 */
export function aliasedModule<A extends { readonly pattern: string; readonly module: string }>(
  modalias: string,
  aliases: readonly A[],
): A | undefined {
  const wanted = modalias.replace(/^pci:/, 'vfio_pci:');
  return aliases.find(({ pattern, module }) => !sameDriver(module, 'vfio-pci') && starMatch(pattern, wanted));
}

/** Whether a pattern of literal text and stars matches; in linear time, since the file is not ours. */
export function starMatch(pattern: string, text: string): boolean {
  const parts = pattern.split('*');
  const [first = '', ...rest] = parts;
  const last = rest.pop();
  if (last === undefined) return pattern === text;
  if (!text.startsWith(first) || text.length < first.length + last.length || !text.endsWith(last)) return false;
  let from = first.length;
  const end = text.length - last.length;
  for (const part of rest) {
    const found = text.indexOf(part, from);
    if (found < 0 || found + part.length > end) return false;
    from = found + part.length;
  }
  return true;
}
