// towline on a real Linux kernel: boots the guests of test/kernel/suites.mjs under QEMU's emulator and runs its suites in them. Needs
// root and apt, and some 8 minutes more when it runs for the first time; see test/kernel/README.md. Where something is missing it
// is skipped, with the reason.
//
//   npm run test:kernel -- [--smoke] [--only NAME]… [--kernel built|debian] [--json] [--require] [--verbose] [--jobs N] [--minutes N]
//
// --only takes names of suites and of machines. --require: to be skipped counts as a failure. --json prints a line for each row of
// the table and nothing else on stdout. --minutes: guests that would boot later than that after the first one are skipped, and say so.
// --verbose: shows the guests' consoles as they come, as it does on a terminal; otherwise a line as each suite begins and ends. What
// the failed ones said stands after the table in any case.
import { createWriteStream } from 'node:fs';
import { mkdir, writeFile } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { isatty } from 'node:tty';
import { parseArgs } from 'node:util';

import { machines, suites } from '../test/kernel/suites.mjs';
import { buildNative } from './build-native.mjs';
import { buildTs } from './build-ts.mjs';
import { lost, parseGuestConsole, reached } from './lib/guest-console.mjs';
import { endLines, failureLines, lineByLine, progress } from './lib/guest-report.mjs';
import { bundleGuest } from './lib/guest-bundle.mjs';
import { fillRunFolder, guestCommand, guestRoot, runGuest, startHost, withRunFolder } from './lib/guest.mjs';
import { bootSeconds, planBoots, rolesOf, secondsToBoot, stepName } from './lib/kernel-plan.mjs';
import { failures, jsonLine, table, total } from './lib/kernel-rows.mjs';
import { root, run } from './lib/process.mjs';
import { closingLines, exitCode, noCounts, sum } from './lib/results.mjs';

/**
 * @typedef {import('./lib/kernel-plan.mjs').Boot} Boot
 * @typedef {import('./lib/kernel-rows.mjs').Row} Row
 * @typedef {import('./lib/results.mjs').Counts} Counts
 */

/** Consoles and kernel logs of the last run. */
const logs = join(root, 'target', 'kernel-logs');

const { values: options } = parseArgs({
  options: {
    smoke: { type: 'boolean', default: false },
    json: { type: 'boolean', default: false },
    require: { type: 'boolean', default: false },
    verbose: { type: 'boolean', default: isatty(2) },
    only: { type: 'string', multiple: true, default: [] },
    kernel: { type: 'string' },
    jobs: { type: 'string', default: String(Math.min(2, availableParallelism())) },
    minutes: { type: 'string' },
  },
});
const jobs = Math.min(2, Math.max(1, Number(options.jobs) || 1));
if (options.minutes !== undefined && !(Number(options.minutes) >= 0)) {
  process.stderr.write(`--minutes ${options.minutes} is no number of minutes\n`);
  process.exit(2);
}
const boots = planBoots(suites, machines, { smoke: options.smoke, only: options.only, kernel: options.kernel });
const chosen = boots.flatMap((boot) => boot.suites);
const unknown = options.only.find((name) => !chosen.some((suite) => suite.name === name || suite.machine === name));
if (unknown !== undefined || boots.length === 0) {
  process.stderr.write(
    unknown === undefined ? 'no suite is chosen\n' : `${unknown} is no suite or machine that is chosen\n`,
  );
  process.exit(2);
}

/** The same counts for all rows. @param {() => Counts} counts @returns {Row[]} */
const allRows = (counts) =>
  boots.flatMap((boot) =>
    boot.suites.map(({ path, oracle }) => ({ path, oracle, kernel: boot.kernel, counts: counts() })),
  );

/** Builds what the chosen suites need. @returns {Promise<string | undefined>} what does not build */
async function build() {
  /** @type {Map<string, Set<string>>} */
  const examples = new Map();
  for (const { program } of chosen) {
    if ('node' in program) continue;
    examples.set(program.crate, (examples.get(program.crate) ?? new Set()).add(program.example));
  }
  for (const [crate, names] of examples) {
    const args = ['build', '--locked', '-p', crate, ...[...names].flatMap((name) => ['--example', name])];
    const { code } = await run('cargo', args, { echo: 'stderr' });
    if (code !== 0) return `the programs of ${crate} do not build`;
  }
  const needsTs = chosen.some(({ program }) => 'node' in program) || boots.some(({ machine }) => machine.host);
  if (needsTs && !((await buildNative()) && (await buildTs()))) return 'the package does not build';
  try {
    if (needsTs) await bundleGuest();
  } catch (error) {
    return `what runs in the guests can't be bundled: ${error instanceof Error ? error.message : String(error)}`;
  }
  return undefined;
}

/** A line to stderr, with the name of whose it is. @param {string} name @returns {(line: string) => void} */
const teller = (name) => (line) => process.stderr.write(`${name}: ${line}\n`);

/**
 * Keeps what comes in a file of its own, also where this process is ended half-way, and tells of it.
 * @param {string} file
 * @param {(line: string) => void} tell
 */
function keeper(file, tell) {
  const stream = createWriteStream(join(logs, file));
  const heard = lineByLine(tell);
  return {
    heard: (/** @type {string} */ text) => {
      stream.write(text);
      heard(text);
    },
    close: () => new Promise((resolve) => stream.end(() => resolve(undefined))),
  };
}

/**
 * Boots once and runs the suites.
 * @param {string} guestRootPath
 * @param {Boot} boot
 * @param {string} [again] Of the names of its logs, where there were some before.
 */
async function attempt(guestRootPath, boot, again = '') {
  return withRunFolder(async (folder) => {
    await fillRunFolder(folder, boot);
    const { host } = boot.machine;
    let said = '';
    const listen = host === undefined ? undefined : keeper(`${boot.name}${again}.host`, teller(`${boot.name} host`));
    const hear = (/** @type {string} */ text) => {
      said += text;
      listen?.heard(text);
    };
    const program = host === undefined ? undefined : await startHost(host, folder, hear);
    const abort = new AbortController();
    const guests = await Promise.all(
      rolesOf(boot.machine).map(async (role) => {
        const name = `${boot.name}${again}${role === 'alone' ? '' : `-${role}`}`;
        const command = guestCommand(guestRootPath, folder, boot, role);
        const tell = teller(name);
        if (program?.isReady === false) return { console: '', problem: undefined, stderr: '', crashed: false, name };
        const { heard, close } = keeper(`${name}.console`, options.verbose ? tell : progress(tell));
        const guest = await runGuest(command, { seconds: bootSeconds(boot), secondsToBoot }, heard, abort.signal);
        await close();
        if (guest.problem !== undefined) process.stderr.write(`${name}: ${guest.problem}\n`);
        // The other one of a pair would wait for it.
        if (!reached(guest.console).done) setTimeout(() => abort.abort(), 10_000).unref();
        await writeFile(join(logs, `${name}.stderr`), guest.stderr);
        await run('cp', [join(folder, `kernel-${role}.log`), join(logs, `${name}.dmesg`)], { echo: 'hide' });
        return { ...guest, name };
      }),
    );
    const hostProblem = await program?.stop();
    await listen?.close();
    const consoles = guests.map((guest) => ({ guest: guest.name, lines: endLines(guest.console) }));
    if (hostProblem !== undefined) consoles.push({ guest: 'outside', lines: endLines(said) });
    return { guests, hostProblem, consoles };
  });
}

/**
 * Boots, and once more where the kernel gave up before it had started anything of ours: emulated timers on a busy machine.
 * @param {string} guestRootPath
 * @param {Boot} boot
 * @returns {Promise<Row[]>}
 */
async function rowsOf(guestRootPath, boot) {
  const start = performance.now();
  process.stderr.write(`${boot.name}: boots\n`);
  let { guests, hostProblem, consoles: ends } = await attempt(guestRootPath, boot);
  if (guests.some(({ console }) => !reached(console).booted)) {
    process.stderr.write(`${boot.name}: a guest did not come as far as its suites; once more\n`);
    ({ guests, hostProblem, consoles: ends } = await attempt(guestRootPath, boot, '-again'));
  }
  const names = boot.suites.map(stepName);
  const crash = guests.find(
    ({ console, crashed, problem = '' }) =>
      crashed && !reached(console).done && boot.machine.mayCrash?.test(problem) === true,
  );
  const hasFailed = guests.some(({ console }) => /^not ok|^towline: (kernel complained|exit [1-9])/m.test(console));
  /** @type {string[]} */
  const skips = [];
  if (crash !== undefined && !hasFailed && hostProblem === undefined) {
    skips.push(`the first run was broken off: ${crash.problem}`);
    process.stderr.write(`${boot.name}: ${crash.problem}; once more\n`);
    ({ guests, hostProblem, consoles: ends } = await attempt(guestRootPath, boot, '-again'));
  }
  const results = guests.map(({ console }) => parseGuestConsole(console, names));
  /** @type {Row[]} */
  const rows = boot.suites.map(({ path, oracle }, n) => {
    const name = names[n] ?? '';
    const counts = results.map(({ suites: all }) => all.get(name) ?? lost('it has no result'));
    const failed = guests.filter((_, at) => (counts[at]?.failed ?? 1) > 0);
    const consoles = failed.map((guest) => ({ guest: guest.name, lines: failureLines(guest.console, name) }));
    return { path, oracle, kernel: boot.kernel, counts: sum(...counts), consoles };
  });
  // What QEMU does after a guest has said everything and gone off is told above, and takes nothing away from what was said.
  const deaths = guests.map(({ console, problem }) => (reached(console).done ? undefined : problem));
  const problems = [...deaths, hostProblem].filter((problem) => problem !== undefined);
  const again = { ...noCounts(), skipped: skips.length, skips };
  const counts = sum(...results.map((result) => result.boot), ...problems.map(lost), again);
  const seconds = ((performance.now() - start) / 1000).toFixed(0);
  process.stderr.write(`${boot.name}: ${seconds} s\n`);
  return [
    ...rows,
    { path: `guest ${boot.name}`, oracle: "the kernel's log", kernel: boot.kernel, counts, consoles: ends },
  ];
}

/** Boots up to `jobs` guests at once; a pair of guests is alone. @param {string} guestRootPath @returns {Promise<Row[]>} */
async function runBoots(guestRootPath) {
  await mkdir(logs, { recursive: true });
  /** @type {Map<Boot, Row[]>} */
  const results = new Map();
  const isPair = (/** @type {Boot} */ { machine }) => machine.guests === 2;
  // The longest first, so that none of them is left for the end.
  const queue = boots.filter((boot) => !isPair(boot)).toSorted((a, b) => bootSeconds(b) - bootSeconds(a));
  const end = options.minutes === undefined ? Infinity : performance.now() + Number(options.minutes) * 60_000;
  const one = async (/** @type {Boot} */ boot) => {
    const late = `the ${options.minutes} minutes of --minutes were over`;
    const rows = () =>
      boot.suites.map(({ path, oracle }) => ({
        path,
        oracle,
        kernel: boot.kernel,
        counts: { ...noCounts(), skipped: 1, skips: [late] },
      }));
    results.set(boot, performance.now() < end ? await rowsOf(guestRootPath, boot) : rows());
  };
  const worker = async () => {
    for (let boot = queue.shift(); boot !== undefined; boot = queue.shift()) await one(boot);
  };
  for (const boot of boots.filter(isPair)) await one(boot);
  await Promise.all(Array.from({ length: jobs }, worker));
  return boots.flatMap((boot) => results.get(boot) ?? []);
}

async function allSuites() {
  const found = await guestRoot();
  if ('skip' in found) return allRows(() => ({ ...noCounts(), skipped: 1, skips: [found.skip] }));
  const problem = 'problem' in found ? found.problem : await build();
  if ('path' in found && problem === undefined) return runBoots(found.path);
  return allRows(() => lost(problem ?? ''));
}

const rows = await allSuites();
const counts = total(rows);
if (options.json) {
  process.stderr.write(failures(rows));
  process.stdout.write(rows.map(jsonLine).join(''));
} else process.stdout.write(`\n${table(rows)}${failures(rows)}\n${closingLines(counts)}`);
const isSkipped = counts.skipped === rows.length && counts.failed + counts.passed === 0;
process.exitCode = isSkipped && !options.require ? 0 : exitCode(counts);
