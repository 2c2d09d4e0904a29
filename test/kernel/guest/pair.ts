// What the suites of two guests share: a device at both sides, its way to the other one, and what is found then.
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import type { JournalSession, Recovered } from '#towline/index.js';
import { disagreements, owner, type Found, type FoundBoth } from './agreement.js';
import { observed, writes, written } from './mtty.js';
import type { Side } from './side.js';

/** Both sides; what is `source` here is always where the function begins. */
export interface Pair {
  source: Side;
  destination: Side;
  /** A device at the destination that only answers questions. */
  answers: string;
}

/** One function on its way. */
export class Journey {
  readonly uuid = randomUUID();
  readonly guest: readonly number[];
  readonly #pair: Pair;
  #destinationReset = false;

  constructor(pair: Pair, seed: number) {
    this.#pair = pair;
    this.guest = written(seed);
  }

  /** The same device at both sides; the guest has used the source's. */
  async begin(): Promise<void> {
    const { source, destination } = this.#pair;
    await Promise.all([source.provision(this.uuid), destination.provision(this.uuid)]);
    await source.write(this.uuid, writes(this.guest));
    assert.notDeepEqual(await destination.read(this.uuid, observed), this.guest);
  }

  /** The destination says that it has rolled back, and with that reset the device. */
  destinationWasReset(): void {
    this.#destinationReset = true;
  }

  async #at(side: Side, role: JournalSession['role']): Promise<Found> {
    const sessions = (await side.sessions()).filter((s) => s.role === role && s.functions.includes(this.uuid));
    assert.ok(sessions.length <= 1, `${sessions.length} sessions of one function`);
    return {
      session: sessions[0],
      state: await side.kernelState(this.uuid),
      registers: await side.read(this.uuid, observed),
    };
  }

  async look(): Promise<FoundBoth> {
    const { source, destination } = this.#pair;
    const [from, to] = await Promise.all([this.#at(source, 'source'), this.#at(destination, 'destination')]);
    return { source: from, destination: to, guest: this.guest, destinationReset: this.#destinationReset };
  }

  /** Everybody recovers; nothing is known between that the journals do not know. Returns who owns it then. */
  async recover(): Promise<ReturnType<typeof owner>> {
    const { source, destination, answers } = this.#pair;
    const before = await this.look();
    assert.deepEqual(disagreements(before, false), [], JSON.stringify(before));

    // Nobody answers yet: what the source says now, it says by its own records.
    const alone = await source.recover();
    const inDoubt = alone.some((r) => this.#isOurs(r) && r.verdict === 'in-doubt');
    assert.equal(inDoubt, before.source.session?.state === 'intent', JSON.stringify(alone));
    assert.deepEqual(disagreements(await this.look(), false), []);
    if (inDoubt) assert.deepEqual(await source.explain(this.uuid), ['in-doubt']);

    const peer = await destination.listen([answers]);
    const asked = await source.recover(peer);
    await destination.hangUp();
    const there = await destination.recover();
    if (there.some((r) => r.settled.some((s) => s.function === this.uuid && s.action === 'reset')))
      this.#destinationReset = true;
    for (const recovered of [...alone, ...asked, ...there].filter((r) => this.#isOurs(r)))
      for (const { action, why } of recovered.settled) assert.notEqual(action, 'failed', why);

    const after = await this.look();
    assert.deepEqual(disagreements(after, true), [], JSON.stringify(after));
    return owner(after);
  }

  #isOurs(recovered: Recovered): boolean {
    return recovered.functions.includes(this.uuid);
  }

  /** Nothing of it is left. */
  async end(): Promise<void> {
    const { source, destination } = this.#pair;
    for (const side of [source, destination]) {
      const there = (await side.functions()).some((fn) => fn.uuid === this.uuid);
      if (there) await side.release(this.uuid);
      assert.equal(await side.kernelState(this.uuid), 'absent');
    }
  }
}
