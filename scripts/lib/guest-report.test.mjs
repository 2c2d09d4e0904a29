import test from 'ava';

import { failureLines, lineByLine, progress } from './guest-report.mjs';
import { failures } from './kernel-rows.mjs';

const nodeTest = [
  '# Subtest: outer',
  '    # Subtest: inner',
  '    not ok 1 - inner',
  '      ---',
  '      duration_ms: 4.07',
  '      error: |-',
  '        1 !== 2',
  '      stack: |-',
  '        Test.run (node:internal/test_runner/test:796:25)',
  '        at (file:///towline/x.js:2:57)',
  '      ...',
  '    1..1',
  'not ok 1 - outer',
  '  ---',
  "  error: '1 subtest failed'",
  '  ...',
  'ok 2 - good',
  '  ---',
  '  duration_ms: 1',
  '  ...',
  '1..2',
];
const rust = ['# of one', 'ok 1 - one', "thread 'main' panicked at x.rs:1:", 'left: 1', '', 'not ok 2 - two', '1..2'];
const consoleOf = (/** @type {readonly string[]} */ lines, rest = ['towline: exit 1', 'towline: kernel quiet']) =>
  ['towline: boot', 'towline: kernel quiet', 'towline: suite 01-a', ...lines, ...rest].join('\r\n');
const upToEnd = (/** @type {readonly string[]} */ lines) => lines.slice(0, lines.indexOf('… its end:'));

test("a failed test of node:test is told with what follows it, without node's own part of the stack", (t) => {
  t.deepEqual(upToEnd(failureLines(consoleOf(nodeTest), '01-a')), [
    '    not ok 1 - inner',
    '      error: |-',
    '        1 !== 2',
    '      stack: |-',
    '        at (file:///towline/x.js:2:57)',
    'not ok 1 - outer',
    "  error: '1 subtest failed'",
  ]);
});

test('a failed test of a Rust program is told with what precedes it', (t) => {
  t.deepEqual(upToEnd(failureLines(consoleOf(rust), '01-a')), [
    "thread 'main' panicked at x.rs:1:",
    'left: 1',
    'not ok 2 - two',
  ]);
});

test("the kernel's complaint is told, and so is where a suite stopped", (t) => {
  const complained = ['towline: exit 0', '# 4.9 WARNING: x', 'towline: kernel complained', 'towline: suite 02-b'];
  t.deepEqual(upToEnd(failureLines(consoleOf(['ok 1 - one'], complained), '01-a')), ['# 4.9 WARNING: x']);
  const stopped = failureLines(consoleOf(['ok 1 - one', 'busy'], []), '01-a');
  t.deepEqual(stopped, ['… its end:', 'ok 1 - one', 'busy']);
  t.is(failureLines(consoleOf([], []), '02-b').at(-1), 'towline: suite 01-a', 'one that was not begun');
});

test('what is told is bounded, and keeps the end', (t) => {
  const lines = Array.from({ length: 1000 }, (_, n) => `not ok ${n + 1} - x`);
  const told = failureLines(consoleOf(lines), '01-a');
  t.true(told.length <= 82);
  t.is(told.at(-1), 'not ok 1000 - x');
  t.true(told.includes('… and 960 lines more'));
});

test('rows that failed say why, and no line of theirs looks like a count', (t) => {
  const row = { path: 'p', kernel: 'k', oracle: 'o' };
  const counts = { passed: 1, failed: 0, skipped: 0, problems: [], skips: [] };
  const consoles = [{ guest: 'g', lines: ['failed: x', '1 passed, 0 failed'] }];
  t.is(failures([{ ...row, counts, consoles }]), '');
  const text = failures([{ ...row, counts: { ...counts, failed: 1, problems: ['test two'] }, consoles }]);
  t.regex(text, /^\n==== failed: p \(k\)\n {2}test two\n {2}---- g\n/);
  t.notRegex(text, /^(?:failed:|skipped:|\d+ passed)/m);
});

test('progress is a line as a suite begins and ends, and each test that fails', (t) => {
  /** @type {string[]} */
  const told = [];
  let clock = 0;
  const hear = lineByLine(
    progress(
      (line) => told.push(line),
      () => (clock += 1000),
    ),
  );
  for (const byte of consoleOf(['noise', ...rust])) hear(byte);
  t.deepEqual(told, ['booted after 1 s', '01-a begins', 'not ok 2 - two', '01-a ended with 1 after 1 s']);
});
