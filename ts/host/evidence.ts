/**
 * What the kernel tells of a function besides its place in sysfs: the features in VFIO's debugfs, the capabilities of its IOMMU, and who
 * has it open. All of it is read from files of the kernel; nothing is opened in /dev.
 */
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { MigrationFlags } from '../function/state.js';
import type { HostReader } from './read.js';

/** Longer than any of these files. */
const MAX_CHARS = 4096;

async function text(path: string): Promise<string | undefined> {
  try {
    return (await readFile(path, 'utf8')).slice(0, MAX_CHARS).trim();
  } catch {
    // Not there, or not for this user: to whoever asks it is the same.
    return undefined;
  }
}

/** What the debugfs of VFIO tells (drivers/vfio/debugfs.c). */
export interface DebugfsFeatures {
  readonly states: MigrationFlags;
  readonly dirtyTracking: boolean;
}

/** `vfio/<device>/migration/features` in debugfs; `undefined` where there is none or it may not be read. */
export async function debugfsFeatures(sysfs: string, name: string): Promise<DebugfsFeatures | undefined> {
  const found = await text(join(sysfs, 'kernel/debug/vfio', name, 'migration/features'));
  if (found === undefined) return undefined;
  const words = new Set(found.split(/\s+/));
  return {
    states: { stopCopy: words.has('stop-copy'), p2p: words.has('p2p'), preCopy: words.has('pre-copy') },
    dirtyTracking: words.has('dirty-tracking'),
  };
}

/** `yes` and `no` by the registers of the IOMMU; `unknown` where its driver does not show them in sysfs. */
export type IommuTracking = 'yes' | 'no' | 'unknown';

const bit = (value: bigint, n: number): boolean => ((value >> BigInt(n)) & 1n) === 1n;

/**
 * Whether the IOMMU of a PCI function can log writes. VT-d: scalable mode (ECAP bit 43), second-stage accessed and dirty bits (45) and
 * coherent walks (48), as drivers/iommu/intel/iommu.h asks; AMD: host dirty support (EFR bit 52).
 */
export async function iommuTracking(sysfs: string, address: string): Promise<IommuTracking> {
  const directory = join(sysfs, 'bus/pci/devices', address, 'iommu');
  const ecap = await text(join(directory, 'intel-iommu/ecap'));
  if (ecap !== undefined && /^(0x)?[\da-f]{1,16}$/i.test(ecap)) {
    const value = BigInt(`0x${ecap.replace(/^0x/i, '')}`);
    return bit(value, 43) && bit(value, 45) && bit(value, 48) ? 'yes' : 'no';
  }
  const features = (await text(join(directory, 'amd-iommu/features')))?.split(':')[0];
  if (features !== undefined && /^(0x)?[\da-f]{1,16}$/i.test(features)) {
    return bit(BigInt(`0x${features.replace(/^0x/i, '')}`), 52) ? 'yes' : 'no';
  }
  return 'unknown';
}

/** A process that has a function open. */
export interface Opener {
  readonly pid: number;
  /** As the kernel names it; `null` where it has just ended. */
  readonly name: string | null;
}

/** Who has one of these open; those of other users are seen by root only. */
export async function openersOf(reader: HostReader, paths: readonly string[]): Promise<readonly Opener[]> {
  const pids = await reader.openers(paths);
  return Promise.all(pids.map(async (pid) => ({ pid, name: (await text(`/proc/${pid}/comm`)) ?? null })));
}
