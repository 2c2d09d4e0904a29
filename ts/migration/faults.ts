import { nativeSync } from '../errors.js';
import { binding } from '../native/api.js';

/** Damage on purpose at named seams, for rehearsals and for checking the checks. Off unless given. */
export interface FaultPoints {
  /** Kills this process (SIGKILL) when it reaches the point; the points are listed in docs/guides/crash-safety.md. */
  killAt?: string;
  /** Fails the step that reaches this point, once, as if something had gone wrong right there. */
  failAt?: string;
  /** Leaves out pages of this range in the final pass. */
  skipFinalPages?: { gpa: bigint; len: bigint };
  /** Leaves out what device dirty sources report about this range. */
  skipDeviceDirty?: { gpa: bigint; len: bigint };
  /** Leaves out the last chunk of device state. */
  dropLastState?: boolean;
  /** Lets the source's functions run again after the destination has committed: two owners. */
  runAfterRelease?: boolean;
}

/**
 * Every point at which a crash or a failure can be rehearsed, in the order in which a migration reaches them on each side:
 * `source:…` is given to `migrate`, `destination:…` to `receive`. docs/guides/crash-safety.md says when each is reached.
 */
export function faultPoints(): readonly string[] {
  return nativeSync(() => binding().faultPoints());
}

/** Those that only `checkpoint` (`checkpoint:…`) or `restore` (`restore:…`) passes; docs/guides/checkpoints.md says when. */
export function checkpointPoints(): readonly string[] {
  return nativeSync(() => binding().checkpointPoints());
}

/** As native sessions take it. */
export function faultsJson(faults: FaultPoints | undefined): unknown {
  if (faults === undefined) return null;
  const range = (r: { gpa: bigint; len: bigint } | undefined) =>
    r ? { gpa: r.gpa.toString(), len: r.len.toString() } : null;
  return {
    killAt: faults.killAt ?? null,
    failAt: faults.failAt ?? null,
    skipFinalPages: range(faults.skipFinalPages),
    skipDeviceDirty: range(faults.skipDeviceDirty),
    dropLastState: faults.dropLastState ?? false,
    runAfterRelease: faults.runAfterRelease ?? false,
  };
}
