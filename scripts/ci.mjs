// Every suite, the slow ones too. `node scripts/ci.mjs [NAME…]` runs only those. Ends with one line of counts that
// sums what each suite really ran; a suite that crashes, or runs nothing, is a failure. What the suites print is in
// target/ci-logs; here is a line when one begins and ends, and what of it explains its failures.
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

import { failureLines } from './lib/failures.mjs';
import { root, run } from './lib/process.mjs';
import { closingLines, exitCode, noCounts, parseCargo, parseTally, sum } from './lib/results.mjs';

/**
 * Runs one program of a suite, its output going to the suite's log.
 * @typedef {(command: string, args: readonly string[], options?: import('./lib/process.mjs').RunOptions) => ReturnType<typeof run>} Start
 */

/** @param {string} title @param {string} command @param {...string} args @returns {Suite} */
const tally =
  (title, command, ...args) =>
  async (start) => {
    const { code, stdout } = await start(command, args);
    return parseTally(stdout, code, title);
  };

/** A suite whose exit code is its only result: one check. @param {string} title @param {string} command @returns {Suite} */
const oneCheck = (title, command) => async (start) => {
  const { code } = await start(command, []);
  return code === 0
    ? { ...noCounts(), passed: 1 }
    : { ...noCounts(), failed: 1, problems: [`${title} (exit code ${code})`] };
};

/** @type {Suite} */
async function loom(start) {
  // loom replaces the atomics of the whole crate, so it has a target folder of its own.
  const env = {
    ...process.env,
    RUSTFLAGS: '--cfg loom',
    CARGO_TARGET_DIR: join(process.env['CARGO_TARGET_DIR'] ?? join(root, 'target'), 'loom'),
  };
  const args = ['test', '--locked', '--release', '-p', 'towline-core', '--test', 'loom_dirty'];
  const { code, stdout } = await start('cargo', args, { env });
  return parseCargo(stdout, code);
}

/** The microvm's native part is a workspace of its own. @type {Suite} */
async function microvm(start) {
  const args = ['test', '--locked', '--manifest-path', 'examples/microvm/Cargo.toml'];
  const { code, stdout } = await start('cargo', args);
  return parseCargo(stdout, code);
}

/** No guest of the kernel suites boots later than so many minutes after the start, so that all of it stays below an hour. */
const LAST_BOOT_MINUTES = 52;

/** A machine that can't do it skips every row; then nothing ran and that is no failure. @type {Suite} */
async function kernel(start) {
  const minutes = Math.max(5, Math.floor(LAST_BOOT_MINUTES - performance.now() / 60_000));
  const { code, stdout } = await start('node', ['scripts/test-kernel.mjs', '--minutes', String(minutes)]);
  const isSkipped =
    code === 0 && /^0 passed, 0 failed, [1-9]\d* skipped$/.test(stdout.trimEnd().split('\n').at(-1) ?? '');
  const counts = parseTally(stdout, code, 'the kernel tests');
  return isSkipped ? { ...noCounts(), skipped: counts.skipped, skips: counts.skips } : counts;
}

/**
 * @typedef {(start: Start) => Promise<import('./lib/results.mjs').Counts>} Suite
 * @type {Record<string, Suite>}
 */
const suites = {
  test: tally('npm test', 'npm', 'test'),
  lint: tally('npm run lint', 'npm', 'run', 'lint'),
  docs: tally('npm run docs', 'npm', 'run', 'docs'),
  demo: tally('the demo', 'node', 'scripts/test-demo.mjs'),
  microvm,
  // A guest on KVM; what needs /dev/kvm is skipped where there is none.
  'demo-vm': tally('the microvm', 'node', 'scripts/test-demo-vm.mjs'),
  package: tally('the packages', 'node', 'scripts/test-package.mjs'),
  node22: tally('Node 22', 'node', 'scripts/test-node.mjs', '22'),
  node24: tally('Node 24', 'node', 'scripts/test-node.mjs', '24'),
  loom,
  wasm: oneCheck('crates/core for wasm32', 'scripts/build-wasm.sh'),
  bench: tally('the benchmarks', 'node', 'scripts/test-bench.mjs'),
  // Real kernels under QEMU: 8 minutes more when their root file system is built. What there is no time for is told as skipped.
  kernel,
};

const wanted = process.argv.slice(2);
const unknown = wanted.find((name) => !Object.hasOwn(suites, name));
if (unknown !== undefined) {
  process.stderr.write(`no such suite: ${unknown} (${Object.keys(suites).join(', ')})\n`);
  process.exit(2);
}

/** What each suite printed, stdout and stderr. */
const logs = join(root, 'target', 'ci-logs');
mkdirSync(logs, { recursive: true });

let total = noCounts();
/** @type {string[]} */
const summary = [];
/** @type {string[]} */
const explained = [];
for (const [name, suite] of Object.entries(suites)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  const log = join(logs, `${name}.log`);
  const began = performance.now();
  const seconds = () => `${((performance.now() - began) / 1000).toFixed(0)} s`;
  process.stdout.write(`==== ${name}\n`);
  // Not silent for long: some runners take that for the end.
  const alive = setInterval(() => process.stdout.write(`     ${name}: ${seconds()}\n`), 60_000);
  const counts = await suite((command, args, options) => run(command, args, { ...options, echo: 'hide', log }));
  clearInterval(alive);
  const line = `${name.padEnd(8)} ${seconds().padStart(6)}  ${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`;
  process.stdout.write(`${line}\n`);
  summary.push(line);
  if (counts.failed > 0) explained.push(`---- ${name}, from ${log}`, ...failureLines(readFileSync(log, 'utf8')));
  counts.problems = counts.problems.map((problem) => `${name}: ${problem}`);
  counts.skips = counts.skips.map((skip) => `${name}: ${skip}`);
  total = sum(total, counts);
}
if (explained.length > 0) process.stdout.write(`\n==== failures\n${explained.join('\n')}\n`);
process.stdout.write(`\n==== in all\n${summary.join('\n')}\n${closingLines(total)}`);
process.exitCode = exitCode(total);
