import { buildCommand } from '@stricli/core';
import { clientFlags, functionPosition, runClient, type ClientFlags, type CliContext } from './context.js';
import { EXIT } from './exit.js';
import { showReasons } from './show.js';

/** `towline explain`. JSON: `{"function":FunctionInfo,"reasons":[{code,message,mend}]}`. Exit code 3 where there is a reason. */
export const explain = buildCommand({
  docs: { brief: "List every reason why a function can't be migrated, each with what would mend it" },
  parameters: { flags: { ...clientFlags }, positional: functionPosition },
  func(this: CliContext, flags: ClientFlags, fn: string) {
    return runClient(this, flags, async (client, { out, signal }) => {
      const answer = await client.call('explain', { function: fn }, { signal });
      out.value(answer);
      if (answer.reasons.length === 0) {
        out.line(`${answer.function.name} can be migrated`);
        return EXIT.done;
      }
      out.line(`${answer.function.name} can't be migrated:`);
      showReasons(out, answer.reasons);
      return EXIT.refused;
    });
  },
});
