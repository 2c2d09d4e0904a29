// What a process has open.
import { readdirSync, readlinkSync } from 'node:fs';

/** What the descriptors of a process, this one unless told, are of, as far as these are devices: what would have leaked. */
export function devicesOpenIn(pid: number | string = 'self'): string[] {
  const found: string[] = [];
  for (const fd of readdirSync(`/proc/${pid}/fd`)) {
    try {
      const target = readlinkSync(`/proc/${pid}/fd/${fd}`);
      if (/^\/dev\/(nvme|vfio|iommu)|vfio|iommufd/.test(target)) found.push(target);
    } catch {
      // The folder's own, which is closed by now.
    }
  }
  return found.sort();
}
