// What the suites of list, explain and conformance have in common: the command, and shells as oracles.
import { type ChildProcess, execFile, fork, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readdir } from 'node:fs/promises';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

import type { Answered, Asked } from './commands.js';
import { cli, commands as commandsModule } from './paths.js';

const main = fileURLToPath(cli);

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

/** Nobody serves unless a socket is named. */
const env = { ...process.env, TOWLINE_SOCKET: '/tmp/nobody.sock' };

/** The command as a process of its own. */
export const towlineAlone = (...args: string[]): Promise<Ended> => run(process.execPath, [main, ...args], env);

let commands: ChildProcess | undefined;
let last = 0;

/** The command, in a process that runs all of them. Throws where it leaves devices open. */
export async function towline(...args: string[]): Promise<Ended> {
  commands ??= fork(fileURLToPath(commandsModule), {
    env,
    execArgv: ['--enable-source-maps'],
  });
  const child = commands;
  const id = ++last;
  child.ref();
  child.channel?.ref();
  const ended = await new Promise<Answered>((resolve, reject) => {
    const gone = (code: number | null, signal: string | null): void =>
      reject(new Error(`towline ${args.join(' ')} took its process with it: ${signal ?? code}`));
    child.once('exit', gone);
    const heard = (answer: Answered): void => {
      if (answer.id !== id) return;
      child.off('message', heard).off('exit', gone);
      resolve(answer);
    };
    child.on('message', heard);
    child.send({ id, args } satisfies Asked);
  });
  // It does not keep the test from ending, and ends with it.
  child.unref();
  child.channel?.unref();
  if (ended.error !== undefined) throw new Error(`towline ${args.join(' ')} threw ${ended.error}`);
  if (ended.open.length > 0) throw new Error(`towline ${args.join(' ')} left ${ended.open.join(' ')} open`);
  return ended;
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

/** How many descriptors this process has open, besides those to the process of the commands, which this ends. */
export async function openFiles(): Promise<number> {
  const child = commands;
  commands = undefined;
  if (child !== undefined) {
    child.ref();
    const ended = once(child, 'exit');
    child.disconnect();
    await ended;
  }
  return (await readdir('/proc/self/fd')).length;
}
