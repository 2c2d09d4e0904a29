/**
 * The one error class of towline, and the ways into it: from native faults, from abort signals, from system calls.
 */
import type { NativeFault } from './native/binding.js';

/**
 * Every error code, each with what to do about it. The keys are stable; the values are shown to people and may change.
 */
export const errorCodes = {
  /** The caller's `AbortSignal` fired. Nothing to mend: what was under way was undone. The reason is in `cause`. */
  ERR_TOWLINE_ABORTED: 'the caller cancelled; what was under way was undone',
  /** An argument has the wrong type, range or alignment. Mend the call. */
  ERR_TOWLINE_INVALID_ARGUMENT: 'mend the call: the message names the argument and its limits',
  /** The call does not fit the state of the function, or the arc does not exist. See `state`. */
  ERR_TOWLINE_STATE: 'bring the function into a state in which the call is allowed, or reset it',
  /** Device state that was written is truncated, foreign, corrupted or of another version. Reset, then send a whole state. */
  ERR_TOWLINE_BAD_STATE: 'the device state is not acceptable here: reset the function and send a whole, matching state',
  /** A length, count or index exceeds a cap. */
  ERR_TOWLINE_LIMIT: 'a length, count or index exceeds a cap: use a smaller one or raise the cap where it is an option',
  /** The device or its controlling function failed a command. See `nvmeStatus` or `errno`. */
  ERR_TOWLINE_DEVICE: 'the device failed a command: look at nvmeStatus or errno; explain() may tell more',
  /** The function, its controlling function, or the process that holds it is gone. */
  ERR_TOWLINE_GONE: 'the function or its holder is gone: list the functions, then recover',
  /** The capability does not exist on this function, driver or platform. */
  ERR_TOWLINE_UNSUPPORTED: 'not possible here: choose another way, explain() names it where there is one',
  /** The destination cannot take the function. Every mismatch is in `details.mismatches`. */
  ERR_TOWLINE_MISMATCH: 'the destination does not fit: mend what details.mismatches names, or choose another',
  /** The peer said no, for the reason in the message. */
  ERR_TOWLINE_REFUSED: 'the other side refused: the message holds its reason',
  /** COMMIT may have reached the destination and nobody knows yet. The source stays stopped. Run `recover`. */
  ERR_TOWLINE_IN_DOUBT: 'run recover on the source: it asks the destination who owns the function',
  /** The epoch is not the highest known any more: somebody else owns the function. */
  ERR_TOWLINE_FENCED: 'somebody else owns the function by now: do not resume it here',
  /** The migration failed before commit and was undone; the source runs on. The reason is in `cause`. */
  ERR_TOWLINE_ROLLED_BACK: 'the function runs on at the source: mend the cause and migrate again',
  /** The link to the peer broke or could not be made. */
  ERR_TOWLINE_LINK: 'check that the peer runs and can be reached at this address',
  /** The time limit passed. */
  ERR_TOWLINE_TIMEOUT: 'the time limit passed: raise it, or find out who does not answer',
  /** The peer sent what the protocol does not allow. */
  ERR_TOWLINE_PROTOCOL: 'the peer breaks the protocol: check that it is towline, and of a compatible version',
  /** A migration stream is truncated, reordered or corrupted. */
  ERR_TOWLINE_STREAM: 'the stream is damaged: get it again; towline inspect shows where',
  /** A migration stream has a version that this release does not read. */
  ERR_TOWLINE_STREAM_VERSION: 'let the writer write a version that this reader knows',
  /** The journal cannot be read or made durable. Nothing goes on without it. */
  ERR_TOWLINE_JOURNAL: 'make the journal directory writable and durable, then recover',
  /** The migration would not converge within its limits. `details` holds the forecast. */
  ERR_TOWLINE_NOT_CONVERGING: 'the guest dirties memory faster than the link carries it: raise the bandwidth or the downtime limit, or throttle',
  /** A hook of the caller (pause, resume, verify, throttle) threw. See `cause`. */
  ERR_TOWLINE_HOOK: 'a hook of the caller failed: see cause',
  /** The verify hook found the destination wrong. */
  ERR_TOWLINE_VERIFY: 'the destination was found wrong before commit: see details',
  /** No such function, controlling function, namespace, session or file. */
  ERR_TOWLINE_NOT_FOUND: 'no such thing: towline list shows what there is',
  /** It exists already. */
  ERR_TOWLINE_EXISTS: 'it exists already: use it, or release it first',
  /** Somebody uses the function. */
  ERR_TOWLINE_BUSY: 'stop whoever uses it first',
  /** The controlling function has no queues, interrupts or functions left. */
  ERR_TOWLINE_NO_RESOURCES: 'release a function, ask for less, or enlarge the pool of the controlling function',
  /** The exposure does not exist in this release or on this platform. */
  ERR_TOWLINE_EXPOSURE: "choose an exposure that works here; 'none' always does",
  /** A BAR policy has overlapping or impossible rules. Both are named in the message. */
  ERR_TOWLINE_POLICY: 'mend the BAR policy: the message names the rules in conflict',
  /** Permission is missing. */
  ERR_TOWLINE_PERMISSION: 'run with the right that the message names',
  /** The object was closed. */
  ERR_TOWLINE_CLOSED: 'it was closed: open it again',
  /** The function was lost with its holder, as in a power failure. */
  ERR_TOWLINE_LOST: 'the function was lost with its holder: provision it again, or recover on the other side',
  /** A system call failed. See `errno` and `syscall`. */
  ERR_TOWLINE_SYSTEM: 'a system call failed: see errno and syscall',
  /** The native addon could not be loaded. */
  ERR_TOWLINE_NATIVE_MISSING: 'install the package for this platform, or build it: npm run build:native',
  /** A fault of a kind that this release does not know, or a defect of towline. Please report it. */
  ERR_TOWLINE_INTERNAL: 'a defect of towline: please report it with the whole message',
} as const;

/** The stable code of a {@link TowlineError}; see {@link errorCodes} for each one's meaning. */
export type TowlineErrorCode = keyof typeof errorCodes;

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

/** Whether `code` is one of {@link errorCodes}. */
export function isErrorCode(code: unknown): code is TowlineErrorCode {
  return typeof code === 'string' && Object.hasOwn(errorCodes, code);
}

/** Whether `error` is a {@link TowlineError}, of the code `code` where one is given. */
export function isTowlineError(error: unknown, code?: TowlineErrorCode): error is TowlineError {
  return error instanceof TowlineError && (code === undefined || error.code === code);
}

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
  const known = isErrorCode(fault.code);
  return new TowlineError(known ? (fault.code as TowlineErrorCode) : 'ERR_TOWLINE_INTERNAL', fault.message, {
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
  const number = (key: string): number | undefined => (Number.isSafeInteger(json[key]) ? (json[key] as number) : undefined);
  const text = (key: string): string | undefined => (typeof json[key] === 'string' ? (json[key] as string) : undefined);
  return new TowlineError(isErrorCode(json['code']) ? json['code'] : 'ERR_TOWLINE_INTERNAL', text('message') ?? 'the peer failed without saying why', {
    errno: number('errno'),
    syscall: text('syscall'),
    function: text('function'),
    state: text('state'),
    nvmeStatus: number('nvmeStatus'),
    details: json['details'],
    cause: json['cause'] === undefined ? undefined : errorFromJson(json['cause']),
  });
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
