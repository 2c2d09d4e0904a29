/**
 * What the kit tells, and how a check is run.
 */
import { isTowlineError, unwrapFault } from '../errors.js';

/** How one check ended. `not-exercised`: there were no means to stimulate it, which is never a pass. */
export type CheckOutcome = 'passed' | 'failed' | 'not-exercised';

/** One check. */
export interface CheckResult {
  /** Stable name, `area/what`. */
  readonly check: string;
  readonly outcome: CheckOutcome;
  /** What was expected and what was seen; for `not-exercised` what was missing. */
  readonly why: string;
}

/** Thrown by a check that found something wrong. */
export class CheckFailure extends Error {
  override readonly name = 'CheckFailure';
}

/** Thrown by a check that had no means. */
export class NotExercised extends Error {
  override readonly name = 'NotExercised';
}

/** Fails the check where `condition` does not hold. */
export function expect(condition: boolean, why: string): void {
  if (!condition) throw new CheckFailure(why);
}

/** How long one check may take, in milliseconds: an implementation that hangs fails, and the kit ends. */
export const CHECK_TIMEOUT_MS = 30_000;

/** Fails the check unless `work` rejects with a {@link TowlineError} of one of `codes`. */
export async function expectRefusal(
  what: string,
  work: () => Promise<unknown>,
  codes: readonly string[],
): Promise<void> {
  try {
    await work();
  } catch (error) {
    if (isTowlineError(error) && codes.includes(error.code)) return;
    const seen = isTowlineError(error)
      ? error.code
      : `${error instanceof Error ? error.name : typeof error} (no TowlineError)`;
    throw new CheckFailure(
      `${what} is refused with ${seen}: ${unwrapFault(error).message}; expected ${codes.join(' or ')}`,
    );
  }
  throw new CheckFailure(`${what} is not refused; expected ${codes.join(' or ')}`);
}

/**
 * Runs checks one after another. After one that hung no other is run: what hangs still drives the same device, so whatever came next
 * would tell of two callers at once.
 */
export class CheckRun {
  readonly #timeoutMs: number;
  #hung: string | undefined;

  constructor(timeoutMs = CHECK_TIMEOUT_MS) {
    this.#timeoutMs = timeoutMs;
  }

  /** The check that hung. */
  get hung(): string | undefined {
    return this.#hung;
  }

  /** Runs one check and tells how it ended; never throws. */
  async check(check: string, passed: string, work: () => Promise<void>): Promise<CheckResult> {
    if (this.#hung !== undefined) {
      return { check, outcome: 'not-exercised', why: `a check hung: ${this.#hung} may still drive the device` };
    }
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<'late'>((resolve) => {
      timer = setTimeout(() => resolve('late'), this.#timeoutMs);
    });
    try {
      const running = work();
      running.catch(() => undefined);
      if ((await Promise.race([running, late])) === 'late') {
        this.#hung = check;
        return { check, outcome: 'failed', why: `no answer within ${this.#timeoutMs} ms` };
      }
      return { check, outcome: 'passed', why: passed };
    } catch (error) {
      if (error instanceof NotExercised) return { check, outcome: 'not-exercised', why: error.message };
      return {
        check,
        outcome: 'failed',
        why: error instanceof CheckFailure ? error.message : `unexpected: ${unwrapFault(error).message}`,
      };
    } finally {
      clearTimeout(timer);
    }
  }
}
