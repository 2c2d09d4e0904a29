/**
 * Exit codes of the command line, documented and stable.
 *
 * | code | meaning |
 * |---|---|
 * | 0 | done |
 * | 1 | failed; what was under way was undone where that was possible |
 * | 2 | wrong usage: unknown command, option or value |
 * | 3 | refused: the destination does not fit, the function can't be migrated, the exposure does not exist |
 * | 4 | in doubt: run `towline recover` |
 * | 5 | nobody serves, or there is no such function |
 * | 130 | interrupted; what was under way was undone |
 */
import { isTowlineError, type TowlineErrorCode } from '../errors.js';

/** See the file's comment. */
export const EXIT = { done: 0, failed: 1, usage: 2, refused: 3, inDoubt: 4, notFound: 5, interrupted: 130 } as const;

/** An exit code. */
export type ExitCode = (typeof EXIT)[keyof typeof EXIT];

const byCode: Partial<Record<TowlineErrorCode, ExitCode>> = {
  ERR_TOWLINE_INVALID_ARGUMENT: EXIT.usage,
  ERR_TOWLINE_ADDRESS: EXIT.usage,
  ERR_TOWLINE_CONFIG: EXIT.usage,
  ERR_TOWLINE_MISMATCH: EXIT.refused,
  ERR_TOWLINE_REFUSED: EXIT.refused,
  ERR_TOWLINE_COMMIT_REFUSED: EXIT.refused,
  ERR_TOWLINE_FENCED: EXIT.refused,
  ERR_TOWLINE_EXPOSURE: EXIT.refused,
  ERR_TOWLINE_UNSUPPORTED: EXIT.refused,
  ERR_TOWLINE_BUSY: EXIT.refused,
  ERR_TOWLINE_EXISTS: EXIT.refused,
  ERR_TOWLINE_IN_DOUBT: EXIT.inDoubt,
  ERR_TOWLINE_NOT_FOUND: EXIT.notFound,
  ERR_TOWLINE_GONE: EXIT.notFound,
  ERR_TOWLINE_ABORTED: EXIT.interrupted,
};

/** The exit code of an error; a rollback exits as what caused it. */
export function exitCodeOf(error: unknown): ExitCode {
  if (!isTowlineError(error)) return EXIT.failed;
  if (error.code === 'ERR_TOWLINE_ROLLED_BACK') {
    const code = error.cause === undefined ? EXIT.failed : exitCodeOf(error.cause);
    // A link that nobody answered is a failure of the migration, not a missing function.
    return code === EXIT.notFound ? EXIT.failed : code;
  }
  return byCode[error.code] ?? EXIT.failed;
}
