import test from 'ava';

import { parseGuestConsole } from './guest-console.mjs';

const good = [
  'SeaBIOS',
  'towline: inside',
  'towline: program 0-a',
  '1..2',
  'ok 1 - one',
  'ok 2 - two',
  'towline: exit 0',
  'towline: program 1-b',
  '1..1',
  'ok 1 - three',
  'towline: exit 0',
  'towline: kernel quiet',
  'towline: complaints are found',
  'towline: done',
  '',
];
const read = (/** @type {readonly string[]} */ lines) => parseGuestConsole(lines.join('\r\n'), ['0-a', '1-b']);

test('a good run counts its tests and the kernel', (t) => {
  const { passed, failed } = read(good);
  t.deepEqual([passed, failed], [4, 0]);
});

test('every line that is lost is noticed', (t) => {
  for (const line of good.slice(2, -1)) {
    const { failed } = read(good.filter((other) => other !== line));
    t.true(failed > 0, line);
  }
});

test('a run that is cut short is noticed wherever it ends', (t) => {
  for (let n = 0; n < good.length - 1; n++) t.true(read(good.slice(0, n)).failed > 0, `${n} lines`);
});

test('failures of a test, of a program and of the kernel are failures', (t) => {
  const change = (/** @type {string} */ from, /** @type {string} */ to) =>
    read(good.map((line) => (line === from ? to : line)));
  t.deepEqual(change('ok 2 - two', 'not ok 2 - two').problems, ['test two', '0-a exited with 0 in spite of failures']);
  t.is(change('towline: exit 0', 'towline: exit 1').failed, 2);
  t.is(change('towline: exit 0', 'towline: exit 139').failed, 2);
  t.deepEqual(change('towline: kernel quiet', 'towline: kernel complained').problems, [
    'the kernel complained, see its log above',
  ]);
});
