/** Fails every call of a piece of work, one after another, and compares the host before and after each. */
import type { ExecutionContext } from 'ava';
import { unwrapFault } from '#towline/errors.js';
import type { FakeHost } from '../support/fake-host.js';

/** What there is for one attempt: a fresh host, and what is to be tried on it. */
export interface Attempt {
  readonly host: FakeHost;
  /** Told as whatever it throws. */
  readonly work: () => Promise<unknown>;
}

/**
 * @param prepare - Makes the same attempt each time; its own calls don't count.
 * @returns how many calls were failed.
 */
export async function failEach(t: ExecutionContext, prepare: () => Promise<Attempt>): Promise<number> {
  const clean = await prepare();
  const first = clean.host.calls;
  await clean.work();
  const count = clean.host.calls - first;
  for (let n = 0; n < count; n += 1) {
    const { host, work } = await prepare();
    const before = host.snapshot();
    const at = host.calls + n;
    host.failAt = at;
    try {
      await work();
      t.fail(`call ${n} (${host.log[at]}) failed and nobody told`);
    } catch (thrown) {
      const error = unwrapFault(thrown);
      t.regex(error.message, /on purpose/, `call ${n} (${host.log[at]})`);
      t.notRegex(error.message, /not undone/, `call ${n} (${host.log[at]})`);
    }
    t.deepEqual(host.snapshot(), before, `call ${n} (${host.log[at]}): ${host.log.slice(at - n).join(', ')}`);
    // And it works afterwards.
    host.failAt = -1;
    await t.notThrowsAsync(work, `after call ${n} (${host.log[at]})`);
  }
  return count;
}
