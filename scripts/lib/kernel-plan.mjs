// What of the table of suites runs, and in which boots.

/**
 * @typedef {import('../../test/kernel/suites.mjs').Suite} Suite
 * @typedef {import('../../test/kernel/suites.mjs').Machine} Machine
 * @typedef {import('../../test/kernel/suites.mjs').Kernel} Kernel
 *
 * @typedef {object} Boot
 * @property {string} name
 * @property {Kernel} kernel
 * @property {Machine} machine
 * @property {Suite[]} suites
 *
 * @typedef {object} Choice
 * @property {boolean} smoke
 * @property {readonly string[]} only Names of suites or machines; none means all.
 * @property {string | undefined} kernel
 */

/** Suites that together may take longer get a boot more, so that two guests at once share the work. */
const longestBootSeconds = 1000;

/**
 * Boots for the chosen suites: one for each kernel and machine, or more where they would be long.
 * @param {readonly Suite[]} suites
 * @param {Record<string, Machine>} machines
 * @param {Choice} choice
 * @returns {Boot[]}
 */
export function planBoots(suites, machines, { smoke, only, kernel }) {
  /** @type {Boot[]} */
  const boots = [];
  for (const suite of suites) {
    if (smoke && !suite.smoke) continue;
    if (only.length > 0 && !only.includes(suite.name) && !only.includes(suite.machine)) continue;
    const machine = machines[suite.machine];
    if (machine === undefined) throw new Error(`${suite.name}: no machine ${suite.machine}`);
    for (const one of smoke ? suite.kernels.slice(0, 1) : suite.kernels) {
      if (kernel !== undefined && one !== kernel) continue;
      const name = `${suite.machine}-${one}`;
      let boot = boots.findLast((other) => other.machine === machine && other.kernel === one);
      if (boot === undefined || suiteSeconds(boot) + suite.timeoutSeconds > longestBootSeconds) {
        const number = boots.filter((other) => other.machine === machine && other.kernel === one).length + 1;
        boot = { name: number === 1 ? name : `${name}-${number}`, kernel: one, machine, suites: [] };
        boots.push(boot);
      }
      boot.suites.push(suite);
    }
  }
  return boots;
}

/** What the suites of a boot may take at most. @param {Boot} boot */
const suiteSeconds = ({ suites }) => suites.reduce((sum, { timeoutSeconds }) => sum + timeoutSeconds, 0);

/** The longest that a guest may take until its first suite begins, in seconds: 3 to 8 where nothing else runs, 75 beside five busy processes. */
export const secondsToBoot = 240;

/** The longest that a boot with its suites may take, in seconds. @param {Boot} boot */
export const bootSeconds = ({ suites }) =>
  suites.reduce((seconds, suite) => seconds + suite.timeoutSeconds + 10, secondsToBoot);

/** The roles of a machine's guests. @param {Machine} machine */
export const rolesOf = ({ guests }) => (guests === 2 ? ['source', 'destination'] : ['alone']);

/** The name of a suite in a guest. @param {Suite} suite @param {number} n */
export const stepName = (suite, n) => `${String(n + 1).padStart(2, '0')}-${suite.name}`;

/** A shell script that runs a suite in the guest. @param {Suite} suite */
export function stepScript({ program, args = '', setup = [], timeoutSeconds }) {
  const command =
    'node' in program
      ? `node --enable-source-maps --test-reporter=tap /towline/checkout/dist-guest/tests-${program.node}.js`
      : `/towline/run/programs/${program.example}`;
  return `${['set -e', ...setup, `exec timeout --kill-after=5 ${timeoutSeconds} ${command} ${args}`].join('\n')}\n`;
}

/** What a machine's guest runs first. A line that fails is told, and the next ones run. @param {Machine} machine */
export const machineScript = ({ setup = [] }) =>
  setup.map((line) => `{ ${line}\n} || echo ${quote(`towline: setup failed: ${line}`)}\n`).join('');

/** @param {string} text */
export const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
