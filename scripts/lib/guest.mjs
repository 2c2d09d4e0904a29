// Boots guests of test/kernel and reads their consoles.
import { spawn } from 'node:child_process';
import { constants, rmSync } from 'node:fs';
import { access, chmod, copyFile, mkdir, mkdtemp, open, statfs, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { delimiter, join } from 'node:path';

import { reached } from './guest-console.mjs';
import { machineScript, rolesOf, stepName, stepScript } from './kernel-plan.mjs';
import { root, run } from './process.mjs';

export const here = join(root, 'test', 'kernel');
const cache = join(process.env['XDG_CACHE_HOME'] ?? join(process.env['HOME'] ?? '/root', '.cache'), 'towline');
/** Bytes that the root file system takes, with what is there while the kernel is built. */
const rootBytes = 5e9;
/** How build-root.sh ends where the machine has no mirror, or can't reach it. */
const noPackages = 69;

/** @typedef {import('./kernel-plan.mjs').Boot} Boot */

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

/** Why no guest can run here, if none can. @returns {Promise<string | undefined>} */
async function obstacle() {
  if (process.platform !== 'linux' || process.arch !== 'x64') return 'it needs Linux on x86-64';
  if (process.getuid?.() !== 0) return 'it needs root, for chroot and mounts in a namespace of its own';
  await installTools();
  for (const tool of ['mmdebstrap', 'unshare', 'chroot', 'flock', 'xz', 'cpio', 'timeout'])
    if (!(await isInstalled(tool))) return `it needs ${tool}`;
  const { code } = await run('unshare', ['--mount', '--propagation', 'private', 'true'], { echo: 'hide' });
  if (code !== 0) return 'namespaces of mounts are not allowed here';
  await mkdir(cache, { recursive: true });
  return undefined;
}

/**
 * The guests' root file system with its kernels, built where the cache lacks it (some 8 minutes).
 * @returns {Promise<{ path: string } | { skip: string } | { problem: string }>}
 */
export async function guestRoot() {
  const skip = await obstacle();
  if (skip !== undefined) return { skip };
  const built = await run(join(here, 'build-root.sh'), [], { echo: 'stderr' });
  if (built.code === 0) return { path: built.stdout.trim() };
  if (built.code === noPackages) return { skip: 'no Debian mirror can be reached, see above' };
  const { bavail, bsize } = await statfs(cache);
  if (bavail * bsize < rootBytes) return { skip: `${cache} has less than ${rootBytes / 1e9} GB left` };
  return { problem: `the root file system could not be built: ${lastLine(built.stderr)}` };
}

/** What QEMU or the C library says right before it aborts. */
const lastWords = /assert|hardware error|corrupted|free\(\)|malloc/i;

/**
 * What QEMU complained about: the first lines, and what it aborted for. It prints its registers after that, which are left out.
 * @param {string} text
 */
export function complaints(text) {
  const lines = text.split('\n').filter((line) => line.trim() !== '' && !line.includes('warning:'));
  return lines.filter((line, at) => at < 3 || lastWords.test(line)).join('; ');
}

/** QEMU's own end: a failed assertion, a wrong address; or as `timeout` tells it. @type {ReadonlySet<string | number | null>} */
const crashes = new Set(['SIGABRT', 'SIGSEGV', 134, 139]);

/** @param {string} text */
const lastLine = (text) => text.trimEnd().split('\n').at(-1) ?? '';

/** Ends what still runs, and removes what is left, when this process is told to end. @type {Set<() => void>} */
const cleanups = new Set();
for (const [signal, code] of /** @type {const} */ ([
  ['SIGINT', 130],
  ['SIGTERM', 143],
]))
  process.on(signal, () => {
    for (const cleanup of cleanups) cleanup();
    process.exit(code);
  });

/** A folder that the guests of a boot share with the host. */
export async function makeRunFolder() {
  const folder = await mkdtemp(join(tmpdir(), 'towline-kernel-'));
  await chmod(folder, 0o755);
  await copyFile(join(here, 'guest', 'inside'), join(folder, 'inside'));
  return folder;
}

/**
 * Puts into a run folder what a boot needs: programs, scripts, disks.
 * @param {string} folder
 * @param {Pick<Boot, 'machine' | 'suites'>} boot
 */
export async function fillRunFolder(folder, { machine, suites }) {
  for (const [name, megabytes] of Object.entries(machine.disks ?? {})) {
    const file = await open(join(folder, name), 'wx');
    await file.truncate(megabytes * 1024 * 1024);
    await file.close();
  }
  await writeFile(join(folder, 'expected'), machine.expects ?? '');
  await mkdir(join(folder, 'programs'));
  const target = process.env['CARGO_TARGET_DIR'] ?? join(root, 'target');
  for (const { program } of suites) {
    if ('node' in program) continue;
    const copy = join(folder, 'programs', program.example);
    await copyFile(join(target, 'debug', 'examples', program.example), copy);
    await chmod(copy, 0o755);
  }
  for (const role of rolesOf(machine)) {
    await writeFile(join(folder, `machine-${role}`), machineScript(machine));
    await mkdir(join(folder, `suites-${role}`));
    for (const [n, suite] of suites.entries())
      await writeFile(join(folder, `suites-${role}`, stepName(suite, n)), stepScript(suite));
  }
}

/**
 * The command line of a guest, and its environment.
 * @param {string} guestRootPath
 * @param {string} folder
 * @param {Pick<Boot, 'kernel' | 'machine'>} boot
 * @param {string} role
 */
export function guestCommand(guestRootPath, folder, { kernel, machine }, role) {
  const devices = (machine.devices ?? []).flatMap((device) => device.replaceAll('$role', role).split(' '));
  // Its monitor, for a host program: plugs and unplugs devices.
  const monitor = ['-qmp', `unix:/towline/run/qmp-${role}.sock,server=on,wait=off`];
  const other = role === 'source' ? 'destination' : 'source';
  const address = (/** @type {string} */ end, /** @type {string} */ name) =>
    `${end}.type=unix,${end}.path=/towline/run/net-${name}.sock`;
  const network =
    machine.guests === 2
      ? [
          '-netdev',
          `dgram,id=net0,${address('local', role)},${address('remote', other)}`,
          '-device',
          `virtio-net-pci,netdev=net0,romfile=,mac=52:54:00:00:00:0${role === 'source' ? 1 : 2}`,
        ]
      : [];
  return {
    args: [join(here, 'boot.sh'), guestRootPath, folder, kernel, ...devices, ...monitor, ...network],
    env: {
      ...process.env,
      APPEND: `towline.role=${role} ${machine.append ?? ''}`,
      MEMORY: String(machine.megabytes ?? 1024),
      // What a device outside can't map, as QEMU has no descriptor to send.
      BACKEND: machine.privateMemory ? 'ram,share=off' : 'memfd,share=on',
    },
  };
}

/**
 * Runs a guest to its end.
 * @param {{ args: string[], env: NodeJS.ProcessEnv }} command from {@link guestCommand}
 * @param {{ seconds: number, secondsToBoot: number }} limits How long it may take at most, and how long until it says that it has booted: a
 *   kernel that gives up without a word would otherwise be waited for as long as all its suites may take.
 * @param {(text: string) => void} [heard] Gets the console as it comes.
 * @param {AbortSignal} [signal] Ends it.
 * @returns {Promise<{ console: string, problem: string | undefined, stderr: string, crashed: boolean }>} `crashed`: QEMU itself did.
 */
export function runGuest({ args, env }, { seconds, secondsToBoot }, heard, signal) {
  return new Promise((resolve) => {
    // By `timeout`, which also ends it where this process is gone.
    const child = spawn('timeout', ['--kill-after=5', String(seconds), ...args], {
      env,
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    const cleanup = () => child.kill();
    cleanups.add(cleanup);
    signal?.addEventListener('abort', cleanup, { once: true });
    let console = '';
    let stderr = '';
    let isStuck = false;
    /** @type {NodeJS.Timeout | undefined} */
    let booting = setTimeout(() => {
      isStuck = true;
      cleanup();
    }, secondsToBoot * 1000);
    const over = () => {
      clearTimeout(booting);
      cleanups.delete(cleanup);
      signal?.removeEventListener('abort', cleanup);
    };
    child.stdout.setEncoding('utf8').on('data', (text) => {
      console += text;
      if (booting !== undefined && reached(console).booted) {
        clearTimeout(booting);
        booting = undefined;
      }
      heard?.(text);
    });
    child.stderr.setEncoding('utf8').on('data', (text) => (stderr += text));
    child.on('error', (error) => {
      over();
      resolve({ console, problem: String(error), stderr, crashed: false });
    });
    child.on('close', (code, death) => {
      over();
      const stuck = isStuck ? `the guest did not boot within ${secondsToBoot} s` : undefined;
      const late = code === 124 || code === 137 ? `the guest did not end within ${seconds} s` : undefined;
      resolve({
        console,
        problem: code === 0 ? undefined : (stuck ?? late ?? `QEMU ended with ${code ?? death}: ${complaints(stderr)}`),
        stderr,
        crashed: crashes.has(death) || crashes.has(code),
      });
    });
  });
}

/** The longest that a host program may take until it is ready. */
const hostSeconds = 120;

/**
 * Starts the host program of a machine and waits until it says `ready`.
 * @param {string} name
 * @param {string} folder
 * @param {(text: string) => void} heard Gets what it prints.
 * @param {number} [seconds] The longest that may take.
 * @returns {Promise<{ isReady: boolean, stop(): Promise<string | undefined> }>} `stop` gives what was wrong with it, if anything.
 */
export async function startHost(name, folder, heard, seconds = hostSeconds) {
  const child = spawn(
    process.execPath,
    ['--enable-source-maps', join(root, 'dist-test', 'kernel', 'host', `${name}.js`)],
    {
      env: { ...process.env, TOWLINE_RUN: folder },
      stdio: ['ignore', 'pipe', 'pipe'],
    },
  );
  const cleanup = () => child.kill('SIGKILL');
  cleanups.add(cleanup);
  let stderr = '';
  let isStopping = false;
  let isLate = false;
  child.stderr.setEncoding('utf8').on('data', (text) => {
    stderr += text;
    heard(text);
  });
  /** @type {Promise<string | undefined>} */
  const ended = new Promise((resolve) => {
    child.on('error', (error) => resolve(String(error)));
    child.on('close', (code, signal) => {
      cleanups.delete(cleanup);
      if (code === 0 && isStopping) resolve(undefined);
      else if (isLate) resolve(`the host program ${name} was not ready within ${seconds} s`);
      else resolve(`the host program ${name} ended with ${code ?? signal}: ${lastLine(stderr)}`);
    });
  });
  /** @type {Promise<true>} */
  const ready = new Promise((resolve) => {
    let stdout = '';
    child.stdout.setEncoding('utf8').on('data', (text) => {
      stdout += text;
      heard(text);
      if (/^ready$/m.test(stdout)) resolve(true);
    });
  });
  const late = setTimeout(() => {
    isLate = true;
    cleanup();
  }, seconds * 1000);
  const isReady = (await Promise.race([ready, ended])) === true;
  clearTimeout(late);
  return {
    isReady,
    stop: async () => {
      isStopping = true;
      child.kill('SIGTERM');
      const timer = setTimeout(cleanup, 10_000);
      const problem = await ended;
      clearTimeout(timer);
      return problem;
    },
  };
}

/** Uses a run folder and removes it in any case. @template T @param {(folder: string) => Promise<T>} use @returns {Promise<T>} */
export async function withRunFolder(use) {
  const folder = await makeRunFolder();
  const remove = () => rmSync(folder, { recursive: true, force: true });
  cleanups.add(remove);
  try {
    return await use(folder);
  } finally {
    cleanups.delete(remove);
    remove();
  }
}
