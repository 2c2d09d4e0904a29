import { buildCommand } from '@stricli/core';
import { clientFlags, functionPosition, runClient, type ClientFlags, type CliContext } from './context.js';
import { showFunction } from './show.js';

/** `towline release`. JSON: FunctionInfo, as it was. */
export const release = buildCommand({
  docs: { brief: 'Give a function back to its controlling function' },
  parameters: { flags: { ...clientFlags }, positional: functionPosition },
  func(this: CliContext, flags: ClientFlags, fn: string) {
    return runClient(this, flags, async (client, { out, signal }) => {
      showFunction(out, 'released', await client.call('release', { function: fn }, { signal }));
    });
  },
});
