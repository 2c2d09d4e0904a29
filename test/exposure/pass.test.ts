// A vfio-user socket and its client that go along with a migration: the client stays, and there is always one who serves it.
import { randomUUID } from 'node:crypto';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { TowlineError } from '#towline/errors.js';
import type { ControlledFunction, ExposureHandover, MigratableFunction } from '#towline/function/types.js';
import { receive } from '#towline/migration/destination.js';
import { faultPoints } from '#towline/migration/faults.js';
import type { MigrateOptions, ReceiveOptions } from '#towline/migration/options.js';
import { recover } from '#towline/migration/recover.js';
import { embedded } from '#towline/rehearsal/index.js';
import { NvmeGuest } from '../support/nvme-guest.js';
import { Pair, type Settled } from '../support/pair.js';
import { VfioUserClient } from '../support/vfio-user-client.js';

const BAR0 = 0;
const VERSION_REGISTER = 8;

/** The memory is the client's: no side of the migration has any. */
const PASS = { memory: undefined, exposureTransfer: 'pass', release: false } as unknown as Partial<MigrateOptions>;
const TAKE = { memory: undefined } as unknown as Partial<ReceiveOptions>;

class Place {
  readonly pair: Pair;
  readonly socket: string;

  private constructor(
    readonly t: ExecutionContext,
    readonly from: ControlledFunction,
    readonly to: ControlledFunction,
    readonly client: VfioUserClient,
    readonly guest: NvmeGuest,
    of: { pair: Pair; socket: string },
  ) {
    this.pair = of.pair;
    this.socket = of.socket;
  }

  /** A VF in each of two subsystems over one disk: one with a guest at work over its socket, one that awaits that socket. */
  static async make(t: ExecutionContext, awaits = true): Promise<Place> {
    const pair = new Pair(t, 4n << 20n);
    const namespaces = [{ path: join(pair.directory, 'disk'), sizeBytes: 1n << 20n }];
    const uuid = randomUUID();
    const make = async (): Promise<ControlledFunction> => {
      const subsystem = await embedded.open({ namespaces });
      t.teardown(() => subsystem.close());
      return subsystem.provision({ kind: 'vf', uuid, queues: 2, vectors: 3, namespaces: [1] });
    };
    const [from, to] = [await make(), await make()];
    const socket = join(pair.directory, 'guest.sock');
    await from.expose('vfio-user', { socketPath: socket });
    if (awaits) await to.expose('vfio-user', { handover: 'awaited' });
    const client = await VfioUserClient.connect(socket, pair.memory.source);
    const guest = new NvmeGuest(client, pair.memory.source);
    await guest.boot();
    guest.run();
    await guest.work(30);
    return new Place(t, from, to, client, guest, { pair, socket });
  }

  move(
    options: { source?: Partial<MigrateOptions>; destination?: Partial<ReceiveOptions> } = {},
    [from, to]: readonly [MigratableFunction, MigratableFunction] = [this.from, this.to],
  ): Promise<Settled> {
    return this.pair.move(from, to, {
      source: { ...PASS, ...options.source },
      destination: { ...TAKE, ...options.destination },
    });
  }

  /** The guest works on over the connection that it has, and nothing of what it asked was lost or answered twice. */
  async works(): Promise<void> {
    await this.guest.work(30);
    this.t.deepEqual(this.guest.faults, []);
  }

  async ends(holder: ControlledFunction): Promise<void> {
    await this.guest.drain();
    this.t.is(this.guest.pending, 0);
    this.t.deepEqual(this.guest.faults, []);
    this.t.true(existsSync(this.socket));
    await holder.expose('none');
    await this.client.gone;
    this.t.false(existsSync(this.socket), 'the last one takes the name away');
  }
}

function reason(result: PromiseSettledResult<unknown>): TowlineError {
  if (result.status === 'fulfilled') throw new Error('it succeeded');
  return result.reason as TowlineError;
}

/** The innermost error. */
function root(error: TowlineError): TowlineError {
  return error.cause instanceof TowlineError ? root(error.cause) : error;
}

test('a connection goes along back and forth under load, and its client notices no more than a pause', async (t) => {
  const place = await Place.make(t);
  const { journals } = place.pair;
  let pair: readonly [ControlledFunction, ControlledFunction] = [place.from, place.to];
  for (let round = 0; round < 4; round++) {
    const [here, there] = pair;
    // Each side keeps its own.
    const own = round % 2 === 0 ? journals : { source: journals.destination, destination: journals.source };
    const moved = await place.move({ source: { fence: own.source }, destination: { fence: own.destination } }, pair);
    if (moved.source.status === 'rejected') throw moved.source.reason as Error;
    if (moved.destination.status === 'rejected') throw moved.destination.reason as Error;
    t.is(here.exposure, 'none');
    t.is(there.exposure, 'vfio-user');
    t.is(there.exposureState?.handover, 'possible');
    await place.works();
    await here.expose('vfio-user', { handover: 'awaited' });
    pair = [there, here];
  }
  // Whoever comes by the name finds the one who serves.
  t.is(await place.client.read32(BAR0, VERSION_REGISTER), 0x20100);
  await place.ends(pair[0]);
});

test('where it is rolled back the client is served where it was, and the destination awaits the next try', async (t) => {
  const place = await Place.make(t);
  const fail = (): never => {
    throw new Error('no');
  };
  for (const options of [{ source: { verify: fail } }, { destination: { restoreSections: fail } }]) {
    const settled = await place.move(options);
    t.is(reason(settled.source).code, 'ERR_TOWLINE_ROLLED_BACK');
    t.is(place.to.exposureState?.handover, 'awaited');
    await place.works();
  }
  const damaging = (wrong: (handover: ExposureHandover) => ExposureHandover): MigratableFunction => ({
    uuid: place.to.uuid,
    name: place.to.name,
    kind: place.to.kind,
    channel: () => place.to.channel(),
    dirtySources: () => place.to.dirtySources(),
    descriptor: () => place.to.descriptor(),
    explain: () => place.to.explain(),
    get exposureState() {
      return place.to.exposureState;
    },
    adoptExposure: async (handover) => place.to.adoptExposure?.(wrong(handover)),
    resumeExposure: async () => place.to.resumeExposure?.(),
  });
  for (const wrong of [
    ({ fds, bytes }: ExposureHandover) => ({ fds, bytes: bytes.map((byte, at) => (at === 9 ? byte ^ 1 : byte)) }),
    ({ fds, bytes }: ExposureHandover) => ({ fds: fds.slice(1), bytes }),
  ]) {
    const settled = await place.move({}, [place.from, damaging(wrong)]);
    t.is(reason(settled.source).code, 'ERR_TOWLINE_ROLLED_BACK');
    t.is(root(reason(settled.destination)).code, 'ERR_TOWLINE_BAD_STATE');
    await place.works();
  }
  const moved = await place.move();
  t.is(moved.destination.status, 'fulfilled');
  await place.works();
  await place.ends(place.to);
});

test('both sides have to mean it, and a link that carries descriptors; nothing stops otherwise', async (t) => {
  const place = await Place.make(t);
  const mismatches = ({ source }: Settled) =>
    ((reason(source).cause as TowlineError).details as { mismatches: { code: string; message: string }[] }).mismatches;
  t.regex(mismatches(await place.move({ source: { exposureTransfer: 'state' } }))[0]?.message ?? '', /awaits the conn/);
  await place.to.expose('none');
  const codes = mismatches(await place.move()).map(({ code }) => code);
  t.true(codes.includes('sections'));
  await place.to.expose('vfio-user', { socketPath: join(place.pair.directory, 'other.sock') });
  t.regex(mismatches(await place.move())[0]?.message ?? '', /none is awaited here/);
  await place.to.expose('none');
  await place.to.expose('vfio-user', { handover: 'awaited' });
  await place.works();
  await place.ends(place.from);
});

test('over a link without descriptors it is a mismatch', async (t) => {
  const place = await Place.make(t);
  const { journals } = place.pair;
  let listening: (address: string) => void = () => {};
  const address = new Promise<string>((resolve) => {
    listening = resolve;
  });
  const from = 'tcp://127.0.0.1:0';
  const receiving = receive(place.to, { from, fence: journals.destination, onListening: listening });
  const sending = place.from.migrate({ to: await address, fence: journals.source, exposureTransfer: 'pass' });
  for (const side of await Promise.allSettled([sending.result, receiving.result])) {
    const { details } = reason(side).cause as TowlineError;
    const { mismatches } = details as { mismatches: { code: string }[] };
    t.true(mismatches.some(({ code }) => code === 'descriptor-passing'));
  }
  await place.works();
  await place.ends(place.from);
});

test('what can not be passed, and what awaits a connection itself, is refused at once', async (t) => {
  const place = await Place.make(t);
  const refused = async (fn: ControlledFunction, options: Partial<MigrateOptions>) => {
    const fence = place.pair.journals.source;
    const error = await t.throwsAsync(fn.migrate({ to: 'unix:///nobody', fence, ...options }).result);
    return root(error as TowlineError);
  };
  const awaiting = await refused(place.to, {});
  t.is(awaiting.code, 'ERR_TOWLINE_EXPOSURE');
  t.regex(awaiting.message, /awaits the connection of another process/);
  await place.to.expose('none');
  t.regex((await refused(place.to, { exposureTransfer: 'pass' })).message, /no function has an exposure to pass/);
  t.is((await refused(place.to, { exposureTransfer: 'pass' })).code, 'ERR_TOWLINE_EXPOSURE');
  const handover = { fds: [], bytes: new Uint8Array(8) };
  await t.throwsAsync(place.from.adoptExposure?.(handover) ?? Promise.resolve(), { code: 'ERR_TOWLINE_EXPOSURE' });
  await place.works();
  await place.ends(place.from);
});

for (const point of faultPoints()) {
  test(`a failure at ${point} leaves the client with the one who owns the function`, async (t) => {
    const place = await Place.make(t);
    const side = point.startsWith('source:') ? 'source' : 'destination';
    const settled = await place.move({ [side]: { faults: { failAt: point } } });
    const { source, destination } = settled;
    const outcome = (result: PromiseSettledResult<{ outcome: string }>): string =>
      result.status === 'fulfilled'
        ? result.value.outcome
        : (reason(result).details as { report: { outcome: string } }).report.outcome;
    let owner = outcome(source) === 'committed' ? place.to : place.from;
    if (outcome(source) === 'in-doubt') {
      // Nobody serves it until it is known who owns the function.
      t.true(place.from.doubt?.detached);
      const from = `unix://${join(place.pair.directory, 'ask')}`;
      const stop = new AbortController();
      let listening: () => void = () => {};
      const ready = new Promise<void>((resolve) => {
        listening = resolve;
      });
      const { journals } = place.pair;
      const { signal } = stop;
      const answering = receive([], { from, fence: journals.destination, signal, onListening: () => listening() });
      await ready;
      const [recovered] = await recover({ journal: journals.source, peer: from, functions: [place.from] });
      stop.abort();
      await t.throwsAsync(answering.result, { code: 'ERR_TOWLINE_ABORTED' });
      t.true(['resumed', 'released'].includes(recovered?.settled[0]?.action ?? ''), JSON.stringify(recovered));
      if (recovered?.verdict === 'released') owner = place.to;
    }
    t.log(outcome(source), outcome(destination), owner === place.to ? 'destination' : 'source');
    await place.works();
    await place.ends(owner);
  });
}
