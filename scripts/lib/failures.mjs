// What of a suite's output explains its failures, short enough for the end of a log of which only the end may be kept.

/** Lines that are shown of one failure, of one suite, and where no failure can be made out. */
const MOST_OF_ONE = 40;
const MOST_OF_A_SUITE = 200;
const LAST = 40;

/** Where a failure's own lines begin: a failed point of TAP, what a failed test of cargo printed, a compiler's error. */
const begins = [/^not ok \d+/, /^---- .+ stdout ----$/, /^error(?:\[E\d+\])?: /, /^\S+\.ts\(\d+,\d+\): error /];
/** Where they end: the next result, the next test's output, or the list of names. */
const ends = /^(?:ok \d+|not ok \d+|1\.\.\d+$|---- .+ stdout ----$|failures:$|test result: |# Subtest: )/;

/**
 * The lines of `output` that belong to failures, each with what its runner said about it; the last lines where there are none.
 * @param {string} output stdout and stderr, in the order in which they came
 * @returns {string[]}
 */
export function failureLines(output) {
  const lines = output.replaceAll('\r', '').trimEnd().split('\n');
  /** @type {string[]} */
  const shown = [];
  let left = 0;
  for (const line of lines) {
    if (begins.some((pattern) => pattern.test(line))) left = MOST_OF_ONE;
    else if (ends.test(line)) left = 0;
    if (left === 0) continue;
    left -= 1;
    shown.push(left === 0 ? '…' : line);
    if (shown.length >= MOST_OF_A_SUITE) return [...shown, '…'];
  }
  return shown.length > 0 ? shown : lines.slice(-LAST);
}
