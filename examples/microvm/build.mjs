// Builds the native part: the addon by cargo, the guest's image by cc. Cargo decides whether there is anything to do; the guest is small enough to be
// built each time. All output goes to stderr: callers print results on stdout.
import { spawnSync } from 'node:child_process';
import { copyFileSync, existsSync, mkdtempSync, readdirSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('.', import.meta.url));
const LIBRARY = 'libtowline_microvm.so';
const ADDON = 'microvm.linux-x64-gnu.node';

/**
 * Freestanding: no library, no start-up code. General registers only: the vector registers are the guest's to keep things in, and interrupt handlers need
 * not save them. No red zone: interrupts use the stack of what they interrupt.
 */
const GUEST_FLAGS = [
  '-std=gnu11',
  '-O2',
  '-Wall',
  '-Wextra',
  '-ffreestanding',
  '-nostdlib',
  '-static',
  '-no-pie',
  '-fno-pic',
  '-mno-red-zone',
  '-mgeneral-regs-only',
  '-fno-stack-protector',
  '-fcf-protection=none',
  '-fno-asynchronous-unwind-tables',
  '-Wl,--build-id=none',
  '-Wl,--oformat=binary',
];

/**
 * @param {string} command
 * @param {string[]} args
 * @param {string} hint where to get it
 * @returns {string | undefined} what it printed
 */
function run(command, args, hint) {
  const { status, error, stdout } = spawnSync(command, args, {
    cwd: root,
    encoding: 'utf8',
    maxBuffer: 64 << 20,
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (error) process.stderr.write(`${command} is needed: ${hint} (${error.message})\n`);
  return status === 0 ? stdout : undefined;
}

/**
 * By rename: a process that has the old file mapped keeps it whole.
 * @param {string} from
 * @param {string} to
 */
function put(from, to) {
  if (existsSync(to) && readFileSync(to).equals(readFileSync(from))) return;
  const fresh = `${to}.${process.pid}`;
  copyFileSync(from, fresh);
  renameSync(fresh, to);
}

/** @returns {boolean} */
export function buildAddon() {
  const args = ['build', '--release', '--locked', '--message-format=json-render-diagnostics'];
  const messages = run('cargo', args, 'https://rustup.rs');
  if (messages === undefined) return false;
  // The messages name the artifact, wherever CARGO_TARGET_DIR or a user's configuration puts it.
  for (const line of messages.split('\n')) {
    if (!line.startsWith('{')) continue;
    const message = /** @type {{ reason?: string, filenames?: string[] }} */ (JSON.parse(line));
    const file = message.reason === 'compiler-artifact' && message.filenames?.find((f) => f.endsWith(`/${LIBRARY}`));
    if (!file) continue;
    put(file, join(root, 'native', ADDON));
    return true;
  }
  process.stderr.write(`cargo built no ${LIBRARY}\n`);
  return false;
}

/**
 * Compiles the guest's sources into a flat image.
 * @param {string} folder where they are
 * @param {string} image what it makes
 * @returns {boolean}
 */
export function compileGuest(folder, image) {
  const sources = readdirSync(folder).filter((name) => name.endsWith('.c'));
  const files = sources.toSorted().map((name) => join(folder, name));
  const args = [...GUEST_FLAGS, `-Wl,-T,${join(folder, 'link.ld')}`, '-o', image, ...files];
  return run('cc', args, "Debian's package gcc, or clang with lld") !== undefined;
}

/** @returns {boolean} */
export function buildGuest() {
  const out = mkdtempSync(join(tmpdir(), 'microvm-guest-'));
  try {
    const image = join(out, 'guest.bin');
    if (!compileGuest(join(root, 'guest'), image)) return false;
    put(image, join(root, 'native', 'guest.bin'));
    return true;
  } finally {
    rmSync(out, { recursive: true });
  }
}

/** @returns {boolean} */
export function buildMicrovm() {
  if (process.platform !== 'linux' || process.arch !== 'x64') {
    process.stderr.write(`the microvm is not built for ${process.platform}-${process.arch}\n`);
    return false;
  }
  return buildGuest() && buildAddon();
}

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exitCode = buildMicrovm() ? 0 : 1;
