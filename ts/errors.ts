/**
 * The one error class of towline, and the ways into it: from native faults, from abort signals, from system calls.
 */
import { errorCodes, isErrorCode, type TowlineErrorCode } from './error-codes.js';
import type { NativeFault } from './native/binding.js';

export { errorCodes, isErrorCode, type TowlineErrorCode } from './error-codes.js';

/** What a {@link TowlineError} may carry besides its code and message. */
export interface TowlineErrorFields {
  /** `errno` of the system call that failed, positive. */
  errno?: number | undefined;
  /** The system call that failed. */
  syscall?: string | undefined;
  /** UUID or name of the function it is about. */
  function?: string | undefined;
  /** The state that the function was in. */
  state?: string | undefined;
  /** NVMe status of the command that failed: SCT << 8 | SC (NVMe Base 2.1, status code type and status code). */
  nvmeStatus?: number | undefined;
  /** What led to it. */
  cause?: unknown;
  /** More, by code: `mismatches` for `ERR_TOWLINE_MISMATCH`, and so on. */
  details?: unknown;
}

/** Every error that towline throws. Tell them apart by `code`, never by `message`. */
export class TowlineError extends Error {
  /** Stable; see {@link errorCodes}. */
  readonly code: TowlineErrorCode;
  /** `errno` of the system call that failed, positive. */
  readonly errno: number | undefined;
  /** The system call that failed. */
  readonly syscall: string | undefined;
  /** UUID or name of the function it is about. */
  readonly function: string | undefined;
  /** The state that the function was in. */
  readonly state: string | undefined;
  /** NVMe status: SCT << 8 | SC. */
  readonly nvmeStatus: number | undefined;
  /** More, by code. */
  readonly details: unknown;

  constructor(code: TowlineErrorCode, message: string, fields: TowlineErrorFields = {}) {
    super(message, 'cause' in fields && fields.cause !== undefined ? { cause: fields.cause } : undefined);
    // AbortError is the name by which the platform's own code tells cancellation from failure.
    this.name = code === 'ERR_TOWLINE_ABORTED' ? 'AbortError' : 'TowlineError';
    this.code = code;
    this.errno = fields.errno;
    this.syscall = fields.syscall;
    this.function = fields.function;
    this.state = fields.state;
    this.nvmeStatus = fields.nvmeStatus;
    this.details = fields.details;
  }

  /** What to do about it, in one sentence. */
  get mend(): string {
    return errorCodes[this.code];
  }

  /** A plain object for JSON: what is missing is left out. The stack is not in it; causes are. */
  toJSON(): TowlineErrorJson {
    const json: TowlineErrorJson = { code: this.code, message: this.message, mend: this.mend };
    for (const key of ['errno', 'syscall', 'function', 'state', 'nvmeStatus', 'details'] as const) {
      if (this[key] !== undefined) Object.assign(json, { [key]: this[key] });
    }
    if (this.cause instanceof TowlineError) json.cause = this.cause.toJSON();
    else if (this.cause instanceof Error) json.cause = { message: this.cause.message };
    return json;
  }
}

/** A {@link TowlineError} as JSON; the shape that `--json` prints and `towline serve` sends. */
export interface TowlineErrorJson {
  code: TowlineErrorCode;
  message: string;
  mend?: string;
  errno?: number;
  syscall?: string;
  function?: string;
  state?: string;
  nvmeStatus?: number;
  details?: unknown;
  cause?: TowlineErrorJson | { message: string };
}

/** Whether `error` is a {@link TowlineError}, of the code `code` where one is given. */
export function isTowlineError(error: unknown, code?: TowlineErrorCode): error is TowlineError {
  return error instanceof TowlineError && (code === undefined || error.code === code);
}

/** crates/engine says cancelled; to whoever holds an `AbortSignal` it is the abort that was asked for. */
const nativeSynonyms: Readonly<Record<string, TowlineErrorCode>> = { ERR_TOWLINE_CANCELLED: 'ERR_TOWLINE_ABORTED' };

/** The longest native message that is looked at. */
const MAX_FAULT_CHARS = 1 << 20;

function parseFault(message: string): NativeFault | undefined {
  if (!message.startsWith('{') || message.length > MAX_FAULT_CHARS) return undefined;
  try {
    const value: unknown = JSON.parse(message);
    if (typeof value !== 'object' || value === null) return undefined;
    const fault = value as Partial<NativeFault>;
    return typeof fault.code === 'string' && typeof fault.message === 'string' ? (fault as NativeFault) : undefined;
  } catch {
    return undefined;
  }
}

/**
 * Turns whatever native code threw into a {@link TowlineError}. A `TowlineError` comes back as it is; an unknown native
 * code becomes `ERR_TOWLINE_INTERNAL` with the code in `details.nativeCode`.
 *
 * @param fields - Added where the fault itself does not say.
 */
export function unwrapFault(thrown: unknown, fields: TowlineErrorFields = {}): TowlineError {
  if (thrown instanceof TowlineError) return thrown;
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  const fault = parseFault(message);
  if (fault === undefined) return fromSystemError(thrown, message, fields);
  const code = Object.hasOwn(nativeSynonyms, fault.code) ? nativeSynonyms[fault.code] : fault.code;
  const known = isErrorCode(code);
  return new TowlineError(known ? code : 'ERR_TOWLINE_INTERNAL', fault.message, {
    errno: fault.errno ?? fields.errno,
    syscall: fault.syscall ?? fields.syscall,
    nvmeStatus: fault.nvmeStatus ?? fields.nvmeStatus,
    state: fault.state ?? fields.state,
    function: fields.function,
    cause: fields.cause,
    details: known ? (fault.details ?? fields.details) : { nativeCode: fault.code, details: fault.details },
  });
}

/** Node's own errors (`ENOENT`, `ECONNREFUSED`) keep their errno and system call. */
function fromSystemError(thrown: unknown, message: string, fields: TowlineErrorFields): TowlineError {
  const system = thrown as { errno?: unknown; syscall?: unknown; code?: unknown };
  if (thrown instanceof Error && typeof system.errno === 'number') {
    const code: TowlineErrorCode =
      system.code === 'EACCES' || system.code === 'EPERM' ? 'ERR_TOWLINE_PERMISSION' : 'ERR_TOWLINE_SYSTEM';
    return new TowlineError(code, message, {
      ...fields,
      errno: Math.abs(system.errno),
      syscall: typeof system.syscall === 'string' ? system.syscall : fields.syscall,
      cause: thrown,
    });
  }
  return new TowlineError('ERR_TOWLINE_INTERNAL', message, { ...fields, cause: thrown });
}

/** A {@link TowlineError} out of its JSON, as a peer sent it: nothing in it is trusted beyond its type. */
export function errorFromJson(value: unknown): TowlineError {
  const json = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>;
  const number = (key: string): number | undefined =>
    Number.isSafeInteger(json[key]) ? (json[key] as number) : undefined;
  const text = (key: string): string | undefined => (typeof json[key] === 'string' ? (json[key] as string) : undefined);
  return new TowlineError(
    isErrorCode(json['code']) ? json['code'] : 'ERR_TOWLINE_INTERNAL',
    text('message') ?? 'the peer failed without saying why',
    {
      errno: number('errno'),
      syscall: text('syscall'),
      function: text('function'),
      state: text('state'),
      nvmeStatus: number('nvmeStatus'),
      details: json['details'],
      cause: json['cause'] === undefined ? undefined : errorFromJson(json['cause']),
    },
  );
}

/** Awaits a native call and rejects with a {@link TowlineError}. */
export async function native<T>(call: () => T | Promise<T>, fields?: TowlineErrorFields): Promise<T> {
  try {
    return await call();
  } catch (error) {
    throw unwrapFault(error, fields);
  }
}

/** As {@link native}, for a call that does not wait. */
export function nativeSync<T>(call: () => T, fields?: TowlineErrorFields): T {
  try {
    return call();
  } catch (error) {
    throw unwrapFault(error, fields);
  }
}
