import test from 'ava';
import { TowlineError } from '#towline/errors.js';
import type { Fence, FenceRecord, Role } from '#towline/migration/fence.js';
import type { MigrationReport } from '#towline/migration/report.js';
import { Pair } from '../support/pair.js';
import { TsDevice } from '../support/ts-function.js';

/** A fence as a coordination service would give it: one store for both sides, with compare-and-set. */
class SharedFence implements Fence {
  readonly store = new Map<string, FenceRecord[]>();
  /** Called before a record is set; may refuse. */
  onAppend: (role: Role, record: FenceRecord) => void = () => {};

  async highestEpoch(functions: readonly string[]): Promise<number> {
    let highest = 0;
    for (const record of [...this.store.values()].flat()) {
      if (record.record === 'opened' && record.functions.some((f) => functions.includes(f)))
        highest = Math.max(highest, record.epoch);
    }
    return highest;
  }

  async append(session: string, role: Role, record: FenceRecord, expected: number): Promise<void> {
    this.onAppend(role, record);
    const records = await this.records(session, role);
    if (records.length !== expected) throw new TowlineError('ERR_TOWLINE_FENCED', 'somebody was first');
    this.store.set(`${role} ${session}`, [...records, record]);
  }

  async records(session: string, role: Role): Promise<FenceRecord[]> {
    return this.store.get(`${role} ${session}`) ?? [];
  }

  async sessions(): Promise<{ session: string; role: Role }[]> {
    return [...this.store.keys()].map((key) => {
      const [role, session] = key.split(' ') as [Role, string];
      return { session, role };
    });
  }

  /** The names of one side's records. */
  names(role: Role): string[] {
    return [...this.store]
      .filter(([key]) => key.startsWith(role))
      .flatMap(([, records]) => records.map((r) => r.record));
  }
}

function twins(): [TsDevice, TsDevice] {
  const source = new TsDevice('fenced');
  return [source, new TsDevice('fenced', { uuid: source.uuid })];
}

test("ownership is decided by the caller's own fences", async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins();
  const fences = { source: new SharedFence(), destination: new SharedFence() };
  const settled = await pair.move(source, destination, {
    source: { fence: fences.source },
    destination: { fence: fences.destination },
  });
  if (settled.source.status === 'rejected') throw settled.source.reason as Error;
  t.is(settled.source.value.outcome, 'committed');
  t.deepEqual(fences.source.names('source'), ['opened', 'intent', 'released']);
  t.deepEqual(fences.destination.names('destination'), ['opened', 'committed']);
});

test('a fence that refuses the commit leaves the source with its functions', async (t) => {
  const pair = new Pair(t);
  const [source, destination] = twins();
  const fences = { source: new SharedFence(), destination: new SharedFence() };
  fences.destination.onAppend = (role, record) => {
    if (role === 'destination' && record.record === 'committed')
      throw new TowlineError('ERR_TOWLINE_FENCED', 'the lease is gone');
  };
  const settled = await pair.move(source, destination, {
    source: { fence: fences.source },
    destination: { fence: fences.destination },
  });
  t.is(settled.source.status, 'rejected');
  const error = (settled.source as PromiseRejectedResult).reason as TowlineError;
  t.is(error.code, 'ERR_TOWLINE_ROLLED_BACK', error.message);
  t.is((error.details as { report: MigrationReport }).report.outcome, 'rolled-back');
  t.is(source.device.now, 'running');
  t.not(destination.device.now, 'resuming');
  t.false(fences.destination.names('destination').includes('committed'));
});

test('a fence that fails at the intent moves nothing; one that fails at the commit leaves the session in doubt, and nobody runs', async (t) => {
  for (const [role, name, code] of [
    ['source', 'intent', 'ERR_TOWLINE_ROLLED_BACK'],
    ['destination', 'committed', 'ERR_TOWLINE_IN_DOUBT'],
  ] as const) {
    const pair = new Pair(t);
    const [source, destination] = twins();
    const fences = { source: new SharedFence(), destination: new SharedFence() };
    fences[role].onAppend = (r, record) => {
      if (r === role && record.record === name) throw new Error('the store can not be reached');
    };
    const settled = await pair.move(source, destination, {
      source: { fence: fences.source },
      destination: { fence: fences.destination },
    });
    for (const side of ['source', 'destination'] as const) {
      t.is(((settled[side] as PromiseRejectedResult).reason as TowlineError).code, code, `${role} fails, ${side}`);
    }
    t.is(source.device.now === 'running', role === 'source');
  }
});
