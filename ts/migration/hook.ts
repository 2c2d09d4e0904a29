import { TowlineError } from '../errors.js';

/** Calls one of the caller's hooks; what it throws is told as such. */
export async function hook<T>(name: string, call: () => T | Promise<T>): Promise<T> {
  try {
    return await call();
  } catch (cause) {
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new TowlineError(
      name === 'verify' ? 'ERR_TOWLINE_VERIFY' : 'ERR_TOWLINE_HOOK',
      `the ${name} hook failed: ${why}`,
      { cause },
    );
  }
}
