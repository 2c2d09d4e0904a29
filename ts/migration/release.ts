import { unwrapFault, type TowlineErrorJson } from '../errors.js';

/** A function that was migrated away and could not be given back here: it is stopped, and nobody's. */
export interface ReleaseFailure {
  uuid: string;
  name: string;
  error: TowlineErrorJson;
}

/** Releases each by `release`, whatever becomes of the others; gives those that failed. */
export async function releaseEach<T extends { readonly uuid: string; readonly name: string }>(
  functions: readonly T[],
  release: (fn: T) => Promise<void> | undefined,
): Promise<ReleaseFailure[]> {
  const failures: ReleaseFailure[] = [];
  for (const fn of functions) {
    try {
      await release(fn);
    } catch (error) {
      failures.push({ uuid: fn.uuid, name: fn.name, error: unwrapFault(error).toJSON() });
    }
  }
  return failures;
}
