import { randomUUID } from 'node:crypto';
import { resolve } from 'node:path';
import { abortError, throwIfAborted } from '../abort.js';
import { native, nativeSync, TowlineError, unwrapFault } from '../errors.js';
import type { DirtySource } from '../function/channel.js';
import type { MigratableFunction } from '../function/types.js';
import { binding } from '../native/api.js';
import type { NativeSourceSession } from '../native/binding.js';
import type { CheckpointOptions } from './checkpoint-options.js';
import { describeAll, openAll, refuseUnmigratable } from './describe.js';
import { doubtOf } from './doubt.js';
import { checkCallerSections, SourceExposures } from './exposures.js';
import { faultsJson } from './faults.js';
import type { ForecastNeeds } from './forecast.js';
import { hook } from './hook.js';
import { Migration } from './migration.js';
import { functionList, type Functions } from './options.js';
import { SessionParts } from './parts.js';
import { PhaseClock, type Phase } from './phases.js';
import { completePolicy, type CompletePolicy } from './policy.js';
import { EventQueue } from './progress.js';
import { releaseEach } from './release.js';
import { emptyReport, type MigrationReport, type Outcome } from './report.js';
import { OutgoingSections, sectionNames, takeSections } from './sections.js';
import { outcomes } from './session-native.js';
import { withReport } from './source.js';
import type { FinalStats, RoundStats } from './steps.js';
import { SourceNames } from './writers.js';

/** Passes over memory while the functions run, unless the caller says otherwise: each makes the file larger. */
const MAX_ROUNDS = 4;

/** What the last step tells. */
interface Sealed {
  epoch: string;
  bytes: number;
  syncMs: number;
  journalMs: number;
}

/** What it would take where so much is left: nothing else about a file is forecast. */
const needs = (leftMs: number): ForecastNeeds => ({
  bandwidthBytesPerSecond: null,
  dirtyBytesPerSecond: null,
  maxDowntimeMs: leftMs * 1.25,
  throttlePercent: null,
  deviceDirtyBytesPerSecond: null,
});

/**
 * Writes the functions of one guest, its memory and the caller's sections to the file at `options.path`.
 *
 * The file has its name once it is durable and whole, never before. Whatever fails until then leaves the functions running here and no
 * file. A `move` whose process dies on the way, or whose file can't be made durable nor taken back, leaves them fenced and stopped, until
 * {@link recover} has looked at the folder.
 */
export function checkpoint(functions: Functions, options: CheckpointOptions): Migration {
  const session = options.session ?? randomUUID();
  const events = new EventQueue();
  const writer = new CheckpointWriter(functionList(functions), options, session, events);
  return new Migration(
    session,
    events,
    writer.run().finally(() => events.end()),
  );
}

class CheckpointWriter {
  readonly #clock = new PhaseClock();
  readonly #started = performance.now();
  readonly #report: MigrationReport;
  readonly #policy: CompletePolicy;
  readonly #path: string;
  /** Dirty sources besides the functions' own. */
  readonly #extraDirty: readonly DirtySource[];
  readonly #names: SourceNames;
  #session: NativeSourceSession | undefined;
  #exposures: SourceExposures | undefined;
  #paused = false;
  #stoppedAt: number | undefined;
  #runsAgainAt: number | undefined;
  /** From here on the file may be a checkpoint, whatever fails. */
  #sealing = false;
  /** It is one. */
  #sealed = false;

  constructor(
    private readonly functions: readonly MigratableFunction[],
    private readonly options: CheckpointOptions,
    private readonly id: string,
    private readonly events: EventQueue,
  ) {
    this.#policy = completePolicy({ maxRounds: MAX_ROUNDS, onNoConvergence: 'stop', ...options.policy });
    this.#path = resolve(options.path);
    this.#extraDirty = [...(options.memory ? [options.memory.markedSource()] : []), ...(options.dirtySources ?? [])];
    this.#names = new SourceNames(this.#extraDirty);
    this.#report = emptyReport('source', id, functions);
    this.#report.checkpoint = { path: this.#path, mode: options.mode, bytes: 0 };
  }

  get #copies(): boolean {
    return this.options.mode === 'copy';
  }

  async run(): Promise<MigrationReport> {
    let parts: SessionParts | undefined;
    try {
      throwIfAborted(this.options.signal);
      checkCallerSections(sectionNames(this.options.sections));
      await refuseUnmigratable(this.functions, { copy: this.#copies });
      await openAll(this.functions, { signal: this.options.signal });
      this.#exposures = new SourceExposures(this.functions);
      parts = new SessionParts({
        functions: this.functions,
        memory: this.options.memory,
        extraDirty: this.#extraDirty,
        fence: this.options.fence,
        link: null,
        onProgress: (json) => this.#onProgress(json),
      });
      const { parts: nativeParts } = parts;
      this.#session = nativeSync(() =>
        binding().checkpointSession(
          this.#config(),
          nativeParts,
          this.#path,
          this.options.mode,
          this.options.overwrite ?? false,
        ),
      );
      return await this.#drive(this.#session);
    } catch (error) {
      return await this.#undo(error);
    } finally {
      // Until it has ended, it holds the file.
      await this.#session?.end().catch(() => undefined);
      parts?.close();
    }
  }

  #config(): string {
    return JSON.stringify({
      session: this.id,
      bandwidthBytesPerSecond: this.#policy.bandwidthBytesPerSecond ?? null,
      sections: [...(this.#exposures?.names ?? []), ...sectionNames(this.options.sections)],
      faults: faultsJson(this.options.faults),
    });
  }

  async #drive(session: NativeSourceSession): Promise<MigrationReport> {
    const { signal } = this.options;
    // Too late, it changes nothing.
    const onAbort = (): void => void session.cancel();
    signal?.addEventListener('abort', onAbort, { once: true });
    if (signal?.aborted) onAbort();
    try {
      await this.#phase('offer', async () => {
        const offer = { functions: await describeAll(this.functions) };
        const { epoch } = JSON.parse(await native(() => session.offer(JSON.stringify(offer)))) as { epoch: string };
        this.#report.epoch = epoch;
        await native(() => session.startTracking());
      });
      if (this.options.live ?? true) await this.#phase('pre-copy', () => this.#precopy(session));
      await this.#stop(session);
      if (this.#copies) {
        const failed = await this.#phase('resume', () => this.#goOn(session));
        await this.#seal(session);
        if (failed !== undefined) throw failed;
        return this.#finish('copied');
      }
      throwIfAborted(signal);
      await this.#seal(session);
      await this.#phase('release', () => this.#release(session));
      return this.#finish('committed');
    } finally {
      signal?.removeEventListener('abort', onAbort);
    }
  }

  /** Passes over memory, until what is left can be written within the downtime that is accepted. */
  async #precopy(session: NativeSourceSession): Promise<void> {
    const { maxDowntimeMs, maxRounds, maxTotalMs, onNoConvergence } = this.#policy;
    for (;;) {
      throwIfAborted(this.options.signal);
      const stats = JSON.parse(await native(() => session.memoryPass())) as RoundStats;
      await native(() => session.precopyState());
      this.#book(stats);
      this.#report.rounds += 1;
      const { pages, wireBytes, ms, dirtyPagesAfter } = stats;
      const rounds = this.#report.rounds;
      const dirtyBySource = this.#names.pages(stats.dirtyBySource);
      const round = { round: rounds, pages, wireBytes, ms, dirtyPagesAfter, dirtyBySource };
      this.events.push({ type: 'round', session: this.id, ...round });
      const bytesPerMs = stats.memoryBytes / Math.max(ms, 0.001);
      const leftMs = dirtyPagesAfter === 0 ? 0 : (dirtyPagesAfter * stats.pageSizeBytes) / Math.max(bytesPerMs, 1);
      const why = `writing what is dirty would take ${leftMs.toFixed(1)} ms, the limit is ${maxDowntimeMs} ms`;
      const spent = rounds >= maxRounds || performance.now() - this.#started >= maxTotalMs;
      const action = leftMs <= maxDowntimeMs ? 'stop' : spent ? onNoConvergence : 'continue';
      this.events.push({ type: 'converge', session: this.id, action, why });
      if (action === 'stop') return;
      if (action === 'give-up')
        throw new TowlineError('ERR_TOWLINE_NOT_CONVERGING', why, { details: { needs: needs(leftMs) } });
    }
  }

  /** Stops everything and writes the rest. */
  async #stop(session: NativeSourceSession): Promise<void> {
    throwIfAborted(this.options.signal);
    const { pause, sections, verify } = this.options;
    this.#paused = true;
    if (pause) await this.#phase('pause', () => hook('pause', pause));
    await this.#phase('stop', async () => {
      this.#stoppedAt = performance.now();
      await native(() => session.quiesce());
      await native(() => session.stop());
      // Before device state is read: what the guest asked for last becomes part of it.
      await this.#exposures?.save();
    });
    this.events.push({ type: 'phase', session: this.id, phase: 'final-pages' });
    const final = JSON.parse(await native(() => session.finalPass())) as FinalStats;
    this.#book(final);
    this.#clock.add('final-pages', final.pagesMs);
    this.#clock.add('device-state', final.stateMs);
    this.#report.bytes.deviceState += final.stateBytes;
    await this.#phase('prepare', async () => {
      const outgoing = new OutgoingSections();
      this.#exposures?.addTo(outgoing);
      await takeSections(sections, outgoing);
      await outgoing.send(session);
      await native(() => session.prepare());
    });
    if (verify) await this.#phase('hold', () => hook('verify', verify));
  }

  /** A copy: the guest goes on. What did not is told once the file is sealed, which is none the worse for it. */
  async #goOn(session: NativeSourceSession): Promise<TowlineError | undefined> {
    const stuck = outcomes(await native(() => session.resumeCopied())).find(
      (o) => o.error !== undefined || o.wasReset || o.state !== 'running',
    );
    this.#runsAgainAt = performance.now();
    this.#paused = false;
    const { resume } = this.options;
    if (resume) await hook('resume', resume);
    if (stuck === undefined) return undefined;
    const what = stuck.wasReset
      ? 'was reset, and has lost what it was doing'
      : `is in ${stuck.state ?? 'no known state'}`;
    return new TowlineError('ERR_TOWLINE_DEVICE', `function ${stuck.function} ${what}: ${stuck.error ?? ''}`, {
      function: stuck.function,
    });
  }

  async #seal(session: NativeSourceSession): Promise<void> {
    this.#sealing = true;
    const sealed = await this.#phase('sync', async () => JSON.parse(await native(() => session.seal())) as Sealed);
    this.#sealed = true;
    this.#clock.add('journal', sealed.journalMs);
    this.#clock.add('sync', -sealed.journalMs);
    this.#report.epoch = sealed.epoch;
    this.#report.bytes.wire = sealed.bytes;
    this.#report.checkpoint = { path: this.#path, mode: this.options.mode, bytes: sealed.bytes };
  }

  async #release(session: NativeSourceSession): Promise<void> {
    await native(() => session.release());
    if (this.options.release === false) return;
    // They are the file's, whatever fails here: that is told beside the outcome.
    const failures = await releaseEach(this.functions, (fn) => fn.release?.());
    if (failures.length > 0) this.#report.releaseFailures = failures;
  }

  #book(stats: RoundStats | FinalStats): void {
    this.#report.bytes.memory += stats.memoryBytes;
    this.#report.bytes.wire = stats.totalWireBytes;
    this.#report.pages.sent += stats.pages;
    this.#report.pages.zero += stats.zeroPages;
    this.#report.pages.hole += stats.holePages;
  }

  /** Rolls back what is no checkpoint yet, and tells how it ended. */
  async #undo(error: unknown): Promise<MigrationReport> {
    const aborted = this.options.signal?.aborted && !this.#sealed;
    const fault = unwrapFault(error);
    if (this.#sealed) return this.#sealedAlready(fault);
    // Without an intent of this session the doubt is an earlier one's, and stays that.
    if (this.#sealing && fault.code === 'ERR_TOWLINE_IN_DOUBT') return this.#doubt(fault);
    const cause = aborted ? abortError(this.options.signal as AbortSignal) : fault;
    const failures: unknown[] = [];
    const attempt = async (work: () => unknown): Promise<void> => {
      try {
        await work();
      } catch (failure) {
        failures.push(failure);
      }
    };
    // A copy that runs again has nothing to bring back.
    if (this.#session && this.#runsAgainAt === undefined) {
      await attempt(() => native(() => this.#session?.abort(cause.message)));
      if (this.#stoppedAt !== undefined) this.#runsAgainAt = performance.now();
    }
    const { resume } = this.options;
    if (this.#paused && resume) await attempt(() => hook('resume', resume));
    const report = this.#finish('rolled-back', cause.message);
    if (cause.code === 'ERR_TOWLINE_ABORTED' || cause.code === 'ERR_TOWLINE_IN_DOUBT') throw withReport(cause, report);
    throw new TowlineError('ERR_TOWLINE_ROLLED_BACK', `there is no checkpoint: ${cause.message}`, {
      cause,
      details: { report, failures: failures.map((f) => unwrapFault(f).toJSON()) },
    });
  }

  async #sealedAlready(cause: TowlineError): Promise<MigrationReport> {
    if (this.#copies) throw withReport(cause, this.#finish('copied', cause.message));
    try {
      if (this.#session) await this.#release(this.#session);
    } catch {
      // It was durable before, or `recover` makes it so.
    }
    return this.#finish('committed', cause.message);
  }

  #doubt(cause: TowlineError): MigrationReport {
    for (const fn of this.functions) fn.setDoubt?.(doubtOf(this.id, this.options.fence));
    this.events.push({ type: 'in-doubt', session: this.id, why: cause.message });
    const report = this.#finish('in-doubt', cause.message);
    throw new TowlineError(
      'ERR_TOWLINE_IN_DOUBT',
      `the file may own the functions by now, so they stay stopped here: ${cause.message}`,
      { cause, details: { report } },
    );
  }

  #finish(outcome: Outcome, why?: string): MigrationReport {
    const report = this.#report;
    report.outcome = outcome;
    if (why !== undefined) report.why = why;
    const end = performance.now();
    const hold = this.#clock.ms('hold');
    report.totalMs = end - this.#started - hold;
    if (this.#stoppedAt !== undefined) report.downtimeMs = (this.#runsAgainAt ?? end) - this.#stoppedAt - hold;
    report.phases = this.#clock.list();
    this.events.push({ type: 'report', session: this.id, report });
    return report;
  }

  async #phase<T>(phase: Phase, work: () => Promise<T>): Promise<T> {
    this.events.push({ type: 'phase', session: this.id, phase });
    return this.#clock.during(phase, work);
  }

  #onProgress(json: string): void {
    const p = JSON.parse(json) as { sentPages?: number; totalPages?: number; wireBytes?: number; round?: number };
    this.events.push({
      type: 'pages',
      session: this.id,
      round: p.round ?? this.#report.rounds + 1,
      sentPages: p.sentPages ?? 0,
      totalPages: p.totalPages ?? 0,
      wireBytes: p.wireBytes ?? 0,
    });
  }
}
