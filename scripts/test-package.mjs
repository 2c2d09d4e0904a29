// Packs the package, then looks at it as a user gets it: publint and attw find nothing, and installed from the
// tarballs into an empty folder, with neither cargo nor this repository in reach, it imports, runs the example of the
// README and answers `towline --version`. The microvm is a package that depends on it: it builds and runs there, too.
import {
  cpSync,
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { delimiter, join, relative } from 'node:path';

import { Checks, must } from './lib/checks.mjs';
import { mustBeGood } from './lib/demo-vm-report.mjs';
import { jsonLines } from './lib/json-lines.mjs';
import { bin, root, run } from './lib/process.mjs';
import { exampleOf } from './lib/readme.mjs';
import { closingLines, exitCode } from './lib/results.mjs';
import { pack } from './pack.mjs';

const manifest = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const subpaths = Object.keys(manifest.exports).filter((name) => name !== './package.json');
const folder = mkdtempSync(join(tmpdir(), 'towline-package-'));
const user = join(folder, 'user');
const checks = new Checks();

/**
 * What a user's shell has: node, npm and sh, but no cargo.
 * @returns {NodeJS.ProcessEnv}
 */
function userEnvironment() {
  const tools = join(folder, 'bin');
  mkdirSync(tools);
  symlinkSync(process.execPath, join(tools, 'node'));
  for (const tool of ['npm', 'sh', 'mkfifo']) {
    const path = (process.env['PATH'] ?? '').split(delimiter).find((entry) => existsSync(join(entry, tool)));
    must(path !== undefined, `${tool} is not on PATH`);
    symlinkSync(join(path, tool), join(tools, tool));
  }
  return { PATH: tools, HOME: process.env['HOME'] };
}

/**
 * @param {string} command
 * @param {string[]} args
 * @param {import('./lib/process.mjs').RunOptions} options
 */
async function succeeds(command, args, options = {}) {
  const result = await run(command, args, { echo: 'hide', ...options });
  must(result.code === 0, `exit code ${result.code}\n${result.stdout}${result.stderr}`);
  return result;
}

/** The exit code of the microvm's demo where there is no KVM. */
const UNAVAILABLE = 77;

/**
 * The microvm, away from this repository, with the package from its tarball.
 * @param {string} main
 * @param {string} platform
 * @param {NodeJS.ProcessEnv} env
 */
async function microvm(main, platform, env) {
  const examples = join(folder, 'vmm', 'examples');
  const cwd = join(examples, 'microvm');
  const left = new Set(['dist', 'node_modules', 'target']);
  await checks.check('the microvm builds with the package from its tarball', async () => {
    cpSync(join(root, 'examples', 'microvm'), cwd, {
      recursive: true,
      filter: (path) => !left.has(relative(join(root, 'examples', 'microvm'), path)),
    });
    cpSync(join(root, 'examples', 'shared'), join(examples, 'shared'), { recursive: true });
    cpSync(join(root, 'tsconfig.base.json'), join(folder, 'vmm', 'tsconfig.base.json'));
    // As in the checkout, what stands beside the microvm is ESM.
    writeFileSync(join(examples, 'package.json'), '{"type":"module"}\n');
    // What only the compiler needs.
    mkdirSync(join(examples, 'node_modules'));
    symlinkSync(join(root, 'node_modules', '@types'), join(examples, 'node_modules', '@types'));
    await succeeds('npm', ['install', '--no-save', '--no-audit', '--no-fund', main, platform], { cwd, env });
    must(!lstatSync(join(cwd, 'node_modules', 'towline')).isSymbolicLink(), 'it is the checkout, not the tarball');
    const CARGO_TARGET_DIR = process.env['CARGO_TARGET_DIR'] ?? join(root, 'examples', 'microvm', 'target');
    await succeeds(process.execPath, ['build.mjs'], { cwd, env: { ...process.env, CARGO_TARGET_DIR } });
    await succeeds(bin('tsc'), ['-b'], { cwd });
  });
  const name = 'the microvm moves a guest with the package from its tarball';
  const demo = join('dist', 'microvm', 'demo', 'main.js');
  const result = await run('node', [demo, '--json', '--kind', 'vf', '--memory', '96'], { cwd, env, echo: 'hide' });
  if (result.code === UNAVAILABLE) {
    checks.skip(name, result.stderr.trim().split('\n').at(-1) ?? 'no microvm can run here');
    return;
  }
  await checks.check(name, () => {
    must(result.code === 0, `exit code ${result.code}\n${result.stdout}${result.stderr}`);
    for (const line of jsonLines(result.stdout)) mustBeGood(line);
  });
}

try {
  /** @type {{ main: string, platform: string } | undefined} */
  let tarballs;
  await checks.check('both packages pack', async () => {
    tarballs = await pack(folder);
  });
  if (tarballs !== undefined) {
    const { main, platform } = tarballs;
    await checks.check('publint finds nothing', () => succeeds(bin('publint'), ['run', '--strict', main]));
    // The package is ESM only: that require() of it needs a Node that can require ESM is meant.
    await checks.check('attw finds nothing', () => succeeds(bin('attw'), ['--profile', 'esm-only', main]));

    const env = userEnvironment();
    const options = { cwd: user, env };
    mkdirSync(user);
    writeFileSync(join(user, 'package.json'), '{ "name": "user", "private": true, "type": "module" }\n');
    await checks.check('there is no cargo in reach', async () => {
      must((await run('sh', ['-c', 'command -v cargo'], { env, echo: 'hide' })).code !== 0, 'cargo is on PATH');
    });
    await checks.check('the tarballs install in an empty folder', () =>
      succeeds('npm', ['install', '--no-audit', '--no-fund', main, platform], options),
    );
    for (const subpath of subpaths) {
      const name = `towline${subpath.slice(1)}`;
      const source = `if (Object.keys(await import('${name}')).length === 0) throw new Error('no exports')`;
      await checks.check(`${name} imports`, () => succeeds('node', ['--input-type=module', '-e', source], options));
    }
    await checks.check("the README's example runs", async () => {
      writeFileSync(join(user, 'example.mjs'), exampleOf(readFileSync(join(root, 'README.md'), 'utf8')));
      const { stdout } = await succeeds('node', ['example.mjs'], options);
      must(stdout.startsWith('committed '), `it says ${stdout}`);
    });
    await checks.check('towline --version', async () => {
      const { stdout } = await succeeds(join(user, 'node_modules', '.bin', 'towline'), ['--version'], options);
      must(stdout.trim() === manifest.version, `it says ${stdout.trim()}`);
    });
    await microvm(main, platform, env);
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
process.stdout.write(closingLines(checks.counts));
process.exitCode = exitCode(checks.counts);
