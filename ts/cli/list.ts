import { buildCommand } from '@stricli/core';
import { isTowlineError } from '../errors.js';
import { discoverHost } from '../host/tree.js';
import { ServeClient } from '../serve/client.js';
import { defaultSocketPath } from '../serve/paths.js';
import { clientFlags, runCommand, type ClientFlags, type CliContext, type Running } from './context.js';
import { showRehearsal } from './rehearsal.js';
import { showFunctions, showReasons } from './show.js';
import { showTree } from './show-host.js';

interface Flags extends ClientFlags {
  readonly noHost?: boolean | undefined;
}

/** What a serving process holds; `undefined` where none was named and none is there. */
async function served(context: CliContext, flags: Flags, { signal }: Running) {
  let client: ServeClient;
  try {
    client = await ServeClient.connect(flags.socket ?? defaultSocketPath(context.process.env));
  } catch (error) {
    // Who names a socket asks for that process.
    if (flags.socket === undefined && !flags.noHost && isTowlineError(error, 'ERR_TOWLINE_GONE')) return undefined;
    throw error;
  }
  try {
    return await client.call('list', {}, { signal });
  } finally {
    client.close();
  }
}

/**
 * `towline list`. JSON: `{"controlling":[ControllingInfo],"functions":[FunctionInfo],"serving":boolean,"host":HostTree}`; `host` is `null`
 * with `--no-host`.
 */
export const list = buildCommand({
  docs: {
    brief: 'List controlling functions and the functions that they control: of a serving process, and of this host',
    fullDescription:
      'What this host has is read from sysfs and devlink, without root as far as that goes, and while other processes own it; without a serving process it is all that is listed. Under each controlling function is what towline serve --controlling takes.',
  },
  parameters: {
    flags: {
      ...clientFlags,
      noHost: {
        kind: 'boolean',
        brief: 'Only what a serving process holds',
        optional: true,
        withNegated: false,
      },
    },
  },
  func(this: CliContext, flags: Flags) {
    return runCommand(this, flags, async (running) => {
      const { out, signal } = running;
      const all = await served(this, flags, running);
      const host = flags.noHost ? null : await discoverHost({ signal });
      out.value({
        controlling: all?.controlling ?? [],
        functions: all?.functions ?? [],
        serving: all !== undefined,
        host,
      });
      if (all === undefined) out.note('nobody serves here (towline serve): this is what the host has');
      for (const { address, driver, capacity, reasons, rehearsal } of all?.controlling ?? []) {
        out.line(
          `${address} (driver ${driver}): ${capacity.map((c) => `${c.free} of ${c.total} ${c.kind} free`).join(', ')}`,
        );
        showReasons(out, reasons);
        if (rehearsal !== null) showRehearsal(out, rehearsal);
      }
      if (all !== undefined) showFunctions(out, all.functions);
      if (host !== null) showTree(out, host);
    });
  },
});
