// Two mtty of one guest in one session, by the TypeScript API, and one with its interrupts. Arguments: the UUIDs of five devices, the third of
// another type. With eventfds ($EVENTFDS, which the test of interrupts starts it with) only what needs them.
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readSync } from 'node:fs';
import { mkdtemp, readdir } from 'node:fs/promises';
import { after, before, test } from 'node:test';
import {
  GuestMemory,
  Journal,
  migrate,
  receive,
  type ControlledFunction,
  type DeviceState,
  type MigratableFunction,
  type StateChannel,
} from '#towline/index.js';
import { MdevDriver, type MdevControllingFunction } from '#towline/drivers/mdev.js';
import type { VfioFunction } from '#towline/drivers/vfio/function.js';
import { binding } from '#towline/native/api.js';
import { IER_TRANSMITTER_EMPTY, kernelState, observed, writes, written } from '../mtty.js';
import { run } from '../nvme.js';

const [one = '', two = '', , three = '', four = ''] = process.argv.slice(2);
const MEMORY_BYTES = 1n << 20n;
const eventfds = process.env.EVENTFDS?.split(' ').map(Number);

/** Uses a device that nobody has open. */
async function device<T>(
  uuid: string,
  use: (device: Awaited<ReturnType<ReturnType<typeof binding>['openVfio']>>) => Promise<T>,
): Promise<T> {
  const open = await binding().openVfio(JSON.stringify({ name: uuid }), null);
  try {
    return await use(open);
  } finally {
    open.close();
  }
}

const write = (uuid: string, values: readonly number[]): Promise<void> =>
  device(uuid, async (open) => {
    for (const [bar, offset, value] of writes(values))
      await open.writeRegion(bar, BigInt(offset), Uint8Array.of(value));
  });

const read = (uuid: string): Promise<number[]> =>
  device(uuid, async (open) => {
    const values: number[] = [];
    for (const [bar, offset] of observed) values.push((await open.readRegion(bar, BigInt(offset), 1))[0] ?? -1);
    return values;
  });

/** `fn` under another UUID, since no kernel has two devices of one. `saw` hears of each state that it was brought to. */
function as(fn: ControlledFunction, uuid: string, saw: (to: DeviceState) => Promise<void>): MigratableFunction {
  let channel: StateChannel | undefined;
  const heard = (own: StateChannel): StateChannel => ({
    flags: own.flags,
    format: own.format,
    verifies: own.verifies,
    state: (options) => own.state(options),
    setState: async (to, options) => {
      await own.setState(to, options);
      await saw(to);
    },
    read: (maxBytes, options) => own.read(maxBytes, options),
    write: (data, options) => own.write(data, options),
    pending: (options) => own.pending(options),
    reset: (options) => own.reset(options),
    close: () => own.close(),
  });
  return {
    uuid,
    name: fn.name,
    kind: fn.kind,
    open: async () => fn.open?.(),
    channel: () => (channel ??= heard(fn.channel())),
    dirtySources: () => fn.dirtySources(),
    descriptor: (options) => fn.descriptor(options),
    get exposureState() {
      return fn.exposureState;
    },
    explain: (options) => fn.explain(options),
  };
}

/** How many are open here. */
const descriptors = async (): Promise<number> => (await readdir('/proc/self/fd')).length;

let mtty: MdevControllingFunction;
let directory: string;
let functions: Map<string, ControlledFunction>;
let idle: number;

before(async () => {
  directory = await mkdtemp('/tmp/mtty-api-');
  // What is loaded and opened once is there before it is counted.
  await read(one);
  mtty = await new MdevDriver().open('mtty');
  functions = new Map((await mtty.list()).map((fn) => [fn.uuid, fn]));
  idle = await descriptors();
});
after(async () => {
  await mtty.close();
  assert.ok((await descriptors()) <= idle, 'descriptors are left');
});

/** The functions on their way: `from[n]` goes to `to[n]` in one session, with the guest's memory. */
async function move(from: readonly string[], to: readonly string[], sequence: string[][] = []): Promise<void> {
  const of = (uuid: string): ControlledFunction => functions.get(uuid) as ControlledFunction;
  const saw = async (state: DeviceState): Promise<void> => {
    sequence.push([state, ...(await Promise.all(from.map(kernelState)))]);
  };
  const memories = [GuestMemory.anonymous('a', MEMORY_BYTES), GuestMemory.anonymous('b', MEMORY_BYTES)] as const;
  // New ones: by the journals of an earlier move, its functions are elsewhere.
  const folder = await mkdtemp(`${directory}/move-`);
  const journals = ['a', 'b'].map((name) => new Journal(`${folder}/${name}`));
  const link = `unix://${directory}/link`;
  try {
    memories[0].write(4096n * 5n, Buffer.from('what the guest has in its memory'));
    let listens: (address: string) => void = () => undefined;
    const listening = new Promise<string>((resolve) => (listens = resolve));
    const receiving = receive(
      to.map((uuid, n) => as(of(uuid), from[n] ?? '', async () => undefined)),
      { from: link, memory: memories[1], fence: journals[1] as Journal, onListening: listens },
    );
    const migrating = migrate(
      from.map((uuid) => as(of(uuid), uuid, saw)),
      {
        to: await Promise.race([listening, receiving.result.then(() => '')]),
        memory: memories[0],
        fence: journals[0] as Journal,
        policy: { maxDowntimeMs: 60_000 },
        release: false,
      },
    );
    const [left, came] = await Promise.allSettled([migrating.result, receiving.result]);
    for (const side of [left, came]) {
      if (side.status === 'rejected') throw side.reason;
      assert.equal(side.value.outcome, 'committed');
    }
    assert.equal(Buffer.from(memories[1].read(4096n * 5n, 32)).toString(), 'what the guest has in its memory');
  } finally {
    for (const journal of journals) journal.close();
    for (const memory of memories) memory.close();
  }
}

if (eventfds === undefined) {
  test('two functions of one guest: both answer only peers before one of them stops, then both are moved', async () => {
    const values = [written(1), written(2)];
    await write(one, values[0] ?? []);
    await write(two, values[1] ?? []);
    const sequence: string[][] = [];
    await move([one, two], [three, four], sequence);
    assert.deepEqual([await kernelState(one), await kernelState(two)], ['stop', 'stop']);
    assert.deepEqual([await kernelState(three), await kernelState(four)], ['running', 'running']);
    const stopped = sequence.findIndex(([, ...states]) => states.some((state) => state.startsWith('stop')));
    assert.ok(stopped > 0, JSON.stringify(sequence));
    assert.match(sequence[stopped - 1]?.slice(1).join() ?? '', /^(running|pre-copy)-p2p,(running|pre-copy)-p2p$/);
    await mtty.close();
    assert.deepEqual([await read(three), await read(four)], values);
  });

  test('functions that go to each other by mistake are noticed', async () => {
    mtty = await new MdevDriver().open('mtty');
    functions = new Map((await mtty.list()).map((fn) => [fn.uuid, fn]));
    for (const uuid of [one, two]) await device(uuid, (open) => open.reset());
    const values = [written(3), written(4)];
    await write(one, values[0] ?? []);
    await write(two, values[1] ?? []);
    await move([one, two], [four, three]);
    await mtty.close();
    assert.notDeepEqual([await read(three), await read(four)], values);
    for (const uuid of [one, two]) await device(uuid, (open) => open.reset());
  });

  test('interrupts that are wired at both sides', async () => {
    await run('gcc', [
      '-Wall',
      '-Wextra',
      '-Werror',
      '-o',
      '/tmp/eventfds',
      '/towline/checkout/test/kernel/guest/eventfds.c',
    ]);
    // Its own tests, on the same devices.
    await mtty.close();
    const again = [process.execPath, ...process.argv.slice(1)];
    try {
      execFileSync('/tmp/eventfds', ['2', ...again], { encoding: 'utf8', timeout: 120_000 });
    } catch (error) {
      assert.fail((error as { stdout?: string }).stdout ?? String(error));
    }
    mtty = await new MdevDriver().open('mtty');
  });
} else {
  type Open = Awaited<ReturnType<ReturnType<typeof binding>['openVfio']>>;
  const opened = new Map<string, Open>();
  const [here = -1, there = -1] = eventfds;
  const native = binding();
  const { openVfio } = native;
  Object.assign(native, {
    openVfio: async (...args: Parameters<typeof openVfio>) => {
      const open = await openVfio(...args);
      opened.set((JSON.parse(args[0]) as { name: string }).name, open);
      return open;
    },
  });
  const of = (uuid: string): VfioFunction => functions.get(uuid) as unknown as VfioFunction;

  /** What came since the last time, of both eventfds. */
  const came = (): number[] =>
    [here, there].map((fd) => {
      const count = Buffer.alloc(8);
      try {
        readSync(fd, count);
      } catch (error) {
        assert.equal((error as NodeJS.ErrnoException).code, 'EAGAIN');
      }
      return Number(count.readBigUInt64LE());
    });
  /** The guest asks to be told when the transmitter is empty, which it is. */
  const ask = (uuid: string): Promise<void> =>
    opened.get(uuid)?.writeRegion(0, 1n, Uint8Array.of(IER_TRANSMITTER_EMPTY)) ?? assert.fail(`${uuid} is not open`);

  for (const [name, index, from, to] of [
    ['MSI', 1, one, three],
    ['INTx', 0, two, four],
  ] as const)
    test(`an interrupt of ${name} comes to who has the device: before the move, after it`, async () => {
      for (const uuid of [from, to]) {
        await of(uuid).open();
        await opened.get(uuid)?.reset();
      }
      await of(from).wireInterrupts(index, [here]);
      await ask(from);
      assert.deepEqual(came(), [1, 0]);
      // Without an eventfd for what the guest has in use, it would never hear of it there.
      await assert.rejects(move([from], [to]), { code: 'ERR_TOWLINE_ROLLED_BACK' });
      await of(to).wireInterrupts(1 - index, [there]);
      await assert.rejects(move([from], [to]), /index/);
      await of(to).wireInterrupts(1 - index, []);
      assert.deepEqual([await kernelState(from), await kernelState(to)], ['running', 'running']);
      // INTx is masked as long as nobody has seen to it.
      await of(from).wireInterrupts(index, [here]);
      await ask(from);
      assert.deepEqual(came(), [1, 0]);

      await of(to).wireInterrupts(index, [there]);
      await move([from], [to]);
      await ask(to);
      assert.deepEqual(came(), [0, 1]);
      // And what is not wired does not come.
      await of(to).wireInterrupts(index, []);
      await ask(to);
      assert.deepEqual(came(), [0, 0]);
    });
}
