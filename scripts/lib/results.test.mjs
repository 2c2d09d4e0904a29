import test from 'ava';

import { closingLines, exitCode, noCounts, parseCargo, parseTally, parseTap, sum } from './results.mjs';

const cargo = `
     Running unittests src/lib.rs
running 3 tests
test a ... ok
test b ... ignored, needs a device
test c ... ok

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.01s

running 1 test
test d ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
`;
const cargoFailing = `
running 2 tests
test a ... ok
test b ... FAILED

test result: FAILED. 1 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
`;
const tap = `TAP version 13
ok 1 - a › first
ok 2 - a › second
ok 3 - a › third # SKIP
1..3
# tests 2
# pass 2
# skip 1
# fail 0
`;

test('cargo: sums the test programs and gives the reason of what is ignored', (t) => {
  const counts = parseCargo(cargo, 0);
  t.deepEqual(counts, { passed: 3, failed: 0, skipped: 1, problems: [], skips: ['b: needs a device'] });
  t.is(exitCode(counts), 0);
});

test('cargo: a failed test counts once and fails the run', (t) => {
  const counts = parseCargo(cargoFailing, 101);
  t.deepEqual([counts.passed, counts.failed, counts.problems], [1, 1, ['test b']]);
  t.is(exitCode(counts), 1);
});

test('cargo: a test program that dies before its result is a failure', (t) => {
  const cut = cargo.slice(0, cargo.indexOf('test result'));
  t.is(parseCargo(cut, 101).failed, 1);
  t.is(parseCargo(cut, 0).failed, 1, 'whatever the exit code');
  const firstCut = cargo.replace(/test result: ok\. 2.*\n/, '');
  t.is(parseCargo(firstCut, 101).failed, 1, 'also when another program follows it');
});

test('cargo: a result that lacks announced tests is a failure', (t) => {
  t.is(parseCargo(cargo.replace('running 3', 'running 4'), 0).failed, 1);
});

test('cargo: a build that fails before any test is a failure', (t) => {
  t.is(exitCode(parseCargo('', 101)), 1);
  t.is(exitCode(parseCargo('', 0)), 1);
});

test('cargo: a failing exit without a failed test is a failure', (t) => {
  t.is(parseCargo(cargo, 101).failed, 1);
});

test('TAP: counts points, skips apart', (t) => {
  const counts = parseTap(tap, 0);
  t.deepEqual([counts.passed, counts.failed, counts.skipped], [2, 0, 1]);
  t.is(exitCode(counts), 0);
});

test('TAP: a failed point fails the run', (t) => {
  const counts = parseTap(tap.replace('ok 2', 'not ok 2'), 1);
  t.deepEqual([counts.passed, counts.failed, counts.problems], [1, 1, ['test a › second']]);
});

test('TAP: every truncation is a failure, whatever the exit code', (t) => {
  for (let length = 0; length < tap.indexOf('1..3') + 4; length += 1) {
    for (const code of [0, 1]) t.is(exitCode(parseTap(tap.slice(0, length), code)), 1, `${length} bytes`);
  }
});

test('TAP: a gap, a second plan and a crashed runner are failures', (t) => {
  t.true(parseTap(tap.replace('ok 2 - a › second\n', ''), 0).failed > 0);
  t.is(parseTap(`${tap}1..3\n`, 0).failed, 1);
  t.is(parseTap(tap, 137).failed, 1);
});

test('TAP: nothing but skipped tests is not a good run', (t) => {
  t.is(exitCode(parseTap('ok 1 - a # SKIP\n1..1\n', 0)), 1);
});

test('tally: only the last line counts', (t) => {
  t.is(parseTally('skipped: x: no device\n3 passed, 0 failed, 1 skipped\n', 0, 's').skips.length, 1);
  t.is(parseTally('3 passed, 0 failed\nSegmentation fault\n', 139, 's').failed, 1);
  t.is(parseTally('3 passed, 0 failed\n', 1, 's').failed, 1);
  t.is(parseTally('0 passed, 0 failed\n', 0, 's').failed, 1);
});

test('closing lines end with the sums of all parts', (t) => {
  const total = sum(parseCargo(cargo, 0), parseTap(tap, 0));
  t.true(closingLines(total).endsWith('\n5 passed, 0 failed, 2 skipped\n'));
  t.is(closingLines({ ...noCounts(), passed: 1 }), '1 passed, 0 failed\n');
});
