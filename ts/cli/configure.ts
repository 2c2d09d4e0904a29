import { buildCommand } from '@stricli/core';
import { TowlineError } from '../errors.js';
import { clientFlags, given, runClient, type ClientFlags, type CliContext } from './context.js';
import { resourceFlags } from './provision.js';
import { faultTexts, rehearsalFlags, showRehearsal } from './rehearsal.js';
import { showFunction } from './show.js';
import { parseText } from './values.js';

interface Flags extends ClientFlags {
  readonly queues?: number | undefined;
  readonly vectors?: number | undefined;
  readonly namespace?: readonly number[] | undefined;
  readonly migration?: boolean | undefined;
  readonly hwAddress?: string | undefined;
  readonly fault?: readonly string[] | undefined;
  readonly rate?: string | undefined;
}

/** `towline configure`. JSON: FunctionInfo; with `--fault` or `--rate` `{"address":…,"rehearsal":RehearsalInfo}`. */
export const configure = buildCommand({
  docs: {
    brief: 'Change what a function has; what is not named stays as it is. The function is reset',
    fullDescription:
      'With --fault or --rate, the faults and rates that an embedded subsystem rehearses: name its controlling function (embedded:default, say). They replace those before, and nothing is reset. towline list shows them, with how many commands each fault has hit.',
  },
  parameters: {
    flags: { ...clientFlags, ...resourceFlags, ...rehearsalFlags },
    positional: {
      kind: 'tuple',
      parameters: [
        {
          brief:
            'UUID, name, or the first 8 or more characters of a UUID; with --fault or --rate a controlling function',
          parse: parseText,
          placeholder: 'function',
        },
      ],
    },
  },
  func(this: CliContext, flags: Flags, fn: string) {
    return runClient(this, flags, async (client, { out, signal }) => {
      const { queues, vectors, namespace, migration, hwAddress, fault, rate } = flags;
      const config = { queues, vectors, namespaces: namespace, hwAddress };
      if (fault === undefined && rate === undefined) {
        const params = { function: fn, config, ...given({ migration }) };
        showFunction(out, 'configured', await client.call('configure', params, { signal }));
        return;
      }
      if ([queues, vectors, namespace, migration, hwAddress].some((value) => value !== undefined)) {
        throw new TowlineError(
          'ERR_TOWLINE_INVALID_ARGUMENT',
          '--fault and --rate are for a controlling function, the other options for a function: give two commands',
        );
      }
      const params = { controlling: fn, ...given({ faults: faultTexts(fault), rates: rate }) };
      const info = await client.call('rehearse', params, { signal });
      out.value(info);
      out.line(`configured ${info.address}`);
      showRehearsal(out, info.rehearsal);
    });
  },
});
