import { randomUUID } from 'node:crypto';
import type { WaitOptions } from '../abort.js';
import { native, nativeSync, TowlineError } from '../errors.js';
import type { MemoryRange } from '../function/channel.js';
import type { MigratableFunction } from '../function/types.js';
import type { Forecast } from './forecast.js';
import { binding } from '../native/api.js';
import type { NativeSourceSession } from '../native/binding.js';
import { describeAll, refuseUnmigratable } from './describe.js';
import { doubtOf } from './doubt.js';
import { checkCallerSections, SourceExposures } from './exposures.js';
import type { Verdict } from './journal.js';
import { SessionParts } from './parts.js';
import type { Sections } from './options.js';
import { OutgoingSections } from './sections.js';
import {
  SessionAdvisor,
  type SessionAdvice,
  type SessionLimits,
  type SessionMeans,
  type SessionSample,
} from './session-advice.js';
import { outcomes, termsOf } from './session-native.js';
import type {
  FunctionOutcome,
  Harvest,
  PrecopyState,
  SectionDigest,
  SessionTiming,
  SourceSessionOptions,
} from './session-options.js';
import { Steps } from './session-steps.js';
import { CallerStream } from './session-stream.js';
import type { DirtySample, OfferOutcome, SourcePages } from './steps.js';
import { SourceNames } from './writers.js';

/**
 * How far a source session is.
 *
 * `failed` leaves only `abort`, as does `refused`: the destination can never commit. In `in-doubt` and `intended` the functions stay
 * stopped and fenced until it is known what the destination did.
 */
export type SourceSessionState =
  | 'new'
  | 'offered'
  | 'tracking'
  | 'stopped'
  | 'saved'
  | 'prepared'
  | 'failed'
  | 'refused'
  | 'in-doubt'
  | 'intended'
  | 'committed'
  | 'running'
  | 'released'
  | 'aborted'
  | 'closed';

type Call =
  | 'offer'
  | 'startTracking'
  | 'harvest'
  | 'dirtyRuns'
  | 'sampleDirty'
  | 'precopyState'
  | 'stop'
  | 'saveState'
  | 'sendSection'
  | 'prepare'
  | 'commit'
  | 'intent'
  | 'waitRunning'
  | 'release'
  | 'refused'
  | 'settle'
  | 'abort';

const PAGE_BYTES = 4096;
/** The most pages that one call hands out. */
const MAX_PAGES = 1 << 20;

/**
 * The source of one migration inside of the caller's own: it tracks guest memory and sends device state, the caller moves memory. Made by
 * `MigrationSession.source`.
 *
 * Steps are taken one at a time, in this order; one out of order rejects with `ERR_TOWLINE_MISUSE`, which lists what is allowed, and
 * changes nothing. A step that fails leaves only {@link SourceSession.abort}. A signal that fires cancels the session as a whole,
 * until the intent.
 */
export class SourceSession implements AsyncDisposable {
  /** The session's UUID. */
  readonly id: string;
  readonly #functions: readonly MigratableFunction[];
  readonly #parts: SessionParts;
  readonly #exposures: SourceExposures;
  readonly #native: NativeSourceSession;
  readonly #stream: CallerStream;
  readonly #steps: Steps<SourceSessionState, Call>;
  readonly #byCaller: boolean;
  readonly #fence: SourceSessionOptions['fence'];
  readonly #names: SourceNames;
  readonly #advisor: SessionAdvisor;
  #epoch = 0;
  #closing: Promise<void> | undefined;

  /** @internal */
  constructor(functions: readonly MigratableFunction[], options: SourceSessionOptions) {
    checkCallerSections(options.sections ?? []);
    this.id = options.session ?? randomUUID();
    this.#exposures = new SourceExposures(functions);
    this.#functions = functions;
    this.#stream = new CallerStream(options.stream);
    this.#byCaller = options.commit === 'caller';
    this.#fence = options.fence;
    const { memory } = options;
    const extraDirty = [...(memory ? [memory.markedSource()] : []), ...(options.dirtySources ?? [])];
    this.#names = new SourceNames(extraDirty);
    const memoryBytes = () => (memory ? memory.ranges().reduce((sum, r) => sum + Number(r.len), 0) : 0);
    this.#advisor = new SessionAdvisor(this.#names, memoryBytes);
    this.#parts = new SessionParts({
      functions,
      memory,
      extraDirty,
      fence: options.fence,
      link: this.#stream.native,
      onProgress: () => undefined,
    });
    const config = {
      ...termsOf(options, this.#stream.duplex),
      session: this.id,
      leastEpoch: options.leastEpoch ?? null,
      freshDestination: options.freshDestination ?? false,
      sections: [...this.#exposures.names, ...(options.sections ?? [])],
    };
    try {
      this.#native = nativeSync(() => binding().sourceSession(JSON.stringify(config), this.#parts.parts));
    } catch (error) {
      this.#parts.close();
      throw error;
    }
    const cancel = () => {
      if (this.#native.cancel()) this.#stream.cancel();
    };
    this.#steps = new Steps<SourceSessionState, Call>('new', (state) => this.#allowed(state), cancel, options.signal);
  }

  /** How far it is. */
  get state(): SourceSessionState {
    return this.#steps.state;
  }

  /** Each state from now on, the present one first; ends with the session. A state that lasts shorter than the reader takes is told too. */
  states(): AsyncIterable<SourceSessionState> {
    return this.#steps.states('closed');
  }

  /** The epoch that it proposes, and has once tracking started; 0 before the offer. */
  get epoch(): number {
    return this.#epoch;
  }

  #allowed(state: SourceSessionState): readonly Call[] {
    const { duplex } = this.#stream;
    switch (state) {
      case 'new':
        return ['offer', 'abort'];
      case 'offered':
        return ['startTracking', 'abort'];
      case 'tracking':
        return ['harvest', 'dirtyRuns', 'sampleDirty', 'precopyState', 'stop', 'abort'];
      case 'stopped':
        return ['harvest', 'dirtyRuns', 'saveState', 'abort'];
      case 'saved':
        return ['harvest', 'dirtyRuns', 'sendSection', 'prepare', 'abort'];
      case 'prepared':
        return [this.#byCaller ? 'intent' : 'commit', 'abort'];
      case 'failed':
      case 'refused':
        return ['abort'];
      case 'in-doubt':
        return ['settle'];
      case 'intended':
        return duplex ? ['waitRunning', 'release', 'refused', 'settle'] : ['release', 'refused', 'settle'];
      case 'committed':
        return duplex ? ['waitRunning', 'release'] : ['release'];
      case 'running':
        return ['release'];
      default:
        return [];
    }
  }

  /** Any step before the intent: once it has failed, only `abort` is left. */
  #step<T>(
    call: Call,
    next: SourceSessionState | undefined,
    options: WaitOptions | undefined,
    work: () => Promise<T>,
  ): Promise<T> {
    const failed = (error: TowlineError): SourceSessionState => {
      // A refused offer is over already, on both sides.
      if (error.code === 'ERR_TOWLINE_MISMATCH') return 'aborted';
      if (error.code !== 'ERR_TOWLINE_IN_DOUBT') return 'failed';
      // Without an intent of this session the doubt is an earlier one's, and stays that.
      if (call === 'intent') this.#tellDoubt();
      return 'in-doubt';
    };
    return this.#steps.run(call, { work, options, failed, ...(next === undefined ? {} : { next }) });
  }

  /**
   * Offers the functions. Stops nothing. Resolves once the destination has answered and waits in `receive`. Over a one-way stream nobody answers: the destination's caller learns of mismatches, and has to
   * say so by its own means.
   *
   * @throws TowlineError `ERR_TOWLINE_MISMATCH` with every reason against it in `details.mismatches`, and `ERR_TOWLINE_STATE` for a function
   * that says itself that it can't be migrated.
   */
  async offer(options?: WaitOptions): Promise<{ epoch: number }> {
    return this.#step('offer', 'offered', options, async () => {
      await refuseUnmigratable(this.#functions);
      this.#exposures.check();
      const offer = JSON.stringify({ functions: await describeAll(this.#functions) });
      const answer = JSON.parse(await native(() => this.#native.offer(offer))) as OfferOutcome;
      this.#epoch = Number(answer.epoch);
      if (answer.mismatches.length > 0) {
        const what = answer.mismatches.map((m) => m.message).join('; ');
        throw new TowlineError('ERR_TOWLINE_MISMATCH', `the destination can't take it: ${what}`, {
          details: { mismatches: answer.mismatches },
        });
      }
      return { epoch: this.#epoch };
    });
  }

  /**
   * Takes the session into the fence and starts every dirty source. All of guest memory is dirty then; where the destination's is fresh,
   * all that was ever written.
   */
  async startTracking(options?: WaitOptions): Promise<void> {
    await this.#step('startTracking', 'tracking', options, () => native(() => this.#native.startTracking()));
  }

  /**
   * Asks every dirty source for what was written. As often as wished; {@link SourceSession.stop} does it too.
   *
   * @throws TowlineError `ERR_TOWLINE_DIRTY_SOURCE` for a source that fails while the functions run.
   */
  async harvest(options?: WaitOptions): Promise<Harvest> {
    return this.#step('harvest', undefined, options, () => this.#harvest());
  }

  /**
   * Takes up to `maxPages` dirty pages (1 to 2^20) of 4096 bytes, as runs, and forgets them: the caller reads them after this and moves them.
   * Empty where nothing is dirty. What could not be moved is given back by `GuestMemory.markDirty`.
   */
  async dirtyRuns(maxPages: number, options?: WaitOptions): Promise<readonly MemoryRange[]> {
    if (!Number.isInteger(maxPages) || maxPages < 1 || maxPages > MAX_PAGES) {
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        `maxPages is ${maxPages}; it has to be a whole number from 1 to ${MAX_PAGES}`,
      );
    }
    return this.#step('dirtyRuns', undefined, options, () => native(() => this.#native.takeDirtyRuns(maxPages)));
  }

  /**
   * Samples, for `ms` (1 to 10000, default 50), who dirties how much; what is found stays for {@link SourceSession.harvest}. What
   * {@link SourceSession.forecast} and {@link SourceSession.advice} go by: sample after each change of the guest's pace.
   */
  async sampleDirty(options: WaitOptions & { ms?: number } = {}): Promise<SessionSample> {
    const { ms = 50, ...wait } = options;
    if (!Number.isInteger(ms) || ms < 1 || ms > 10_000) {
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        `ms is ${ms}; it has to be a whole number from 1 to 10000`,
      );
    }
    return this.#step('sampleDirty', undefined, wait, async () => {
      return this.#advisor.sampled(JSON.parse(await native(() => this.#native.sampleDirty(ms))) as DirtySample);
    });
  }

  /**
   * What is to be expected from now on: of the pages that the last harvest left, at the rates of the last sample.
   *
   * @throws TowlineError `ERR_TOWLINE_MISUSE` before the first {@link SourceSession.sampleDirty}.
   */
  forecast(limits: SessionLimits): Forecast {
    return this.#advisor.forecast(limits);
  }

  /**
   * What to do now, by the same forecast: stop, go on, slow the guest down by the means that it may take, or give up. Nothing is done: vCPUs
   * are throttled by the caller, functions are limited by their `rateLimit`, and the caller takes both back.
   *
   * @throws TowlineError `ERR_TOWLINE_MISUSE` before the first {@link SourceSession.sampleDirty}.
   */
  advice(limits: SessionLimits, may?: SessionMeans): SessionAdvice {
    return this.#advisor.advice(limits, may);
  }

  /** Sends what running functions with PRE_COPY have, until each has nothing more for now. */
  async precopyState(options?: WaitOptions): Promise<PrecopyState> {
    return this.#step('precopyState', undefined, options, async () => {
      return JSON.parse(await native(() => this.#native.precopyState())) as PrecopyState;
    });
  }

  /**
   * Stops the functions, several of them quiesced against each other first, and harvests what they wrote last. The vCPUs have to be
   * stopped before. Here the downtime begins.
   */
  async stop(options?: WaitOptions): Promise<Harvest> {
    return this.#step('stop', 'stopped', options, async () => {
      await native(() => this.#native.quiesce());
      await native(() => this.#native.stop());
      await this.#exposures.save();
      return this.#harvest();
    });
  }

  /** Sends the device state of every function, and what their exposures keep of them. Memory may be moved before it, after it, or meanwhile by another harvest's runs. */
  async saveState(options?: WaitOptions): Promise<{ stateBytes: number; saveMs: number }> {
    return this.#step('saveState', 'saved', options, async () => {
      const saved = JSON.parse(await native(() => this.#native.saveState())) as { stateBytes: number; saveMs: number };
      const own = new OutgoingSections();
      this.#exposures.addTo(own);
      await own.send(this.#native);
      return saved;
    });
  }

  /** Sends the next of the caller's sections, by its name. At most 64 MiB together. */
  async sendSection(name: string, data: Uint8Array, options?: WaitOptions): Promise<void> {
    await this.sendSections({ [name]: data }, options);
  }

  /** Sends the next of the caller's sections, in the order of the record, in few writes. */
  async sendSections(sections: Sections, options?: WaitOptions): Promise<void> {
    const outgoing = new OutgoingSections();
    for (const [name, data] of Object.entries(sections)) outgoing.add(name, data);
    await this.#step('sendSection', undefined, options, () => outgoing.send(this.#native));
  }

  /**
   * Ends the stream and waits until the destination has verified and loaded all of it. Nothing runs anywhere then. Over a one-way stream it
   * does not wait: compare the digests with those of the destination's `prepared`.
   *
   * @throws TowlineError `ERR_TOWLINE_CONFIG`, and nothing has changed, where dirty pages were not taken or a section was not sent.
   */
  async prepare(options?: WaitOptions): Promise<{ digests: SectionDigest[] }> {
    return this.#step('prepare', 'prepared', options, async () => {
      return JSON.parse(await native(() => this.#native.prepare())) as { digests: SectionDigest[] };
    });
  }

  /**
   * Commits over the session's stream. The intent is durable before the first byte leaves, and nothing can be cancelled from then on.
   *
   * @throws TowlineError `ERR_TOWLINE_IN_DOUBT` where COMMIT may have arrived and its answer didn't: see {@link SourceSession.settle}.
   * `ERR_TOWLINE_COMMIT_REFUSED`: the functions are still ours, `abort` lets them run.
   */
  async commit(options?: WaitOptions): Promise<{ epoch: number }> {
    const failed = (error: TowlineError): SourceSessionState => {
      if (error.code === 'ERR_TOWLINE_COMMIT_REFUSED') return 'refused';
      if (error.code !== 'ERR_TOWLINE_IN_DOUBT') return 'failed';
      this.#tellDoubt();
      return 'in-doubt';
    };
    const work = async () => epochOf(await native(() => this.#native.commit()));
    return this.#steps.run('commit', { work, options, next: 'committed', failed });
  }

  /**
   * Makes COMMIT-INTENT durable, where the caller carries the commit. From its return on the caller may tell the destination's caller to commit
   * this epoch, never before. The functions stay stopped until {@link SourceSession.release} or {@link SourceSession.refused}.
   */
  async intent(options?: WaitOptions): Promise<{ epoch: number }> {
    return this.#step('intent', 'intended', options, async () => epochOf(await native(() => this.#native.intent())));
  }

  /**
   * Waits until the functions run at the destination, where the stream goes both ways. Where the caller carries the commit, this settles it too.
   *
   * @throws TowlineError `ERR_TOWLINE_PROTOCOL` with the destination's words where it owns the functions and could not resume them.
   */
  async waitRunning(options?: WaitOptions): Promise<{ resumeMs: number }> {
    const failed = (error: TowlineError): SourceSessionState | undefined => {
      return error.code === 'ERR_TOWLINE_COMMIT_REFUSED' ? 'refused' : undefined;
    };
    const work = async () => JSON.parse(await native(() => this.#native.waitRunning())) as { resumeMs: number };
    return this.#steps.run('waitRunning', { work, options, next: 'running', failed });
  }

  /**
   * Lets go of the functions: durable, and outside of the downtime. A caller that carries the commit calls it once it has heard that the
   * destination's commit is durable.
   */
  async release(options?: WaitOptions): Promise<FunctionOutcome[]> {
    const work = async () => outcomes(await native(() => this.#native.release()));
    return this.#steps.run('release', { work, options, next: 'released' });
  }

  /**
   * The caller has heard that the destination refused, durably (its `abort` has resolved, or its fence says so): the functions are still ours,
   * {@link SourceSession.abort} lets them run. Never call it because nothing was heard.
   */
  async refused(): Promise<void> {
    await this.#steps.run('refused', { work: () => native(() => this.#native.refused()), next: 'refused' });
  }

  /**
   * Ends the doubt by what the destination answered, as {@link Recovered.answer} has it. `unknown` leaves it. After `committed` the functions
   * are to be released, after `refused` an abort lets them run.
   */
  async settle(answer: 'committed' | 'refused' | 'unknown'): Promise<Verdict> {
    const work = async () =>
      (JSON.parse(await native(() => this.#native.settle(answer))) as { verdict: Verdict }).verdict;
    const verdict = await this.#steps.run('settle', { work });
    if (verdict === 'released') this.#steps.enter('committed');
    if (verdict === 'resume-source') this.#steps.enter('refused');
    if (verdict !== 'in-doubt') for (const fn of this.#functions) fn.setDoubt?.(undefined);
    return verdict;
  }

  /**
   * Gives up: the functions run here again, tracking stops, the destination is told where its stream can be reached. Before the intent at
   * any moment, a step under way is cancelled; later only after the destination's refusal.
   */
  async abort(reason = 'the caller gave up'): Promise<FunctionOutcome[]> {
    if (this.#native.cancel()) this.#stream.cancel();
    await this.#steps.idle();
    const work = async () => outcomes(await native(() => this.#native.abort(reason)));
    return this.#steps.run('abort', { work, next: 'aborted', failed: () => 'aborted' });
  }

  /**
   * How long each phase took so far. Between steps.
   *
   * @throws TowlineError `ERR_TOWLINE_BUSY` while a step is under way.
   */
  timings(): SessionTiming[] {
    if (this.#steps.busy) throw new TowlineError('ERR_TOWLINE_BUSY', 'a step is under way');
    return JSON.parse(nativeSync(() => this.#native.timings())) as SessionTiming[];
  }

  /**
   * Ends the session. Before the intent this aborts. Where it is in doubt the functions stay stopped and fenced: `recover` settles it. The
   * caller's stream is let go of, and closed where it can be. Idempotent.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  /** Functions whose commit may have been heard stay stopped, and say why until `recover` knows. */
  #tellDoubt(): void {
    for (const fn of this.#functions) fn.setDoubt?.(doubtOf(this.id, this.#fence));
  }

  async #close(): Promise<void> {
    // The caller has been told to commit, and has not said what became of it.
    if (this.state === 'intended') this.#tellDoubt();
    // Whatever abort has to say was said in its report, which nobody asked for; the functions run again all the same.
    if (this.#allowed(this.state).includes('abort')) await this.abort('the session was closed').catch(() => undefined);
    this.#stream.end();
    await this.#steps.idle();
    this.#steps.enter('closed');
    await native(() => this.#native.end());
    this.#parts.close();
  }

  /** As {@link SourceSession.close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #harvest(): Promise<Harvest> {
    const harvest = JSON.parse(await native(() => this.#native.harvest())) as Omit<Harvest, 'dirtyBySource'> & {
      dirtyBySource: SourcePages[];
    };
    this.#advisor.pending(harvest.dirtyPages * PAGE_BYTES);
    return { ...harvest, dirtyBySource: this.#names.pages(harvest.dirtyBySource) };
  }
}

function epochOf(json: string): { epoch: number } {
  return { epoch: Number((JSON.parse(json) as { epoch: string }).epoch) };
}
