/**
 * What can be broken on purpose, each at one seam, with what has to notice it.
 *
 * - `skip-kvm-dirty`: what vCPUs write to the guest's working set is not reported: stale pages.
 * - `skip-device-dirty`: what the function writes by DMA to one page is not reported: stale pages.
 * - `stale-vcpu`: a vCPU's vector registers go over as they were before the last rounds: errors that the guest finds.
 * - `two-owners`: the source lets the function and the vCPUs run again after the commit: two owners.
 * - `early-irq`: the destination arms the function's interrupts before the interrupt controllers have their state, with commands waiting in
 *   its queues: interrupts that never come.
 */
import type { DirtySource, MemoryRange } from 'towline';

export const SABOTAGES = ['skip-kvm-dirty', 'skip-device-dirty', 'stale-vcpu', 'two-owners', 'early-irq'] as const;

/** See {@link SABOTAGES}. */
export type Sabotage = (typeof SABOTAGES)[number];

/** Whether `name` is one of them. */
export function isSabotage(name: string): name is Sabotage {
  return (SABOTAGES as readonly string[]).includes(name);
}

/** A dirty source that keeps quiet about what was written in `quiet`. */
export function forgetful(source: DirtySource, quiet: readonly MemoryRange[]): DirtySource {
  return {
    start: (ranges, pageSizeBytes) => source.start(ranges, pageSizeBytes),
    harvest: async () => quiet.reduce(without, await source.harvest()),
    stop: () => source.stop(),
    close: async () => undefined,
  };
}

function without(ranges: readonly MemoryRange[], { gpa, len }: MemoryRange): readonly MemoryRange[] {
  const end = gpa + len;
  return ranges.flatMap((range) => {
    const rangeEnd = range.gpa + range.len;
    const left = { gpa: range.gpa, len: (rangeEnd < gpa ? rangeEnd : gpa) - range.gpa };
    const from = range.gpa > end ? range.gpa : end;
    const right = { gpa: from, len: rangeEnd - from };
    return [left, right].filter((part) => part.len > 0n);
  });
}
