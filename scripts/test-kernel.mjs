// Real VFIO migration: boots a Linux kernel with its `mtty` sample devices under QEMU's emulator and moves device state in
// it. Needs root, apt and a few minutes when it runs for the first time; see test/kernel/README.md. Where something is
// missing it is skipped, with the reason. With --require that counts as a failure.
import { constants } from 'node:fs';
import { access, chmod, copyFile, mkdir, mkdtemp, rm, statfs } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';

import { lost, parseGuestConsole } from './lib/guest-console.mjs';
import { root, run } from './lib/process.mjs';
import { closingLines, exitCode, noCounts, sum } from './lib/results.mjs';

const here = join(root, 'test', 'kernel');
const cache = join(process.env['XDG_CACHE_HOME'] ?? join(process.env['HOME'] ?? '/root', '.cache'), 'towline');
/** Bytes that the root file system takes, with what is there while it is built. */
const rootBytes = 3e9;
/** How build-root.sh ends where the machine has no mirror, or that lacks the packages. */
const noPackages = 75;
/** Programs that run in the guest, in this order. */
const programs = [
  { crate: 'towline-linux', example: 'mtty_spike' },
  { crate: 'towline-engine', example: 'mtty_migration' },
];
/** The longest that the guest may take, in seconds: it needs 20 on two idle CPUs, and 120 where others want them too. */
const guestSeconds = 600;

/** @param {string} name */
async function isInstalled(name) {
  const found = (process.env['PATH'] ?? '').split(delimiter).map(async (dir) => {
    await access(join(dir, name), constants.X_OK);
  });
  return (await Promise.allSettled(found)).some((result) => result.status === 'fulfilled');
}

/** Debian's tools that a fresh machine lacks. What can't be had is told by {@link obstacle}. */
async function installTools() {
  if ((await isInstalled('mmdebstrap')) && (await isInstalled('cpio')) && (await isInstalled('xz'))) return;
  if (!(await isInstalled('apt-get'))) return;
  await run('apt-get', ['update', '-q'], { echo: 'stderr' });
  await run('apt-get', ['install', '-y', '-q', '--no-install-recommends', 'mmdebstrap', 'cpio', 'xz-utils'], {
    echo: 'stderr',
  });
}

/** Why it can't run here, if it can't. @returns {Promise<string | undefined>} */
async function obstacle() {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'it needs Linux on x86-64';
  if (process.getuid?.() !== 0) return 'it needs root, for chroot and mounts in a namespace of its own';
  await installTools();
  for (const tool of ['mmdebstrap', 'unshare', 'chroot', 'xz', 'cpio', 'timeout'])
    if (!(await isInstalled(tool))) return `it needs ${tool}`;
  const { code } = await run('unshare', ['--mount', '--propagation', 'private', 'true'], { echo: 'hide' });
  if (code !== 0) return 'namespaces of mounts are not allowed here';
  await mkdir(cache, { recursive: true });
  const { bavail, bsize } = await statfs(cache);
  if (bavail * bsize < rootBytes) return `${cache} has less than ${rootBytes / 1e9} GB left`;
  return undefined;
}

async function suite() {
  const reason = await obstacle();
  if (reason !== undefined) return skipped(reason);
  const built = await run(join(here, 'build-root.sh'), [], { echo: 'stderr' });
  if (built.code === noPackages) return skipped('the packages can not be had, see above');
  if (built.code !== 0) return lost(`the root file system could not be built: ${lastLine(built.stderr)}`);
  const guestRoot = built.stdout.trim();
  const folder = await mkdtemp(join(tmpdir(), 'towline-kernel-'));
  try {
    await mkdir(join(folder, 'programs'));
    await copyFile(join(here, 'guest', 'inside'), join(folder, 'inside'));
    for (const [n, { crate, example }] of programs.entries()) {
      const { code } = await run('cargo', ['build', '--locked', '-p', crate, '--example', example], { echo: 'stderr' });
      if (code !== 0) return lost(`${example} does not build`);
      const target = process.env['CARGO_TARGET_DIR'] ?? join(root, 'target');
      const program = join(folder, 'programs', `${n}-${example}`);
      await copyFile(join(target, 'debug', 'examples', example), program);
      await chmod(program, 0o755);
    }
    const boot = ['--kill-after=5', String(guestSeconds), join(here, 'boot.sh'), guestRoot, folder];
    const names = programs.map(({ example }, n) => `${n}-${example}`);
    let guest = await run('timeout', boot);
    let counts = parseGuestConsole(guest.stdout, names);
    if (counts.passed === 0) {
      // Emulated timers on a busy machine: its kernel may give up before it has started anything of ours.
      process.stdout.write('the guest did not come as far as its programs; once more\n');
      guest = await run('timeout', boot);
      counts = parseGuestConsole(guest.stdout, names);
    }
    return guest.code === 0 ? counts : sum(counts, lost(`QEMU ended with ${guest.code}: ${lastLine(guest.stderr)}`));
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** @param {string} reason */
const skipped = (reason) => ({ ...noCounts(), skipped: 1, skips: [reason] });

/** @param {string} text */
const lastLine = (text) => text.trimEnd().split('\n').at(-1) ?? '';

const counts = await suite();
process.stdout.write(closingLines(counts));
const isSkipped = counts.skipped > 0 && counts.failed + counts.passed === 0;
process.exitCode = isSkipped && !process.argv.includes('--require') ? 0 : exitCode(counts);
