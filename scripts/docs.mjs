// The API documents of both languages and the guides; a warning is an error. Output: docs/api and target/doc.
import { bin } from './lib/process.mjs';
import { closingLines, exitCode } from './lib/results.mjs';
import { runSteps } from './lib/steps.mjs';

const counts = await runSteps([
  ['TypeScript API and guides', bin('typedoc'), []],
  ['Rust API', 'cargo', ['doc', '--workspace', '--no-deps', '--locked'], { RUSTDOCFLAGS: '-D warnings' }],
]);
process.stdout.write(closingLines(counts));
process.exitCode = exitCode(counts);
