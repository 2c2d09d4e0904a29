// Loaded into a `towline serve` before it (node --import): lets a test look at the devices that this process has open, as nobody else can,
// and kill it, or let a step fail, at a named point of a session.
import { createHash } from 'node:crypto';
import { faultsJson } from '#towline/migration/faults.js';
import { binding } from '#towline/native/api.js';
import type { NativeGuestMemory } from '#towline/native/binding.js';
import type { NativeVfioDevice } from '#towline/native/host-binding.js';

/** Where something goes wrong in the next sessions of this process. */
export interface Arms {
  killAt?: string;
  failAt?: string;
}

/** What the test asks, and what it is answered. */
export type ToInside =
  | { id: number; do: 'arm'; arms: Arms }
  | { id: number; do: 'write'; name: string; writes: readonly (readonly [number, number, number])[] }
  | { id: number; do: 'read'; name: string; reads: readonly (readonly [number, number])[] }
  | { id: number; do: 'reset'; name: string }
  | { id: number; do: 'fill'; seed: number }
  | { id: number; do: 'digest' };
/** `value` is `null` where the device is not open here. */
export interface FromInside {
  id: number;
  value?: unknown;
  error?: string;
}

const native = binding();
const { sourceSession, destinationSession, openVfio } = native;
const devices = new Map<string, NativeVfioDevice>();
/** Guest memory of the functions of this process, in the order in which it was made. */
const memories = new Set<NativeGuestMemory>();
let arms: Arms = {};

function armed(config: string, side: 'source' | 'destination'): string {
  const parsed = JSON.parse(config) as object;
  const { killAt, failAt } = arms;
  const own = {
    ...(killAt?.startsWith(`${side}:`) ? { killAt } : {}),
    ...(failAt?.startsWith(`${side}:`) ? { failAt } : {}),
  };
  return JSON.stringify({ ...parsed, faults: faultsJson(own) });
}

Object.assign(native, {
  sourceSession: (...[config, parts]: Parameters<typeof sourceSession>) =>
    sourceSession(armed(config, 'source'), parts),
  destinationSession: (...[config, parts]: Parameters<typeof destinationSession>) =>
    destinationSession(armed(config, 'destination'), parts),
  openVfio: async (...args: Parameters<typeof openVfio>) => {
    const device = await openVfio(...args);
    const { name } = JSON.parse(args[0]) as { name: string };
    devices.set(name, device);
    const { close } = device;
    device.close = () => {
      if (devices.get(name) === device) devices.delete(name);
      close.call(device);
    };
    return device;
  },
  GuestMemory: new Proxy(native.GuestMemory, {
    construct(target, args: []) {
      const memory = new target(...args);
      const { close } = memory;
      memory.close = () => {
        memories.delete(memory);
        close.call(memory);
      };
      memories.add(memory);
      return memory;
    },
  }),
});

/** All of the youngest guest's memory here is written, a different thing for every `seed`. */
function fill(seed: number): void {
  for (const memory of [...memories].slice(-1)) {
    for (const { gpa, len } of memory.ranges()) {
      for (let at = 0n; at < len; at += 4096n) {
        // Every fourth page stays as it is: zero, where it is new.
        if (at % 16_384n !== 0n) memory.write(gpa + at, createHash('sha512').update(`${seed} ${at}`).digest());
      }
    }
  }
}

function digest(): string {
  const hash = createHash('sha256');
  for (const memory of [...memories].slice(-1)) {
    for (const { gpa, len } of memory.ranges()) {
      for (let at = 0n; at < len; at += 65_536n)
        hash.update(memory.read(gpa + at, Number(len - at < 65_536n ? len - at : 65_536n)));
    }
  }
  return hash.digest('hex');
}

async function answer(message: ToInside): Promise<unknown> {
  if (message.do === 'arm') {
    arms = message.arms;
    return true;
  }
  if (message.do === 'fill') {
    fill(message.seed);
    return memories.size;
  }
  if (message.do === 'digest') return digest();
  const device = devices.get(message.name);
  if (device === undefined) return null;
  switch (message.do) {
    case 'write':
      for (const [bar, offset, value] of message.writes)
        await device.writeRegion(bar, BigInt(offset), Uint8Array.of(value));
      return true;
    case 'read': {
      const values: number[] = [];
      for (const [bar, offset] of message.reads) {
        const [value] = await device.readRegion(bar, BigInt(offset), 1);
        values.push(value ?? -1);
      }
      return values;
    }
    case 'reset':
      await device.reset();
      return true;
    default:
      return undefined;
  }
}

process.on('message', (message: ToInside) => {
  const send = (rest: Omit<FromInside, 'id'>): void => void process.send?.({ id: message.id, ...rest });
  answer(message).then(
    (value) => send({ value }),
    (error: unknown) => send({ error: error instanceof Error ? error.message : String(error) }),
  );
});
// Whoever started it may go: that is no reason to stay.
process.channel?.unref();
