import type { WaitOptions } from '../abort.js';
import { native, nativeSync, TowlineError, unwrapFault } from '../errors.js';
import type { MigratableFunction } from '../function/types.js';
import { binding } from '../native/api.js';
import type { NativeDestinationSession } from '../native/binding.js';
import { describeAll } from './describe.js';
import { DestinationExposures, isOwnSection } from './exposures.js';
import { compareFunctions, parseOfferedFunctions, type Mismatch } from './offer.js';
import { UNTOLD } from './fence.js';
import type { Sections } from './options.js';
import { SessionParts } from './parts.js';
import { receivedSections } from './sections.js';
import { outcomes, termsOf } from './session-native.js';
import type {
  DestinationSessionOptions,
  FunctionOutcome,
  SectionDigest,
  SessionAsked,
  SessionOffer,
  SessionTiming,
} from './session-options.js';
import { Steps } from './session-steps.js';
import { CallerStream } from './session-stream.js';

/**
 * How far a destination session is.
 *
 * From `committed` on the functions are ours, whatever happens. `unknown`: it can't be told whether the commit is durable; open the
 * journal again and `recover`.
 */
export type DestinationSessionState =
  | 'new'
  | 'asked'
  | 'offered'
  | 'answered'
  | 'loaded'
  | 'prepared'
  | 'unknown'
  | 'committed'
  | 'resumed'
  | 'running'
  | 'aborted'
  | 'closed';

type Call = 'readOffer' | 'answer' | 'receive' | 'prepared' | 'waitCommit' | 'commit' | 'resume' | 'running' | 'abort';

/**
 * The destination of one migration inside of the caller's own: it loads device state, the caller brings memory. Made by
 * `MigrationSession.destination`.
 *
 * Steps are taken one at a time, in this order; one out of order rejects with `ERR_TOWLINE_MISUSE`, which lists what is allowed, and
 * changes nothing. A step that fails before the commit rolls back: a refusal is durable, the source is told where the stream goes both
 * ways, functions that were touched are reset.
 */
export class DestinationSession implements AsyncDisposable {
  readonly #functions: readonly MigratableFunction[];
  readonly #parts: SessionParts;
  readonly #exposures: DestinationExposures;
  readonly #native: NativeDestinationSession;
  readonly #stream: CallerStream;
  readonly #steps: Steps<DestinationSessionState, Call>;
  readonly #byCaller: boolean;
  #mismatches: Mismatch[] = [];
  #closing: Promise<void> | undefined;

  /** @internal */
  constructor(functions: readonly MigratableFunction[], options: DestinationSessionOptions) {
    this.#functions = functions;
    this.#exposures = new DestinationExposures(functions);
    this.#stream = new CallerStream(options.stream);
    this.#byCaller = options.commit === 'caller';
    this.#parts = new SessionParts({
      functions,
      memory: undefined,
      extraDirty: [],
      fence: options.fence,
      link: this.#stream.native,
      onProgress: () => undefined,
    });
    try {
      const config = JSON.stringify(termsOf(options, this.#stream.duplex));
      this.#native = nativeSync(() => binding().destinationSession(config, this.#parts.parts));
    } catch (error) {
      this.#parts.close();
      throw error;
    }
    const cancel = () => {
      if (this.#native.cancel()) this.#stream.cancel();
    };
    this.#steps = new Steps<DestinationSessionState, Call>(
      'new',
      (state) => this.#allowed(state),
      cancel,
      options.signal,
    );
  }

  /** How far it is. */
  get state(): DestinationSessionState {
    return this.#steps.state;
  }

  /** Each state from now on, the present one first; ends with the session. A state that lasts shorter than the reader takes is told too. */
  states(): AsyncIterable<DestinationSessionState> {
    return this.#steps.states('closed');
  }

  #allowed(state: DestinationSessionState): readonly Call[] {
    switch (state) {
      case 'new':
        return ['readOffer', 'abort'];
      case 'offered':
        return ['answer', 'abort'];
      case 'answered':
        return ['receive', 'abort'];
      case 'loaded':
        return ['prepared', 'abort'];
      case 'prepared':
        return [this.#byCaller ? 'commit' : 'waitCommit', 'abort'];
      case 'committed':
        return ['resume'];
      case 'resumed':
        return ['running'];
      default:
        return [];
    }
  }

  /** Any step before the commit: where it fails, native code has rolled back. */
  #step<T>(
    call: Call,
    next: DestinationSessionState,
    options: WaitOptions | undefined,
    work: () => Promise<T>,
  ): Promise<T> {
    const undoing = () =>
      work().catch(async (error: unknown) => {
        await this.#exposures.forget();
        throw error;
      });
    return this.#steps.run(call, { work: undoing, options, next, failed: () => 'aborted' });
  }

  /**
   * Reads what is offered, with every mismatch that can be told already; nothing is answered yet. Where somebody only asks what became of an
   * earlier session, that is answered, durably, and this session is over.
   */
  async readOffer(options?: WaitOptions): Promise<SessionOffer | SessionAsked> {
    const read = await this.#step('readOffer', 'offered', options, () => this.#readOffer());
    if (read.type === 'asked') this.#steps.enter('asked');
    return read;
  }

  async #readOffer(): Promise<SessionOffer | SessionAsked> {
    const read = JSON.parse(await native(() => this.#native.readOffer())) as
      | ReadOffer
      | (Omit<SessionAsked, 'epoch'> & { epoch: string });
    const epoch = Number(read.epoch);
    if (read.type === 'asked') return { ...read, epoch };
    const functions = parseOfferedFunctions(read.descriptor);
    this.#mismatches = [
      ...compareFunctions(functions, await describeAll(this.#functions)),
      ...this.#exposures.mismatches(read.sections),
    ];
    return {
      type: 'offer',
      session: read.session,
      epoch,
      functions: functions.map(({ uuid, name }) => ({ uuid, name })),
      sections: read.sections.filter((name) => !isOwnSection(name)),
      mismatches: [...this.#mismatches],
    };
  }

  /**
   * Answers the offer: with the mismatches that were found, those of the caller (of its memory, say), and those of the session's own
   * terms. With none of them the migration goes on.
   *
   * @throws TowlineError `ERR_TOWLINE_MISMATCH` with all of them in `details.mismatches`; nothing was touched. Over a one-way stream only this
   * side knows them: `epoch-stale` says from which epoch on an offer would be taken.
   */
  async answer(mismatches: readonly Mismatch[] = [], options?: WaitOptions): Promise<void> {
    await this.#step('answer', 'answered', options, async () => {
      const answer = JSON.stringify({ mismatches: [...this.#mismatches, ...mismatches] });
      const answered = JSON.parse(await native(() => this.#native.answer(answer))) as {
        accepted: boolean;
        mismatches: Mismatch[];
      };
      if (answered.accepted) return;
      const what = answered.mismatches.map((m) => m.message).join('; ');
      throw new TowlineError('ERR_TOWLINE_MISMATCH', what, { details: { mismatches: answered.mismatches } });
    });
  }

  /**
   * Takes the session into the fence and loads device state until all of it is verified: the functions are stopped then. Memory has to be
   * complete before `prepared`, not before this.
   *
   * @returns The caller's sections, to be restored before {@link DestinationSession.prepared}.
   */
  async receive(options?: WaitOptions): Promise<{ stateBytes: number; sections: Sections }> {
    return this.#step('receive', 'loaded', options, async () => {
      const received = JSON.parse(await native(() => this.#native.receive())) as { stateBytes: number };
      const taken = receivedSections(this.#native);
      // The caller's own stream carries none.
      using fds = taken.fds;
      return { stateBytes: received.stateBytes, sections: this.#exposures.take(taken.sections, fds) };
    });
  }

  /**
   * Everything is loaded here, memory and the caller's sections as well, its interrupt controller among them: then what the exposures keep of
   * the functions is put in place, and the source is told where the stream goes both ways. Nothing runs.
   */
  async prepared(options?: WaitOptions): Promise<{ digests: SectionDigest[] }> {
    return this.#step('prepared', 'prepared', options, async () => {
      try {
        await this.#exposures.restore();
      } catch (error) {
        await native(() => this.#native.abort(unwrapFault(error).message)).catch(() => undefined);
        throw error;
      }
      return JSON.parse(await native(() => this.#native.prepared())) as { digests: SectionDigest[] };
    });
  }

  /** Waits for COMMIT on the session's stream and makes the commit durable: the functions are ours then. Nothing runs yet. */
  async waitCommit(options?: WaitOptions): Promise<{ epoch: number }> {
    return this.#commit('waitCommit', options, () => this.#native.waitCommit());
  }

  /**
   * The caller has brought the source's intent over: makes the commit of `epoch` durable. The functions are ours then, nothing runs yet, and
   * telling the source is the caller's.
   *
   * @throws TowlineError `ERR_TOWLINE_CONFIG` for another epoch than the session's, and nothing has changed; `ERR_TOWLINE_COMMIT_REFUSED` where
   * the fence refuses: the source still owns the functions, and may be told so.
   */
  async commit(epoch: number, options?: WaitOptions): Promise<{ epoch: number }> {
    return this.#commit('commit', options, () => this.#native.commitByCaller(String(epoch)));
  }

  async #commit(call: Call, options: WaitOptions | undefined, work: () => Promise<string>): Promise<{ epoch: number }> {
    const failed = (error: TowlineError): DestinationSessionState => (UNTOLD.has(error.code) ? 'unknown' : 'aborted');
    const commit = async () => {
      try {
        return { epoch: Number((JSON.parse(await native(work)) as { epoch: string }).epoch) };
      } catch (error) {
        // Unless it may be ours by now.
        if (!UNTOLD.has(unwrapFault(error).code)) await this.#exposures.forget();
        throw error;
      }
    };
    return this.#steps.run(call, { work: commit, options, next: 'committed', failed });
  }

  /**
   * Runs the functions. The vCPUs may run after it.
   *
   * @throws TowlineError `ERR_TOWLINE_CHANNEL` where a function does not start: it is ours all the same, and `running` says so.
   */
  async resume(): Promise<void> {
    const work = async () => void (await native(() => this.#native.resume()));
    await this.#steps.run('resume', { work, next: 'resumed', failed: () => 'resumed' });
  }

  /** Tells the source how resuming went. Returns whether it could be told. */
  async running(): Promise<boolean> {
    return this.#steps.run('running', { work: () => native(() => this.#native.running()), next: 'running' });
  }

  /**
   * Gives up, before the commit: once this has resolved the refusal is durable, and this epoch can never commit here. Functions that were
   * touched are reset. A step under way is cancelled.
   */
  async abort(reason = 'the caller gave up'): Promise<FunctionOutcome[]> {
    if (this.#native.cancel()) this.#stream.cancel();
    const wasUnderWay = this.#steps.busy;
    await this.#steps.idle();
    // What was cancelled has rolled back by itself.
    if (wasUnderWay && this.state === 'aborted') return [];
    const work = async () => {
      try {
        return outcomes(await native(() => this.#native.abort(reason)));
      } finally {
        await this.#exposures.forget();
      }
    };
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

  /** Ends the session. Before the commit this aborts. The caller's stream is let go of, and closed where it can be. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    // Where the refusal can't be made durable the functions stay stopped, and the journal tells when it is opened again.
    if (this.#allowed(this.state).includes('abort')) await this.abort('the session was closed').catch(() => undefined);
    this.#stream.end();
    await this.#steps.idle();
    this.#steps.enter('closed');
    await native(() => this.#native.end());
    this.#parts.close();
  }

  /** As {@link DestinationSession.close}. */
  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }
}

interface ReadOffer {
  type: 'offer';
  session: string;
  epoch: string;
  descriptor: unknown;
  sections: string[];
}
