import { abortError, throwIfAborted, withSignal } from '../abort.js';
import { native, nativeSync, TowlineError, unwrapFault } from '../errors.js';
import type { MigratableFunction } from '../function/types.js';
import { binding } from '../native/api.js';
import type { NativeDestinationSession } from '../native/binding.js';

import { describeAll, openAll } from './describe.js';
import { DestinationExposures } from './exposures.js';
import { faultsJson } from './faults.js';
import { hook } from './hook.js';
import { socketLink, type OpenLink } from './link.js';
import { GuestMemory } from './memory.js';
import { Migration } from './migration.js';
import { compareFunctions, compareMemory, parseOfferedFunctions, type Mismatch } from './offer.js';
import { DEFAULT_LINK_TIMEOUT_MS, functionList, type Functions, type ReceiveOptions } from './options.js';
import { SessionParts } from './parts.js';
import { PhaseClock } from './phases.js';
import { EventQueue } from './progress.js';
import { emptyReport, type MigrationReport, type Outcome } from './report.js';
import { receivedSections } from './sections.js';
import { CallerStream } from './session-stream.js';
import { UNTOLD } from './fence.js';
import { withReport } from './source.js';

interface ReadOffer {
  type: 'offer';
  session: string;
  epoch: string;
  descriptor: unknown;
  memory: { gpa: string; len: string }[];
  sections: string[];
}

/** How a link ends over which no offer comes: bytes that mean nothing, silence, or nobody there any more. */
const NO_OFFER: ReadonlySet<string> = new Set([
  'ERR_TOWLINE_STREAM',
  'ERR_TOWLINE_STREAM_VERSION',
  'ERR_TOWLINE_PROTOCOL',
  'ERR_TOWLINE_LIMIT',
  'ERR_TOWLINE_LINK',
  'ERR_TOWLINE_LINK_CLOSED',
  'ERR_TOWLINE_LINK_IDLE',
]);

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
}

/**
 * Waits for one migration at `options.from` and takes it up: the functions have to be provisioned here, alike in kind and resources,
 * and not running anything.
 *
 * The result resolves once the functions run here. Whatever fails before leaves them reset and the source running.
 */
export function receive(functions: Functions, options: ReceiveOptions): Migration {
  return start(functions, options, new EventQueue());
}

/** @internal As {@link receive}, and published nowhere. */
export function receiveQuietly(functions: Functions, options: ReceiveOptions): Migration {
  return start(functions, options, new EventQueue(true));
}

function start(functions: Functions, options: ReceiveOptions, events: EventQueue): Migration {
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
  readonly #exposures: DestinationExposures;
  #session: NativeDestinationSession | undefined;
  #prepared = false;
  #committed = false;

  constructor(
    private readonly functions: readonly MigratableFunction[],
    private readonly options: ReceiveOptions,
    private readonly events: EventQueue,
  ) {
    this.#report = emptyReport('destination', '', functions);
    if (options.memory !== undefined) this.#report.memoryTransfer = options.memory === 'passed' ? 'pass' : 'copy';
    this.#exposures = new DestinationExposures(functions);
  }

  async run(): Promise<MigrationReport> {
    let parts: SessionParts | undefined;
    try {
      if (this.options.memory === 'passed' && this.options.onMemory === undefined) {
        throw new TowlineError(
          'ERR_TOWLINE_INVALID_ARGUMENT',
          "memory is 'passed', and there is no onMemory to get it",
        );
      }
      throwIfAborted(this.options.signal);
      await openAll(this.functions, { signal: this.options.signal });
      for await (const link of this.#links()) {
        this.#started = performance.now();
        parts = new SessionParts({
          functions: this.functions,
          memory: this.#memory(),
          extraDirty: [],
          fence: this.options.fence,
          link: link.native,
          onProgress: (json) => this.#onProgress(json),
        });
        const report = await this.#converse(parts, link);
        if (report !== undefined) return report;
        parts.close();
      }
      throw new TowlineError('ERR_TOWLINE_LINK', 'the link ended without an offer');
    } catch (error) {
      return await this.#undo(error);
    } finally {
      // Until it has ended, it holds the functions and the memory.
      await this.#session?.end().catch(() => undefined);
      parts?.close();
    }
  }

  /** One session over one link; nothing where the peer only asked about an earlier one. */
  async #converse({ parts }: SessionParts, link: OpenLink): Promise<MigrationReport | undefined> {
    const session = nativeSync(() => binding().destinationSession(this.#config(), parts));
    this.#session = session;
    const onAbort = () => {
      if (this.#committed) return;
      session.cancel();
      link.cancel();
    };
    this.options.signal?.addEventListener('abort', onAbort, { once: true });
    if (this.options.signal?.aborted) onAbort();
    try {
      const offer = await this.#readOffer(session);
      if (offer?.type === 'offer') return await this.#drive(session, offer);
      const ended = session.end();
      link.end();
      await ended;
      return undefined;
    } finally {
      this.options.signal?.removeEventListener('abort', onAbort);
    }
  }

  /** What came over the link; nothing where somebody connected who has no offer to make, which is no reason to stop waiting. */
  async #readOffer(session: NativeDestinationSession): Promise<ReadOffer | Asked | undefined> {
    try {
      return JSON.parse(await native(() => session.readOffer())) as ReadOffer | Asked;
    } catch (error) {
      const { code } = unwrapFault(error);
      if (typeof this.options.from === 'string' && !this.options.signal?.aborted && NO_OFFER.has(code))
        return undefined;
      throw error;
    }
  }

  /** The caller's own stream, once; or what connects, one after the other. */
  async *#links(): AsyncGenerator<OpenLink> {
    const { from, signal } = this.options;
    if (typeof from !== 'string') {
      const stream = new CallerStream(from);
      try {
        yield stream;
      } finally {
        stream.end();
      }
      return;
    }
    const idleMs = this.options.linkTimeoutMs ?? DEFAULT_LINK_TIMEOUT_MS;
    const listener = nativeSync(() => binding().listen(from, this.options.allowRemotePlaintext ?? false, idleMs));
    try {
      this.options.onListening?.(listener.address());
      for (;;) {
        const accepted = native(() => listener.accept(this.options.acceptTimeoutMs ?? 0));
        yield socketLink(await withSignal(accepted, signal, () => listener.close()));
      }
    } finally {
      listener.close();
    }
  }

  /** What is here before the source comes. */
  #memory(): GuestMemory | undefined {
    return this.options.memory === 'passed' ? undefined : this.options.memory;
  }

  #config(): string {
    const memory = this.options.memory === 'passed' ? 'passed' : 'engine';
    return JSON.stringify({
      // Descriptors of sections are taken where the link can have any; the hook says which.
      terms: { memory, commit: 'session', duplex: true, descriptors: true },
      idleTimeoutMs: this.options.linkTimeoutMs ?? DEFAULT_LINK_TIMEOUT_MS,
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
    if (this.options.memory === 'passed') await this.#clock.during('pass-memory', () => this.#takeMemory(session));
    const received = JSON.parse(
      await this.#clock.during('pre-copy', () => native(() => session.receive())),
    ) as Received;
    this.#report.bytes = { memory: received.memoryBytes, deviceState: received.stateBytes, wire: received.wireBytes };
    this.#report.pages = { sent: received.pages, zero: received.zeroPages, hole: 0 };
    this.#report.rounds = received.rounds;
    await this.#clock.during('prepare', async () => {
      const taken = receivedSections(session);
      using fds = taken.fds;
      const sections = this.#exposures.take(taken.sections, fds);
      const { restoreSections } = this.options;
      if (restoreSections) await hook('restoreSections', () => restoreSections(sections, fds));
      // After the caller's: its interrupt controller has to be there before interrupts are wired to it.
      await this.#exposures.restore();
      await native(() => session.prepared());
      this.#prepared = true;
    });
    const commit = JSON.parse(await this.#clock.during('commit', () => native(() => session.waitCommit()))) as {
      journalMs: number;
    };
    this.#committed = true;
    this.#clock.add('journal', commit.journalMs);
    this.#clock.add('commit', -commit.journalMs);
    await this.#clock.during('resume', async () => {
      try {
        try {
          await native(() => session.resume());
        } finally {
          // Also of a function that does not start: it is ours all the same, and nobody else serves its client.
          await this.#exposures.resume();
        }
      } finally {
        // What went wrong is told to the source as well.
        await native(() => session.running());
      }
    });
    const { resume } = this.options;
    if (resume) await hook('resume', resume);
    return this.#finish('committed');
  }

  async #compare(offer: ReadOffer): Promise<Mismatch[]> {
    return [
      ...compareFunctions(parseOfferedFunctions(offer.descriptor), await describeAll(this.functions)),
      // What is passed has the ranges that it has.
      ...(this.options.memory === 'passed' ? [] : compareMemory(offer.memory, this.#memory()?.ranges() ?? [])),
      ...this.#exposures.mismatches(offer.sections),
    ];
  }

  /** Maps the passed memory, and lets the caller build on it. */
  async #takeMemory(session: NativeDestinationSession): Promise<void> {
    const { onMemory, shrinkable = false } = this.options;
    const memory = GuestMemory.of(await native(() => session.receiveMemory(shrinkable)));
    try {
      if (onMemory) await hook('onMemory', () => onMemory(memory));
    } catch (error) {
      memory.close();
      throw error;
    }
    await native(() => session.memoryTaken());
  }

  async #undo(error: unknown): Promise<MigrationReport> {
    const aborted = this.options.signal?.aborted && !this.#committed;
    const cause = aborted ? abortError(this.options.signal as AbortSignal) : unwrapFault(error);
    if (this.#committed) {
      // We own the functions: nobody else may run them, whatever failed here.
      const report = this.#finish('committed', cause.message);
      throw withReport(cause, report);
    }
    // With an error of the fence it can't be told whether the commit is durable: the journal tells when it is opened again.
    const doubt = UNTOLD.has(cause.code);
    try {
      await this.#session?.abort(cause.message);
    } catch {
      // The engine has rolled back by itself, or can't. What could not be reset is told by explain(); the first cause matters here.
    }
    if (!doubt) await this.#exposures.forget();
    if (doubt && this.#prepared) {
      const report = this.#finish('in-doubt', cause.message);
      this.events.push({ type: 'in-doubt', session: report.session, why: cause.message });
      throw new TowlineError('ERR_TOWLINE_IN_DOUBT', `whether the commit is durable can't be told: ${cause.message}`, {
        cause,
        details: { report },
      });
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
