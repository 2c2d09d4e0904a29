// What a migration holds is free once its result is told: no thread is still at it.
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { mkdtempSync, rmSync } from 'node:fs';
import test from 'ava';
import { receive } from '#towline/migration/destination.js';
import { Journal } from '#towline/migration/journal.js';
import { GuestMemory } from '#towline/migration/memory.js';
import { migrate } from '#towline/migration/source.js';
import { TsDevice } from '../support/ts-function.js';

const ROUNDS = 40;

/** Descriptors and mappings of memory of this name. */
function held(name: string): string[] {
  const descriptors = readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)];
    } catch {
      return [];
    }
  });
  return [...descriptors, ...readFileSync('/proc/self/maps', 'utf8').split('\n')].filter((line) => line.includes(name));
}

for (const ends of ['committed', 'refused'] as const) {
  test.serial(`nothing is held of a migration that is over: ${ends}`, async (t) => {
    const directory = mkdtempSync(join(tmpdir(), 'towline-held-'));
    const journals = [new Journal(join(directory, 's')), new Journal(join(directory, 'd'))] as const;
    t.teardown(() => {
      for (const journal of journals) journal.close();
      rmSync(directory, { recursive: true });
    });
    for (let round = 0; round < ROUNDS; round++) {
      const name = `held-${ends}-${round}`;
      const memory = [GuestMemory.anonymous(name, 1n << 20n), GuestMemory.anonymous(name, 1n << 20n)] as const;
      const source = new TsDevice('held');
      const destination = new TsDevice('held', ends === 'committed' ? { uuid: source.uuid } : {});
      const address = `unix://${join(directory, name)}`;
      let listening = (): void => {};
      const ready = new Promise<void>((resolve) => {
        listening = resolve;
      });
      const receiving = receive(destination, {
        from: address,
        memory: memory[1],
        fence: journals[1],
        onListening: listening,
      });
      await ready;
      const sending = migrate(source, {
        to: address,
        memory: memory[0],
        fence: journals[0],
        policy: { onNoConvergence: 'stop', maxRounds: 3 },
      });
      const settled = await Promise.allSettled([sending.result, receiving.result]);
      for (const each of memory) each.close();
      t.deepEqual(held(name), []);
      const expected = ends === 'committed' ? 'fulfilled' : 'rejected';
      t.deepEqual(
        settled.map((each) => each.status),
        [expected, expected],
      );
    }
  });
}
