// What Node runs in the guests of test/kernel, in few files: there each module that is looked up and read costs some 30 ms of an emulated
// processor, and the command has 150 of them.
import { readdir, rm } from 'node:fs/promises';
import { join } from 'node:path';

import { build } from 'esbuild';

import { root } from './process.mjs';

/** Relative to the root; one level below it, as `dist` is, so that the package finds its own files. */
export const guestBundle = 'dist-guest';

/** Bundles what tsc has made. What two programs have in common stays one module: a preload changes what the program sees. */
export async function bundleGuest() {
  await rm(join(root, guestBundle), { recursive: true, force: true });
  const guest = join(root, 'dist-test', 'kernel', 'guest');
  const tests = (await readdir(join(guest, 'tests'))).filter((file) => file.endsWith('.js'));
  const programs = ['commands', 'inside-serve'].map((name) => [name, join(guest, `${name}.js`)]);
  await build({
    absWorkingDir: root,
    entryPoints: Object.fromEntries([
      ['cli', join(root, 'dist', 'cli', 'main.js')],
      ['towline', join(root, 'dist', 'index.js')],
      ...programs,
      ...tests.map((file) => [`tests-${file.slice(0, -3)}`, join(guest, 'tests', file)]),
    ]),
    outdir: guestBundle,
    bundle: true,
    splitting: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    sourcemap: 'linked',
    logLevel: 'warning',
  });
}
