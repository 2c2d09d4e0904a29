import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { packageRoot } from './package-root.js';

interface PackageJson {
  readonly version: string;
}

const require = createRequire(import.meta.url);

/** The version of this package, as in its `package.json`. */
export const version: string = (require(fileURLToPath(new URL('package.json', packageRoot))) as PackageJson).version;
