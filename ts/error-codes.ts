/**
 * The stable codes of every error, each with what to do about it.
 */

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
  /** A state channel refused during a migration. `details`, `errno` and `nvmeStatus` tell what it said. */
  ERR_TOWLINE_CHANNEL: 'the device refused to give or take its state: look at nvmeStatus, errno and the message',
  /** A dirty source refused during a migration. */
  ERR_TOWLINE_DIRTY_SOURCE: 'writes of this function could not be tracked: look at nvmeStatus, errno and the message',
  /** An access to guest memory lies outside of its registered ranges. */
  ERR_TOWLINE_MEMORY: 'register the range with the guest memory, or mend the address',
  /** Calls of a session in the wrong order. */
  ERR_TOWLINE_MISUSE: 'call the steps in the order that the message names',
  /** A configuration that can not work. */
  ERR_TOWLINE_CONFIG: 'mend the option that the message names',
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
  /** The destination made durable that it never commits this epoch. The source still owns the functions. */
  ERR_TOWLINE_COMMIT_REFUSED: 'the source still owns the functions: migrate again',
  /** The peer gave up; its reason is in the message. */
  ERR_TOWLINE_PEER_ABORTED: 'the other side gave up: the message holds its reason',
  /** The migration failed before commit and was undone; the source runs on. The reason is in `cause`. */
  ERR_TOWLINE_ROLLED_BACK: 'the function runs on at the source: mend the cause and migrate again',
  /** The link to the peer broke or could not be made. */
  ERR_TOWLINE_LINK: 'check that the peer runs and can be reached at this address',
  /** The peer closed the link. */
  ERR_TOWLINE_LINK_CLOSED: 'the peer closed the link: see its own report for the reason',
  /** Nothing moved over the link for longer than the idle limit. */
  ERR_TOWLINE_LINK_IDLE: 'the peer hangs or the network is gone: look at both',
  /** Nobody connected or answered in time. */
  ERR_TOWLINE_LINK_TIMEOUT: 'check that the peer runs and can be reached at this address',
  /** An address is malformed, or is not allowed: plain TCP off loopback has to be allowed in so many words. */
  ERR_TOWLINE_ADDRESS: 'use tcp://HOST:PORT or unix:///PATH; plain TCP beyond loopback has to be allowed explicitly',
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
  /** Another process owns the journal. */
  ERR_TOWLINE_JOURNAL_OWNED: 'one journal has one owner: use the process that has it, or another directory',
  /** A whole record of the journal is damaged: who owns the functions can't be told from it. */
  ERR_TOWLINE_JOURNAL_DAMAGED: 'a person has to decide who owns the functions: see the other side and its journal',
  /** An outside fence can't be reached or said something unexpected. */
  ERR_TOWLINE_FENCE: 'mend the outside fence: nothing commits without it',
  /** The migration would not converge within its limits. `details` holds the forecast, and in `needs` what it would take. */
  ERR_TOWLINE_NOT_CONVERGING:
    'the guest dirties memory faster than the link carries it: raise the bandwidth or the downtime limit, or let the guest do less',
  /** A hook of the caller (pause, resume, restoreSections) threw. See `cause`. */
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
  /** A file can't be read or written. */
  ERR_TOWLINE_FILE: 'check the path and its permissions',
  /** A failure that a rehearsal asked for. */
  ERR_TOWLINE_REHEARSED: 'it was asked for: remove the rehearsed fault',
  /** A system call failed. See `errno` and `syscall`. */
  ERR_TOWLINE_SYSTEM: 'a system call failed: see errno and syscall',
  /** The native addon could not be loaded. */
  ERR_TOWLINE_NATIVE_LOAD: 'install the package for this platform, or build it: npm run build:native',
  /** A fault of a kind that this release does not know, or a defect of towline. Please report it. */
  ERR_TOWLINE_INTERNAL: 'a defect of towline: please report it with the whole message',
} as const;

/** The stable code of a {@link TowlineError}; see {@link errorCodes} for each one's meaning. */
export type TowlineErrorCode = keyof typeof errorCodes;

/** Whether `code` is one of {@link errorCodes}. */
export function isErrorCode(code: unknown): code is TowlineErrorCode {
  return typeof code === 'string' && Object.hasOwn(errorCodes, code);
}
