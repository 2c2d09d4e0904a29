// `node scripts/run.mjs FILE [ARG…]`: builds what is not up to date, then runs FILE in this process with the
// arguments, so that signals and the exit code are its own.
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

import { buildMicrovm } from './build-microvm.mjs';
import { buildNative } from './build-native.mjs';
import { buildTs } from './build-ts.mjs';
import { root } from './lib/process.mjs';

const [file, ...args] = process.argv.slice(2);
if (file === undefined) {
  process.stderr.write('usage: node scripts/run.mjs FILE [ARG…]\n');
  process.exit(2);
}
process.stderr.write('building what is not up to date (the first time takes a few minutes)\n');
if (!(await buildNative()) || !(await buildTs())) process.exit(1);
const isMicrovm = file.startsWith('examples/microvm/') || (file === 'dist-benches/main.js' && args[0] === 'vm');
if (isMicrovm && !(await buildMicrovm())) process.exit(1);
const main = join(root, file);
if (!existsSync(main)) {
  process.stderr.write(`${file} does not exist\n`);
  process.exit(1);
}
process.argv = [process.argv[0] ?? 'node', main, ...args];
await import(pathToFileURL(main).href);
