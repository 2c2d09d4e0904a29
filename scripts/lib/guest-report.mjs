// What a person who wasn't there gets to see of guests: a line as each suite begins and ends, and after the table, for each row that
// failed, the lines that say why.
import { linesOf, marker } from './guest-console.mjs';

/** The most lines of each kind that are shown of one suite in one guest. */
const most = 40;
/** The lines before a failed test that belong to it: a Rust program says why before it says that. */
const before = 12;

const point = /^ *(not )?ok \d+/;

/** @param {readonly string[]} lines */
const first = (lines) =>
  lines.length <= most ? lines : [...lines.slice(0, most), `… and ${lines.length - most} lines more`];

/** The last lines that aren't blank. @param {readonly string[]} lines */
const last = (lines) => lines.filter((line) => line.trim() !== '').slice(-most);

/**
 * Failed tests, subtests too, each with its diagnostics: node:test's follow it, those of a Rust program precede it.
 * @param {readonly string[]} lines
 */
function failedTests(lines) {
  /** @type {string[]} */
  const failed = [];
  let said = 0;
  for (const [n, line] of lines.entries()) {
    const match = point.exec(line);
    if (!match) continue;
    const end = lines[n + 1]?.trim() === '---' ? lines.findIndex((other, at) => at > n && other.trim() === '...') : -1;
    if (match[1] !== undefined) {
      if (end < 0) failed.push(...lines.slice(Math.max(said, n - before), n).filter((other) => other.trim() !== ''));
      failed.push(line);
      const diagnostics = lines.slice(n + 2, Math.max(end, 0));
      failed.push(...diagnostics.filter((other) => !/^ *(duration_ms:|.*\(?node:internal\/)/.test(other)));
    }
    said = end < 0 ? n + 1 : end + 1;
  }
  return failed;
}

/**
 * Why a suite failed in a guest: its failed tests, what the kernel complained about, and the last that was printed.
 * @param {string} console
 * @param {string} name
 */
export function failureLines(console, name) {
  const lines = linesOf(console);
  const begin = lines.indexOf(`towline: suite ${name}`);
  if (begin < 0) return endLines(console);
  const next = (/** @type {number} */ from) => {
    const at = lines.findIndex((line, n) => n > from && marker.test(line));
    return at < 0 ? lines.length : at;
  };
  const exit = next(begin);
  const complaints = lines[exit]?.startsWith('towline: exit') === true ? lines.slice(exit + 1, next(exit)) : [];
  const end = last(lines.slice(begin + 1, exit));
  return [...first(failedTests(lines.slice(begin + 1, exit))), ...first(complaints), '… its end:', ...end];
}

/** The last lines of a console. @param {string} console */
export const endLines = (console) => last(linesOf(console));

/**
 * Text that comes in pieces, line by line; blank ones are left out.
 * @param {(line: string) => void} tell
 */
export function lineByLine(tell) {
  let rest = '';
  return (/** @type {string} */ text) => {
    const lines = (rest + text.replaceAll('\r', '')).split('\n');
    rest = lines.pop() ?? '';
    for (const line of lines) if (line.trim() !== '') tell(line);
  };
}

/**
 * Tells of a console's lines only what a run's log wants: suites that begin and end, with seconds, and tests that fail.
 * @param {(line: string) => void} tell
 * @param {() => number} [now] Milliseconds.
 */
export function progress(tell, now = () => performance.now()) {
  let start = now();
  let suite = '';
  const seconds = () => ((now() - start) / 1000).toFixed(0);
  return (/** @type {string} */ line) => {
    const begin = /^towline: suite (.+)$/.exec(line)?.[1];
    const exit = /^towline: exit (\d+)$/.exec(line)?.[1];
    if (line === 'towline: boot') tell(`booted after ${seconds()} s`);
    else if (begin !== undefined) {
      start = now();
      suite = begin;
      tell(`${suite} begins`);
    } else if (exit !== undefined) tell(`${suite} ended with ${exit} after ${seconds()} s`);
    else if (/^not ok \d|^towline: (?:setup failed|kernel complained)/.test(line)) tell(line);
  };
}
