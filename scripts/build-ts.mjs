// Compiles ts, test, examples and benches, each into its dist folder, and removes what no longer has a source: a
// deleted test must not run, and a deleted module must not be packed. Last the example that is a package of its own.
import { existsSync, mkdirSync, readdirSync, readlinkSync, rmSync, symlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { bin, isMain, root, run } from './lib/process.mjs';

/** @type {[source: string, output: string][]} */
const projects = [
  ['ts', 'dist'],
  ['test', 'dist-test'],
  ['examples', 'dist-examples'],
  ['benches', 'dist-benches'],
];

/** @returns {Promise<boolean>} */
export async function buildTs() {
  for (const [source, output] of projects) prune(join(root, source), join(root, output));
  const { code } = await run(bin('tsc'), ['-b'], { echo: 'stderr' });
  return code === 0 && (await buildMicrovm());
}

/** The microvm sees the package as anyone does who installed it: by its name, in its own `node_modules`. */
async function buildMicrovm() {
  const modules = join(root, 'examples', 'microvm', 'node_modules');
  link(join(modules, 'towline'), join('..', '..', '..'));
  const output = join(root, 'examples', 'microvm', 'dist');
  prune(join(root, 'examples'), output);
  const { code } = await run(bin('tsc'), ['-b', 'examples/microvm'], { echo: 'stderr' });
  return code === 0;
}

/**
 * @param {string} path
 * @param {string} target
 */
function link(path, target) {
  try {
    if (readlinkSync(path) === target) return;
  } catch {
    // There is none, or something else.
  }
  rmSync(path, { recursive: true, force: true });
  mkdirSync(dirname(path), { recursive: true });
  symlinkSync(target, path);
}

/**
 * @param {string} source
 * @param {string} output
 */
function prune(source, output) {
  if (!existsSync(output)) return;
  for (const file of readdirSync(output, { recursive: true, encoding: 'utf8' })) {
    const name = file.replace(/\.(?:js|js\.map|d\.ts)$/, '.ts');
    if (name !== file && !existsSync(join(source, name))) rmSync(join(output, file));
  }
}

if (isMain(import.meta.url)) process.exitCode = (await buildTs()) ? 0 : 1;
