// Counts are only believed when they are whole: what a runner printed has to be complete and has to agree with how
// it exited. Whatever does not is counted as a failure, so that a crashed runner never looks like a short, good run.

/**
 * @typedef {object} Counts
 * @property {number} passed
 * @property {number} failed
 * @property {number} skipped
 * @property {string[]} problems Why something is counted as failed that no runner reported as such, and what failed.
 * @property {string[]} skips What was skipped, and why.
 */

/** @returns {Counts} */
export const noCounts = () => ({ passed: 0, failed: 0, skipped: 0, problems: [], skips: [] });

/**
 * @param {...Counts} all
 * @returns {Counts}
 */
export function sum(...all) {
  const total = noCounts();
  for (const counts of all) {
    total.passed += counts.passed;
    total.failed += counts.failed;
    total.skipped += counts.skipped;
    total.problems.push(...counts.problems);
    total.skips.push(...counts.skips);
  }
  return total;
}

/**
 * A failure of the run itself.
 * @param {Counts} counts
 * @param {string} problem
 */
function fail(counts, problem) {
  counts.failed += 1;
  counts.problems.push(problem);
}

/**
 * What must hold of every runner once its output has been read.
 * @param {Counts} counts
 * @param {string} name
 * @param {number} code
 */
function checkEnd(counts, name, code) {
  if (code !== 0 && counts.failed === 0) fail(counts, `${name} exited with ${code}, but reported no failure`);
  if (code === 0 && counts.failed > 0) counts.problems.push(`${name} exited with 0 in spite of failures`);
  if (counts.passed + counts.failed === 0) fail(counts, `${name} ran no test`);
}

const cargoStart = /^running (\d+) tests?$/;
const cargoEnd =
  /^test result: (ok|FAILED)\. (\d+) passed; (\d+) failed; (\d+) ignored; \d+ measured; \d+ filtered out/;
const cargoIgnored = /^test (.+?) \.\.\. ignored(?:, (.*))?$/;
const cargoFailed = /^test (.+?) \.\.\. FAILED$/;

/**
 * Reads what `cargo test` printed on stdout.
 * @param {string} stdout
 * @param {number} code
 * @returns {Counts}
 */
export function parseCargo(stdout, code) {
  const counts = noCounts();
  /** @type {number | undefined} */
  let announced;
  for (const line of stdout.split('\n')) {
    const start = cargoStart.exec(line);
    if (start) {
      if (announced !== undefined) fail(counts, `a test program of ${announced} tests ended without a result`);
      announced = Number(start[1]);
      continue;
    }
    const ignored = cargoIgnored.exec(line);
    if (ignored) counts.skips.push(`${ignored[1]}: ${ignored[2] ?? 'no reason given'}`);
    const failed = cargoFailed.exec(line);
    if (failed) counts.problems.push(`test ${failed[1]}`);
    const end = cargoEnd.exec(line);
    if (!end) continue;
    const [passed, failures, skipped] = [Number(end[2]), Number(end[3]), Number(end[4])];
    counts.passed += passed;
    counts.failed += failures;
    counts.skipped += skipped;
    if (announced === undefined) fail(counts, 'a test result without its beginning');
    else if (announced !== passed + failures + skipped) {
      fail(counts, `${announced} tests were announced, ${passed + failures + skipped} have a result`);
    }
    if (end[1] === 'FAILED' && failures === 0) fail(counts, 'a test program failed without a failed test');
    announced = undefined;
  }
  if (announced !== undefined) fail(counts, `a test program of ${announced} tests ended without a result`);
  checkEnd(counts, 'cargo test', code);
  return counts;
}

const tapPoint = /^(not )?ok (\d+)(?: - (.*?))?(?: # (SKIP|TODO)\b ?(.*))?$/;
const tapPlan = /^1\.\.(\d+)$/;

/**
 * Reads TAP, as `ava --tap` prints it. A stream without its plan, with a gap, or with another number of points than
 * planned was cut short.
 * @param {string} stdout
 * @param {number} code
 * @param {string} [name]
 * @returns {Counts}
 */
export function parseTap(stdout, code, name = 'ava') {
  const counts = noCounts();
  let points = 0;
  let gap = false;
  /** @type {number | undefined} */
  let planned;
  for (const line of stdout.split('\n')) {
    const plan = tapPlan.exec(line);
    if (plan) {
      if (planned !== undefined) fail(counts, `${name}: two plans in its TAP`);
      planned = Number(plan[1]);
    }
    const point = tapPoint.exec(line);
    if (!point) continue;
    points += 1;
    if (Number(point[2]) !== points && !gap) {
      gap = true;
      fail(counts, `${name}: point ${point[2]} of its TAP follows ${points - 1}`);
    }
    const title = point[3] ?? 'untitled';
    if (point[4] !== undefined) {
      counts.skipped += 1;
      counts.skips.push(`${title}: ${point[5] || point[4].toLowerCase()}`);
    } else if (point[1] === undefined) counts.passed += 1;
    else {
      counts.failed += 1;
      counts.problems.push(`test ${title}`);
    }
  }
  if (planned === undefined) fail(counts, `${name}: its TAP has no plan, so it was cut short`);
  else if (planned !== points) fail(counts, `${name}: ${planned} tests were planned, ${points} have a result`);
  checkEnd(counts, name, code);
  return counts;
}

const tallyLine = /^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?$/;

/**
 * Reads the closing line of one of this repository's own scripts: it has to be the last line that is not empty.
 * @param {string} stdout
 * @param {number} code
 * @param {string} name
 * @returns {Counts}
 */
export function parseTally(stdout, code, name) {
  const counts = noCounts();
  const end = tallyLine.exec(stdout.trimEnd().split('\n').at(-1) ?? '');
  if (end) {
    counts.passed = Number(end[1]);
    counts.failed = Number(end[2]);
    counts.skipped = Number(end[3] ?? 0);
  } else fail(counts, `${name} ended without its counts`);
  for (const line of stdout.split('\n')) {
    if (line.startsWith('skipped: ')) counts.skips.push(line.slice('skipped: '.length));
    if (line.startsWith('failed: ')) counts.problems.push(line.slice('failed: '.length));
  }
  checkEnd(counts, name, code);
  return counts;
}

/**
 * The closing lines of a script: reasons first, then the one line with the counts.
 * @param {Counts} counts
 */
export function closingLines(counts) {
  const lines = [
    ...counts.skips.map((skip) => `skipped: ${skip}`),
    ...counts.problems.map((problem) => `failed: ${problem}`),
    `${counts.passed} passed, ${counts.failed} failed${counts.skipped > 0 ? `, ${counts.skipped} skipped` : ''}`,
  ];
  return `${lines.join('\n')}\n`;
}

/** 0 only when something passed and nothing failed. @param {Counts} counts */
export const exitCode = (counts) => (counts.failed === 0 && counts.passed > 0 ? 0 : 1);
