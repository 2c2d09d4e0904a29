import test from 'ava';
import { spawnSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const script = fileURLToPath(new URL('build-wasm.sh', import.meta.url));

/**
 * Runs the script among tools that only write down how they were called: nothing is downloaded, installed or built.
 * @param {import('ava').ExecutionContext} t
 * @param {{ rustup: 'adds' | 'fails' | 'missing' }} options
 */
function build(t, { rustup }) {
  const directory = mkdtempSync(join(tmpdir(), 'towline-wasm-'));
  t.teardown(() => rmSync(directory, { recursive: true, force: true }));
  const [bin, libdir, log] = [join(directory, 'bin'), join(directory, 'lib'), join(directory, 'log')];
  mkdirSync(bin);
  mkdirSync(libdir);
  /**
   * @param {string} name
   * @param {string} body
   */
  const tool = (name, body) => {
    writeFileSync(join(bin, name), `#!/bin/bash\necho "${name} $*" >>'${log}'\n${body}\n`);
    chmodSync(join(bin, name), 0o755);
  };
  tool('rustc', `echo '${libdir}'`);
  tool('cargo', 'exit 0');
  tool('dpkg-query', 'exit 1');
  tool('apt-get', 'exit 1');
  tool('id', 'echo 1000');
  if (rustup !== 'missing') tool('rustup', rustup === 'adds' ? `: >'${libdir}/libcore-0.rlib'` : 'exit 1');
  for (const [name, path] of [
    ['dirname', '/usr/bin/dirname'],
    ['env', '/usr/bin/env'],
  ]) {
    writeFileSync(join(bin, String(name)), `#!/bin/bash\nexec ${path} "$@"\n`);
    chmodSync(join(bin, String(name)), 0o755);
  }
  const { status, stderr } = spawnSync('/bin/bash', [script], {
    env: { PATH: bin, CARGO_TARGET_DIR: directory },
    encoding: 'utf8',
  });
  const calls = existsSync(log) ? readFileSync(log, 'utf8').trim().split('\n') : [];
  return { status, stderr, called: (/** @type {string} */ name) => calls.filter((c) => c.startsWith(`${name} `)) };
}

test('where rustup can add the target, plain cargo builds', (t) => {
  const { status, stderr, called } = build(t, { rustup: 'adds' });
  t.is(status, 0, stderr);
  t.deepEqual(called('rustup'), ['rustup target add wasm32-unknown-unknown']);
  t.deepEqual(called('cargo'), ['cargo build --release --locked -p towline-core --target wasm32-unknown-unknown']);
  t.deepEqual(called('dpkg-query'), []);
});

test('where it can not, or is missing, the packages of Debian are looked for', (t) => {
  for (const rustup of /** @type {const} */ (['fails', 'missing'])) {
    const { status, stderr, called } = build(t, { rustup });
    t.is(status, 1);
    t.regex(stderr, /neither rustup's target wasm32-unknown-unknown nor/);
    t.is(called('rustup').length, rustup === 'fails' ? 1 : 0);
    t.is(called('dpkg-query').length, 1);
    t.deepEqual(called('cargo'), []);
  }
});
