import { buildCommand } from '@stricli/core';
import { clientFlags, given, runClient, type ClientFlags, type CliContext } from './context.js';
import { functionsPosition } from './migrate.js';
import { progressPrinter } from './progress.js';
import { showReport } from './show.js';
import { parseCount, parseText } from './values.js';

interface Flags extends ClientFlags {
  readonly from: string;
  readonly allowRemotePlaintext?: boolean | undefined;
  readonly acceptTimeout?: number | undefined;
  readonly timeout?: number | undefined;
}

const milliseconds = parseCount(1, 86_400_000);

/** `towline receive`. JSON: `{"event":{"type":"listening","address":…}}`, `{"event":MigrationEvent}` lines, then MigrationReport. */
export const receive = buildCommand({
  docs: { brief: 'Wait for one migration and take it up in functions that are provisioned here' },
  parameters: {
    flags: {
      ...clientFlags,
      from: {
        kind: 'parsed',
        parse: parseText,
        brief: 'Where to listen: tcp://127.0.0.1:port (0: any) or unix:///path',
        placeholder: 'address',
      },
      allowRemotePlaintext: {
        kind: 'boolean',
        brief: 'Listen with plain TCP beyond loopback: whoever is on the network can read and change everything',
        optional: true,
        withNegated: false,
      },
      acceptTimeout: {
        kind: 'parsed',
        parse: milliseconds,
        brief: 'Wait so long for the source, in ms (default: forever)',
        optional: true,
        placeholder: 'ms',
      },
      timeout: {
        kind: 'parsed',
        parse: milliseconds,
        brief: 'A link that is silent so long is broken, in ms (default 30000)',
        optional: true,
        placeholder: 'ms',
      },
    },
    positional: functionsPosition,
  },
  func(this: CliContext, flags: Flags, ...functions: string[]) {
    return runClient(this, flags, async (client, { out, signal }) => {
      const { from, allowRemotePlaintext, acceptTimeout, timeout } = flags;
      const params = {
        functions,
        from,
        ...given({ allowRemotePlaintext, acceptTimeoutMs: acceptTimeout, linkTimeoutMs: timeout }),
      };
      showReport(out, await client.call('receive', params, { signal, onEvent: progressPrinter(out) }));
    });
  },
});
