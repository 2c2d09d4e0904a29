import { abortError, throwIfAborted, withSignal } from '../abort.js';
import { native, nativeSync, TowlineError, unwrapFault } from '../errors.js';
import type { MigratableFunction } from '../function/types.js';
import type { NativeDestinationSession, NativeLink } from '../native/binding.js';
import { describeAll } from './describe.js';
import { faultsJson } from './faults.js';
import { wrapLink } from './link.js';
import { Migration } from './migration.js';
import { compareFunctions, compareMemory, type Mismatch, type OfferedFunction } from './offer.js';
import { functionList, type Functions, type ReceiveOptions, type Sections } from './options.js';
import { engine, SessionParts } from './parts.js';
import { PhaseClock } from './phases.js';
import { EventQueue } from './progress.js';
import type { MigrationReport, Outcome } from './report.js';
import { hook, withReport } from './source.js';

interface ReadOffer {
  type: 'offer';
  session: string;
  epoch: string;
  descriptor: { functions?: OfferedFunction[] } | null;
  memory: { gpa: string; len: string }[];
}

/** Somebody asked what became of an earlier session, and was answered. */
interface Asked {
  type: 'asked';
}

interface Received {
  memoryBytes: number;
  stateBytes: number;
  wireBytes: number;
  pages: number;
  zeroPages: number;
  rounds: number;
  sections: string[];
}

/**
 * Waits for one migration at `options.from` and takes it up: the functions have to be provisioned here, alike in kind and resources,
 * and not running anything.
 *
 * The result resolves once the functions run here. Whatever fails before leaves them reset and the source running.
 */
export function receive(functions: Functions, options: ReceiveOptions): Migration {
  const events = new EventQueue();
  const destination = new DestinationMigration(functionList(functions), options, events);
  return new Migration(
    '',
    events,
    destination.run().finally(() => events.end()),
  );
}

class DestinationMigration {
  readonly #clock = new PhaseClock();
  #started = performance.now();
  readonly #report: MigrationReport;
  #session: NativeDestinationSession | undefined;
  #committed = false;

  constructor(
    private readonly functions: readonly MigratableFunction[],
    private readonly options: ReceiveOptions,
    private readonly events: EventQueue,
  ) {
    this.#report = {
      session: '',
      role: 'destination',
      outcome: 'rolled-back',
      epoch: '0',
      functions: functions.map((f) => ({ uuid: f.uuid, name: f.name })),
      mismatches: [],
      downtimeMs: 0,
      totalMs: 0,
      rounds: 0,
      bytes: { memory: 0, deviceState: 0, wire: 0 },
      pages: { sent: 0, zero: 0, hole: 0 },
      phases: [],
    };
  }

  async run(): Promise<MigrationReport> {
    let parts: SessionParts | undefined;
    try {
      throwIfAborted(this.options.signal);
      for await (const link of this.#links()) {
        this.#started = performance.now();
        parts = new SessionParts({
          functions: this.functions,
          memory: this.options.memory,
          extraDirty: [],
          fence: this.options.fence,
          link,
          onProgress: (json) => this.#onProgress(json),
        });
        const report = await this.#converse(parts);
        if (report !== undefined) return report;
        parts.close();
      }
      throw new TowlineError('ERR_TOWLINE_LINK', 'the link ended without an offer');
    } catch (error) {
      return await this.#undo(error);
    } finally {
      this.#session?.close();
      parts?.close();
    }
  }

  /** One session over one link; nothing where the peer only asked about an earlier one. */
  async #converse({ parts }: SessionParts): Promise<MigrationReport | undefined> {
    const session = nativeSync(() => engine().destinationSession(this.#config(), parts));
    this.#session = session;
    const onAbort = () => {
      if (!this.#committed) session.cancel();
    };
    this.options.signal?.addEventListener('abort', onAbort, { once: true });
    if (this.options.signal?.aborted) onAbort();
    try {
      const offer = JSON.parse(await native(() => session.readOffer())) as ReadOffer | Asked;
      if (offer.type === 'offer') return await this.#drive(session, offer);
      session.close();
      return undefined;
    } finally {
      this.options.signal?.removeEventListener('abort', onAbort);
    }
  }

  /** The caller's own stream, once; or what connects, one after the other. */
  async *#links(): AsyncGenerator<NativeLink> {
    const { from, signal } = this.options;
    if (typeof from !== 'string') {
      yield wrapLink(from);
      return;
    }
    const idleMs = this.options.linkTimeoutMs ?? 30_000;
    const listener = nativeSync(() => engine().listen(from, this.options.allowRemotePlaintext ?? false, idleMs));
    try {
      this.options.onListening?.(listener.address());
      for (;;) {
        const accepted = native(() => listener.accept(this.options.acceptTimeoutMs ?? 0));
        yield await withSignal(accepted, signal, () => listener.close());
      }
    } finally {
      listener.close();
    }
  }

  #config(): string {
    return JSON.stringify({
      linkTimeoutMs: this.options.linkTimeoutMs ?? 30_000,
      faults: faultsJson(this.options.faults),
    });
  }

  async #drive(session: NativeDestinationSession, offer: ReadOffer): Promise<MigrationReport> {
    this.#report.session = offer.session;
    this.#report.epoch = offer.epoch;
    const answer = JSON.stringify({ mismatches: await this.#compare(offer) });
    // The engine compares too: identities, capabilities, its own limits.
    const { mismatches } = JSON.parse(await native(() => session.answer(answer))) as { mismatches: Mismatch[] };
    this.#report.mismatches = mismatches;
    if (mismatches.length > 0) {
      this.events.push({ type: 'mismatch', session: offer.session, mismatches });
      throw new TowlineError('ERR_TOWLINE_MISMATCH', mismatches.map((m) => m.message).join('; '), {
        details: { mismatches },
      });
    }
    const received = JSON.parse(
      await this.#clock.during('pre-copy', () => native(() => session.receive())),
    ) as Received;
    this.#report.bytes = { memory: received.memoryBytes, deviceState: received.stateBytes, wire: received.wireBytes };
    this.#report.pages = { sent: received.pages, zero: received.zeroPages, hole: 0 };
    this.#report.rounds = received.rounds;
    await this.#clock.during('prepare', async () => {
      const sections: Record<string, Uint8Array> = {};
      for (const name of received.sections) sections[name] = session.section(name) ?? new Uint8Array();
      const { restoreSections } = this.options;
      if (restoreSections) await hook('restoreSections', () => restoreSections(sections as Sections));
      await native(() => session.prepared());
    });
    const commit = JSON.parse(await this.#clock.during('commit', () => native(() => session.waitCommit()))) as {
      journalMs: number;
    };
    this.#committed = true;
    this.#clock.add('journal', commit.journalMs);
    this.#clock.add('commit', -commit.journalMs);
    await this.#clock.during('resume', async () => {
      await native(() => session.resume());
      await native(() => session.running());
    });
    const { resume } = this.options;
    if (resume) await hook('resume', resume);
    return this.#finish('committed');
  }

  async #compare(offer: ReadOffer): Promise<Mismatch[]> {
    return [
      ...compareFunctions(offer.descriptor?.functions ?? [], await describeAll(this.functions)),
      ...compareMemory(offer.memory, this.options.memory?.ranges() ?? []),
    ];
  }

  async #undo(error: unknown): Promise<MigrationReport> {
    const aborted = this.options.signal?.aborted && !this.#committed;
    const cause = aborted ? abortError(this.options.signal as AbortSignal) : unwrapFault(error);
    if (this.#committed) {
      // We own the functions: nobody else may run them, whatever failed here.
      const report = this.#finish('committed', cause.message);
      throw withReport(cause, report);
    }
    try {
      await this.#session?.abort(cause.message);
    } catch {
      // What could not be reset is told by explain(); the first cause is the one that matters here.
    }
    const report = this.#finish('rolled-back', cause.message);
    if (cause.code === 'ERR_TOWLINE_ABORTED') throw withReport(cause, report);
    throw new TowlineError('ERR_TOWLINE_ROLLED_BACK', `nothing was taken: ${cause.message}`, {
      cause,
      details: { report },
    });
  }

  #finish(outcome: Outcome, why?: string): MigrationReport {
    this.#report.outcome = outcome;
    if (why !== undefined) this.#report.why = why;
    this.#report.totalMs = performance.now() - this.#started;
    this.#report.phases = this.#clock.list();
    this.events.push({ type: 'report', session: this.#report.session, report: this.#report });
    return this.#report;
  }

  #onProgress(json: string): void {
    const p = JSON.parse(json) as { pages?: number; wireBytes?: number; round?: number };
    this.events.push({
      type: 'pages',
      session: this.#report.session,
      round: p.round ?? 0,
      sentPages: p.pages ?? 0,
      totalPages: 0,
      wireBytes: p.wireBytes ?? 0,
    });
  }
}
