import { spawn } from 'node:child_process';
import { closeSync, openSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The top folder of the repository. */
export const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));

/** Programs of the locked dev dependencies. @param {string} name */
export const bin = (name) => join(root, 'node_modules', '.bin', name);

/**
 * @typedef {object} RunOptions
 * @property {string} [cwd]
 * @property {NodeJS.ProcessEnv} [env] Replaces the environment.
 * @property {'show' | 'stderr' | 'hide'} [echo] Where the output goes while it is captured: 'show' as it comes
 *   (default), 'stderr' all of it to stderr, 'hide' nowhere.
 * @property {string} [log] A file that gets all of it, in the order in which it comes.
 *
 * @typedef {object} RunResult
 * @property {number} code The exit code; 137 after any signal, 127 if the program did not start.
 * @property {string} stdout
 * @property {string} stderr
 */

/**
 * Runs a program to its end and captures what it prints.
 * @param {string} command
 * @param {readonly string[]} args
 * @param {RunOptions} [options]
 * @returns {Promise<RunResult>}
 */
export function run(command, args, { cwd = root, env = process.env, echo = 'show', log } = {}) {
  const file = log === undefined ? undefined : openSync(log, 'w');
  /** @param {string} text */
  const keep = (text) => {
    if (file !== undefined) writeSync(file, text);
  };
  return new Promise((resolve) => {
    const child = spawn(command, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] });
    let stdout = '';
    let stderr = '';
    child.stdout.setEncoding('utf8').on('data', (text) => {
      stdout += text;
      keep(text);
      if (echo === 'show') process.stdout.write(text);
      if (echo === 'stderr') process.stderr.write(text);
    });
    child.stderr.setEncoding('utf8').on('data', (text) => {
      stderr += text;
      keep(text);
      if (echo !== 'hide') process.stderr.write(text);
    });
    child.on('error', (error) => {
      keep(`${String(error)}\n`);
      resolve({ code: 127, stdout, stderr: `${stderr}${String(error)}\n` });
    });
    child.on('close', (code, signal) => resolve({ code: code ?? (signal === null ? 1 : 137), stdout, stderr }));
  }).finally(() => {
    if (file !== undefined) closeSync(file);
  });
}

/** True when the module is the program that was started. @param {string} url its import.meta.url */
export const isMain = (url) => process.argv[1] === fileURLToPath(url);
