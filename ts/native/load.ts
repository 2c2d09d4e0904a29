import { existsSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';

/** Why the native part could not be loaded: there is none for this platform, or the one there is did not load. */
export class NativeLoadError extends Error {
  override readonly name = 'NativeLoadError';
  /** Stable code of this error. */
  readonly code = 'ERR_TOWLINE_NATIVE_LOAD';
  /** The platform that was looked for: `linux-x64-gnu`, say. */
  readonly platform: string;

  constructor(platform: string, message: string, options?: ErrorOptions) {
    super(message, options);
    this.platform = platform;
  }
}

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
 * @throws {@link NativeLoadError} when there is no native part for this platform, or it does not load.
 */
export function loadNative(): unknown {
  if (loaded !== undefined) return loaded;
  const platform = platformName();
  const local = fileURLToPath(new URL(`../../npm/${platform}/towline.${platform}.node`, import.meta.url));
  const packaged = `@towline/${platform}`;
  try {
    loaded = require(existsSync(local) ? local : packaged) as unknown;
  } catch (cause) {
    if (!moduleNotFound(cause)) {
      throw new NativeLoadError(platform, `the native part of towline for ${platform} did not load`, { cause });
    }
    throw new NativeLoadError(
      platform,
      `there is no native part of towline for ${platform}: the package ${packaged} is not installed. ` +
        'It exists for linux-x64-gnu; in a clone of the repository, run "npm run build:native"',
      { cause },
    );
  }
  return loaded;
}
