import { buildCommand } from '@stricli/core';
import { clientFlags, runClient, type ClientFlags, type CliContext } from './context.js';
import { showRehearsal } from './rehearsal.js';
import { showFunctions, showReasons } from './show.js';

/** `towline list`. JSON: `{"controlling":[{address,driver,capacity,reasons,rehearsal}],"functions":[FunctionInfo]}`. */
export const list = buildCommand({
  docs: { brief: 'List controlling functions and the functions that they control' },
  parameters: { flags: { ...clientFlags } },
  func(this: CliContext, flags: ClientFlags) {
    return runClient(this, flags, async (client, { out, signal }) => {
      const all = await client.call('list', {}, { signal });
      out.value(all);
      for (const { address, driver, capacity, reasons, rehearsal } of all.controlling) {
        out.line(
          `${address} (driver ${driver}): ${capacity.map((c) => `${c.free} of ${c.total} ${c.kind} free`).join(', ')}`,
        );
        showReasons(out, reasons);
        if (rehearsal !== null) showRehearsal(out, rehearsal);
      }
      showFunctions(out, all.functions);
    });
  },
});
