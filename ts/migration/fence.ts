import { TowlineError } from '../errors.js';
import type { NativeFence } from '../native/binding.js';
import { JsBridge } from '../native/bridge.js';

/** Which side of a session. */
export type Role = 'source' | 'destination';

/**
 * One durable fact of a session. Epochs are whole numbers up to 2^53 - 1.
 *
 * - `opened`: the session exists, with its functions and its epoch, and with the path of its file where it is a checkpoint.
 * - `intent`: source: COMMIT counts as sent from here on.
 * - `committed`: destination: it owns the functions.
 * - `refused`: destination: this epoch can never commit.
 * - `released`: source: the destination has committed; the functions here are nobody's.
 * - `aborted`: source: it keeps the functions; destination: this epoch can never commit.
 * - `declared-dead`: source: a person declared that the destination stays dead, and took the functions back.
 */
export type FenceRecord =
  | { record: 'opened'; session: string; role: Role; functions: string[]; epoch: number; file?: string }
  | { record: 'intent' | 'committed'; epoch: number }
  | { record: 'refused'; epoch: number; reason: string }
  | { record: 'released' }
  | { record: 'aborted' | 'declared-dead'; reason: string };

/**
 * Durable ownership. The default is a {@link Journal} on each side; an outside one (a lease in a coordination service, say)
 * implements the same. The rules of which record may follow which are checked before `append` is called; `append` has to
 * make comparing and setting one step.
 */
export interface Fence {
  /** The highest epoch seen for any of `functions` (UUIDs), 0 where there is none. */
  highestEpoch(functions: readonly string[]): Promise<number>;
  /**
   * Makes `record` durable as number `expected` (from 0) of this side of the session, or rejects with `ERR_TOWLINE_FENCED` where
   * another is there already, or where an `opened` record's epoch does not exceed every epoch seen. After any other
   * rejection it is not known whether the record is durable.
   */
  append(session: string, role: Role, record: FenceRecord, expected: number): Promise<void>;
  /** All records of one side of a session, in order. */
  records(session: string, role: Role): Promise<FenceRecord[]>;
  /** All sessions, with the side taken in each. */
  sessions(): Promise<{ session: string; role: Role }[]>;
}

/** Lets native sessions use a fence written in TypeScript. */
export function bridgeFence(fence: Fence): { native: NativeFence; close(): void } {
  const bridge = new JsBridge(async (method, json) => {
    const request = json as { session: string; role: Role; record: FenceRecord; expected: number; functions: string[] };
    switch (method) {
      case 'highestEpoch':
        return { json: await fence.highestEpoch(request.functions) };
      case 'append':
        await fence.append(request.session, request.role, request.record, request.expected);
        return {};
      case 'records':
        return { json: await fence.records(request.session, request.role) };
      case 'sessions':
        return { json: await fence.sessions() };
      default:
        throw new TowlineError('ERR_TOWLINE_INTERNAL', `a fence has no method ${method}`);
    }
  });
  return { native: bridge.native.fence(), close: () => bridge.close() };
}

/** Errors after which it can't be told whether the commit is durable. */
export const UNTOLD: ReadonlySet<string> = new Set([
  'ERR_TOWLINE_JOURNAL',
  'ERR_TOWLINE_JOURNAL_DAMAGED',
  'ERR_TOWLINE_FENCE',
]);
