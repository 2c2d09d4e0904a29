import { buildCommand } from '@stricli/core';
import { resolve } from 'node:path';
import { clientFlags, runClient, type ClientFlags, type CliContext } from './context.js';
import { functionsPosition } from './migrate.js';
import { progressPrinter } from './progress.js';
import { showReport } from './show.js';
import { parseText } from './values.js';

interface Flags extends ClientFlags {
  readonly from: string;
}

/** `towline restore`. JSON: `{"event":MigrationEvent}` lines, then MigrationReport. */
export const restore = buildCommand({
  docs: {
    brief: 'Restore a checkpoint into functions that are provisioned here',
    fullDescription:
      'A move needs functions with the UUIDs that it was taken of, and is used up; a copy needs functions with other UUIDs. The whole file is checked, and every mismatch told, before anything is touched.',
  },
  parameters: {
    flags: { ...clientFlags, from: { kind: 'parsed', parse: parseText, brief: 'The file', placeholder: 'file' } },
    positional: functionsPosition,
  },
  func(this: CliContext, flags: Flags, ...functions: string[]) {
    return runClient(this, flags, async (client, { out, signal }) => {
      // The serving process has another directory.
      const params = { functions, path: resolve(flags.from) };
      showReport(out, await client.call('restore', params, { signal, onEvent: progressPrinter(out) }));
    });
  },
});
