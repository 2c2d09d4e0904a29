// Style, types and lints of both languages; each tool is one check in the closing line.
import { buildTs } from './build-ts.mjs';
import { bin } from './lib/process.mjs';
import { closingLines, exitCode } from './lib/results.mjs';
import { runSteps } from './lib/steps.mjs';

// The tests and examples see the package through its compiled types, so compiling is the type check.
const compiled = await buildTs();
const counts = await runSteps([
  ['Rust format', 'cargo', ['fmt', '--all', '--check']],
  ['TypeScript format', bin('oxfmt'), ['--check']],
  ['TypeScript lint', bin('oxlint'), ['--deny-warnings']],
  ['types of the scripts', bin('tsc'), ['-p', 'scripts']],
  ['Rust lint', 'cargo', ['clippy', '--workspace', '--all-targets', '--locked', '--', '-D', 'warnings']],
]);
if (compiled) counts.passed += 1;
else {
  counts.failed += 1;
  counts.problems.push('TypeScript types');
}
process.stdout.write(closingLines(counts));
process.exitCode = exitCode(counts);
