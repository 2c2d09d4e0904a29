/**
 * Faults and rates of the embedded subsystem: a rehearsal of what a real device may do on a bad day.
 */
import { kSubsystem, type EmbeddedControllingFunction } from '../drivers/embedded.js';
import { nativeSync, TowlineError } from '../errors.js';
import type { EmbeddedFault } from '../native/binding.js';

/** What happens to a command that a {@link Fault} matches. */
export type FaultAction = EmbeddedFault['action'];

/**
 * A rule: the `nth` matching command from now (1 where left out), and `count` from then on (1 where left out, 0 for all that
 * follow), meet `action`. What is left out matches everything.
 */
export type Fault = EmbeddedFault;

/** How fast and how promptly device state is saved and loaded, and I/O is done. What is left out is as fast as it can be. */
export interface Rates {
  /** Bytes a second at which state is saved. */
  saveBytesPerSecond?: number | undefined;
  /** Bytes a second at which state is loaded. */
  loadBytesPerSecond?: number | undefined;
  /** Milliseconds before the first byte is saved. */
  saveLatencyMs?: number | undefined;
  /** Milliseconds before loading is done. */
  loadLatencyMs?: number | undefined;
  /** Milliseconds that each I/O command takes in addition. */
  ioLatencyMs?: number | undefined;
}

/** The most rules at once. */
const MAX_FAULTS = 1024;

/** Replaces all rules; none are left by an empty list. */
export function setFaults(controlling: EmbeddedControllingFunction, faults: readonly Fault[]): void {
  if (faults.length > MAX_FAULTS) {
    throw new TowlineError('ERR_TOWLINE_LIMIT', `${faults.length} faults; at most ${MAX_FAULTS}`);
  }
  nativeSync(() => controlling[kSubsystem].setFaults(JSON.stringify(faults)));
}

/** Replaces all rates; everything left out is unlimited again. */
export function setRates(controlling: EmbeddedControllingFunction, rates: Rates): void {
  for (const [name, value] of Object.entries(rates)) {
    if (value !== undefined && !(Number.isFinite(value) && value >= 0)) {
      throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `${name} is ${String(value)}; it has to be 0 or more`);
    }
  }
  nativeSync(() => controlling[kSubsystem].setRates(JSON.stringify(rates)));
}
