import { spawnSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';

import test from 'ava';

import { machines, suites } from '../../test/kernel/suites.mjs';
import { bootSeconds, machineScript, planBoots, quote, rolesOf, stepName, stepScript } from './kernel-plan.mjs';
import { jsonLine, table, total } from './kernel-rows.mjs';
import { root } from './process.mjs';

/** @type {import('./kernel-plan.mjs').Choice} */
const all = { smoke: false, only: [], kernel: undefined };

test('the table is sound', (t) => {
  const names = suites.map(({ name }) => name);
  t.is(new Set(names).size, names.length, 'names are unique');
  for (const { name, machine, kernels, program, timeoutSeconds, setup = [] } of suites) {
    t.true(machine in machines, name);
    t.true(kernels.length > 0 && new Set(kernels).size === kernels.length, name);
    t.true(timeoutSeconds > 0, name);
    const crate = 'crate' in program ? program.crate.replace(/^towline-/, '') : '';
    const examples = join(root, 'crates', crate, 'examples');
    const sources =
      'node' in program
        ? [join(root, 'test', 'kernel', 'guest', 'tests', `${program.node}.ts`)]
        : [join(examples, `${program.example}.rs`), join(examples, program.example, 'main.rs')];
    t.true(sources.some(existsSync), `${name}: ${sources.join(' or ')}`);
    t.regex(name, /^[a-z0-9-]+$/);
    t.false(setup.some((line) => line.includes('\n')));
  }
  for (const [name, machine] of Object.entries(machines)) {
    const host = 'host' in machine ? join(root, 'test', 'kernel', 'host', `${machine.host}.ts`) : root;
    t.true(existsSync(host), `${name}: ${host}`);
  }
});

test('every suite is in one boot for each of its kernels', (t) => {
  const boots = planBoots(suites, machines, all);
  const planned = boots.flatMap((boot) => boot.suites.map((suite) => `${suite.name} ${boot.kernel}`));
  const wanted = suites.flatMap(({ name, kernels }) => kernels.map((kernel) => `${name} ${kernel}`));
  t.deepEqual(planned.toSorted(), wanted.toSorted());
  t.is(new Set(boots.map(({ name }) => name)).size, boots.length, 'their logs have names of their own');
  for (const boot of boots) {
    t.true(boot.suites.every(({ machine }) => boot.name.startsWith(`${machine}-${boot.kernel}`)));
    t.true(bootSeconds(boot) > Math.max(...boot.suites.map(({ timeoutSeconds }) => timeoutSeconds)));
  }
});

test('choices: smoke takes the first kernel, only takes suites and machines', (t) => {
  for (const boot of planBoots(suites, machines, { ...all, smoke: true }))
    for (const suite of boot.suites) t.deepEqual([suite.smoke, suite.kernels[0]], [true, boot.kernel]);
  const only = planBoots(suites, machines, { ...all, only: ['mtty'], kernel: 'debian' });
  t.true(only.length === 1 && only.every(({ kernel }) => kernel === 'debian'));
  t.deepEqual(planBoots(suites, machines, { ...all, only: ['none'] }), []);
});

test('scripts: what fails in a setup is told, and a suite ends where its setup fails', (t) => {
  const sh = (/** @type {string} */ script) => spawnSync('sh', ['-c', script], { encoding: 'utf8' });
  const told = sh(machineScript({ setup: ['export a="b c"', "[ 'x' = y ]", 'echo "$a"'] }));
  t.is(told.stdout, "towline: setup failed: [ 'x' = y ]\nb c\n");
  const suite = { ...suites[0], program: { node: 'x' }, args: '$a', setup: ['a=1', 'false', 'echo no'] };
  const step = sh(stepScript(/** @type {import('./kernel-plan.mjs').Suite} */ (suite)));
  t.deepEqual([step.stdout, step.status], ['', 1]);
  t.is(sh(`printf %s ${quote("it's")}`).stdout, "it's");
  t.is(stepName(/** @type {import('./kernel-plan.mjs').Suite} */ (suite), 8), '09-mtty');
  t.deepEqual([rolesOf({}), rolesOf({ guests: 2 })], [['alone'], ['source', 'destination']]);
});

test('rows: exact keys, one line each, the reasons with the row', (t) => {
  const counts = { passed: 2, failed: 1, skipped: 1, problems: ['a\n b'], skips: ['c'] };
  const rows = [{ path: 'p', kernel: 'built', oracle: 'o', counts }];
  t.is(
    jsonLine(rows[0] ?? t.fail()),
    '{"path":"p","kernel":"built","oracle":"o","passed":2,"failed":1,"skipped":1,"why":"a b; c"}\n',
  );
  t.deepEqual(total([...rows, ...rows]).passed, 4);
  t.is(total(rows).problems[0], 'p (built): a\n b');
  t.is(table(rows).split('\n')[1], 'p     built   o            2       1        1');
});
