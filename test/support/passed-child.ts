/**
 * The destination of a handoff on one host, in a process of its own: an embedded function that takes up the guest whose memory it is
 * passed. Its parent asks by Node's own IPC.
 */
import { closeSync, openSync, writeSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { GuestMemory, Journal, receive, type MigrationReport, type TowlineError } from '#towline/index.js';
import { embedded, Tenant } from '#towline/rehearsal/index.js';

export interface PassedParams {
  socket: string;
  journal: string;
  uuid: string;
  namespace: { path: string; sizeBytes: string };
  /** `refuse` throws before the commit, `other-memory` takes the guest up in memory that was not passed. */
  fault?: 'refuse' | 'other-memory' | undefined;
  killAt?: string | undefined;
}

export type FromChild =
  | { type: 'listening' }
  | { type: 'ended'; outcome: string; error?: string; memoryTransfer?: string; downtime?: number }
  | { type: 'worked'; commands: number; failure: unknown };

const say = (message: FromChild) => process.send?.(message);

async function main(params: PassedParams): Promise<void> {
  const namespace = { path: params.namespace.path, sizeBytes: BigInt(params.namespace.sizeBytes), shared: true };
  const subsystem = await embedded.open({ namespaces: [namespace] });
  const spec = { kind: 'vf', uuid: params.uuid, name: 'passed-vf', queues: 2, vectors: 3, namespaces: [1] } as const;
  const fn = await subsystem.provision(spec);
  let memory: GuestMemory | undefined;
  let report: MigrationReport;
  try {
    report = await receive(fn, {
      from: `unix://${params.socket}`,
      memory: 'passed',
      fence: new Journal(params.journal),
      onListening: () => say({ type: 'listening' }),
      onMemory: (passed) => {
        memory = params.fault === 'other-memory' ? GuestMemory.anonymous('other', 64n << 20n) : passed;
        subsystem.attachMemory(fn, memory);
      },
      restoreSections: (sections, fds) => {
        if (params.fault === 'refuse') throw new Error('the child refuses');
        const log = fds.take('log', 'file');
        writeSync(log, Buffer.from(sections['log'] ?? []));
        closeSync(log);
      },
      ...(params.killAt === undefined ? {} : { faults: { killAt: params.killAt } }),
    }).result;
  } catch (error) {
    say({ type: 'ended', outcome: 'failed', error: (error as TowlineError).message });
    await subsystem.close();
    process.disconnect();
    return;
  }
  say({ type: 'ended', outcome: report.outcome, memoryTransfer: report.memoryTransfer });
  // With nothing but what is in the memory and in the function.
  try {
    const tenant = await Tenant.attach(subsystem, fn, memory as GuestMemory);
    const log = openSync('/dev/null', 'w');
    tenant.run({ logFd: log });
    await new Promise((resolve) => {
      setTimeout(resolve, 300);
    });
    const { pending } = await tenant.drain({ timeoutMs: 20_000 });
    const { reads, writes, failure } = tenant.stats() as { reads: number; writes: number; failure: unknown };
    say({
      type: 'worked',
      commands: reads + writes,
      failure: failure ?? (pending === 0 ? null : `${pending} pending`),
    });
    await tenant.close();
    closeSync(log);
  } catch (error) {
    say({ type: 'worked', commands: 0, failure: (error as Error).message });
  }
  await subsystem.close();
  process.disconnect();
}

if (process.argv[1] === fileURLToPath(import.meta.url))
  process.once('message', (params) => void main(params as PassedParams));
