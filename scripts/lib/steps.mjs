import { run } from './process.mjs';
import { noCounts } from './results.mjs';

/** @typedef {[name: string, command: string, args: readonly string[], env?: NodeJS.ProcessEnv]} Step */

/**
 * Runs each step, also after a failed one, and counts each as one check. All output goes to stderr.
 * @param {readonly Step[]} steps
 * @returns {Promise<import('./results.mjs').Counts>}
 */
export async function runSteps(steps) {
  const counts = noCounts();
  for (const [name, command, args, env] of steps) {
    process.stderr.write(`== ${name}: ${[command.split('/').at(-1), ...args].join(' ')}\n`);
    const { code } = await run(command, args, { echo: 'stderr', env: { ...process.env, ...env } });
    if (code === 0) counts.passed += 1;
    else {
      counts.failed += 1;
      counts.problems.push(`${name} (exit code ${code})`);
    }
  }
  return counts;
}
