import { buildCommand } from '@stricli/core';
import { resolve } from 'node:path';
import { exposureNames, type ExposureName } from '../function/types.js';
import { clientFlags, functionPosition, given, runClient, type ClientFlags, type CliContext } from './context.js';
import { showFunction } from './show.js';
import { parseText } from './values.js';

interface Flags extends ClientFlags {
  readonly as: ExposureName;
  readonly vfioUser?: string | undefined;
}

/** The flag that `provision` has as well. */
export const vfioUserFlag = {
  vfioUser: {
    kind: 'parsed',
    parse: parseText,
    brief: 'Socket of exposure vfio-user; nothing may be there yet (default: vfio-user/UUID.sock beside the journal)',
    optional: true,
    placeholder: 'path',
  },
} as const;

/** The path as the serving process takes it, whose directory is another one. */
export function socketPathOf(vfioUser: string | undefined): { socketPath?: string } {
  return given({ socketPath: vfioUser === undefined ? undefined : resolve(vfioUser) });
}

/** `towline expose`. JSON: FunctionInfo. */
export const expose = buildCommand({
  docs: {
    brief: 'Make a function visible, or hide it again',
    fullDescription:
      "kernel binds it to the kernel's own driver, vfio to the variant driver that names it or else to vfio-pci: both are for functions of real devices. vfio-user serves it on a socket (--vfio-user) to a VMM: that is for functions of an embedded subsystem. Where an exposure is not possible it is refused with the reason (exit code 3), and the function is visible as before.",
  },
  parameters: {
    flags: {
      ...clientFlags,
      ...vfioUserFlag,
      as: { kind: 'enum', values: exposureNames, brief: 'How to make it visible; none hides it' },
    },
    positional: functionPosition,
  },
  func(this: CliContext, flags: Flags, fn: string) {
    return runClient(this, flags, async (client, { out, signal }) => {
      const params = { function: fn, exposure: flags.as, ...socketPathOf(flags.vfioUser) };
      showFunction(out, 'exposed', await client.call('expose', params, { signal }));
    });
  },
});
