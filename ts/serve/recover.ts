/**
 * Recovery as a serving process does it, with the journal that it owns.
 */
import { TowlineError } from '../errors.js';
import { recover, type Recovered } from '../migration/recover.js';
import type { Host } from './host.js';
import type { MethodContext } from './methods.js';
import type { Params } from './params.js';

/** The method `recover`. Functions that this process holds in doubt are resumed or released, as the verdict says. */
export async function recoverSessions(host: Host, params: Params, context: MethodContext): Promise<Recovered[]> {
  const session = params.optionalText('session', 36);
  const peer = params.optionalText('peer');
  if (params.optionalFlag('declareDestinationDead')) {
    const reason = params.optionalText('reason', 1024);
    if (session === undefined || reason === undefined) {
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        'declaring the destination dead needs the session and a reason',
      );
    }
    host.journal.declareDestinationDead(session, reason);
  }
  const held = (await host.functions()).filter(({ fn }) => fn.doubt !== undefined);
  return host.exclusively(held, { inDoubt: 'allowed' }, async () => {
    const recovered = await recover({
      journal: host.journal,
      signal: context.signal,
      functions: held.map(({ fn }) => fn),
      ...(session === undefined ? {} : { session }),
      ...(peer === undefined ? {} : { peer }),
    });
    const released = new Set(
      recovered.flatMap((r) => r.settled.filter((s) => s.action === 'released').map((s) => s.function)),
    );
    // What is left of them here, their memory, goes as well.
    for (const one of held) if (released.has(one.fn.uuid)) await host.release(one);
    return recovered;
  });
}
