import { readFileSync } from 'node:fs';

import test from 'ava';

import { errorCodes } from '#towline/error-codes.js';
import { faultPoints } from '#towline/rehearsal/index.js';

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');

/** The names in backquotes that begin the rows of a Markdown table. */
function rows(text: string): string[] {
  return [...text.matchAll(/^\| `([^`]+)` \|/gm)].map((match) => match[1] ?? '');
}

/** What two lists do not share. */
function difference(found: readonly string[], wanted: readonly string[]): string[] {
  return [...found.filter((name) => !wanted.includes(name)), ...wanted.filter((name) => !found.includes(name))];
}

test('the crash safety guide lists the points that the engine has', (t) => {
  const points = faultPoints();
  t.true(points.length > 20);
  t.deepEqual(rows(read('docs/guides/crash-safety.md')), [...points]);
});

test('the error guide lists the codes that there are', (t) => {
  t.deepEqual(difference(rows(read('docs/guides/errors.md')), Object.keys(errorCodes)), []);
});

test('the driver guide lists the reasons that there are', (t) => {
  const list = /export type ReasonCode =(.*?);/s.exec(read('ts/function/types.ts'))?.[1] ?? '';
  const codes = [...list.matchAll(/'([a-z-]+)'/g)].map((match) => match[1] ?? '');
  t.true(codes.length > 5);
  const table = /The codes are\nstable:|The codes are stable:/s.exec(read('docs/guides/drivers.md'));
  t.not(table, null);
  t.deepEqual(difference(rows(read('docs/guides/drivers.md').slice(table?.index)), codes), []);
});

test('a point or code that is missing, or too many, is noticed', (t) => {
  t.deepEqual(difference(rows('| `a` | x |\n| `b` | y |'), ['a', 'c']), ['b', 'c']);
});
