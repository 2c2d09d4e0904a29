// The demo as people run it, once as it is and once with each sabotage: what must be caught is caught, by its own
// counter alone; what must be rolled back is.
import { Checks, must } from './lib/checks.mjs';
import { caught, mustBeAllKinds, mustBeCaught, mustBeGood, rolledBack } from './lib/demo-report.mjs';
import { jsonLines } from './lib/json-lines.mjs';
import { run } from './lib/process.mjs';
import { closingLines, exitCode } from './lib/results.mjs';

/**
 * @param {string[]} args
 * @param {number} code the exit code it has to end with
 */
async function demo(args, code) {
  const result = await run('npm', ['run', '--silent', 'demo', '--', '--json', ...args], { echo: 'hide' });
  must(result.code === code, `exit code ${result.code}, not ${code}\n${result.stdout}${result.stderr}`);
  return jsonLines(result.stdout);
}

const checks = new Checks();
await checks.check('demo: every kind moves, verified', async () => {
  const lines = await demo([], 0);
  mustBeAllKinds(lines);
  for (const line of lines) mustBeGood(line, 'committed');
});
for (const [name, counter] of Object.entries(caught)) {
  await checks.check(`demo --sabotage ${name}: is caught`, async () => {
    const lines = await demo(['--sabotage', name], 1);
    mustBeAllKinds(lines);
    for (const line of lines) mustBeCaught(line, counter);
  });
}
for (const name of rolledBack) {
  await checks.check(`demo --sabotage ${name}: is rolled back`, async () => {
    const lines = await demo(['--sabotage', name], 0);
    mustBeAllKinds(lines);
    for (const line of lines) mustBeGood(line, 'rolled-back');
  });
}
await checks.check('demo --sabotage of an unknown name: is refused', async () => {
  must((await demo(['--sabotage', 'no-such-sabotage'], 2)).length === 0, 'it ran in spite of it');
});
process.stdout.write(closingLines(checks.counts));
process.exitCode = exitCode(checks.counts);
