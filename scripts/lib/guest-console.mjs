import { noCounts, parseTap, sum } from './results.mjs';

/**
 * Counts of one failure of the run itself.
 * @param {string} problem
 */
export const lost = (problem) => ({ ...noCounts(), failed: 1, problems: [problem] });

/**
 * Reads the console of the guest that test/kernel boots: the TAP of each program, and one check for its kernel.
 * @param {string} console
 * @param {readonly string[]} programs What has to have run, in its order.
 */
export function parseGuestConsole(console, programs) {
  const lines = console.replaceAll('\r', '').split('\n');
  let total = noCounts();
  for (const name of programs) {
    const begin = lines.indexOf(`towline: program ${name}`);
    const length = begin < 0 ? -1 : lines.slice(begin).findIndex((line) => line.startsWith('towline: exit '));
    if (length < 0) {
      total = sum(total, lost(`${name} did not come to its end`));
      continue;
    }
    const code = Number(lines[begin + length]?.slice('towline: exit '.length));
    total = sum(total, parseTap(lines.slice(begin, begin + length).join('\n'), code, name));
  }
  const has = (/** @type {string} */ what) => lines.includes(`towline: ${what}`);
  if (has('kernel complained')) return sum(total, lost('the kernel complained, see its log above'));
  if (!has('kernel quiet') || !has('complaints are found') || !has('done'))
    return sum(total, lost('the guest did not come to its end'));
  return sum(total, { ...noCounts(), passed: 1 });
}
