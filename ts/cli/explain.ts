import { buildCommand } from '@stricli/core';
import { isTowlineError, TowlineError } from '../errors.js';
import { explainHost } from '../host/explain.js';
import { ServeClient } from '../serve/client.js';
import { defaultSocketPath } from '../serve/paths.js';
import { clientFlags, runCommand, type ClientFlags, type CliContext, type Running } from './context.js';
import { EXIT, type ExitCode } from './exit.js';
import { showReasons } from './show.js';
import { showExplanation } from './show-host.js';
import { parseText } from './values.js';

/** What a serving process says of its function; an error where none serves, or it has no such function. */
async function served(path: string, fn: string, copy: boolean, { out, signal }: Running): Promise<ExitCode> {
  const client = await ServeClient.connect(path);
  try {
    const answer = await client.call('explain', { function: fn, copy }, { signal });
    out.value(answer);
    if (answer.reasons.length === 0) {
      out.line(`${answer.function.name} can be ${copy ? 'copied' : 'migrated'}`);
      return EXIT.done;
    }
    out.line(`${answer.function.name} can't be ${copy ? 'copied' : 'migrated'}:`);
    showReasons(out, answer.reasons);
    return EXIT.refused;
  } finally {
    client.close();
  }
}

async function ofHost(fn: string, { out, signal }: Running): Promise<ExitCode> {
  const answer = await explainHost(fn, { signal });
  out.value(answer);
  showExplanation(out, answer);
  return answer.reasons.length === 0 ? EXIT.done : EXIT.refused;
}

/**
 * `towline explain`. JSON: `{"function":FunctionInfo,"reasons":[{code,message,mend}]}` of a served function, HostExplanation of one of this
 * host: `{"function":HostFunction,"can":…,"reasons":[…],"limits":[…],"quirks":[…]}`. Exit code 3 where there is a reason.
 */
export const explain = buildCommand({
  docs: {
    brief: "List every reason why a function can't be migrated, each with what would mend it",
    fullDescription:
      'A function of a serving process, or any function of this host by its PCI address, UUID of a mediated device, NVMe controller (nvme0) or devlink port: for these no process has to serve. It is read-only and opens nothing that has a single owner, so that it works while a VMM owns the function.',
  },
  parameters: {
    flags: {
      ...clientFlags,
      copy: {
        kind: 'boolean',
        brief: 'Why it can not be copied by a checkpoint, in place of why it can not be migrated; of a serving process',
        optional: true,
        withNegated: false,
      },
    },
    positional: {
      kind: 'tuple',
      parameters: [
        {
          brief: 'UUID, name, first 8 or more characters of a UUID, or an address on this host',
          parse: parseText,
          placeholder: 'function',
        },
      ],
    },
  },
  func(this: CliContext, flags: ClientFlags & { readonly copy?: boolean | undefined }, fn: string) {
    return runCommand(this, flags, async (running) => {
      try {
        return await served(flags.socket ?? defaultSocketPath(this.process.env), fn, flags.copy ?? false, running);
      } catch (error) {
        const nobody = isTowlineError(error, 'ERR_TOWLINE_GONE') && flags.socket === undefined;
        // Of functions that nobody serves it is not known.
        if (flags.copy) throw error;
        if (!nobody && !isTowlineError(error, 'ERR_TOWLINE_NOT_FOUND')) throw error;
        try {
          return await ofHost(fn, running);
        } catch (here) {
          if (!isTowlineError(here, 'ERR_TOWLINE_NOT_FOUND')) throw here;
          // Of the two answers the one about functions by name is what a person mistyped.
          throw new TowlineError(error.code, `${error.message}; ${here.message}`, { cause: here });
        }
      }
    });
  },
});
