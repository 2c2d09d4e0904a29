import { TowlineError } from '../errors.js';
import { stateFromNumber } from '../function/state.js';
import type { FunctionOutcome, SessionOptions } from './session-options.js';

/** The part of a native session's configuration that both sides have; memory is always the caller's. */
export function termsOf(options: SessionOptions, duplex: boolean): Record<string, unknown> {
  const commit = options.commit ?? 'session';
  if (!duplex && commit === 'session') {
    throw new TowlineError(
      'ERR_TOWLINE_INVALID_ARGUMENT',
      "over a one-way stream no commit can be answered: the caller has to carry it (commit: 'caller')",
    );
  }
  return { terms: { memory: 'caller', commit, duplex }, idleTimeoutMs: options.idleTimeoutMs ?? 0 };
}

/** What native code tells of functions that were given up. */
export function outcomes(json: string): FunctionOutcome[] {
  const list = JSON.parse(json) as {
    function: string;
    state: number | null;
    wasReset: boolean;
    error: string | null;
  }[];
  return list.map((o) => ({
    function: o.function,
    wasReset: o.wasReset,
    ...(o.state === null ? {} : { state: stateFromNumber(o.state) }),
    ...(o.error === null ? {} : { error: o.error }),
  }));
}
