import { createRequire } from 'node:module';

interface PackageJson {
  readonly version: string;
}

const require = createRequire(import.meta.url);

/** The version of this package, as in its `package.json`. */
export const version: string = (require('../package.json') as PackageJson).version;
