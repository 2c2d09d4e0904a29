import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { dirname } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import { parseResult, type Result } from './result.js';

/** The top folder; this module runs from `dist-benches`. */
const root = dirname(dirname(fileURLToPath(import.meta.url)));

/** Runs `crates/engine/examples/migrate`, which knows the options. */
export async function* migrate(options: readonly string[]): AsyncGenerator<Result, void> {
  const cargo = ['run', '--release', '--quiet', '--locked', '-p', 'towline-engine', '--example', 'migrate', '--'];
  const child = spawn('cargo', [...cargo, ...options], { cwd: root, stdio: ['ignore', 'pipe', 'inherit'] });
  const closed = once(child, 'close');
  // Its failure is told after the lines; until then nobody waits for it.
  closed.catch(() => undefined);
  for await (const line of createInterface({ input: child.stdout })) yield parseResult(line);
  const [code]: unknown[] = await closed;
  if (code !== 0) throw new Error(`the measuring program ended with ${String(code)}`);
}
