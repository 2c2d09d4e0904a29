import test from 'ava';
import {
  compareDescriptors,
  compareFunctions,
  compareMemory,
  parseOfferedFunctions,
} from '#towline/migration/offer.js';
import type { Fact } from '#towline/function/types.js';

const fact = (value: Fact['value'], rule: Fact['rule']): Fact => ({ value, rule, why: 'because' });

test('every rule accepts what satisfies it and names what does not', (t) => {
  const cases: [Fact, Fact | undefined, boolean][] = [
    [fact(4, 'equal'), fact(4, 'equal'), true],
    [fact(4, 'equal'), fact(5, 'equal'), false],
    [fact('4', 'equal'), fact(4, 'equal'), false],
    [fact([1, 2], 'equal'), fact([1, 2], 'equal'), true],
    [fact([1, 2], 'equal'), fact([2, 1], 'equal'), false],
    [fact(4, 'at-least'), fact(5, 'at-least'), true],
    [fact(4, 'at-least'), fact(3, 'at-least'), false],
    [fact([1, 2], 'superset'), fact([3, 2, 1], 'superset'), true],
    [fact([1, 2], 'superset'), fact([1, 3], 'superset'), false],
    [fact([1, 2], 'intersects'), fact([2, 9], 'intersects'), true],
    [fact([1, 2], 'intersects'), fact([3], 'intersects'), false],
    [fact(1, 'equal'), undefined, false],
    [fact(1, 'of-a-later-version' as Fact['rule']), fact(1, 'equal'), false],
  ];
  for (const [offered, local, fits] of cases) {
    const mismatches = compareDescriptors('f', { x: offered }, local ? { x: local } : {});
    t.is(mismatches.length, fits ? 0 : 1, JSON.stringify([offered, local]));
    if (!fits) t.is(mismatches[0]?.code, 'f: x');
  }
});

test('all mismatches are told at once', (t) => {
  const offered = {
    uuid: 'u',
    name: 'f',
    descriptor: { a: fact(1, 'equal'), b: fact(2, 'equal'), c: fact(3, 'equal') },
  };
  const local = { uuid: 'v', name: 'g', descriptor: { a: fact(1, 'equal'), b: fact(9, 'equal') } };
  const mismatches = compareFunctions([offered, offered], [local]);
  t.deepEqual(
    mismatches.map((m) => m.code),
    ['functions', 'f: b', 'f: c'],
  );
});

test('memory has to have the same ranges', (t) => {
  const local = [{ gpa: 0n, len: 4096n }];
  t.deepEqual(compareMemory([{ gpa: '0', len: '4096' }], local), []);
  t.is(compareMemory([{ gpa: '0', len: '8192' }], local).length, 1);
  t.is(compareMemory([], local).length, 1);
});

test("a peer's offer is checked before anything is made of it", (t) => {
  const good = { functions: [{ uuid: 'u', name: 'n', descriptor: { x: fact([1, 'a'], 'superset') } }] };
  t.deepEqual(parseOfferedFunctions(good), good.functions);
  const f = good.functions[0];
  const bad: unknown[] = [
    null,
    {},
    { functions: {} },
    { functions: [] },
    { functions: [null] },
    { functions: Array.from({ length: 257 }, () => f) },
    { functions: [{ ...f, name: 'a\u001b[2J' }] },
    { functions: [{ ...f, name: 'a'.repeat(256) }] },
    { functions: [{ ...f, uuid: 7 }] },
    { functions: [{ ...f, descriptor: [] }] },
    { functions: [{ ...f, descriptor: { x: null } }] },
    { functions: [{ ...f, descriptor: { x: { value: { deep: 1 }, rule: 'equal', why: '' } } }] },
    { functions: [{ ...f, descriptor: { x: { value: [[1]], rule: 'equal', why: '' } } }] },
    {
      functions: [
        { ...f, descriptor: Object.fromEntries(Array.from({ length: 65 }, (_, i) => [`x${i}`, fact(1, 'equal')])) },
      ],
    },
  ];
  for (const offer of bad) {
    t.throws(
      () => parseOfferedFunctions(offer),
      { code: 'ERR_TOWLINE_PROTOCOL' },
      JSON.stringify(offer)?.slice(0, 100),
    );
  }
});
