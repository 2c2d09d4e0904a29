/** What the guest may do to BAR 0 of its NVMe function. Evaluated natively on the vCPU's thread, from the filter's flat bytes. */
import { barPolicy, type BarFilter } from 'towline';

/** Registers in the first page, doorbells in the second (NVMe Base 2.1, 3.1.4). */
const BAR0_BYTES = 0x2000n;

/** Everything passes, but for what reaches beyond this function. */
export function barFilter(): BarFilter {
  return (
    barPolicy(BAR0_BYTES)
      // A reset of the subsystem would be one of other guests' functions, too.
      .deny('NSSR', 0x20n, 4n, 'zeros')
      // Memory in the controller would be state that nobody migrates: there is none.
      .deny('CMB', 0x38n, 8n, 'zeros')
      .deny('PMR', 0xe00n, 0x1cn, 'zeros')
      .compile()
  );
}
