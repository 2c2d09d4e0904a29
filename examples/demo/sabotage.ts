/**
 * What can be broken on purpose, each at one named seam. The witness knows of none of it.
 *
 * - `skip-dirty-page`: page sender: leaves out one dirty page of the last pass.
 * - `skip-device-dirty`: dirty source of the function: what it wrote by DMA to one page is not reported.
 * - `two-owners`: release: the source lets the function and its tenant run again after the commit.
 * - `lose-completion`: destination's controller: executes a write and never tells.
 * - `replay-write`: destination's controller: executes a write twice.
 * - `corrupt-stream`: link: one bit is flipped on its way.
 * - `cut-stream`: link: it breaks in the middle.
 * - `drop-last-state`: state sender: leaves out the last chunk of device state.
 */
export const SABOTAGES = [
  'skip-dirty-page',
  'skip-device-dirty',
  'two-owners',
  'lose-completion',
  'replay-write',
  'corrupt-stream',
  'cut-stream',
  'drop-last-state',
] as const;

/** See {@link SABOTAGES}. */
export type Sabotage = (typeof SABOTAGES)[number];

/** Whether `name` is one of them. */
export function isSabotage(name: string): name is Sabotage {
  return (SABOTAGES as readonly string[]).includes(name);
}
