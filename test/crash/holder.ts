/**
 * A holder: a process with an embedded subsystem, the memory of one guest, one function, a journal and, while the guest runs
 * here, its tenant. It does what the test asks and uses nothing but the public API.
 */
import {
  checkpoint,
  GuestMemory,
  isTowlineError,
  Journal,
  migrate,
  receive,
  recover,
  restore,
  type ControlledFunction,
  type Migration,
  type MigrationReport,
} from '#towline/index.js';
import { embedded, Tenant, type EmbeddedSubsystem } from '#towline/rehearsal/index.js';
import {
  LOG_FD,
  MEMORY_BYTES,
  MEMORY_FD,
  NAMESPACE_BYTES,
  type Ended,
  type FromHolder,
  type Look,
  type MigrateParams,
  type Request,
  type RequestName,
  type Requests,
  type ToHolder,
} from './protocol.js';

const NSID = 1;
/** A step that takes longer hangs. */
const DEADLINE_MS = 20_000;

interface Held {
  subsystem: EmbeddedSubsystem;
  fn: ControlledFunction;
  memory: GuestMemory;
  journal: Journal;
  hostTag: number;
}

class Holder {
  #held: Held | undefined;
  #tenant: Tenant | undefined;
  #tenantRuns = false;
  #incoming: { ended: Promise<Ended>; hangUp: AbortController } | undefined;
  readonly #holds = new Map<number, () => void>();
  #nextHold = 1;

  readonly methods: { readonly [N in RequestName]: (params: Requests[N]['params']) => Promise<Requests[N]['result']> } =
    {
      prepare: (params) => this.#prepare(params),
      boot: () => this.#boot(),
      receive: (faults) => this.#receive(faults),
      received: async () => {
        if (!this.#incoming) throw new Error('nothing is being received here');
        return this.#incoming.ended;
      },
      hangUp: async () => {
        this.#incoming?.hangUp.abort();
        await this.#incoming?.ended;
        return null;
      },
      migrate: (params) => this.#migrate(params),
      checkpoint: (params) => this.#checkpoint(params),
      restore: (params) => this.#restore(params),
      recover: ({ peer, timeoutMs }) =>
        recover({
          journal: this.#now.journal,
          functions: [this.#now.fn],
          ...(peer === undefined ? {} : { peer }),
          ...(timeoutMs === undefined ? {} : { timeoutMs }),
        }),
      declareDestinationDead: async ({ session }) => {
        this.#now.journal.declareDestinationDead(session, 'the test says so');
        return null;
      },
      runAgain: async () => {
        // `recover` has resumed a function that it found to be held here.
        const channel = this.#now.fn.channel();
        if ((await channel.state()) !== 'running') await channel.setState('running');
        this.#resume();
        return null;
      },
      sessions: async () => this.#now.journal.sessions(),
      look: async () => this.#look(),
      work: ({ commands }) => this.#work(commands),
      drain: async () => {
        const drained = await this.#tenant?.drain({ timeoutMs: DEADLINE_MS });
        if (drained?.pending !== 0) throw new Error(`${drained?.pending ?? 'all'} commands have no answer`);
        await this.#tenant?.stop();
        this.#tenantRuns = false;
        return null;
      },
      close: () => this.#close(),
    };

  held(id: number): void {
    this.#holds.get(id)?.();
    this.#holds.delete(id);
  }

  get #now(): Held {
    if (!this.#held) throw new Error('the holder is not prepared');
    return this.#held;
  }

  async #prepare({ uuid, hostTag, namespace, journal }: Requests['prepare']['params']): Promise<null> {
    const memory = new GuestMemory([{ gpa: 0n, len: MEMORY_BYTES, fd: MEMORY_FD }]);
    const subsystem = await embedded.open({ namespaces: [{ ...namespace, sizeBytes: NAMESPACE_BYTES, shared: true }] });
    const fn = await subsystem.provision({
      kind: 'vf',
      uuid,
      name: 'crash-vf',
      queues: 2,
      vectors: 3,
      namespaces: [NSID],
    });
    subsystem.attachMemory(fn, memory);
    this.#held = { subsystem, fn, memory, journal: new Journal(journal), hostTag };
    return null;
  }

  async #boot(): Promise<null> {
    const { subsystem, fn, memory, hostTag } = this.#now;
    this.#tenant = await Tenant.boot(subsystem, fn, memory, {
      nsid: NSID,
      units: Number(NAMESPACE_BYTES / 4096n),
      workingSetPages: 512,
      cpuDirtyBytesPerSecond: 1 << 20,
      targetIops: 3000,
      hostTag,
    });
    this.#run();
    return null;
  }

  #run(): void {
    this.#tenant?.run({ logFd: LOG_FD });
    this.#tenantRuns = true;
  }

  #resume(): void {
    this.#tenant?.resume();
    this.#tenantRuns = this.#tenant !== undefined;
  }

  async #migrate({ to, killAt, failAt, objection }: MigrateParams): Promise<Ended> {
    const { fn, memory, journal } = this.#now;
    const migration = migrate(fn, {
      to,
      memory,
      fence: journal,
      // A machine under load is no reason to give up here.
      policy: { maxDowntimeMs: 60_000 },
      pause: async () => {
        await this.#tenant?.pause();
        this.#tenantRuns = false;
      },
      resume: () => this.#resume(),
      verify: async () => {
        await this.#hold();
        if (objection !== undefined) throw new Error(objection);
      },
      faults: { ...(killAt === undefined ? {} : { killAt }), ...(failAt === undefined ? {} : { failAt }) },
    });
    for await (const event of migration) if (event.type === 'phase') send({ type: 'phase', phase: event.phase });
    return ended(migration);
  }

  async #checkpoint({ path, killAt }: Requests['checkpoint']['params']): Promise<Ended> {
    const { fn, memory, journal } = this.#now;
    const writing = checkpoint(fn, {
      path,
      mode: 'move',
      memory,
      fence: journal,
      pause: async () => {
        await this.#tenant?.pause();
        this.#tenantRuns = false;
      },
      resume: () => this.#resume(),
      faults: killAt === undefined ? {} : { killAt },
    });
    return ended(writing);
  }

  async #restore({ path, killAt }: Requests['restore']['params']): Promise<Ended> {
    const { fn, memory, journal } = this.#now;
    const faults = killAt === undefined ? {} : { killAt };
    return ended(restore(fn, { path, memory, fence: journal, resume: () => this.#attach(), faults }));
  }

  #receive(faults: Requests['receive']['params']): Promise<string> {
    const { fn, memory, journal } = this.#now;
    return new Promise((resolve, reject) => {
      const hangUp = new AbortController();
      const migration = receive(fn, {
        from: 'tcp://127.0.0.1:0',
        memory,
        fence: journal,
        onListening: resolve,
        signal: hangUp.signal,
        resume: () => this.#attach(),
        faults,
      });
      const done = ended(migration);
      done.catch(reject);
      this.#incoming = { ended: done, hangUp };
    });
  }

  /** The guest goes on here, with nothing but what is in its memory and in the function. */
  async #attach(): Promise<void> {
    const { subsystem, fn, memory, hostTag } = this.#now;
    this.#tenant = await Tenant.attach(subsystem, fn, memory, { hostTag });
    this.#run();
  }

  #hold(): Promise<void> {
    const id = this.#nextHold++;
    return new Promise((resolve) => {
      this.#holds.set(id, resolve);
      send({ type: 'hold', id });
    });
  }

  async #look(): Promise<Look> {
    const { fn } = this.#now;
    const device = fn.state === 'released' ? fn.state : await fn.channel().state();
    return { device, tenantRuns: this.#tenantRuns };
  }

  async #work(commands: number): Promise<null> {
    const tenant = this.#tenant;
    if (!tenant) throw new Error('there is no tenant here');
    const answered = (): number => {
      const { reads, writes, flushes, failure } = tenant.stats() as {
        reads: number;
        writes: number;
        flushes: number;
        failure: unknown;
      };
      if (failure !== null) throw new Error(`the tenant has failed: ${JSON.stringify(failure)}`);
      return reads + writes + flushes;
    };
    const wanted = answered() + commands;
    const deadline = performance.now() + DEADLINE_MS;
    while (answered() < wanted) {
      if (performance.now() > deadline) throw new Error('the tenant gets no answers');
      await new Promise((resolve) => {
        setTimeout(resolve, 5);
      });
    }
    return null;
  }

  async #close(): Promise<null> {
    const held = this.#held;
    this.#held = undefined;
    if (!held) return null;
    this.#incoming?.hangUp.abort();
    await this.#incoming?.ended;
    await this.#tenant?.close();
    await held.subsystem.close();
    held.journal.close();
    held.memory.close();
    return null;
  }
}

/** How it ended, also where that is an error with a report. */
async function ended(migration: Migration): Promise<Ended> {
  try {
    const report = await migration.result;
    return { outcome: report.outcome, code: null, report };
  } catch (error) {
    const report = isTowlineError(error)
      ? (error.details as { report?: MigrationReport } | undefined)?.report
      : undefined;
    if (!isTowlineError(error) || report === undefined) throw error;
    return { outcome: report.outcome, code: error.code, report };
  }
}

function send(message: FromHolder): void {
  // The test may be gone; then there is nobody to tell.
  if (process.connected) process.send?.(message);
}

const holder = new Holder();
process.on('disconnect', () => process.exit(0));
process.on('message', (message: ToHolder) => {
  if (message.type === 'held') {
    holder.held(message.id);
    return;
  }
  const { id, name, params } = message as Request<'prepare'>;
  Promise.resolve()
    .then(() => holder.methods[name](params))
    .then(
      (result) => send({ type: 'answer', id, result }),
      (error: unknown) => {
        const { message: text, code } = error as { message?: string; code?: string };
        send({
          type: 'answer',
          id,
          error: { message: text ?? String(error), ...(code === undefined ? {} : { code }) },
        });
      },
    );
});
