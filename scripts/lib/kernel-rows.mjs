import { noCounts, sum } from './results.mjs';

/**
 * @typedef {import('./results.mjs').Counts} Counts
 * @typedef {object} Row
 * @property {string} path
 * @property {string} kernel
 * @property {string} oracle
 * @property {Counts} counts
 * @property {readonly { guest: string, lines: readonly string[] }[]} [consoles] What the guests said of it, where it failed.
 */

/** Counts of all rows; what they tell is told with the row. @param {readonly Row[]} rows */
export const total = (rows) =>
  rows.reduce((all, { path, kernel, counts }) => {
    const tell = (/** @type {string} */ text) => `${path} (${kernel}): ${text}`;
    return sum(all, { ...counts, problems: counts.problems.map(tell), skips: counts.skips.map(tell) });
  }, noCounts());

/** Why something failed or was skipped, in a line; '' where nothing did. @param {Counts} counts */
const why = ({ problems, skips }) => [...problems, ...skips].join('; ').replaceAll(/\s+/g, ' ');

/** One line of JSON. @param {Row} row */
export const jsonLine = ({ path, kernel, oracle, counts }) =>
  `${JSON.stringify({ path, kernel, oracle, passed: counts.passed, failed: counts.failed, skipped: counts.skipped, why: why(counts) })}\n`;

/** The rows in columns. @param {readonly Row[]} rows */
export function table(rows) {
  const cells = rows.map(({ path, kernel, oracle, counts }) => [
    path,
    kernel,
    oracle,
    String(counts.passed),
    String(counts.failed),
    String(counts.skipped),
  ]);
  const head = ['path', 'kernel', 'oracle', 'passed', 'failed', 'skipped'];
  const widths = head.map((_, n) => Math.max(...[head, ...cells].map((row) => row[n]?.length ?? 0)));
  const line = (/** @type {string[]} */ row) =>
    row
      .map((cell, n) => (n < 3 ? cell.padEnd(widths[n] ?? 0) : cell.padStart(widths[n] ?? 0)))
      .join('  ')
      .trimEnd();
  return `${[head, ...cells].map(line).join('\n')}\n`;
}

/**
 * What the guests said of the rows that failed. Every line of theirs is set in, so that none looks like one of the script's own.
 * @param {readonly Row[]} rows
 */
export const failures = (rows) =>
  rows
    .filter(({ counts }) => counts.failed > 0)
    .flatMap(({ path, kernel, counts, consoles = [] }) => [
      `\n==== failed: ${path} (${kernel})\n`,
      ...counts.problems.map((problem) => `  ${problem.replaceAll('\n', '\n  ')}\n`),
      ...consoles.flatMap(({ guest, lines }) => [`  ---- ${guest}\n`, ...lines.map((line) => `  | ${line}\n`)]),
    ])
    .join('');
