/**
 * Recovery as a serving process does it, with the journal that it owns.
 */
import { TowlineError } from '../errors.js';
import { recover, type Recovered } from '../migration/recover.js';
import { releaseEach } from '../migration/release.js';
import type { Host } from './host.js';
import type { MethodContext } from './methods.js';
import { settleOutlived } from './outlived.js';
import type { Params } from './params.js';

/**
 * The method `recover`. Functions that this process holds in doubt are resumed or released, as the verdict says, and so are those that
 * outlived an earlier holder.
 */
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
  const settled = await host.exclusively(held, { inDoubt: 'allowed' }, async () => {
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
    const gone = held.filter((one) => released.has(one.fn.uuid));
    const parts = gone.map((one) => ({ uuid: one.fn.uuid, name: one.fn.name, one }));
    const failures = await releaseEach(parts, ({ one }) => host.release(one));
    // The verdict stands whatever became of that: it is told along with it.
    return recovered.map((r) => ({
      ...r,
      settled: r.settled.map((s) => {
        const failure = failures.find((f) => f.uuid === s.function);
        return failure === undefined || s.action !== 'released'
          ? s
          : { ...s, action: 'failed' as const, why: failure.error.message };
      }),
    }));
  });
  return settleOutlived(host, settled, { signal: context.signal, session });
}
