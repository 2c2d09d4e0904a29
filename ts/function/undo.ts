/**
 * Steps that are undone in reverse order when a later one fails.
 */
import { unwrapFault, TowlineError } from '../errors.js';

interface Undo {
  readonly what: string;
  readonly run: () => Promise<void>;
}

/** Remembers how to undo what was done so far. */
export class UndoStack {
  readonly #undos: Undo[] = [];

  /** Runs `step`, and remembers `undo` once it succeeded. */
  async do<T>(what: string, step: () => Promise<T>, undo: (result: T) => Promise<void>): Promise<T> {
    const result = await step();
    this.#undos.push({ what, run: () => undo(result) });
    return result;
  }

  /**
   * Undoes everything, last first. A step that can't be undone does not keep the others from being undone: its failure is
   * named in the error that comes back, under `details.notUndone`.
   */
  async unwind(cause: unknown): Promise<TowlineError> {
    const error = unwrapFault(cause);
    const notUndone = (await this.#undo()).map(({ step, failure }) => ({ step, why: failure.message }));
    if (notUndone.length === 0) return error;
    // What an inner piece of work could not undo stays told.
    const told: unknown = (error.details as { notUndone?: unknown } | undefined)?.notUndone;
    const before: readonly unknown[] = Array.isArray(told) ? told : [];
    return new TowlineError(
      error.code,
      `${error.message}; not undone: ${notUndone.map((n) => `${n.step} (${n.why})`).join(', ')}`,
      {
        errno: error.errno,
        syscall: error.syscall,
        function: error.function,
        state: error.state,
        nvmeStatus: error.nvmeStatus,
        cause: error,
        details: { ...(error.details as object | undefined), notUndone: [...before, ...notUndone] },
      },
    );
  }

  /** Undoes everything, last first, for a caller who does something that fails later. Throws the first failure, after all were tried. */
  async undo(): Promise<void> {
    const [first] = await this.#undo();
    if (first !== undefined) throw first.failure;
  }

  async #undo(): Promise<{ step: string; failure: TowlineError }[]> {
    const failures: { step: string; failure: TowlineError }[] = [];
    for (const { what, run } of this.#undos.splice(0).reverse()) {
      try {
        await run();
      } catch (failure) {
        failures.push({ step: what, failure: unwrapFault(failure) });
      }
    }
    return failures;
  }
}

/** Runs `work`; where it throws, everything it did through the stack is undone before the error is thrown on. */
export async function withUndo<T>(work: (steps: UndoStack) => Promise<T>): Promise<T> {
  const steps = new UndoStack();
  try {
    return await work(steps);
  } catch (error) {
    throw await steps.unwind(error);
  }
}
