import test from 'ava';

import { exampleOf } from './readme.mjs';

const readme = ['# a', '<!-- example -->', '```js', 'first();', '```', '<!-- /example -->', ''].join('\n');

test('the example is what stands between the markers', (t) => {
  t.is(exampleOf(readme), 'first();\n');
});

test('no example, one without markers, and two are refused', (t) => {
  t.throws(() => exampleOf('# a\n'));
  t.throws(() => exampleOf(readme.replace('<!-- /example -->', '')));
  t.throws(() => exampleOf(readme + readme));
});
