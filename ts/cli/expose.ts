import { buildCommand } from '@stricli/core';
import { exposureNames, type ExposureName } from '../function/types.js';
import { clientFlags, functionPosition, runClient, type ClientFlags, type CliContext } from './context.js';
import { showFunction } from './show.js';

interface Flags extends ClientFlags {
  readonly as: ExposureName;
}

/** `towline expose`. JSON: FunctionInfo. */
export const expose = buildCommand({
  docs: {
    brief: 'Make a function visible, or hide it again',
    fullDescription:
      'In this release only none works; kernel, vfio and vfio-user are refused with the reason (exit code 3).',
  },
  parameters: {
    flags: {
      ...clientFlags,
      as: { kind: 'enum', values: exposureNames, brief: 'How to make it visible; none hides it' },
    },
    positional: functionPosition,
  },
  func(this: CliContext, flags: Flags, fn: string) {
    return runClient(this, flags, async (client, { out, signal }) => {
      showFunction(out, 'exposed', await client.call('expose', { function: fn, exposure: flags.as }, { signal }));
    });
  },
});
