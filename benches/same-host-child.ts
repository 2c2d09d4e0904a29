import { openSync } from 'node:fs';

import { GuestMemory, Journal, receive } from 'towline';
import { embedded, Tenant } from 'towline/rehearsal';

/** The guest that comes next. */
export interface Expected {
  readonly uuid: string;
  readonly transfer: 'pass' | 'copy';
  readonly memoryBytes: string;
  readonly socket: string;
}

/** It runs here since then, in nanoseconds of CLOCK_MONOTONIC. */
export interface Arrived {
  readonly type: 'arrived';
  readonly runsNs: string;
}

/** What the destination says. */
export type FromDestination = { readonly type: 'listening' } | Arrived;

const [disk = '', sizeBytes = '0', journalPath = ''] = process.argv.slice(2);
const subsystem = await embedded.open({ namespaces: [{ path: disk, sizeBytes: BigInt(sizeBytes), shared: true }] });
const journal = new Journal(journalPath);
const nowhere = openSync('/dev/null', 'w');

/** Copies go into the same memory, as long as it fits: new pages cost more than the rest of a copy does. */
let copies: { readonly bytes: string; readonly memory: GuestMemory } | undefined;

function copyTo(bytes: string): GuestMemory {
  if (copies?.bytes !== bytes) {
    copies?.memory.close();
    copies = { bytes, memory: GuestMemory.anonymous('copy', BigInt(bytes)) };
  }
  return copies.memory;
}

async function take({ uuid, transfer, memoryBytes, socket }: Expected): Promise<void> {
  const fn = await subsystem.provision({ kind: 'vf', uuid, name: 'guest', queues: 2, vectors: 3, namespaces: [1] });
  let memory: GuestMemory | undefined;
  const attach = (to: GuestMemory): void => {
    memory = to;
    subsystem.attachMemory(fn, to);
  };
  if (transfer === 'copy') attach(copyTo(memoryBytes));
  let runsNs = 0n;
  let tenant: Tenant | undefined;
  await receive(fn, {
    from: `unix://${socket}`,
    ...(memory === undefined ? { memory: 'passed' as const, onMemory: attach } : { memory }),
    fence: journal,
    onListening: () => process.send?.({ type: 'listening' } satisfies FromDestination),
    resume: async () => {
      tenant = await Tenant.attach(subsystem, fn, memory as GuestMemory);
      tenant.run({ logFd: nowhere });
      runsNs = process.hrtime.bigint();
    },
  }).result;
  await tenant?.drain({ timeoutMs: 20_000 });
  await tenant?.close();
  await fn.release();
  if (transfer === 'pass') memory?.close();
  process.send?.({ type: 'arrived', runsNs: runsNs.toString() } satisfies FromDestination);
}

process.on('message', (expected) => void take(expected as Expected));
process.on('disconnect', () => process.exit(0));
