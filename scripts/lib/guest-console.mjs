// Reads the console of a guest (test/kernel/guest/inside). It is only believed when it is whole: a suite that does not come to its
// end, a kernel that complains and a guest that stops half-way are failures.
import { noCounts, parseTap, sum } from './results.mjs';

/**
 * Counts of one failure of the run itself.
 * @param {string} problem
 */
export const lost = (problem) => ({ ...noCounts(), failed: 1, problems: [problem] });

/** A message of the kernel, which can come in the middle of a line: without it the line is whole again. */
const kernelMessage = /^([^\n]*?)(?:<\d>)?\[ *\d+\.\d{6}\] [^\n]*\n/gm;

/**
 * A comment that quotes one is a program's, and ends where its line does.
 * @param {string} line
 * @param {string} before
 */
const withoutMessage = (line, before) => (before.startsWith('#') ? line : before);

/** What the guest's script prints around the suites; another line with our name comes from one of them. */
export const marker = /^towline: (?:suite|exit|kernel|complaints|done)\b/;

/** Without the kernel's messages. @param {string} console */
export const linesOf = (console) => console.replaceAll('\r', '').replaceAll(kernelMessage, withoutMessage).split('\n');

/** The last thing that was printed, for a message. @param {readonly string[]} lines */
const lastOf = (lines) => lines.findLast((line) => line.trim() !== '')?.trim() ?? 'nothing';

/** How far a guest came. @param {string} console */
export function reached(console) {
  const lines = linesOf(console);
  const setup = lines.filter((line) => line.startsWith('towline: setup failed: '));
  return { booted: lines.includes('towline: boot'), done: lines.includes('towline: done'), setup };
}

/**
 * The results of a guest: those of each suite, with one check for its kernel, and those of the boot itself.
 * @param {string} console
 * @param {readonly string[]} names The suites that have to have run, in their order.
 */
export function parseGuestConsole(console, names) {
  const lines = linesOf(console);
  /** @type {Map<string, import('./results.mjs').Counts>} */
  const suites = new Map();
  let from = 0;
  for (const name of names) {
    const begin = lines.indexOf(`towline: suite ${name}`, from);
    const exit = begin < 0 ? -1 : lines.findIndex((line, n) => n > begin && marker.test(line));
    const match = /^towline: exit (\d+)$/.exec(lines[exit] ?? '');
    if (begin < 0) suites.set(name, lost(`it was not begun; the console's end: ${lastOf(lines)}`));
    else if (!match) {
      const end = exit < 0 ? lines.length : exit;
      const partial = parseTap(lines.slice(begin, end).join('\n'), 1, name);
      partial.problems.unshift(`it did not come to its end; its last line: ${lastOf(lines.slice(begin, end))}`);
      suites.set(name, partial);
    } else {
      const code = Number(match[1]);
      const counts = parseTap(lines.slice(begin, exit).join('\n'), code, name);
      if (code === 124 || code === 137) counts.problems.unshift('it took too long');
      suites.set(name, sum(counts, kernelCounts(lines.slice(exit + 1))));
    }
    if (begin >= 0) from = exit < 0 ? lines.length : exit;
  }
  return { suites, boot: bootCounts(lines) };
}

/**
 * What the look through the kernel's log said.
 * @param {readonly string[]} lines Those that follow it.
 */
function kernelCounts(lines) {
  const verdict = lines.find((line) => marker.test(line));
  if (verdict === 'towline: kernel quiet') return { ...noCounts(), passed: 1 };
  if (verdict === 'towline: kernel complained')
    return lost(`the kernel complained: ${lines[0]?.replace(/^# /, '') ?? ''}`);
  return lost("the kernel's log was not looked through");
}

/** @param {readonly string[]} lines */
function bootCounts(lines) {
  let counts = noCounts();
  for (const line of lines) if (line.startsWith('towline: setup failed: ')) counts = sum(counts, lost(line.slice(9)));
  const boot = lines.indexOf('towline: boot');
  if (boot < 0) return sum(counts, lost(`the guest did not boot; the console's end: ${lastOf(lines)}`));
  counts = sum(counts, kernelCounts(lines.slice(boot + 1)));
  const has = (/** @type {string} */ what) => lines.includes(`towline: ${what}`);
  if (!has('done')) return sum(counts, lost(`the guest did not come to its end; its last line: ${lastOf(lines)}`));
  return sum(counts, has('complaints are found') ? { ...noCounts(), passed: 1 } : lost('complaints are not found'));
}
