// Builds, then runs the Rust and the TypeScript tests. Ends with one line `N passed, N failed`, summed from what the
// runners really printed. `node scripts/test.mjs rust` or `ts` runs one half.
import { buildMicrovm } from './build-microvm.mjs';
import { buildNative } from './build-native.mjs';
import { buildTs } from './build-ts.mjs';
import { bin, run } from './lib/process.mjs';
import { closingLines, exitCode, noCounts, parseCargo, parseTap, sum } from './lib/results.mjs';

const halves = process.argv.slice(2);
const unknown = halves.find((half) => half !== 'rust' && half !== 'ts');
if (unknown !== undefined) {
  process.stderr.write(`no such half: ${unknown} (rust or ts)\n`);
  process.exit(2);
}
/** @param {string} half */
const wanted = (half) => halves.length === 0 || halves.includes(half);
let counts = noCounts();

if (wanted('rust')) {
  const { code, stdout } = await run('cargo', ['test', '--workspace', '--locked', '--no-fail-fast']);
  counts = sum(counts, parseCargo(stdout, code));
}

if (wanted('ts')) {
  if ((await buildNative()) && (await buildTs()) && (await buildMicrovm())) {
    const { code, stdout } = await run(bin('ava'), ['--tap']);
    counts = sum(counts, parseTap(stdout, code));
  } else counts = sum(counts, { ...noCounts(), failed: 1, problems: ['the build, so no TypeScript test ran'] });
}

process.stdout.write(closingLines(counts));
process.exitCode = exitCode(counts);
