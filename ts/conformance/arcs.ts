/**
 * Which states there are, and from which to which a channel has to find a way: the kernel's combined arcs
 * (drivers/vfio/vfio_main.c, `vfio_mig_get_next_state`).
 */
import type { DeviceState, MigrationFlags } from '../function/state.js';

/** The states that exist under `flags`, `error` left out. */
export function statesOf(flags: MigrationFlags): DeviceState[] {
  const states: DeviceState[] = ['stop', 'running'];
  if (flags.stopCopy) states.push('stop-copy', 'resuming');
  if (flags.p2p) states.push('running-p2p');
  if (flags.preCopy) states.push('pre-copy');
  if (flags.p2p && flags.preCopy) states.push('pre-copy-p2p');
  return states;
}

/** Whether `setState(to)` has to work in `from`. Pre-copy is entered from where the function runs, never from a stopped one. */
export function isReachable(flags: MigrationFlags, from: DeviceState, to: DeviceState): boolean {
  const states = statesOf(flags);
  if (!states.includes(from) || !states.includes(to)) return false;
  if (from === to) return true;
  // The kernel refuses what would start a pre-copy out of stop-copy: the states that were read are void by then.
  if (from === 'stop-copy' && (to === 'pre-copy' || to === 'pre-copy-p2p')) return false;
  return true;
}
