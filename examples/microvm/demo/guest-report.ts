import type { Machine } from '../src/machine.js';
import type { GuestReport } from './protocol.js';

/** What the guest says about itself, as far as a number holds it. */
export function guestReport({ vm }: Machine): GuestReport {
  const { phase, failure, total, heartbeatGapMs } = vm.status();
  const { doorbells } = vm.counters();
  const why = vm.failure ?? failure;
  return {
    phase,
    heartbeatGapMs,
    heartbeats: Number(total.heartbeats),
    ios: Number(total.writes + total.reads + total.flushes),
    pagesWritten: Number(total.pagesWritten),
    memoryErrors: Number(total.memoryErrors),
    stateErrors: Number(total.stateErrors),
    tscErrors: Number(total.tscErrors),
    lostInterrupts: Number(total.lostInterrupts),
    ioErrors: Number(total.duplicates + total.errors + total.mismatches),
    doorbells: { mmio: Number(doorbells.mmio), ioeventfd: Number(doorbells.ioeventfd) },
    ...(why === undefined ? {} : { failure: why }),
  };
}
