// The guide shows the example's own code, and names files that are there.
import { existsSync, readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import test from 'ava';
import { caught } from '../../../scripts/lib/demo-vm-report.mjs';

const path = (/** @type {string} */ name) => fileURLToPath(new URL(name, import.meta.url));
const guide = readFileSync(path('../../../docs/guides/vmm.md'), 'utf8');

test("the code of the guide is the example's", (t) => {
  const blocks = [...guide.matchAll(/^<!-- (src\/\S+) -->\n\n```ts\n(.*?)^```$/gms)];
  t.is(blocks.length, [...guide.matchAll(/^```ts$/gm)].length, 'each block says where it is from');
  t.true(blocks.length >= 8);
  for (const [, file = '', code = ''] of blocks) {
    const source = readFileSync(path(`../${file}`), 'utf8');
    t.true(source.includes(`\n${code}`), `${file} has not what the guide shows of it:\n${code}`);
  }
});

test('the files and sabotages that the guide names are there', (t) => {
  for (const [, name = ''] of guide.matchAll(/`((?:src|examples|crates)\/[^`]+)`/g))
    t.true(existsSync(path(name.startsWith('src/') ? `../${name}` : `../../../${name}`)), name);
  for (const name of Object.keys(caught)) t.true(guide.includes(`| \`${name}\` |`), name);
});
