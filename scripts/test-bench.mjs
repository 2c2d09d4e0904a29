// The benchmarks run, small, and report in their documented shape. Their figures are not judged: they belong to the
// machine.
import { Checks, must } from './lib/checks.mjs';
import { jsonLines } from './lib/json-lines.mjs';
import { run } from './lib/process.mjs';
import { closingLines, exitCode } from './lib/results.mjs';

const checks = new Checks();
for (const bench of ['migrate', 'same-host']) await checks.check(`bench ${bench} --json`, () => reports(bench));

/** @param {string} bench */
async function reports(bench) {
  const args = ['run', '--silent', 'bench', '--', bench, '--smoke', '--json'];
  const result = await run('npm', args, { echo: 'stderr' });
  must(result.code === 0, `exit code ${result.code}`);
  const lines = jsonLines(result.stdout);
  must(lines.length > 0, 'it reported nothing');
  for (const line of lines) {
    const where = JSON.stringify(line);
    for (const name of ['bench', 'case', 'unit', 'peer', 'goal'])
      must(typeof line[name] === 'string', `${name}: ${where}`);
    for (const name of ['ours', 'theirs', 'ratio']) must(Number.isFinite(line[name]), `${name}: ${where}`);
    must(typeof line['met'] === 'boolean', `met: ${where}`);
  }
}

process.stdout.write(closingLines(checks.counts));
process.exitCode = exitCode(checks.counts);
