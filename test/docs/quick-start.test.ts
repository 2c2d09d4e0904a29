/** The shell commands of the quick start, run in their order. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { directory, main } from '../support/cli.js';

const guide = readFileSync(new URL('../../docs/guides/quick-start.md', import.meta.url), 'utf8');

/** The blocks of shell commands of the section that is about commands. */
function blocks(): string[] {
  const section = /^## By command$(.*?)^## /ms.exec(guide)?.[1] ?? '';
  return [...section.matchAll(/^```sh\n(.*?)^```$/gms)].map((match) => match[1] ?? '');
}

/** Runs a script as somebody would type it, in an empty directory; the first command that fails ends it. */
async function run(t: ExecutionContext, script: string): Promise<{ code: number | null; out: string }> {
  const path = await directory(t);
  const bin = join(path, 'bin');
  const work = join(path, 'work');
  for (const made of [bin, work]) mkdirSync(made, { mode: 0o700 });
  writeFileSync(join(bin, 'towline'), `#!/bin/sh\nexec '${process.execPath}' '${main}' "$@"\n`);
  chmodSync(join(bin, 'towline'), 0o755);
  const env = {
    ...process.env,
    PATH: `${bin}:${process.env['PATH'] ?? ''}`,
    XDG_RUNTIME_DIR: work,
    XDG_STATE_HOME: work,
  };
  // Its own group, so that what it left behind ends with the test.
  const child = spawn('bash', ['-euo', 'pipefail', '-c', script], { cwd: work, env, detached: true });
  t.teardown(() => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL');
    } catch {
      // Everything has ended.
    }
  });
  let out = '';
  for (const stream of [child.stdout, child.stderr]) stream.on('data', (bytes: Buffer) => (out += bytes.toString()));
  const [code] = (await once(child, 'exit')) as [number | null];
  return { code, out };
}

test('the commands of the quick start do what it says', async (t) => {
  t.timeout(150_000);
  const script = blocks().join('\n');
  for (const command of ['serve', 'provision', 'list', 'explain', 'receive', 'migrate', 'inspect', 'recover']) {
    t.true(script.includes(`towline ${command} `), command);
  }
  const { code, out } = await run(t, script);
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
  const { code } = await run(t, 'towline list --socket ./nobody.sock\ntrue');
  t.is(code, 5);
});
