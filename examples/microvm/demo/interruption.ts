/** Migrations that do not come to their end: where each is broken off. Afterwards the machine runs on at the source, nothing lost. */

import type { Mode } from './protocol.js';

/**
 * - `cancel`: the source's caller aborts in the middle of the first pass.
 * - `refuse-at-end`: the source finds something wrong once everything is loaded.
 * - `refuse-sections`: the destination can't restore a section.
 * - `cut`: the connection breaks.
 */
const INTERRUPTIONS = ['cancel', 'refuse-at-end', 'refuse-sections', 'cut'] as const;

/** Those that a mode has: where no memory moves there is no pass to be cancelled or cut, and what moves into a file is gone before it is restored. */
export function interruptions(mode: Mode): readonly Interruption[] {
  if (mode === 'same-host') return ['refuse-at-end', 'refuse-sections'];
  return mode === 'checkpoint' ? ['cancel', 'refuse-at-end'] : INTERRUPTIONS;
}

/** See {@link INTERRUPTIONS}. */
export type Interruption = (typeof INTERRUPTIONS)[number];
