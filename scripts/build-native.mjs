// Builds the native part and puts it where ts/native/load.ts looks for it. Cargo decides whether there is anything
// to do. All output goes to stderr: callers print results on stdout.
import { copyFileSync, existsSync, readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';

import { isMain, root, run } from './lib/process.mjs';

/** @type {Record<string, { folder: string, library: string } | undefined>} */
const platforms = {
  'linux-x64': { folder: 'linux-x64-gnu', library: 'libtowline_napi.so' },
};

/** @returns {Promise<boolean>} */
export async function buildNative() {
  const platform = platforms[`${process.platform}-${process.arch}`];
  if (platform === undefined) {
    process.stderr.write(`the native part is not built for ${process.platform}-${process.arch}\n`);
    return false;
  }
  // The messages name the artifact, wherever CARGO_TARGET_DIR or a user's configuration puts it.
  const args = ['build', '--release', '--locked', '-p', 'towline-napi', '--message-format=json-render-diagnostics'];
  const { code, stdout, stderr } = await run('cargo', args, { echo: 'hide' });
  if (code !== 0) {
    process.stderr.write(stderr);
    if (code === 127) process.stderr.write('cargo is needed to build the native part: https://rustup.rs\n');
    return false;
  }
  const built = artifact(stdout, platform.library);
  if (built === undefined) {
    process.stderr.write(`cargo built no ${platform.library}\n`);
    return false;
  }
  const target = join(root, 'npm', platform.folder, `towline.${platform.folder}.node`);
  if (existsSync(target) && readFileSync(target).equals(readFileSync(built))) return true;
  // By rename: a process that has the old file mapped keeps it whole.
  const fresh = `${target}.${process.pid}`;
  copyFileSync(built, fresh);
  renameSync(fresh, target);
  return true;
}

/**
 * @param {string} messages cargo's JSON messages, one a line
 * @param {string} library
 */
function artifact(messages, library) {
  for (const line of messages.split('\n')) {
    if (!line.startsWith('{')) continue;
    const message = /** @type {{ reason?: string, filenames?: string[] }} */ (JSON.parse(line));
    if (message.reason !== 'compiler-artifact') continue;
    const file = message.filenames?.find((name) => name.endsWith(`/${library}`));
    if (file !== undefined) return file;
  }
  return undefined;
}

if (isMain(import.meta.url)) process.exitCode = (await buildNative()) ? 0 : 1;
