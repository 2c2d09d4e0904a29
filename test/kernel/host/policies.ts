// BAR policies that functions are served under, known to the server outside and to the test in the guest.
import { barPolicy, u16, u32, u8, type BarPolicyBuilder } from '#towline/bar/index.js';

/** Registers and doorbells of a VF. */
const BAR_BYTES = 0x2000n;
/** Behind the doorbells of a few queues. */
export const VISIBLE_BYTES = 0x1800n;

/** Where in the BAR the rules of {@link policies} are; the model has nothing there but CAP and the interrupt mask. */
export const at = {
  /** CAP.MQES and CAP.TO. */
  cap: 0x00,
  queueEntries: 0x00,
  timeout: 0x03,
  interruptMaskSet: 0x0c,
  interruptMaskClear: 0x10,
  configuration: 0x14,
  ones: 0x100,
  hidden: 0x200,
  clearing: 0x300,
} as const;

/** The queue entries less one that are left to the guest: CAP.MQES. */
export const QUEUE_ENTRIES = 0x1f;
/** What the register that is cleared by ones begins with. */
export const CLEARING = 0xa5a5_f00f;

export const policies = {
  /** Something of every kind, and a driver that does well with it. */
  narrow: barPolicy(BAR_BYTES)
    .mask('fewer queue entries', BigInt(at.queueEntries), 2n, u16(QUEUE_ENTRIES), 'read')
    .deny('no interrupt mask', BigInt(at.interruptMaskSet), 4n, 'zeros', 'write')
    .deny('all ones', BigInt(at.ones), 0x100n, 'ones')
    .hide('hidden', BigInt(at.hidden), 0x100n)
    .writeOneToClear('cleared by ones', BigInt(at.clearing), 4n, u32(CLEARING))
    .truncate('few doorbells', VISIBLE_BYTES),
  /** Can't be enabled; CAP.TO is half a second, so that nobody waits long for it. */
  deaf: barPolicy(BAR_BYTES)
    .mask('a short timeout', BigInt(at.timeout), 1n, u8(0), 'read')
    .deny('deaf', BigInt(at.configuration), 4n, 'zeros', 'write'),
} satisfies Record<string, BarPolicyBuilder>;

export type PolicyName = keyof typeof policies;
