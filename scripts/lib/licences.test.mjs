import test from 'ava';

import { linkedCrates } from './licences.mjs';

const entry = (/** @type {string} */ name, foreign = true) => ({
  id: name,
  name,
  version: '1.0.0',
  license: 'MIT',
  source: foreign ? 'registry' : null,
  manifest_path: `/${name}/Cargo.toml`,
});
const metadata = {
  packages: [entry('ours', false), entry('core', false), entry('b'), entry('a'), entry('builder'), entry('other')],
  resolve: {
    nodes: [
      {
        id: 'ours',
        deps: [
          { pkg: 'core', dep_kinds: [{ kind: null }] },
          { pkg: 'builder', dep_kinds: [{ kind: 'build' }] },
        ],
      },
      { id: 'core', deps: [{ pkg: 'b', dep_kinds: [{ kind: 'dev' }, { kind: null }] }] },
      { id: 'b', deps: [{ pkg: 'a', dep_kinds: [{ kind: null }] }] },
      { id: 'a', deps: [] },
    ],
  },
};

test('foreign crates are found through our own, and only those that are linked', (t) => {
  t.deepEqual(
    linkedCrates(metadata, 'ours').map((found) => found.name),
    ['a', 'b'],
  );
  t.throws(() => linkedCrates(metadata, 'missing'));
});
