import { buildCommand } from '@stricli/core';
import { clientFlags, given, runClient, type ClientFlags, type CliContext } from './context.js';
import { EXIT } from './exit.js';
import { parseText } from './values.js';

interface Flags extends ClientFlags {
  readonly session?: string | undefined;
  readonly peer?: string | undefined;
  readonly declareDestinationDead?: boolean | undefined;
  readonly reason?: string | undefined;
}

/** `towline recover`. JSON: one Recovered a line. Exit code 4 where a session stays in doubt, 1 where a function could not be resumed or released. */
export const recover = buildCommand({
  docs: {
    brief: 'Settle what a crash or a broken link left open',
    fullDescription:
      'Reads the journal and, where a session is in doubt, asks the destination (--peer) who owns the functions; any towline receive over there answers. Functions that were stopped in doubt then run here again, or are released. --declare-destination-dead frees the source of one session without an answer, and is logged: it is right only where the destination never runs again.',
  },
  parameters: {
    flags: {
      ...clientFlags,
      session: { kind: 'parsed', parse: parseText, brief: 'Only this session', optional: true, placeholder: 'uuid' },
      peer: {
        kind: 'parsed',
        parse: parseText,
        brief: 'Where the destination answers',
        optional: true,
        placeholder: 'address',
      },
      declareDestinationDead: {
        kind: 'boolean',
        brief: 'The destination never runs again; needs --session and --reason',
        optional: true,
        withNegated: false,
      },
      reason: { kind: 'parsed', parse: parseText, brief: 'Why, for the journal', optional: true, placeholder: 'text' },
    },
  },
  func(this: CliContext, flags: Flags) {
    return runClient(this, flags, async (client, { out, signal }) => {
      const { session, peer, declareDestinationDead, reason } = flags;
      const params = given({ session, peer, declareDestinationDead, reason });
      const recovered = await client.call('recover', params, { signal });
      for (const one of recovered) {
        out.value(one);
        out.line(`session ${one.session} (${one.role}): ${one.verdict}: ${one.advice}`);
        for (const { function: fn, action, why } of one.settled) {
          out.line(`  ${fn}: ${action}${why === undefined ? '' : `: ${why}`}`);
        }
      }
      if (recovered.length === 0) out.line('nothing to settle');
      if (recovered.some((r) => r.verdict === 'in-doubt')) return EXIT.inDoubt;
      return recovered.some((r) => r.settled.some((s) => s.action === 'failed')) ? EXIT.failed : EXIT.done;
    });
  },
});
