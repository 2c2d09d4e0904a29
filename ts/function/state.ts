/**
 * The VFIO v2 migration states by name, and their numbers in the kernel's interface (include/uapi/linux/vfio.h).
 */
import { TowlineError } from '../errors.js';

/** The states in the order of the kernel's numbers: the index is the number. */
export const deviceStates = [
  'error',
  'stop',
  'running',
  'stop-copy',
  'resuming',
  'running-p2p',
  'pre-copy',
  'pre-copy-p2p',
] as const;

/** A state of the VFIO v2 migration protocol. */
export type DeviceState = (typeof deviceStates)[number];

/** Which arcs exist; `VFIO_DEVICE_FEATURE_MIGRATION`. */
export interface MigrationFlags {
  /** `stop-copy` and `resuming` exist. Without it there is no migration. */
  readonly stopCopy: boolean;
  /** `running-p2p` exists: the function answers peers, and starts nothing itself. */
  readonly p2p: boolean;
  /** `pre-copy` exists: device state can be read while the function runs. */
  readonly preCopy: boolean;
}

/** The kernel's number of `state`. */
export function stateNumber(state: DeviceState): number {
  return deviceStates.indexOf(state);
}

/**
 * The state of a kernel number.
 * @throws TowlineError `ERR_TOWLINE_PROTOCOL` for a number that is none.
 */
export function stateFromNumber(number: number): DeviceState {
  const state = deviceStates[number];
  if (state === undefined) throw new TowlineError('ERR_TOWLINE_PROTOCOL', `${number} is no migration state (0 to 7)`);
  return state;
}

/** Flags as the kernel's bits: bit 0 STOP_COPY, 1 P2P, 2 PRE_COPY. */
export function flagBits(flags: MigrationFlags): number {
  return (flags.stopCopy ? 1 : 0) | (flags.p2p ? 2 : 0) | (flags.preCopy ? 4 : 0);
}

/** The flags of the kernel's bits; unknown bits are ignored. */
export function flagsFromBits(bits: number): MigrationFlags {
  return { stopCopy: (bits & 1) !== 0, p2p: (bits & 2) !== 0, preCopy: (bits & 4) !== 0 };
}
