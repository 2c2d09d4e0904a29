import test from 'ava';

import { parseGuestConsole, reached } from './guest-console.mjs';
import { sum } from './results.mjs';

const good = [
  'SeaBIOS',
  'towline: inside',
  'towline: boot',
  'towline: kernel quiet',
  'towline: suite 01-a',
  '1..2',
  'ok 1 - one',
  'ok 2 - two',
  'towline: exit 0',
  'towline: kernel quiet',
  'towline: suite 02-b',
  'ok 1 - three',
  '1..1',
  'towline: exit 0',
  'towline: kernel quiet',
  'towline: complaints are found',
  'towline: done',
  '',
];
const parse = (/** @type {string} */ console) => parseGuestConsole(console, ['01-a', '02-b']);
const read = (/** @type {readonly string[]} */ lines) => parse(lines.join('\r\n'));
const all = (/** @type {ReturnType<typeof read>} */ { suites, boot }) => sum(boot, ...suites.values());
const change = (/** @type {string} */ from, /** @type {string} */ to) =>
  read(good.map((line) => (line === from ? to : line)));

test('a good run counts its tests, the kernel after each, and the boot', (t) => {
  const { suites, boot } = read(good);
  t.deepEqual([suites.get('01-a')?.passed, suites.get('02-b')?.passed, boot.passed], [3, 2, 2]);
  t.is(all({ suites, boot }).failed, 0);
  t.true(reached(good.join('\n')).booted);
});

test('every line that is lost is noticed', (t) => {
  for (let n = 2; n < good.length - 1; n++) {
    t.true(all(read(good.filter((_, other) => other !== n))).failed > 0, `${n}: ${good[n]}`);
  }
});

test('a run that is cut short is noticed wherever it ends', (t) => {
  for (let n = 0; n < good.length - 1; n++) t.true(all(read(good.slice(0, n))).failed > 0, `${n} lines`);
  const text = good.join('\r\n');
  for (let n = 0; n < text.indexOf('towline: done') + 13; n++) t.true(all(parse(text.slice(0, n))).failed > 0, `${n}`);
});

test('a suite that was cut short says where, and the next ones that they were not begun', (t) => {
  const { suites, boot } = read(good.slice(0, 7));
  t.regex(suites.get('01-a')?.problems[0] ?? '', /did not come to its end; its last line: ok 1 - one/);
  t.regex(suites.get('02-b')?.problems[0] ?? '', /not begun/);
  t.regex(boot.problems[0] ?? '', /did not come to its end/);
});

test('a suite without a program, without TAP or that took too long is a failure of that suite alone', (t) => {
  const lines = good.filter((line) => !line.startsWith('ok 1 - three') && line !== '1..1');
  for (const code of [127, 1, 0, 124]) {
    const end = lines.lastIndexOf('towline: exit 0');
    const { suites, boot } = read(lines.with(end, `towline: exit ${code}`));
    t.true((suites.get('02-b')?.failed ?? 0) > 0);
    t.deepEqual([suites.get('01-a')?.failed, boot.failed], [0, 0]);
  }
});

test('failures of a test and of a program are failures', (t) => {
  t.deepEqual(all(change('ok 2 - two', 'not ok 2 - two')).problems, [
    'test two',
    '01-a exited with 0 in spite of failures',
  ]);
  t.is(all(change('towline: exit 0', 'towline: exit 1')).failed, 2);
  t.is(all(change('towline: exit 0', 'towline: exit 139')).failed, 2);
});

test('a kernel that complains fails the suite it did so in', (t) => {
  const at = good.indexOf('towline: kernel quiet', 5);
  const lines = good.toSpliced(
    at,
    1,
    '# 4.900000 WARNING: CPU: 0 PID: 1 at x.c:1',
    '# more',
    'towline: kernel complained',
  );
  const { suites, boot } = read(lines);
  t.deepEqual(suites.get('01-a')?.problems, ['the kernel complained: 4.900000 WARNING: CPU: 0 PID: 1 at x.c:1']);
  t.deepEqual([suites.get('02-b')?.failed, boot.failed], [0, 0]);
  const atBoot = good.with(3, 'towline: kernel complained');
  t.is(read(atBoot).boot.failed, 1);
});

test('a search of the log that finds nothing is a failure of the boot', (t) => {
  t.deepEqual(change('towline: complaints are found', '').boot.problems, ['complaints are not found']);
});

test("a machine's setup that fails is a failure of the boot", (t) => {
  const lines = good.toSpliced(2, 0, 'towline: setup failed: modprobe x');
  t.deepEqual(read(lines).boot.problems, ['setup failed: modprobe x']);
  t.is(reached(lines.join('\n')).setup.length, 1);
});

test('a program may print lines with our name', (t) => {
  t.is(all(read(good.toSpliced(6, 0, 'towline: migrated'))).failed, 0);
});

test('a program may quote messages of the kernel in comments', (t) => {
  for (let n = 5; n < good.length - 2; n++)
    t.is(all(read(good.toSpliced(n, 0, '# [    3.141592] nvme', '# [    3.2] nvme'))).failed, 0, `${n}`);
});

test('messages of the kernel between and within lines change nothing', (t) => {
  const text = good.join('\r\n');
  const message = '[    3.141592] nvme 0000:01:00.0: ok 7 - not ours\r\n';
  for (let n = 0; n <= text.length; n++) {
    for (const messages of [message, message + message]) {
      const result = all(parse(text.slice(0, n) + messages + text.slice(n)));
      t.deepEqual([result.passed, result.failed], [7, 0], `${n}`);
    }
  }
});
