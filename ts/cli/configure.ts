import { buildCommand } from '@stricli/core';
import { clientFlags, functionPosition, given, runClient, type ClientFlags, type CliContext } from './context.js';
import { resourceFlags } from './provision.js';
import { showFunction } from './show.js';

interface Flags extends ClientFlags {
  readonly queues?: number | undefined;
  readonly vectors?: number | undefined;
  readonly namespace?: readonly number[] | undefined;
  readonly migration?: boolean | undefined;
}

/** `towline configure`. JSON: FunctionInfo. */
export const configure = buildCommand({
  docs: { brief: 'Change what a function has; what is not named stays as it is. The function is reset' },
  parameters: { flags: { ...clientFlags, ...resourceFlags }, positional: functionPosition },
  func(this: CliContext, flags: Flags, fn: string) {
    return runClient(this, flags, async (client, { out, signal }) => {
      const { queues, vectors, namespace, migration } = flags;
      const config = { queues, vectors, namespaces: namespace };
      showFunction(
        out,
        'configured',
        await client.call('configure', { function: fn, config, ...given({ migration }) }, { signal }),
      );
    });
  },
});
