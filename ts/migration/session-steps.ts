import { abortError, type WaitOptions } from '../abort.js';
import { TowlineError, unwrapFault } from '../errors.js';

/** Errors of a call that has changed nothing: it may be made again, mended. */
const HARMLESS: ReadonlySet<string> = new Set([
  'ERR_TOWLINE_MISUSE',
  'ERR_TOWLINE_CONFIG',
  'ERR_TOWLINE_INVALID_ARGUMENT',
]);

/** How one step goes. */
export interface Step<State, T> {
  work: () => Promise<T>;
  /** Where it leads to; the same state where it is missing. */
  next?: State;
  /** Where its failure leads to; the same state where that is nothing. */
  failed?: (error: TowlineError) => State | undefined;
  options?: WaitOptions | undefined;
}

/**
 * The order of a session's steps: one at a time, each only where it is allowed. A signal that fires cancels the whole session, until
 * that is too late.
 */
export class Steps<State extends string, Call extends string> {
  #state: State;
  readonly #watchers = new Set<(state: State) => void>();
  #underWay: { call: Call; done: Promise<unknown> } | undefined;

  constructor(
    initial: State,
    private readonly allowed: (state: State) => readonly Call[],
    private readonly cancel: () => void,
    private readonly signal: AbortSignal | undefined,
  ) {
    this.#state = initial;
  }

  get state(): State {
    return this.#state;
  }

  /** A step is under way. */
  get busy(): boolean {
    return this.#underWay !== undefined;
  }

  /** Moves on without a step. */
  enter(state: State): void {
    if (state === this.#state) return;
    this.#state = state;
    for (const watch of this.#watchers) watch(state);
  }

  /** Every state from now on, up to `last`. */
  async *states(last: State): AsyncGenerator<State, void, void> {
    const waiting: State[] = [this.#state];
    let wake: (() => void) | undefined;
    const watch = (state: State): void => {
      waiting.push(state);
      wake?.();
    };
    this.#watchers.add(watch);
    try {
      for (;;) {
        const state = waiting.shift();
        if (state !== undefined) {
          yield state;
          if (state === last) return;
          continue;
        }
        await new Promise<void>((resolve) => {
          wake = resolve;
        });
      }
    } finally {
      this.#watchers.delete(watch);
    }
  }

  /** Throws where `call` is not possible now. */
  check(call: Call): void {
    const busy = this.#underWay;
    if (!busy && this.allowed(this.#state).includes(call)) return;
    const allowed = this.allowed(this.#state).join(', ') || 'nothing, it is over';
    const why = busy ? `${busy.call} is under way` : `the session is ${this.#state}; allowed is: ${allowed}`;
    throw new TowlineError('ERR_TOWLINE_MISUSE', `${call} is not possible now: ${why}`, { state: this.#state });
  }

  /** Takes one step. */
  async run<T>(call: Call, step: Step<State, T>): Promise<T> {
    this.check(call);
    const underWay = { call, done: Promise.resolve<unknown>(undefined) };
    this.#underWay = underWay;
    const done = this.#take(step);
    underWay.done = done;
    return done;
  }

  async #take<T>({ work, next, failed, options }: Step<State, T>): Promise<T> {
    const signals = [this.signal, options?.signal].filter((s) => s !== undefined);
    try {
      if (signals.some((s) => s.aborted)) this.cancel();
      for (const s of signals) s.addEventListener('abort', this.cancel, { once: true });
      const result = await work();
      if (next !== undefined) this.enter(next);
      return result;
    } catch (thrown) {
      const cause = unwrapFault(thrown);
      if (!HARMLESS.has(cause.code)) this.enter(failed?.(cause) ?? this.#state);
      const fired = signals.find((s) => s.aborted);
      throw cause.code === 'ERR_TOWLINE_ABORTED' && fired ? abortError(fired) : cause;
    } finally {
      for (const s of signals) s.removeEventListener('abort', this.cancel);
      this.#underWay = undefined;
    }
  }

  /** Resolves once no step is under way, however it ended. */
  async idle(): Promise<void> {
    await this.#underWay?.done.catch(() => undefined);
  }
}
