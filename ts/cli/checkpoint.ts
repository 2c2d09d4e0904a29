import { buildCommand } from '@stricli/core';
import { resolve } from 'node:path';
import { clientFlags, given, runClient, type ClientFlags, type CliContext } from './context.js';
import { functionsPosition } from './migrate.js';
import { progressPrinter } from './progress.js';
import { showReport } from './show.js';
import { parseCount, parseSize, parseText } from './values.js';

interface Flags extends ClientFlags {
  readonly to: string;
  readonly copy?: boolean | undefined;
  readonly overwrite?: boolean | undefined;
  readonly stopped?: boolean | undefined;
  readonly maxDowntime?: number | undefined;
  readonly maxRounds?: number | undefined;
  readonly bandwidth?: bigint | undefined;
}

/** `towline checkpoint`. JSON: `{"event":MigrationEvent}` lines, then MigrationReport. */
export const checkpoint = buildCommand({
  docs: {
    brief: 'Write functions, and the memory of their guest, to a file',
    fullDescription:
      'They move into the file: once it is durable they are released here, and it is restorable once. With --copy they go on here, and the file is restored into functions with other UUIDs, as often as wished. The serving process writes the file.',
  },
  parameters: {
    flags: {
      ...clientFlags,
      to: { kind: 'parsed', parse: parseText, brief: 'The file', placeholder: 'file' },
      copy: { kind: 'boolean', brief: 'A copy: the functions go on here', optional: true, withNegated: false },
      overwrite: {
        kind: 'boolean',
        brief: 'Replace a file that is there already',
        optional: true,
        withNegated: false,
      },
      stopped: {
        kind: 'boolean',
        brief: 'Stop the functions for all of it: no page is written twice',
        optional: true,
        withNegated: false,
      },
      maxDowntime: {
        kind: 'parsed',
        parse: parseCount(1, 86_400_000),
        brief: 'Stop once the rest can be written in so many ms (default 300)',
        optional: true,
        placeholder: 'ms',
      },
      maxRounds: {
        kind: 'parsed',
        parse: parseCount(1, 10_000),
        brief: 'Most memory passes before the stop (default 4)',
        optional: true,
        placeholder: 'n',
      },
      bandwidth: {
        kind: 'parsed',
        parse: parseSize,
        brief: 'Most bytes a second before the stop (100M, say)',
        optional: true,
        placeholder: 'size',
      },
    },
    positional: functionsPosition,
  },
  func(this: CliContext, flags: Flags, ...functions: string[]) {
    return runClient(this, flags, async (client, { out, signal }) => {
      const { to, copy, overwrite, stopped, maxDowntime, maxRounds, bandwidth } = flags;
      const params = {
        functions,
        // The serving process has another directory.
        path: resolve(to),
        mode: copy ? ('copy' as const) : ('move' as const),
        policy: given({
          maxDowntimeMs: maxDowntime,
          maxRounds,
          bandwidthBytesPerSecond: bandwidth === undefined ? undefined : Number(bandwidth),
        }),
        ...given({ overwrite, live: stopped === undefined ? undefined : !stopped }),
      };
      showReport(out, await client.call('checkpoint', params, { signal, onEvent: progressPrinter(out) }));
    });
  },
});
