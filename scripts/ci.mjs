// Every suite, the slow ones too. `node scripts/ci.mjs [NAME…]` runs only those. Ends with one line of counts that
// sums what each suite really ran; a suite that crashes, or runs nothing, is a failure.
import { join } from 'node:path';

import { root, run } from './lib/process.mjs';
import { closingLines, exitCode, noCounts, parseCargo, parseTally, sum } from './lib/results.mjs';

/**
 * @param {string} name
 * @param {string} command
 * @param {readonly string[]} args
 */
async function tally(name, command, args) {
  const { code, stdout } = await run(command, args);
  return parseTally(stdout, code, name);
}

/**
 * A suite whose exit code is its only result: one check.
 * @param {string} name
 * @param {string} command
 */
async function oneCheck(name, command) {
  const { code } = await run(command, []);
  return code === 0
    ? { ...noCounts(), passed: 1 }
    : { ...noCounts(), failed: 1, problems: [`${name} (exit code ${code})`] };
}

async function loom() {
  // loom replaces the atomics of the whole crate, so it has a target folder of its own.
  const env = {
    ...process.env,
    RUSTFLAGS: '--cfg loom',
    CARGO_TARGET_DIR: join(process.env['CARGO_TARGET_DIR'] ?? join(root, 'target'), 'loom'),
  };
  const args = ['test', '--locked', '--release', '-p', 'towline-core', '--test', 'loom_dirty'];
  const { code, stdout } = await run('cargo', args, { env });
  return parseCargo(stdout, code);
}

/** A machine that can't do it skips every row; then nothing ran and that is no failure. A slow one skips what would come late. */
async function kernel() {
  const { code, stdout } = await run('node', ['scripts/test-kernel.mjs', '--minutes', '28']);
  const isSkipped =
    code === 0 && /^0 passed, 0 failed, [1-9]\d* skipped$/.test(stdout.trimEnd().split('\n').at(-1) ?? '');
  const counts = parseTally(stdout, code, 'the kernel tests');
  return isSkipped ? { ...noCounts(), skipped: counts.skipped, skips: counts.skips } : counts;
}

/** @type {Record<string, () => Promise<import('./lib/results.mjs').Counts>>} */
const suites = {
  test: () => tally('npm test', 'npm', ['test']),
  lint: () => tally('npm run lint', 'npm', ['run', 'lint']),
  docs: () => tally('npm run docs', 'npm', ['run', 'docs']),
  demo: () => tally('the demo', 'node', ['scripts/test-demo.mjs']),
  package: () => tally('the packages', 'node', ['scripts/test-package.mjs']),
  node22: () => tally('Node 22', 'node', ['scripts/test-node.mjs', '22']),
  node24: () => tally('Node 24', 'node', ['scripts/test-node.mjs', '24']),
  loom,
  wasm: () => oneCheck('crates/core for wasm32', 'scripts/build-wasm.sh'),
  bench: () => tally('the benchmarks', 'node', ['scripts/test-bench.mjs']),
  // Real kernels under QEMU: some 25 minutes, and 8 more when their root file system is built.
  kernel,
};

const wanted = process.argv.slice(2);
const unknown = wanted.find((name) => !Object.hasOwn(suites, name));
if (unknown !== undefined) {
  process.stderr.write(`no such suite: ${unknown} (${Object.keys(suites).join(', ')})\n`);
  process.exit(2);
}

let total = noCounts();
/** @type {string[]} */
const summary = [];
for (const [name, suite] of Object.entries(suites)) {
  if (wanted.length > 0 && !wanted.includes(name)) continue;
  process.stdout.write(`\n==== ${name}\n`);
  const start = performance.now();
  const counts = await suite();
  const seconds = ((performance.now() - start) / 1000).toFixed(1);
  summary.push(
    `${name.padEnd(8)} ${seconds.padStart(7)} s  ${counts.passed} passed, ${counts.failed} failed, ${counts.skipped} skipped`,
  );
  counts.problems = counts.problems.map((problem) => `${name}: ${problem}`);
  counts.skips = counts.skips.map((skip) => `${name}: ${skip}`);
  total = sum(total, counts);
}
process.stdout.write(`\n==== in all\n${summary.join('\n')}\n${closingLines(total)}`);
process.exitCode = exitCode(total);
