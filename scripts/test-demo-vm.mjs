// The microvm as people run it: once as it is, in each of its ways, with each sabotage, and back and forth. What must be
// caught is caught, by its own counter alone. Where there is no /dev/kvm, only what needs none is run.
import { Checks, must } from './lib/checks.mjs';
import { mustBeAllKinds } from './lib/demo-report.mjs';
import { caught, mustBeCaught, mustBeGood, mustHaveGivenUp, mustHaveSteps } from './lib/demo-vm-report.mjs';
import { jsonLines } from './lib/json-lines.mjs';
import { run } from './lib/process.mjs';
import { closingLines, exitCode } from './lib/results.mjs';

/** The demo's exit code where no microvm can run. */
const UNAVAILABLE = 77;
/** Of the runs whose size does not matter, in MiB. */
const SMALL = ['--kind', 'vf', '--memory', '128'];

const checks = new Checks();

/** @param {string[]} args */
async function demo(args) {
  const { code, stdout, stderr } = await run('npm', ['run', '--silent', 'demo:vm', '--', '--json', ...args], {
    echo: 'hide',
  });
  return { code, lines: jsonLines(stdout), stderr };
}

/**
 * One run of the microvm, or why there is none.
 * @param {string} name
 * @param {string[]} args
 * @param {number} code the exit code it has to end with
 * @param {(lines: Record<string, any>[], stderr: string) => void} judge
 */
async function check(name, args, code, judge) {
  const result = await demo(args);
  if (result.code === UNAVAILABLE) {
    checks.skip(name, result.stderr.trim().split('\n').at(-1) ?? 'no microvm can run here');
    return;
  }
  await checks.check(name, () => {
    const said = JSON.stringify(result.lines);
    must(result.code === code, `exit code ${result.code}, not ${code}\n${said}\n${result.stderr}`);
    try {
      judge(result.lines, result.stderr);
    } catch (error) {
      throw new Error(`${error instanceof Error ? error.message : String(error)}\n${said}`, { cause: error });
    }
  });
}

/** @param {string} name @param {string[]} args @param {Parameters<typeof mustBeGood>[1]} [wanted] */
const good = (name, args, wanted) =>
  check(name, [...SMALL, ...args], 0, (lines) => {
    must(lines.length === 1, `${lines.length} lines`);
    for (const line of lines) mustBeGood(line, wanted);
  });

await check('demo:vm: every kind moves, verified', [], 0, (lines) => {
  mustBeAllKinds(lines);
  for (const line of lines) mustBeGood(line);
});
await good('demo:vm --mode session: the VMM moves memory and owns the commit', ['--mode', 'session'], {
  mode: 'session',
});
await good('demo:vm --mode same-host: memory is passed', ['--mode', 'same-host'], { mode: 'same-host' });
await good('demo:vm --mode checkpoint: into a file, and out of it in another process', ['--mode', 'checkpoint'], {
  mode: 'checkpoint',
});
await good('demo:vm --dirty ring --doorbells mmio', ['--dirty', 'ring', '--doorbells', 'mmio'], { doorbells: 'mmio' });
await good('demo:vm --vcpus 1', ['--vcpus', '1'], { vcpus: 1 });
// The guest writes faster than the link carries: its vCPUs are slowed down, its function is, or it stays where it is.
const slowLink = {
  throttle: ['--link', '24', '--dirty-rate', '30'],
  'device-limit': ['--link', '16', '--dirty-rate', '0'],
};
for (const [means, args] of Object.entries(slowLink)) {
  await check(`demo:vm --converge ${means}`, [...SMALL, ...args, '--converge', means], 0, (lines) => {
    must(lines.length === 1, `${lines.length} lines`);
    for (const line of lines) {
      mustBeGood(line);
      mustHaveSteps(line, means);
    }
  });
}
await check('demo:vm --converge give-up', [...SMALL, ...slowLink.throttle, '--converge', 'give-up'], 0, (lines) => {
  must(lines.length === 1, `${lines.length} lines`);
  for (const line of lines) mustHaveGivenUp(line, 24 << 20);
});
// What early-irq is made of, in the right order: queues full of commands that the destination does.
await good('demo:vm --iops-limit 50', ['--iops-limit', '50']);
for (const [name, counter] of Object.entries(caught)) {
  await check(`demo:vm --sabotage ${name}: is caught`, [...SMALL, '--sabotage', name], 1, (lines) => {
    must(lines.length === 1, `${lines.length} lines`);
    for (const line of lines) mustBeCaught(line, counter);
  });
}
// Four times the third round: each of the ways in which a migration is broken off.
for (const [mode, count] of Object.entries({ migrate: 13, session: 13, 'same-host': 7, checkpoint: 7 })) {
  const broken = Math.floor(count / 3);
  const rounds = ['--mode', mode, '--rounds', String(count)];
  await check(`demo:vm ${rounds.join(' ')}: nothing is lost`, ['--kind', 'vf', ...rounds], 0, (lines) => {
    must(lines.length === 1, `${lines.length} lines`);
    for (const line of lines) {
      mustBeGood(line, { mode });
      const { committed, interrupted } = line['moves'];
      must(
        committed === count - broken && interrupted === broken,
        `${committed} committed, ${interrupted} interrupted`,
      );
    }
  });
}
await checks.check('demo:vm --sabotage of an unknown name: is refused, and the names are told', async () => {
  const { code, lines, stderr } = await demo(['--sabotage', 'no-such-sabotage']);
  must(code === 2 && lines.length === 0, `exit code ${code}`);
  for (const name of Object.keys(caught)) must(stderr.includes(name), `${name} is not told`);
});
process.stdout.write(closingLines(checks.counts));
process.exitCode = exitCode(checks.counts);
