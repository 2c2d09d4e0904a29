/** The destination's part of a move, in each mode, and what may be broken about it on purpose. */
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { pathToFileURL } from 'node:url';
import type { ControlledFunction, GuestMemory, Journal, Sections } from 'towline';
import { Connection } from '../src/connection.js';
import type { Machine } from '../src/machine.js';
import { restoreVcpus } from '../src/sections.js';
import { fromFile } from '../src/from-file.js';
import { sessionIn } from '../src/session-in.js';
import { takeIn } from '../src/take-in.js';
import { takeOver } from '../src/take-over.js';
import type { Arrival, HostRequest } from './protocol.js';

/** Long enough for a function that is not held back to do whatever was waiting in its queues. */
const EARLY_MS = 500;

/** A machine that waits for a guest to arrive. */
export interface Waiting {
  /** Where it waits: `tcp://host:port`, `unix:///path`, or the `file:///path` that it takes. */
  address: string;
  /** How it ended; a checkpoint is restored when that is asked for. */
  arrival: () => Promise<Arrival>;
}

/** Makes the machine wait for a guest. */
export async function arrive(
  machine: Machine,
  journal: Journal,
  { mode, sabotage, interruption }: Extract<HostRequest, { do: 'receive' }>,
): Promise<Waiting> {
  const times: Arrival = {};
  /** The state that comes too late. */
  let late: Sections | undefined;
  const hooks = {
    fence: journal,
    restoreSections: (sections: Sections) => {
      if (interruption === 'refuse-sections') throw new Error('interrupted at the sections');
      restoreVcpus(machine.vm, sections);
      if (sabotage === 'early-irq') late = sections;
    },
    resume: async () => {
      if (late !== undefined) {
        // The function runs, and KVM takes its interrupts; then the local APICs get a state in which none of them is pending.
        await sleep(EARLY_MS);
        machine.vm.restore(late);
      }
      run(machine, times);
    },
  };
  if (mode === 'session') {
    const { address, socket } = await listen();
    const session = socket.then((s) => {
      const wire = new Connection(s, machine.memory);
      return sessionIn(machine, wire, hooks).finally(() => wire.end());
    });
    return waiting(address, ended(session, times));
  }
  return new Promise((resolve, reject) => {
    const migration = takeIn(machine, {
      ...hooks,
      from: 'tcp://127.0.0.1:0',
      onListening: (address) => resolve(waiting(address, ended(migration.result, times))),
    });
    migration.result.catch(reject);
  });
}

/** As {@link arrive}, with the memory of another process of this host. */
export async function arriveHere(
  fn: ControlledFunction,
  journal: Journal,
  path: string,
  { interruption }: Extract<HostRequest, { do: 'receive' }>,
  make: (memory: GuestMemory) => Promise<Machine>,
): Promise<Waiting> {
  const times: Arrival = {};
  let machine: Machine | undefined;
  return new Promise((resolve, reject) => {
    const migration = takeOver(fn, {
      from: `unix://${path}`,
      fence: journal,
      make: async (memory) => (machine = await make(memory)),
      ...(interruption === 'refuse-sections'
        ? {
            restoreSections: () => {
              throw new Error('interrupted at the sections');
            },
          }
        : {}),
      resume: () => {
        if (machine) run(machine, times);
      },
      onListening: (address) => resolve(waiting(address, ended(migration.result, times))),
    });
    migration.result.catch(reject);
  });
}

/**
 * As {@link arrive}, out of a file that is not there yet. Nobody could compare before it is loaded; so the witness does then, before anything runs.
 */
export function arriveFromFile(machine: Machine, journal: Journal, path: string, hold: () => Promise<void>): Waiting {
  const times: Arrival = {};
  const restoreSections = async (sections: Sections) => {
    restoreVcpus(machine.vm, sections);
    const began = performance.now();
    await hold();
    times.heldMs = performance.now() - began;
  };
  const resume = () => run(machine, times);
  return {
    address: pathToFileURL(path).href,
    arrival: () => ended(fromFile(machine, { path, fence: journal, restoreSections, resume }).result, times),
  };
}

/** Lets the vCPUs go, and notes when. */
function run(machine: Machine, times: Arrival): void {
  times.ranAtNs = process.hrtime.bigint().toString();
  machine.vm.run();
}

const waiting = (address: string, arrival: Promise<Arrival>): Waiting => ({ address, arrival: () => arrival });

/** How it ended; a refusal is an end as well. */
function ended(result: Promise<unknown>, times: Arrival): Promise<Arrival> {
  return result.then(
    () => times,
    (error: unknown) => ({ ...times, why: error instanceof Error ? error.message : String(error) }),
  );
}

/** A port of its own, for one connection. */
async function listen(): Promise<{ address: string; socket: Promise<Socket> }> {
  const server = createServer({ noDelay: true });
  const socket = new Promise<Socket>((resolve) => {
    server.once('connection', (s) => {
      server.close();
      resolve(s);
    });
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });
  return { address: `tcp://127.0.0.1:${(server.address() as AddressInfo).port}`, socket };
}
