/** The shell commands of the quick start, run in their order. */
import { readFileSync } from 'node:fs';
import test from 'ava';
import { runScript, shellBlocks } from '../support/guide.js';

const guide = readFileSync(new URL('../../docs/guides/quick-start.md', import.meta.url), 'utf8');

test('the commands of the quick start do what it says', async (t) => {
  t.timeout(150_000);
  const script = shellBlocks(/^## By command$(.*?)^## /ms.exec(guide)?.[1] ?? '').join('\n');
  for (const command of ['serve', 'provision', 'list', 'explain', 'receive', 'migrate', 'inspect', 'recover']) {
    t.true(script.includes(`towline ${command} `), command);
  }
  const { code, out } = await runScript(t, script);
  t.is(code, 0, out);
  for (const told of [
    /serving embedded:source on/,
    /provisioned vf0 \(vf, 6f1c0d5e-/,
    /vf0 can be migrated/,
    /dry-run: session/,
    /forecast: downtime p50/,
    /committed: session .*\n(?:.*\n)*?.*committed: session/,
    /1 functions, \d+ rounds/,
    /^whole$/m,
    /nothing to settle\nsession .* \(destination\): run-destination/,
  ]) {
    t.regex(out, told);
  }
});

test('a command that fails is noticed', async (t) => {
  const { code } = await runScript(t, 'towline list --socket ./nobody.sock\ntrue');
  t.is(code, 5);
});
