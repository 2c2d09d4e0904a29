import { buildCommand } from '@stricli/core';
import { clientFlags, functionPosition, runClient, type ClientFlags, type CliContext } from './context.js';
import { EXIT } from './exit.js';

interface Flags extends ClientFlags {
  readonly destructive?: boolean | undefined;
}

/** `towline conformance`. JSON: one `{check,outcome,why}` a line, then `{"checks":n,"failed":n}`. Exit code 1 where one failed. */
export const conformance = buildCommand({
  docs: {
    brief: 'Check the state channel of a function against the interface',
    fullDescription:
      'A second function of the same kind is provisioned for as long as it takes. A function in use is refused. What there were no means to stimulate is not-exercised, never passed.',
  },
  parameters: {
    flags: {
      ...clientFlags,
      destructive: {
        kind: 'boolean',
        brief: 'The function may be reset and its state overwritten',
        optional: true,
        withNegated: false,
      },
    },
    positional: functionPosition,
  },
  func(this: CliContext, flags: Flags, fn: string) {
    return runClient(this, flags, async (client, { out, signal }) => {
      const params = { function: fn, destructive: flags.destructive ?? false };
      const result = await client.call('conformance', params, {
        signal,
        onEvent: (check) => {
          out.value(check);
          out.line(`${check.outcome.padEnd(13)} ${check.check}: ${check.why}`);
        },
      });
      out.value(result);
      out.line(`${result.checks} checks, ${result.failed} failed`);
      return result.failed === 0 ? EXIT.done : EXIT.failed;
    });
  },
});
