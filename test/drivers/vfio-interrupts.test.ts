// Which interrupts of a VFIO device travel: what its handle tells of them, where it is saved and where it is restored.
import test from 'ava';
import type { HostPort, OpenVfio } from '#towline/drivers/host/port.js';
import { VfioHandle } from '#towline/drivers/vfio/handle.js';
import { MemoryDevice } from '../support/memory-device.js';

type Call = [what: string, index: number | null, vectors: readonly (boolean | number)[]];

async function stopped(): Promise<{ handle: VfioHandle; calls: Call[] }> {
  const calls: Call[] = [];
  const device = new MemoryDevice();
  const open: OpenVfio = {
    info: {
      name: 'x',
      by: 'cdev',
      flags: 0,
      regions: [],
      irqs: [],
      migration: 7,
      features: [],
      dirty: 'device',
      format: 'vfio:fake:x',
    },
    channel: device.channel,
    source: device.source,
    config: {
      save: async (index, wired) => {
        calls.push(['save', index, wired]);
        return new Uint8Array();
      },
      restore: async (_section, index, eventfds) => void calls.push(['restore', index, eventfds]),
      setIrqs: async (index, eventfds) => void calls.push(['wire', index, eventfds]),
    },
    mapMemory: async () => undefined,
    unmapMemory: async () => undefined,
    close: async () => undefined,
  };
  const handle = new VfioHandle({ openVfio: async () => open } as Partial<HostPort> as HostPort, 'x');
  await handle.open();
  await device.channel.setState('stop');
  return { handle, calls };
}

test('what is wired travels, holes and all, with its index', async (t) => {
  const { handle, calls } = await stopped();
  await handle.setIrqs(2, [7, -1, 9]);
  await handle.exposureState?.save();
  await handle.exposureState?.restore(new Uint8Array());
  t.deepEqual(calls.slice(1), [
    ['save', 2, [true, false, true]],
    ['restore', 2, [7, -1, 9]],
  ]);
});

test('to disable another index, or to be without any, is told apart', async (t) => {
  const { handle, calls } = await stopped();
  await handle.setIrqs(1, [5]);
  await handle.setIrqs(0, []);
  await handle.exposureState?.save();
  await handle.setIrqs(1, []);
  await handle.exposureState?.save();
  await handle.exposureState?.restore(new Uint8Array());
  t.deepEqual(
    calls.filter(([what]) => what !== 'wire'),
    [
      ['save', 1, [true]],
      ['save', null, []],
      ['restore', null, []],
    ],
  );
});
