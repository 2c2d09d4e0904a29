/**
 * One host: a process with an embedded NVMe subsystem, the memory of one guest, one controlled function and, while the
 * guest runs here, its tenant. It does what the demo asks by IPC and uses nothing but towline's public API.
 */
import { randomBytes } from 'node:crypto';
import {
  GuestMemory,
  Journal,
  migrate,
  receive,
  type ControlledFunction,
  type FunctionSpec,
  type Migration,
  type MigrationEvent,
} from 'towline';
import { embedded, Tenant, type EmbeddedSubsystem } from 'towline/rehearsal';
import { serve } from '../shared/host-process.js';
import { LOG_FD, MEMORY_FD, type HostRequest, type Kind, type Scale } from './protocol.js';
import type { Sabotage } from './sabotage.js';

/** Enough that the tenant's state, queues and buffers fit below its working set. */
const NSID = 1;

class Host {
  #prepared:
    | {
        subsystem: EmbeddedSubsystem;
        fn: ControlledFunction;
        memory: GuestMemory;
        journal: Journal;
        scale: Scale;
        hostTag: number;
      }
    | undefined;
  #tenant: Tenant | undefined;
  #migration: Migration | undefined;
  #sabotage: Sabotage | undefined;

  async answer(request: HostRequest): Promise<unknown> {
    switch (request.do) {
      case 'prepare':
        return this.#prepare(request);
      case 'boot':
        return this.#boot();
      case 'migrate':
        return this.#migrate(request.to, request.sabotage);
      case 'receive':
        return this.#receive(request.sabotage);
      case 'received':
        return (await this.#migration?.result) ?? null;
      case 'haunt':
        return this.#tenant?.run({ logFd: LOG_FD, flushOnly: true });
      case 'drain':
        return this.#tenant?.drain({ timeoutMs: 5000 });
      case 'close':
        return this.#close();
    }
  }

  get #now() {
    if (!this.#prepared) throw new Error('the host is not prepared');
    return this.#prepared;
  }

  async #prepare(request: Extract<HostRequest, { do: 'prepare' }>): Promise<void> {
    const { kind, namespace, scale } = request;
    const memory = new GuestMemory([{ gpa: 0n, len: BigInt(scale.memoryMiB) << 20n, fd: MEMORY_FD }]);
    const subsystem = await embedded.open({
      namespaces: [{ ...namespace, sizeBytes: BigInt(scale.namespaceMiB) << 20n, shared: true }],
    });
    const fn = await subsystem.provision(this.#spec(kind, request.uuid));
    await subsystem.attachMemory(fn, memory);
    this.#prepared = { subsystem, fn, memory, journal: new Journal(request.journal), scale, hostTag: request.hostTag };
  }

  #spec(kind: Kind, uuid: string): FunctionSpec {
    return {
      kind,
      uuid,
      name: `demo-${kind}`,
      queues: 2,
      vectors: 3,
      namespaces: [NSID],
      migration: true,
      expose: 'none',
    };
  }

  async #boot(): Promise<void> {
    const { subsystem, fn, memory, scale, hostTag } = this.#now;
    this.#fill(memory, scale);
    this.#tenant = await Tenant.boot(subsystem, fn, memory, {
      nsid: NSID,
      queueDepth: 32,
      ioQueuePairs: 2,
      units: (scale.namespaceMiB << 20) / 4096,
      workingSetPages: scale.workingSetPages,
      cpuDirtyBytesPerSecond: scale.cpuDirtyBytesPerSecond,
      targetIops: scale.iops,
      hostTag,
    });
    this.#tenant.run({ logFd: LOG_FD });
  }

  /** Half of the guest's memory holds something, as a guest's does after a while; the rest was never touched. */
  #fill(memory: GuestMemory, scale: Scale): void {
    const block = randomBytes(1 << 20);
    for (let mib = scale.memoryMiB >> 1; mib < scale.memoryMiB; mib++) {
      block.writeUInt32LE(mib, 0);
      memory.write(BigInt(mib) << 20n, block);
    }
  }

  async #migrate(to: string, sabotage: Sabotage | undefined): Promise<unknown> {
    const { fn, memory, journal } = this.#now;
    const tenant = this.#tenant;
    if (!tenant) throw new Error('there is no tenant here');
    const { workingSet, telemetry } = tenant.layout;
    const migration = migrate(fn, {
      to,
      memory,
      fence: journal,
      // On a loaded machine a stop may cost more than that by itself; the demo shows what it was.
      policy: { maxDowntimeMs: 50, maxRounds: 8, onNoConvergence: 'stop' },
      pause: () => tenant.pause(),
      resume: () => tenant.resume(),
      verify: () => side.hold(),
      // A source that still runs needs something that it can run.
      release: sabotage !== 'two-owners',
      faults: {
        ...(sabotage === 'skip-dirty-page' ? { skipFinalPages: workingSet } : {}),
        ...(sabotage === 'skip-device-dirty' ? { skipDeviceDirty: telemetry } : {}),
        ...(sabotage === 'drop-last-state' ? { dropLastState: true } : {}),
        ...(sabotage === 'two-owners' ? { runAfterRelease: true } : {}),
      },
    });
    for await (const event of migration) side.event(event);
    try {
      const report = await migration.result;
      await tenant.stop();
      return report;
    } catch (error) {
      const report = (error as { details?: { report?: unknown } }).details?.report;
      if (report === undefined) throw error;
      return report;
    }
  }

  async #receive(sabotage: Sabotage | undefined): Promise<string> {
    const { fn, memory, journal } = this.#now;
    this.#sabotage = sabotage;
    return new Promise((resolve, reject) => {
      this.#migration = receive(fn, {
        from: 'tcp://127.0.0.1:0',
        memory,
        fence: journal,
        onListening: resolve,
        resume: () => this.#attach(),
      });
      this.#migration.result.catch(reject);
    });
  }

  /** The guest goes on here, with nothing but what is in its memory and in the function. */
  async #attach(): Promise<void> {
    const { subsystem, fn, memory, hostTag } = this.#now;
    if (this.#sabotage === 'lose-completion' || this.#sabotage === 'replay-write') {
      const action = this.#sabotage === 'lose-completion' ? 'drop-completion' : 'repeat';
      subsystem.setFaults([{ function: fn, queue: 'io', opcode: 0x01, nth: 50, action: { kind: action } }]);
    }
    this.#tenant = await Tenant.attach(subsystem, fn, memory, { hostTag });
    this.#tenant.run({ logFd: LOG_FD });
  }

  async #close(): Promise<void> {
    await this.#tenant?.stop();
    const prepared = this.#prepared;
    this.#prepared = undefined;
    if (!prepared) return;
    await prepared.subsystem.close();
    prepared.journal.close();
    prepared.memory.close();
  }
}

const host = new Host();
const side = serve<HostRequest, MigrationEvent>((request) => host.answer(request));
