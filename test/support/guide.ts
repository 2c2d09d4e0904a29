/** Shell commands of the guides, run as somebody would type them. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import type { ExecutionContext } from 'ava';
import { directory, main } from './cli.js';

/** The blocks of shell commands in a text. */
export function shellBlocks(text: string): string[] {
  return [...text.matchAll(/^```sh\n(.*?)^```$/gms)].map((match) => match[1] ?? '');
}

/** Runs a script as somebody would type it, in an empty directory; the first command that fails ends it. */
export async function runScript(t: ExecutionContext, script: string): Promise<{ code: number | null; out: string }> {
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
