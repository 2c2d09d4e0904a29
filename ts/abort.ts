/**
 * Cancellation: everything that waits takes `{ signal }` last, and rejects with `ERR_TOWLINE_ABORTED` once it fires.
 */
import { TowlineError } from './errors.js';

/** The last argument of everything that waits. */
export interface WaitOptions {
  /** Cancels the call; its reason becomes the `cause` of the error. */
  signal?: AbortSignal | undefined;
}

/** The error of a fired signal; its `cause` is `signal.reason`, its `name` is `AbortError`. */
export function abortError(signal: AbortSignal): TowlineError {
  const reason: unknown = signal.reason;
  if (reason instanceof TowlineError && reason.code === 'ERR_TOWLINE_ABORTED') return reason;
  const why = reason instanceof Error ? reason.message : typeof reason === 'string' ? reason : 'cancelled';
  return new TowlineError('ERR_TOWLINE_ABORTED', why, { cause: reason });
}

/** Throws {@link abortError} where `signal` has fired. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) throw abortError(signal);
}

/**
 * Waits for `work`, or for `signal`, whichever is first. `work` itself goes on where it can't be cancelled: `onAbort` is
 * the place to tell it, and its late outcome is dropped.
 */
export async function withSignal<T>(
  work: Promise<T>,
  signal: AbortSignal | undefined,
  onAbort?: () => void,
): Promise<T> {
  if (signal === undefined) return work;
  let listener: (() => void) | undefined;
  const fired = new Promise<never>((_, reject) => {
    listener = () => {
      onAbort?.();
      reject(abortError(signal));
    };
    if (signal.aborted) listener();
    else signal.addEventListener('abort', listener, { once: true });
  });
  // The loser of the race may still reject; nobody is left to hear it.
  work.catch(() => undefined);
  try {
    return await Promise.race([work, fired]);
  } finally {
    if (listener !== undefined) signal.removeEventListener('abort', listener);
  }
}
