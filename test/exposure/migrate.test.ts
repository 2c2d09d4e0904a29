import { randomUUID } from 'node:crypto';
import { closeSync, existsSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import type { TowlineError } from '#towline/errors.js';
import type {
  ControlledFunction,
  ExposureHandover,
  ExposureState,
  MigratableFunction,
} from '#towline/function/types.js';
import { embedded } from '#towline/rehearsal/index.js';
import { NvmeGuest } from '../support/nvme-guest.js';
import { Pair } from '../support/pair.js';
import { VfioUserClient } from '../support/vfio-user-client.js';

const BAR0 = 0;
const BAR4 = 4;
const CONFIG = 7;

interface Place {
  pair: Pair;
  from: ControlledFunction;
  to: ControlledFunction;
  sockets: { from: string; to: string };
}

/** A VF on a socket in each of two subsystems over one disk. */
async function place(t: ExecutionContext, exposed: { to: boolean } = { to: true }): Promise<Place> {
  const pair = new Pair(t, 4n << 20n);
  const namespaces = [{ path: join(pair.directory, 'disk'), sizeBytes: 1n << 20n }];
  const uuid = randomUUID();
  const sockets = { from: join(pair.directory, 'from.sock'), to: join(pair.directory, 'to.sock') };
  const make = async (): Promise<ControlledFunction> => {
    const subsystem = await embedded.open({ namespaces });
    t.teardown(() => subsystem.close());
    return subsystem.provision({ kind: 'vf', uuid, queues: 2, vectors: 3, namespaces: [1] });
  };
  const [from, to] = [await make(), await make()];
  await from.expose('vfio-user', { socketPath: sockets.from });
  if (exposed.to) await to.expose('vfio-user', { socketPath: sockets.to });
  return { pair, from, to, sockets };
}

function failure(result: PromiseSettledResult<unknown>): TowlineError {
  if (result.status === 'fulfilled') throw new Error('it succeeded');
  return result.reason as TowlineError;
}

/** The innermost error. */
function root(error: TowlineError): TowlineError {
  return error.cause instanceof Error ? root(error.cause as TowlineError) : error;
}

/** What the guest set in config space: command, BAR 0, control of MSI-X. */
async function config(client: VfioUserClient): Promise<number[]> {
  return Promise.all([4, 0x10, 0xb0].map(async (at) => (await client.read32(CONFIG, at)) >>> 0));
}

/** The same function, with another exposure state. */
function withExposure(fn: ControlledFunction, change: (state: ExposureState) => ExposureState): MigratableFunction {
  const { uuid, name, kind } = fn;
  return {
    uuid,
    name,
    kind,
    channel: () => fn.channel(),
    dirtySources: () => fn.dirtySources(),
    descriptor: () => fn.descriptor(),
    explain: () => fn.explain(),
    release: () => fn.release(),
    get exposureState() {
      return fn.exposureState && change(fn.exposureState);
    },
  };
}

test('a function on a socket moves under load, to a client that is there already; before that it is rolled back', async (t) => {
  const { pair, from, to, sockets } = await place(t);
  const client = await VfioUserClient.connect(sockets.from, pair.memory.source);
  const guest = new NvmeGuest(client, pair.memory.source);
  await guest.boot();
  const set = await config(client);
  t.deepEqual(set, [0x0010_0006, 0xfe00_0004, 0x8002_0011]);
  guest.run();
  await guest.work(100);
  const other = await VfioUserClient.connect(sockets.to, pair.memory.destination);

  // Without a pause of the guest, whose vCPU goes on as long as the function is stopped: nothing of what it asks for is lost.
  for (const step of ['verify', 'pause'] as const) {
    const fail = (): never => {
      throw new Error('no');
    };
    const refused = await pair.move(from, to, { source: { [step]: fail } });
    t.is(failure(refused.source).code, 'ERR_TOWLINE_ROLLED_BACK', step);
    await guest.work(100);
    t.deepEqual(guest.faults, []);
    t.deepEqual(await config(other), [0x0010_0000, 4, 0x0002_0011], 'as after a reset');
  }

  const moved = await pair.move(from, to, {
    source: { pause: () => guest.stop() },
    destination: {
      resume: () => {
        guest.move(other, pair.memory.destination);
        guest.run();
      },
    },
  });
  if (moved.source.status === 'rejected') throw moved.source.reason as Error;
  t.is(from.state, 'released');
  await client.gone;
  t.false(existsSync(sockets.from));
  await guest.work(100);
  await guest.drain();
  t.deepEqual(guest.faults, []);
  t.is(guest.pending, 0);
  t.deepEqual(await config(other), set);
  t.true((await other.read32(BAR4, 0x1000)) !== 0, 'nobody has an eventfd: vectors are pending');
  t.true(other.dmaMessages > 100);
});

test('the client of the destination may come later', async (t) => {
  const { pair, from, to, sockets } = await place(t);
  const client = await VfioUserClient.connect(sockets.from, pair.memory.source);
  const guest = new NvmeGuest(client, pair.memory.source);
  await guest.boot();
  guest.run();
  await guest.work(50);
  const moved = await pair.move(from, to, { source: { pause: () => guest.stop() } });
  if (moved.source.status === 'rejected') throw moved.source.reason as Error;
  const other = await VfioUserClient.connect(sockets.to, pair.memory.destination);
  const [command = 0] = await config(other);
  t.is(command & 6, 6);
  await other.write32(CONFIG, 4, command & 0xffff);
  guest.move(other, pair.memory.destination);
  guest.run();
  await guest.work(50);
  await guest.drain();
  t.deepEqual(guest.faults, []);
});

test('a destination that does not have the function on a socket is a mismatch, and nothing stops', async (t) => {
  const { pair, from, to, sockets } = await place(t, { to: false });
  const client = await VfioUserClient.connect(sockets.from, pair.memory.source);
  const settled = await pair.move(from, to);
  const mismatches = (failure(settled.destination).cause as TowlineError).details as { mismatches: { code: string }[] };
  t.deepEqual(
    mismatches.mismatches.map((m) => m.code),
    [`${from.name}: exposure-format`, 'sections'],
  );
  t.is(await client.read32(BAR0, 8), 0x20100);
  t.is(await from.channel().state(), 'running');
  // The other way round nothing is carried, and the destination's client has what it has set itself.
  await to.expose('vfio-user', { socketPath: sockets.to });
  await from.expose('none');
  const moved = await pair.move(from, to);
  t.is(moved.destination.status, 'fulfilled');
});

test('a section with a wrong byte is refused, and the guest goes on where it was', async (t) => {
  const { pair, from, to, sockets } = await place(t);
  const client = await VfioUserClient.connect(sockets.from, pair.memory.source);
  const guest = new NvmeGuest(client, pair.memory.source);
  await guest.boot();
  guest.run();
  const other = await VfioUserClient.connect(sockets.to, pair.memory.destination);
  const wrong = withExposure(from, (state) => ({
    format: state.format,
    save: async () => {
      const section = await state.save();
      section[40] = (section[40] ?? 0) ^ 0x10;
      return section;
    },
    restore: (section) => state.restore(section),
    forget: () => state.forget(),
  }));
  const settled = await pair.move(wrong, to);
  t.is(failure(settled.source).code, 'ERR_TOWLINE_ROLLED_BACK');
  t.is(root(failure(settled.destination)).code, 'ERR_TOWLINE_BAD_STATE');
  await guest.work(50);
  await guest.drain();
  t.deepEqual(guest.faults, []);
  t.deepEqual(await config(other), [0x0010_0000, 4, 0x0002_0011]);
  t.is(await to.channel().state(), 'running');
});

test('a section is taken of a function that has stopped, and put into one that has', async (t) => {
  const { from, to } = await place(t);
  const state = from.exposureState as ExposureState;
  await t.throwsAsync(state.save(), { code: 'ERR_TOWLINE_STATE' });
  await from.channel().setState('stop');
  const section = await state.save();
  await t.throwsAsync((to.exposureState as ExposureState).restore(section), { code: 'ERR_TOWLINE_STATE' });
  await from.channel().setState('running');
});

/** The whole device state of a stopped function. */
async function deviceState(fn: ControlledFunction): Promise<Uint8Array> {
  const channel = fn.channel();
  await channel.setState('stop-copy');
  const parts: Uint8Array[] = [];
  for (;;) {
    const read = await channel.read(1 << 16);
    if (read.kind !== 'bytes') break;
    parts.push(read.bytes);
  }
  await channel.setState('stop');
  return Buffer.concat(parts);
}

test('a live connection goes to another holder and back, and its guest notices no more than a pause', async (t) => {
  const { pair, from, to, sockets } = await place(t, { to: false });
  await t.throwsAsync(to.detachExposure?.() ?? Promise.resolve(), { code: 'ERR_TOWLINE_EXPOSURE' });
  const client = await VfioUserClient.connect(sockets.from, pair.memory.source);
  const guest = new NvmeGuest(client, pair.memory.source);
  await guest.boot();
  const set = await config(client);
  guest.run();
  await t.throwsAsync(from.detachExposure?.() ?? Promise.resolve(), { code: 'ERR_TOWLINE_STATE' });
  let [here, there] = [from, to];
  for (let round = 0; round < 4; round++) {
    await guest.work(50);
    await here.channel().setState('stop');
    const handover = (await here.detachExposure?.()) as ExposureHandover;
    const section = await (here.exposureState as ExposureState).save();
    const state = await deviceState(here);
    const damaged = Uint8Array.from(handover.bytes);
    damaged[9] = (damaged[9] ?? 0) ^ 1;
    const wrong = { fds: handover.fds, bytes: damaged };
    await t.throwsAsync(there.expose('vfio-user', { handover: wrong }), { code: 'ERR_TOWLINE_BAD_STATE' });
    t.is(there.exposure, 'none');
    if (round === 1) {
      // Nobody takes it over: it goes on where it was.
      for (const fd of handover.fds) closeSync(fd);
      await here.channel().setState('running');
      await here.resumeExposure?.();
      continue;
    }
    await there.expose('vfio-user', { handover });
    for (const fd of handover.fds) closeSync(fd);
    await there.channel().setState('resuming');
    await there.channel().write(state);
    await there.channel().setState('stop');
    await (there.exposureState as ExposureState).restore(section);
    await there.channel().setState('running');
    await there.resumeExposure?.();
    await here.surrenderExposure?.();
    t.is(here.exposure, 'none');
    [here, there] = [there, here];
  }
  await guest.work(50);
  await guest.drain();
  t.deepEqual(guest.faults, []);
  t.deepEqual(await config(client), set);
  t.true(existsSync(sockets.from));
  await here.expose('none');
  await client.gone;
  t.false(existsSync(sockets.from));
});
