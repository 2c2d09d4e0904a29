/** The command line as real processes. */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { ExecutionContext } from 'ava';

/** The file of the command. */
export const main = fileURLToPath(new URL('main.js', import.meta.resolve('#towline/cli/main.js')));

export interface Ended {
  code: number;
  out: string;
  err: string;
}

/** Runs a command to its end. */
export function towline(socket: string, ...args: string[]): Promise<Ended> {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      [main, ...args],
      { env: { ...process.env, TOWLINE_SOCKET: socket }, maxBuffer: 64 << 20 },
      (error, out, err) => resolve({ code: typeof error?.code === 'number' ? error.code : error ? -1 : 0, out, err }),
    );
  });
}

/** The JSON lines of a command. */
export function lines(out: string): Record<string, unknown>[] {
  return out
    .trim()
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Record<string, unknown>);
}

/** A directory that goes with the test. */
export async function directory(t: ExecutionContext): Promise<string> {
  const path = await mkdtemp(join(tmpdir(), 'towline-cli-'));
  t.teardown(() => rm(path, { recursive: true, force: true }));
  return path;
}

/** A serving process. */
export interface Serving {
  readonly socket: string;
  readonly child: ChildProcess;
  /** Ends it; by SIGTERM where no other signal is named. */
  end(signal?: NodeJS.Signals): Promise<void>;
}

/** Starts `towline serve` in `path`, on namespace file `namespace` there; ends with the test. */
export async function serve(t: ExecutionContext, path: string, name: string, ...more: string[]): Promise<Serving> {
  const socket = join(path, `${name}.sock`);
  const args = ['serve', '--json', '--embedded', name, '--socket', socket, '--journal', join(path, `journal-${name}`)];
  const child = spawn(
    process.execPath,
    [main, ...args, '--namespace', `${join(path, 'namespace')}:4M`, '--memory', '4M', ...more],
    { stdio: ['ignore', 'pipe', 'inherit'] },
  );
  const exited = once(child, 'exit');
  const end = async (signal: NodeJS.Signals = 'SIGTERM'): Promise<void> => {
    child.kill(signal);
    await exited;
  };
  t.teardown(() => end('SIGKILL'));
  const first = createInterface({ input: child.stdout as NodeJS.ReadableStream })[Symbol.asyncIterator]();
  const line = (await first.next()).value as string | undefined;
  const told = line === undefined ? undefined : (JSON.parse(line) as { serving?: { socket: string } });
  if (told?.serving?.socket !== socket) throw new Error(`it does not serve: ${line ?? 'it ended'}`);
  return { socket, child, end };
}
