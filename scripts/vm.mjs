// A shell in a guest of test/kernel, on this terminal; `exit` ends it. With a command it runs that, prints what it prints and exits
// as it did.
//
//   npm run vm -- [--kernel built|debian] [--machine NAME] [-- COMMAND…]
//
// --machine: with the devices and the setup of a machine of test/kernel/suites.mjs; `plain`, without any, unless told. The command is
// for the guest's shell and gets no input.
import { spawn } from 'node:child_process';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { parseArgs } from 'node:util';

import { machines } from '../test/kernel/suites.mjs';
import { fillRunFolder, guestCommand, guestRoot, withRunFolder } from './lib/guest.mjs';
import { quote } from './lib/kernel-plan.mjs';

const { values, positionals } = parseArgs({
  options: { kernel: { type: 'string', default: 'built' }, machine: { type: 'string', default: 'plain' } },
  allowPositionals: true,
});
/** @type {Record<string, import('../test/kernel/suites.mjs').Machine>} */
const known = machines;
const machine = known[values.machine];
const kernel = /** @type {const} */ (['built', 'debian']).find((name) => name === values.kernel);
if (machine === undefined || kernel === undefined) {
  process.stderr.write(`kernels: built, debian; machines: ${Object.keys(known).join(', ')}\n`);
  process.exit(2);
}
const found = await guestRoot();
if (!('path' in found)) {
  process.stderr.write(`${'skip' in found ? found.skip : found.problem}\n`);
  process.exit(1);
}

/** @param {string} folder @returns {Promise<number>} the exit code */
async function use(folder) {
  // One guest, also of a pair.
  const boot = { kernel: kernel ?? 'built', machine: { ...machine, guests: /** @type {const} */ (1) }, suites: [] };
  await fillRunFolder(folder, boot);
  const isShell = positionals.length === 0;
  const { columns = 80, rows = 24 } = process.stdout;
  if (isShell) {
    const term = quote(process.env['TERM'] ?? 'dumb');
    await writeFile(join(folder, 'shell'), `export TERM=${term}\nstty rows ${rows} cols ${columns} < /dev/ttyS0\n`);
  } else await writeFile(join(folder, 'command'), `${positionals.join(' ')}\n`);
  const { args, env } = guestCommand(/** @type {{ path: string }} */ (found).path, folder, boot, 'alone');
  const [program = '', ...rest] = args;
  const child = spawn(program, rest, { env, stdio: isShell ? 'inherit' : ['ignore', 'pipe', 'inherit'] });
  const ended = new Promise((resolve) => {
    child.on('error', () => resolve(127));
    child.on('close', (code) => resolve(code ?? 137));
  });
  const exit = child.stdout === null ? undefined : commandExit(child.stdout);
  const code = await ended;
  return exit === undefined ? code : ((await exit) ?? 1);
}

/**
 * Shows what the command prints, and gives how it exited.
 * @param {import('node:stream').Readable} console
 */
async function commandExit(console) {
  let rest = '';
  let isOurs = false;
  /** A line break before the end's mark is not the command's. */
  let isPending = false;
  /** @type {number | undefined} */
  let code;
  for await (const text of console.setEncoding('utf8')) {
    const lines = (rest + text).split('\n');
    rest = lines.pop() ?? '';
    for (const raw of lines) {
      const line = raw.replace(/\r$/, '');
      const exit = /^towline: exit (\d+)$/.exec(line);
      if (code !== undefined) continue;
      if (isOurs && exit) code = Number(exit[1]);
      else if (isOurs) {
        if (isPending) process.stdout.write('\n');
        isPending = line === '';
        if (!isPending) process.stdout.write(`${line}\n`);
      } else if (line === 'towline: command') isOurs = true;
      else if (line.startsWith('towline: setup failed')) process.stderr.write(`${line}\n`);
    }
  }
  if (code === undefined) process.stderr.write(`the guest ended before its command did\n${rest}\n`);
  return code;
}

process.exitCode = await withRunFolder(use);
