// What the suites of list, explain and conformance have in common: the command as a process, and shells as oracles.
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const main = fileURLToPath(new URL('../../../dist/cli/main.js', import.meta.url));

export interface Ended {
  code: number;
  out: string;
  err: string;
}

function run(file: string, args: readonly string[], env?: NodeJS.ProcessEnv): Promise<Ended> {
  return new Promise((resolve) => {
    execFile(file, args, { maxBuffer: 16 << 20, ...(env === undefined ? {} : { env }) }, (error, out, err) =>
      resolve({ code: typeof error?.code === 'number' ? error.code : error ? -1 : 0, out, err }),
    );
  });
}

/** The command; nobody serves unless a socket is named. */
export function towline(...args: string[]): Promise<Ended> {
  return run(process.execPath, [main, ...args], { ...process.env, TOWLINE_SOCKET: '/tmp/nobody.sock' });
}

/** The values that a command with `--json` printed. */
export function values<T>({ out }: Ended): T[] {
  return out
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as T);
}

/** A shell's words; throws where it fails. */
export async function sh(script: string): Promise<string> {
  const { code, out, err } = await run('/bin/sh', ['-c', script]);
  if (code !== 0) throw new Error(`${script}: ${code}: ${err}${out}`);
  return out.trim();
}

/** A process that does `script` and then waits; `end` ends it. Settles once it has printed a line. */
export async function holder(script: string): Promise<{ pid: number; said: string; end: () => Promise<void> }> {
  const child = spawn('/bin/bash', ['-c', `${script}; read -r _`], { stdio: ['pipe', 'pipe', 'inherit'] });
  const exited = once(child, 'exit');
  const said = (await createInterface({ input: child.stdout })[Symbol.asyncIterator]().next()).value as
    | string
    | undefined;
  const end = async (): Promise<void> => {
    child.kill('SIGKILL');
    await exited;
  };
  return { pid: child.pid ?? 0, said: said ?? '', end };
}

/** How many descriptors this process has open. */
export async function openFiles(): Promise<number> {
  return (await readdir('/proc/self/fd')).length;
}
