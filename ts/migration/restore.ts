import { resolve } from 'node:path';
import { abortError, throwIfAborted } from '../abort.js';
import { native, nativeSync, TowlineError, unwrapFault } from '../errors.js';
import type { MigratableFunction } from '../function/types.js';
import { binding } from '../native/api.js';
import type { NativeDestinationSession } from '../native/binding.js';
import type { CheckpointMode, RestoreOptions } from './checkpoint-options.js';
import { describeAll, openAll } from './describe.js';
import { DestinationExposures, exposureSection } from './exposures.js';
import { faultsJson } from './faults.js';
import { UNTOLD } from './fence.js';
import { hook } from './hook.js';
import { Migration } from './migration.js';
import { compareFunctions, parseOfferedFunctions, type Mismatch } from './offer.js';
import { functionList, type Functions } from './options.js';
import { SessionParts } from './parts.js';
import { PhaseClock, type Phase } from './phases.js';
import { EventQueue } from './progress.js';
import { emptyReport, type MigrationReport, type Outcome } from './report.js';
import { receivedSections } from './sections.js';
import { withReport } from './source.js';

/** What the file says of itself, once all of it was checked. */
interface Checked {
  session: string;
  epoch: string;
  descriptor: unknown;
  sections: string[];
  mode: CheckpointMode;
  bytes: number;
  pages: number;
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
 * Restores the checkpoint at `options.path` into functions that are provisioned here, alike in kind and resources, and not running
 * anything. A `move` needs functions of the same UUIDs; a `copy` needs others, since no function may exist twice.
 *
 * The whole file is read and checked, and everything is compared, before anything is touched. The result resolves once the functions run
 * here. Whatever fails before the commit leaves them reset and the checkpoint restorable.
 */
export function restore(functions: Functions, options: RestoreOptions): Migration {
  const events = new EventQueue();
  const restorer = new CheckpointRestorer(functionList(functions), options, events);
  return new Migration(
    '',
    events,
    restorer.run().finally(() => events.end()),
  );
}

class CheckpointRestorer {
  readonly #clock = new PhaseClock();
  readonly #started = performance.now();
  readonly #report: MigrationReport;
  readonly #path: string;
  #session: NativeDestinationSession | undefined;
  readonly #exposures: DestinationExposures;
  /** Sections of exposures by the names that they have in the file: those of a copy are named by the functions that were copied. */
  #renamed: ReadonlyMap<string, string> = new Map();
  #totalPages = 0;
  #prepared = false;
  #committed = false;

  constructor(
    private readonly functions: readonly MigratableFunction[],
    private readonly options: RestoreOptions,
    private readonly events: EventQueue,
  ) {
    this.#path = resolve(options.path);
    this.#report = emptyReport('destination', '', functions);
    this.#exposures = new DestinationExposures(functions);
  }

  async run(): Promise<MigrationReport> {
    const { signal } = this.options;
    let parts: SessionParts | undefined;
    const onAbort = (): void => {
      if (!this.#committed) this.#session?.cancel();
    };
    try {
      throwIfAborted(signal);
      if (this.functions.length === 0)
        throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', 'there is no function to restore into');
      await openAll(this.functions, { signal });
      parts = new SessionParts({
        functions: this.functions,
        memory: this.options.memory,
        extraDirty: [],
        fence: this.options.fence,
        link: null,
        onProgress: (json) => this.#onProgress(json),
      });
      const { parts: nativeParts } = parts;
      const config = JSON.stringify({ faults: faultsJson(this.options.faults) });
      this.#session = nativeSync(() => binding().restoreSession(config, nativeParts, this.#path));
      signal?.addEventListener('abort', onAbort, { once: true });
      if (signal?.aborted) onAbort();
      return await this.#drive(this.#session);
    } catch (error) {
      return await this.#undo(error);
    } finally {
      signal?.removeEventListener('abort', onAbort);
      // Until it has ended, it holds the file.
      await this.#session?.end().catch(() => undefined);
      parts?.close();
    }
  }

  async #drive(session: NativeDestinationSession): Promise<MigrationReport> {
    await this.#phase('offer', () => this.#compare(session));
    const received = JSON.parse(await this.#phase('pre-copy', () => native(() => session.receive()))) as Received;
    this.#report.bytes = { memory: received.memoryBytes, deviceState: received.stateBytes, wire: received.wireBytes };
    this.#report.pages = { sent: received.pages, zero: received.zeroPages, hole: 0 };
    this.#report.rounds = received.rounds;
    await this.#phase('prepare', async () => {
      const taken = receivedSections(session);
      using fds = taken.fds;
      const here = Object.entries(taken.sections).map(([name, bytes]) => [this.#nameHere(name), bytes] as const);
      const sections = this.#exposures.take(Object.fromEntries(here), fds);
      const { restoreSections } = this.options;
      if (restoreSections) await hook('restoreSections', () => restoreSections(sections));
      // After the caller's: its interrupt controller has to be there before interrupts are wired to it.
      await this.#exposures.restore();
      await native(() => session.prepared());
      this.#prepared = true;
    });
    const commit = JSON.parse(await this.#phase('commit', () => native(() => session.takeCheckpoint()))) as {
      epoch: string;
      journalMs: number;
    };
    this.#committed = true;
    this.#report.epoch = commit.epoch;
    this.#clock.add('journal', commit.journalMs);
    this.#clock.add('commit', -commit.journalMs);
    await this.#phase('resume', async () => {
      try {
        await native(() => session.resume());
      } finally {
        await native(() => session.running());
      }
    });
    const { resume } = this.options;
    if (resume) await hook('resume', resume);
    // Nothing hangs by the room that the file takes.
    await session.emptyCheckpoint().catch(() => undefined);
    return this.#finish('committed');
  }

  /** Everything that does not fit, of either side, at once. */
  async #compare(session: NativeDestinationSession): Promise<void> {
    const checked = JSON.parse(await native(() => session.readCheckpoint())) as Checked;
    this.#report.session = checked.session;
    this.#report.epoch = checked.epoch;
    this.#report.checkpoint = { path: this.#path, mode: checked.mode, bytes: checked.bytes };
    this.#totalPages = checked.pages;
    const offered = parseOfferedFunctions(checked.descriptor);
    if (checked.mode === 'copy') {
      this.#renamed = new Map(
        this.functions.flatMap((fn, i) => {
          const copied = offered[i];
          return copied === undefined ? [] : [[exposureSection(copied.uuid), exposureSection(fn.uuid)] as const];
        }),
      );
    }
    const found = [
      ...compareFunctions(offered, await describeAll(this.functions)),
      ...this.#exposures.mismatches(checked.sections.map((name) => this.#nameHere(name))),
    ];
    const answer = await native(() => session.answerCheckpoint(JSON.stringify({ mismatches: found })));
    const { mismatches } = JSON.parse(answer) as { mismatches: Mismatch[] };
    this.#report.mismatches = mismatches;
    if (mismatches.length === 0) return;
    this.events.push({ type: 'mismatch', session: checked.session, mismatches });
    throw new TowlineError('ERR_TOWLINE_MISMATCH', mismatches.map((m) => m.message).join('; '), {
      details: { mismatches },
    });
  }

  #nameHere(section: string): string {
    return this.#renamed.get(section) ?? section;
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
      // The engine has rolled back by itself, or can't. What could not be reset is told by explain(); the first cause matters here.
    }
    // With an error of the fence it can't be told whether the commit is durable: the journal tells when it is opened again.
    const doubt = UNTOLD.has(cause.code) && this.#prepared;
    if (!doubt) await this.#exposures.forget();
    if (doubt) {
      const report = this.#finish('in-doubt', cause.message);
      this.events.push({ type: 'in-doubt', session: report.session, why: cause.message });
      throw new TowlineError('ERR_TOWLINE_IN_DOUBT', `whether the commit is durable can't be told: ${cause.message}`, {
        cause,
        details: { report },
      });
    }
    const report = this.#finish('rolled-back', cause.message);
    if (cause.code === 'ERR_TOWLINE_ABORTED') throw withReport(cause, report);
    throw new TowlineError('ERR_TOWLINE_ROLLED_BACK', `nothing was restored: ${cause.message}`, {
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

  async #phase<T>(phase: Phase, work: () => Promise<T>): Promise<T> {
    this.events.push({ type: 'phase', session: this.#report.session, phase });
    return this.#clock.during(phase, work);
  }

  #onProgress(json: string): void {
    const p = JSON.parse(json) as {
      checkedBytes?: number;
      totalBytes?: number;
      pages?: number;
      wireBytes?: number;
      round?: number;
    };
    const { session } = this.#report;
    if (p.checkedBytes !== undefined) {
      this.events.push({ type: 'checked', session, bytes: p.checkedBytes, totalBytes: p.totalBytes ?? 0 });
      return;
    }
    this.events.push({
      type: 'pages',
      session,
      round: p.round ?? 0,
      sentPages: p.pages ?? 0,
      totalPages: this.#totalPages,
      wireBytes: p.wireBytes ?? 0,
    });
  }
}
