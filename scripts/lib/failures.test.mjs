import test from 'ava';

import { failureLines } from './failures.mjs';

const tap = `TAP version 13
ok 1 - a › first
not ok 2 - a › second
  ---
    message: it is 2
    values: 1
  ...
ok 3 - a › third
1..3
`;

test('a failed point of TAP with its diagnosis, and nothing of the others', (t) => {
  t.deepEqual(failureLines(tap), ['not ok 2 - a › second', '  ---', '    message: it is 2', '    values: 1', '  ...']);
});

test('what a failed test of cargo printed', (t) => {
  const output = `running 2 tests
test a ... ok
test b ... FAILED

failures:

---- b stdout ----
thread 'b' panicked at src/lib.rs:3:5

failures:
    b

test result: FAILED. 1 passed; 1 failed; 0 ignored
`;
  t.deepEqual(failureLines(output), ['---- b stdout ----', "thread 'b' panicked at src/lib.rs:3:5", '']);
});

test('where nothing of the kind is found, the last lines', (t) => {
  const output = Array.from({ length: 100 }, (_, n) => `line ${n}`).join('\n');
  const lines = failureLines(output);
  t.is(lines.length, 40);
  t.is(lines.at(-1), 'line 99');
});

test('a failure that says too much is cut, and so are too many', (t) => {
  const long = ['not ok 1 - a', ...Array.from({ length: 500 }, (_, n) => `  line ${n}`)].join('\n');
  t.is(failureLines(long).length, 40);
  t.is(failureLines(long).at(-1), '…');
  const many = Array.from({ length: 500 }, (_, n) => `not ok ${n + 1} - a`).join('\n');
  t.is(failureLines(many).length, 201);
});
