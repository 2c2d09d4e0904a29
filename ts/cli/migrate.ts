import { buildCommand } from '@stricli/core';
import { resolve } from 'node:path';
import { clientFlags, given, runClient, type ClientFlags, type CliContext } from './context.js';
import { progressPrinter } from './progress.js';
import { showReport } from './show.js';
import { parseCount, parseSize, parseText } from './values.js';

interface Flags extends ClientFlags {
  readonly to: string;
  readonly dryRun?: boolean | undefined;
  readonly record?: string | undefined;
  readonly maxDowntime?: number | undefined;
  readonly maxRounds?: number | undefined;
  readonly maxTotal?: number | undefined;
  readonly bandwidth?: bigint | undefined;
  readonly noConvergence?: 'give-up' | 'stop' | undefined;
  readonly deviceLimit?: bigint | undefined;
  readonly timeout?: number | undefined;
}

const milliseconds = parseCount(1, 86_400_000);

/** Positional functions of `migrate` and `receive`. */
export const functionsPosition = {
  kind: 'array',
  parameter: { brief: 'Functions of one guest: UUIDs or names', parse: parseText, placeholder: 'function' },
  minimum: 1,
  maximum: 64,
} as const;

/** `towline migrate`. JSON: `{"event":MigrationEvent}` lines, then MigrationReport. */
export const migrate = buildCommand({
  docs: {
    brief: 'Migrate functions, and the memory of their guest, to where towline receive listens',
    fullDescription:
      'Ctrl-C before commit undoes everything and leaves the functions running here. A commanding process that is killed harms nothing: the serving process goes on.',
  },
  parameters: {
    flags: {
      ...clientFlags,
      to: { kind: 'parsed', parse: parseText, brief: 'tcp://host:port or unix:///path', placeholder: 'address' },
      dryRun: {
        kind: 'boolean',
        brief: 'End with the forecast and every mismatch; nothing stops',
        optional: true,
        withNegated: false,
      },
      record: {
        kind: 'parsed',
        parse: parseText,
        brief: 'Keep the stream in this file, for towline inspect',
        optional: true,
        placeholder: 'file',
      },
      maxDowntime: {
        kind: 'parsed',
        parse: milliseconds,
        brief: 'Longest downtime in ms (default 300)',
        optional: true,
        placeholder: 'ms',
      },
      maxRounds: {
        kind: 'parsed',
        parse: parseCount(1, 10_000),
        brief: 'Most memory passes before the stop (default 30)',
        optional: true,
        placeholder: 'n',
      },
      maxTotal: {
        kind: 'parsed',
        parse: milliseconds,
        brief: 'Longest time before the stop in ms (default 600000)',
        optional: true,
        placeholder: 'ms',
      },
      bandwidth: {
        kind: 'parsed',
        parse: parseSize,
        brief: 'Most bytes a second (100M, say)',
        optional: true,
        placeholder: 'size',
      },
      noConvergence: {
        kind: 'enum',
        values: ['give-up', 'stop'],
        brief: 'What to do when it does not converge (default give-up)',
        optional: true,
      },
      deviceLimit: {
        kind: 'parsed',
        parse: parseSize,
        brief:
          'Where it does not converge, let the controlling function limit the functions, to no less bytes a second than this',
        optional: true,
        placeholder: 'size',
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
      const { to, dryRun, record, maxDowntime, maxRounds, maxTotal, bandwidth, noConvergence, deviceLimit, timeout } =
        flags;
      const policy = given({
        maxDowntimeMs: maxDowntime,
        maxRounds,
        maxTotalMs: maxTotal,
        bandwidthBytesPerSecond: bandwidth === undefined ? undefined : Number(bandwidth),
        onNoConvergence: noConvergence,
        converge:
          deviceLimit === undefined
            ? undefined
            : { means: ['device-limit'] as const, deviceLimit: { leastBytesPerSecond: Number(deviceLimit) } },
      });
      // The file is written by the serving process, whose directory is another one.
      const recordPath = record === undefined ? undefined : resolve(record);
      const params = { functions, to, policy, ...given({ dryRun, record: recordPath, linkTimeoutMs: timeout }) };
      showReport(out, await client.call('migrate', params, { signal, onEvent: progressPrinter(out) }));
    });
  },
});
