import { randomUUID } from 'node:crypto';
import { abortError, throwIfAborted, withSignal } from '../abort.js';
import { native, nativeSync, TowlineError, unwrapFault } from '../errors.js';
import type { DirtySource } from '../function/channel.js';
import type { MigratableFunction } from '../function/types.js';
import { binding } from '../native/api.js';
import type { NativeSourceSession } from '../native/binding.js';
import { describeAll, openAll, refuseUnmigratable } from './describe.js';
import { doubtOf } from './doubt.js';
import { checkCallerSections, SourceExposures } from './exposures.js';
import { faultsJson } from './faults.js';
import { Converge, notConverging } from './converge.js';
import { Forecaster, type Forecast } from './forecast.js';
import { hook } from './hook.js';
import { connectLink, type OpenLink } from './link.js';
import { Migration } from './migration.js';
import type { Mismatch } from './offer.js';
import { DEFAULT_LINK_TIMEOUT_MS, functionList, type Functions, type MigrateOptions } from './options.js';
import { SessionParts } from './parts.js';
import { PhaseClock, type Phase } from './phases.js';
import { completePolicy, decide, type CompletePolicy } from './policy.js';
import { EventQueue } from './progress.js';
import { releaseEach } from './release.js';
import { emptyReport, type MigrationReport, type Outcome } from './report.js';
import { OutgoingSections, sectionNames, takeSections } from './sections.js';
import { CallerStream } from './session-stream.js';
import type {
  FinalStats,
  Measured,
  OfferOutcome,
  PrecopyStats,
  RoundStats,
  SavedState,
  SourceTimings,
} from './steps.js';
import { SourceNames, writersInput } from './writers.js';

/** How long the dirty rate is sampled before it is forecast, in milliseconds. */
const SAMPLE_MS = 50;

/**
 * What the downtime holds besides bytes: PREPARED, COMMIT and RUNNING each wait for the other side, and COMMIT-INTENT and the
 * destination's commit are synced one after the other. Stop and start are the functions' own, not known before.
 */
const DOWNTIME_COSTS = { saveMs: 0, loadMs: 0, stopMs: [], roundTrips: 3, journalSyncs: 2, roundOverheadMs: 0 };
/** The same, where it is known what stops took: round trips and journals are in it. */
const knownCosts = (stopMs: readonly number[]) => ({ ...DOWNTIME_COSTS, stopMs, roundTrips: 0, journalSyncs: 0 });

/**
 * Migrates the functions of one guest, and its memory, to the process that listens at `options.to`.
 *
 * Whatever fails before COMMIT-INTENT, and an abort at any moment before it, leaves the functions running here. A link that breaks
 * after it leaves them fenced and stopped, until {@link recover} knows.
 */
export function migrate(functions: Functions, options: MigrateOptions): Migration {
  return start(functions, options, new EventQueue());
}

/** @internal As {@link migrate}, and published nowhere. */
export function migrateQuietly(functions: Functions, options: MigrateOptions): Migration {
  return start(functions, options, new EventQueue(true));
}

function start(functions: Functions, options: MigrateOptions, events: EventQueue): Migration {
  const session = options.session ?? randomUUID();
  const source = new SourceMigration(functionList(functions), options, session, events);
  return new Migration(
    session,
    events,
    source.run().finally(() => events.end()),
  );
}

class SourceMigration {
  readonly #clock = new PhaseClock();
  readonly #policy: CompletePolicy;
  readonly #started = performance.now();
  readonly #report: MigrationReport;
  /** Guest memory is passed: no page is sent and nothing is tracked. */
  readonly #passing: boolean;
  readonly #names: SourceNames;
  readonly #converge: Converge;
  #session: NativeSourceSession | undefined;
  #exposures: SourceExposures | undefined;
  #paused = false;
  #stoppedAt: number | undefined;
  #runsAgainAt: number | undefined;
  /** From here on COMMIT counts as sent: nothing may be undone by us alone. */
  #intent = false;
  /** The destination's commit is known to be durable: it owns the functions, whatever fails from here on. */
  #committed = false;
  #forecaster: Forecaster | undefined;
  #harvestedAt = 0;
  /** What the passes before the stop sent, and how long that took. */
  readonly #passed = { bytes: 0, ms: 0 };
  /** Bytes of the last pass and of device state, which were sent in the downtime. */
  #finalBytes = 0;
  #measuredBandwidth = 0;

  constructor(
    private readonly functions: readonly MigratableFunction[],
    private readonly options: MigrateOptions,
    private readonly id: string,
    private readonly events: EventQueue,
  ) {
    const { throttle } = options;
    this.#policy = completePolicy(options.policy, throttle !== undefined);
    this.#names = new SourceNames(this.#extraDirty());
    const policy = this.#policy.converge;
    this.#converge = new Converge({ session: id, functions, policy, throttle, names: this.#names, events });
    this.#report = emptyReport('source', id, functions);
    this.#passing = options.memoryTransfer === 'pass';
    if (options.memory !== undefined) this.#report.memoryTransfer = this.#passing ? 'pass' : 'copy';
  }

  async run(): Promise<MigrationReport> {
    let parts: SessionParts | undefined;
    let link: OpenLink | undefined;
    try {
      if (this.#passing && this.options.memory === undefined) {
        throw new TowlineError(
          'ERR_TOWLINE_INVALID_ARGUMENT',
          "memoryTransfer is 'pass', and there is no memory to pass",
        );
      }
      throwIfAborted(this.options.signal);
      checkCallerSections(sectionNames(this.options.sections));
      await refuseUnmigratable(this.functions);
      await openAll(this.functions, { signal: this.options.signal });
      this.#exposures = new SourceExposures(this.functions, this.#passingExposures);
      link = await this.#link();
      parts = new SessionParts({
        functions: this.functions,
        memory: this.options.memory,
        extraDirty: this.#extraDirty(),
        tracked: !this.#passing,
        fence: this.options.fence,
        link: link.native,
        onProgress: (json) => this.#onProgress(json),
      });
      const { parts: nativeParts } = parts;
      this.#session = nativeSync(() => binding().sourceSession(this.#config(), nativeParts));
      return await this.#drive(this.#session, link);
    } catch (error) {
      return await this.#undo(error);
    } finally {
      await this.#converge.lift();
      // Until it has ended, it holds the functions and the memory.
      const ended = this.#session?.end().catch(() => undefined);
      link?.end();
      await ended;
      this.#exposures?.close();
      parts?.close();
    }
  }

  get #passingExposures(): boolean {
    return this.options.exposureTransfer === 'pass';
  }

  #extraDirty(): readonly DirtySource[] {
    const { memory, dirtySources, memoryTransfer } = this.options;
    // What is passed is not tracked.
    if (memoryTransfer === 'pass') return [];
    return [...(memory ? [memory.markedSource()] : []), ...(dirtySources ?? [])];
  }

  async #link(): Promise<OpenLink> {
    const { to, signal } = this.options;
    if (typeof to !== 'string') return new CallerStream(to);
    return withSignal(connectLink(to, this.options.linkTimeoutMs ?? DEFAULT_LINK_TIMEOUT_MS), signal);
  }

  async #drive(session: NativeSourceSession, link: OpenLink): Promise<MigrationReport> {
    const onAbort = () => {
      if (this.#intent) return;
      session.cancel();
      link.cancel();
    };
    this.options.signal?.addEventListener('abort', onAbort, { once: true });
    // It may have fired while the functions were asked and the link was made.
    if (this.options.signal?.aborted) onAbort();
    try {
      await this.#phase('offer', () => this.#offer(session));
      if (this.#passing) await this.#phase('pass-memory', () => native(() => session.startTracking()));
      await this.#phase('measure', () => this.#measure(session));
      if (this.options.dryRun) {
        await native(() => session.abort('dry run'));
        return this.#finish('dry-run');
      }
      await this.#phase('pre-copy', () => (this.#passing ? this.#precopyState(session) : this.#precopy(session)));
      await this.#switchover(session);
      return this.#finish('committed');
    } finally {
      this.options.signal?.removeEventListener('abort', onAbort);
    }
  }

  #config(): string {
    const memory = this.#passing ? 'passed' : 'engine';
    return JSON.stringify({
      session: this.id,
      terms: {
        memory,
        commit: 'session',
        duplex: true,
        descriptors: this.options.sectionFds === true || this.#passingExposures,
      },
      bandwidthBytesPerSecond: this.#policy.bandwidthBytesPerSecond ?? null,
      idleTimeoutMs: this.options.linkTimeoutMs ?? DEFAULT_LINK_TIMEOUT_MS,
      recordPath: this.options.record ?? null,
      sections: [...(this.#exposures?.names ?? []), ...sectionNames(this.options.sections)],
      faults: faultsJson(this.options.faults),
    });
  }

  async #offer(session: NativeSourceSession): Promise<void> {
    const offer = { functions: await describeAll(this.functions) };
    const answer = JSON.parse(await native(() => session.offer(JSON.stringify(offer)))) as OfferOutcome;
    this.#report.epoch = answer.epoch;
    this.#report.mismatches = answer.mismatches;
    if (answer.mismatches.length === 0) return;
    this.events.push({ type: 'mismatch', session: this.id, mismatches: answer.mismatches });
    const what = answer.mismatches.map((m: Mismatch) => m.message).join('; ');
    throw new TowlineError('ERR_TOWLINE_MISMATCH', `the destination can't take it: ${what}`, {
      details: { mismatches: answer.mismatches },
    });
  }

  async #measure(session: NativeSourceSession): Promise<void> {
    if (!this.#passing) await native(() => session.startTracking());
    const m = JSON.parse(await native(() => session.measure(SAMPLE_MS))) as Measured;
    const { stopMs } = this.#policy;
    const samples = m.bandwidthBytesPerSecond;
    this.#measuredBandwidth = samples.reduce((sum, each) => sum + each, 0) / Math.max(1, samples.length);
    this.#forecaster = new Forecaster({
      ...m,
      ...writersInput(this.#names.counts(m.dirty), m.dirtyBytesPerSecond),
      ...(stopMs === undefined || stopMs.length === 0 ? DOWNTIME_COSTS : knownCosts(stopMs)),
      elapsedMs: performance.now() - this.#started,
      maxDowntimeMs: this.#policy.maxDowntimeMs,
      maxRounds: this.#policy.maxRounds,
      maxTotalMs: this.#policy.maxTotalMs,
    });
    this.#harvestedAt = performance.now();
    const frozen = this.#forecast(this.#forecaster);
    this.#report.forecast = frozen;
    this.events.push({ type: 'forecast', session: this.id, forecast: frozen, frozen: true });
  }

  async #precopy(session: NativeSourceSession): Promise<void> {
    const forecaster = this.#forecaster as Forecaster;
    for (;;) {
      throwIfAborted(this.options.signal);
      const stats = JSON.parse(await native(() => session.memoryPass())) as RoundStats;
      const now = performance.now();
      const state = JSON.parse(await native(() => session.precopyState())) as PrecopyStats;
      if (state.functions > 0) {
        // What is to come in stop-copy has what pre-copy left in it; that is also the least where nobody can tell.
        forecaster.observeStateBytes(state.stopCopyBytes ?? state.initialBytesLeft + state.dirtyBytesLeft);
      }
      this.#book(stats);
      this.#passed.bytes += stats.wireBytes;
      this.#passed.ms += stats.ms;
      this.#report.rounds += 1;
      this.events.push({
        type: 'round',
        session: this.id,
        round: this.#report.rounds,
        pages: stats.pages,
        wireBytes: stats.wireBytes,
        ms: stats.ms,
        dirtyPagesAfter: stats.dirtyPagesAfter,
        dirtyBySource: this.#names.pages(stats.dirtyBySource),
      });
      const intervalMs = now - this.#harvestedAt;
      const residualBytes = stats.dirtyPagesAfter * stats.pageSizeBytes;
      forecaster.observeRound({
        bytes: stats.wireBytes,
        ms: stats.ms,
        dirtiedBytes: residualBytes,
        deviceDirtiedBytes: Math.round(residualBytes * this.#names.deviceShare(stats.dirtyBySource)),
        intervalMs,
      });
      this.#harvestedAt = now;
      const updated = forecaster.forecast();
      this.events.push({ type: 'forecast', session: this.id, forecast: updated, frozen: false });
      const downtimeMs = forecaster.downtimeNow().p95;
      const soFar = {
        rounds: this.#report.rounds,
        elapsedMs: performance.now() - this.#started,
        downtimeMs,
        initialBytesLeft: state.initialBytesLeft,
      };
      const decision = decide(this.#policy, soFar, updated);
      if (decision.action === 'give-up') {
        const error = notConverging(this.#policy, soFar, forecaster, this.#converge.report());
        this.events.push({ type: 'converge', session: this.id, action: 'give-up', why: error.message });
        throw error;
      }
      this.events.push({ type: 'converge', session: this.id, ...decision });
      if (decision.action === 'stop') return;
      const round = { number: this.#report.rounds, stats, intervalMs, downtimeMs, forecast: updated };
      const { sampled } = await this.#converge.afterRound(session, forecaster, round);
      if (sampled) this.#harvestedAt = performance.now();
    }
  }

  /** No pages are sent where memory was passed: a stop is all that there is to forecast. */
  #forecast(forecaster: Forecaster): Forecast {
    const forecast = forecaster.forecast();
    if (!this.#passing) return forecast;
    const why = 'memory is passed, so there is nothing to send but device state';
    return { ...forecast, rounds: 0, ...(forecast.converges ? { why } : {}) };
  }

  /** Pre-copy where memory was passed: device state, of functions that have it. */
  async #precopyState(session: NativeSourceSession): Promise<void> {
    const forecaster = this.#forecaster as Forecaster;
    for (let rounds = 1; ; rounds++) {
      throwIfAborted(this.options.signal);
      const state = JSON.parse(await native(() => session.precopyState())) as PrecopyStats;
      if (state.functions > 0) {
        forecaster.observeStateBytes(state.stopCopyBytes ?? state.initialBytesLeft + state.dirtyBytesLeft);
      }
      const forecast = this.#forecast(forecaster);
      this.events.push({ type: 'forecast', session: this.id, forecast, frozen: false });
      const elapsedMs = performance.now() - this.#started;
      const { p95: downtimeMs } = forecaster.downtimeNow();
      const now = { rounds, elapsedMs, downtimeMs, initialBytesLeft: state.initialBytesLeft };
      const decision = decide(this.#policy, now, forecast);
      this.events.push({ type: 'converge', session: this.id, ...decision });
      if (decision.action === 'stop') return;
      if (decision.action === 'give-up') {
        throw new TowlineError('ERR_TOWLINE_NOT_CONVERGING', decision.why, {
          details: { forecast, needs: forecast.needs },
        });
      }
    }
  }

  async #switchover(session: NativeSourceSession): Promise<void> {
    throwIfAborted(this.options.signal);
    const { pause, sections, verify } = this.options;
    this.#paused = true;
    if (pause) await this.#phase('pause', () => hook('pause', pause));
    await this.#phase('stop', async () => {
      // The instant from which the function may no longer execute here: taken before the command, not after it.
      this.#stoppedAt = performance.now();
      await native(() => session.quiesce());
      await native(() => session.stop());
      // Before device state is read: what the guest asked for last becomes part of it.
      await this.#exposures?.save();
    });
    await (this.#passing ? this.#saveState(session) : this.#finalPass(session));
    await this.#phase('prepare', async () => {
      const outgoing = new OutgoingSections();
      this.#exposures?.addTo(outgoing);
      await takeSections(sections, outgoing);
      await outgoing.send(session);
      await native(() => session.prepare());
    });
    if (verify) await this.#phase('hold', () => hook('verify', verify));
    throwIfAborted(this.options.signal);
    this.#intent = true;
    const committed = await this.#phase('commit', async () => {
      const timings = JSON.parse(await native(() => session.commit())) as SourceTimings;
      this.#clock.add('journal', timings.journalMs);
      this.#clock.add('commit', -timings.journalMs);
      this.#report.bytes.wire = timings.totalWireBytes;
      return timings;
    });
    this.#committed = true;
    this.#report.epoch = committed.epoch;
    await this.#phase('resume', () => native(() => session.waitRunning()));
    this.#runsAgainAt = performance.now();
    await this.#phase('release', () => this.#release(session));
  }

  async #finalPass(session: NativeSourceSession): Promise<void> {
    this.events.push({ type: 'phase', session: this.id, phase: 'final-pages' });
    const final = JSON.parse(await native(() => session.finalPass())) as FinalStats;
    this.#book(final);
    this.#clock.add('final-pages', final.pagesMs);
    this.#clock.add('device-state', final.stateMs);
    this.#report.bytes.deviceState += final.stateBytes;
    this.#finalBytes = final.wireBytes + final.stateBytes;
  }

  async #saveState(session: NativeSourceSession): Promise<void> {
    const saved = await this.#phase('device-state', () => native(() => session.saveState()));
    this.#report.bytes.deviceState += (JSON.parse(saved) as SavedState).stateBytes;
  }

  #book(stats: RoundStats | FinalStats): void {
    this.#report.bytes.memory += stats.memoryBytes;
    this.#report.bytes.wire = stats.totalWireBytes;
    this.#report.pages.sent += stats.pages;
    this.#report.pages.zero += stats.zeroPages;
    this.#report.pages.hole += stats.holePages;
  }

  /** Rolls back what is not committed, and tells how it ended. */
  async #undo(error: unknown): Promise<MigrationReport> {
    const cause = this.options.signal?.aborted && !this.#intent ? abortError(this.options.signal) : unwrapFault(error);
    if (this.#committed) return this.#committedThere(cause);
    // Without an intent of this session the doubt is an earlier one's, and stays that.
    if (this.#intent && cause.code === 'ERR_TOWLINE_IN_DOUBT') {
      await this.#converge.lift();
      return this.#doubt(cause);
    }
    const failures: unknown[] = [];
    const attempt = async (work: () => unknown) => {
      try {
        await work();
      } catch (failure) {
        failures.push(failure);
      }
    };
    // Before they run again: a function may wait for its client then, and what stops its tracking waits for the function.
    await attempt(async () => {
      if (this.#session && nativeSync(() => this.#session?.mayAbort())) await this.#exposures?.resume();
    });
    // After a mismatch the session is over already, and nothing was touched.
    const over = this.#report.mismatches.length > 0;
    if (this.#session && !over) await attempt(() => native(() => this.#session?.abort(cause.message)));
    // The engine gives up nothing that the destination may own.
    if (this.#intent && failures.some((f) => unwrapFault(f).code === 'ERR_TOWLINE_MISUSE')) {
      await this.#converge.lift();
      return this.#doubt(cause);
    }
    if (this.#stoppedAt !== undefined) this.#runsAgainAt = performance.now();
    await this.#converge.lift();
    const { resume } = this.options;
    if (this.#paused && resume) await attempt(() => hook('resume', resume));
    const report = this.#finish('rolled-back', cause.message);
    if (cause.code === 'ERR_TOWLINE_ABORTED' || cause.code === 'ERR_TOWLINE_IN_DOUBT') throw withReport(cause, report);
    throw new TowlineError('ERR_TOWLINE_ROLLED_BACK', `nothing moved: ${cause.message}`, {
      cause,
      details: { report, failures: failures.map((f) => unwrapFault(f).toJSON()) },
    });
  }

  async #release(session: NativeSourceSession): Promise<void> {
    // First: whatever fails after this must not end connections that are the destination's by now.
    await this.#exposures?.surrender();
    await this.#converge.lift();
    await native(() => session.release());
    if (this.options.release === false) return;
    // They are the destination's, whatever fails here: that is told beside the outcome.
    const failures = await releaseEach(this.functions, (fn) => fn.release?.());
    if (failures.length > 0) this.#report.releaseFailures = failures;
  }

  async #committedThere(cause: TowlineError): Promise<MigrationReport> {
    try {
      if (this.#session) await this.#release(this.#session);
    } catch {
      // It was durable before, or `recover` makes it so.
    }
    return this.#finish('committed', cause.message);
  }

  #doubt(cause: TowlineError): MigrationReport {
    const { fence } = this.options;
    for (const fn of this.functions) fn.setDoubt?.(doubtOf(this.id, fence, this.#exposures?.detached(fn)));
    this.events.push({ type: 'in-doubt', session: this.id, why: cause.message });
    const report = this.#finish('in-doubt', cause.message);
    throw new TowlineError(
      'ERR_TOWLINE_IN_DOUBT',
      `the destination may own the functions by now, so they stay stopped here: ${cause.message}`,
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
    if (outcome === 'committed' && this.#finalBytes > 0)
      report.stopMs = Math.max(0, report.downtimeMs - (this.#finalBytes / this.#bandwidth()) * 1000);
    report.phases = this.#clock.list();
    const converge = this.#converge.report();
    if (converge !== undefined) report.converge = converge;
    this.events.push({ type: 'report', session: this.id, report });
    return report;
  }

  async #phase<T>(phase: Phase, work: () => Promise<T>): Promise<T> {
    this.events.push({ type: 'phase', session: this.id, phase });
    return this.#clock.during(phase, work);
  }

  /** Bytes a second. Passes over holes and zeros take their time and send little. */
  #bandwidth(): number {
    const { bytes, ms } = this.#passed;
    return Math.max(this.#measuredBandwidth, (bytes / Math.max(ms, 1e-3)) * 1000, 1);
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

/** The same error with the report beside it. */
export function withReport(error: TowlineError, report: MigrationReport): TowlineError {
  return new TowlineError(error.code, error.message, { cause: error.cause, details: { report } });
}
