import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

import { TowlineError } from '../errors.js';
import { packageRoot } from '../package-root.js';

const require = createRequire(import.meta.url);

/** `platform-arch`, and on Linux the C library too, since a binary for one does not load with the other. */
function platformName(): string {
  const { platform, arch } = process;
  if (platform !== 'linux') return `${platform}-${arch}`;
  const report = process.report.getReport() as { header?: { glibcVersionRuntime?: string } };
  return `linux-${arch}-${report.header?.glibcVersionRuntime === undefined ? 'musl' : 'gnu'}`;
}

function moduleNotFound(error: unknown): boolean {
  return error instanceof Error && 'code' in error && error.code === 'MODULE_NOT_FOUND';
}

let loaded: unknown;

/**
 * Loads the native part once and returns its exports, unchecked.
 *
 * In a clone of the repository the freshly built file comes first, so that a published package installed by chance
 * never hides it.
 *
 * @throws TowlineError `ERR_TOWLINE_NATIVE_LOAD` when there is none for this platform, or it does not load; `details`
 * has the `platform`, `linux-x64-gnu` say, and the package that was looked for.
 */
export function loadNative(): unknown {
  if (loaded !== undefined) return loaded;
  const platform = platformName();
  const local = fileURLToPath(new URL(`npm/${platform}/towline.${platform}.node`, packageRoot));
  const packaged = `@towline/${platform}`;
  try {
    loaded = require(existsSync(local) ? local : packaged) as unknown;
  } catch (cause) {
    const message = moduleNotFound(cause)
      ? `there is no native part for ${platform}: ${packaged} is not installed, and nothing is built here`
      : `the native part for ${platform} is there, but does not load`;
    throw new TowlineError('ERR_TOWLINE_NATIVE_LOAD', message, { cause, details: { platform, packaged } });
  }
  return loaded;
}
