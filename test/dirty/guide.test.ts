import { readFileSync } from 'node:fs';
import test from 'ava';
import type { DirtySource, MemoryRange } from '#towline/function/channel.js';
import { TsDirty } from '../support/ts-function.js';
import { serve, sourceElsewhere } from '../support/dirty-guide.js';

const read = (path: string): string => readFileSync(new URL(`../../${path}`, import.meta.url), 'utf8');

test('the guide about dirty sources shows the code that is compiled here', (t) => {
  const compiled = [...read('test/support/dirty-guide.ts').matchAll(/^\/\/ guide: [a-z]+\n(.*?)^\/\/ guide: end$/gms)];
  const shown = [...read('docs/guides/dirty-sources.md').matchAll(/^```ts\n(.*?)^```$/gms)];
  t.is(compiled.length, 4);
  t.deepEqual(
    shown.map((match) => match[1]),
    compiled.map((match) => match[1]),
  );
});

test('a source that is served tells what the served one does', async (t) => {
  const here: DirtySource & TsDirty = new TsDirty();
  const there = sourceElsewhere(async (...asked) => [...(await serve(here, ...asked))]);
  const written: MemoryRange = { gpa: 4096n, len: 1n };
  t.is(await there.start([{ gpa: 0n, len: 8192n }], 4096), 4096);
  t.true(here.tracking);
  here.wrote.push(written);
  t.deepEqual(await there.harvest(), [written]);
  t.deepEqual(await there.harvest(), []);
  await there.stop();
  t.false(here.tracking);
});
