// Builds what the microvm has besides TypeScript: its native part and its guest. It has a build of its own, as any VMM
// would; this runs it.
import { join } from 'node:path';

import { isMain, root, run } from './lib/process.mjs';

/** @returns {Promise<boolean>} */
export async function buildMicrovm() {
  const { code } = await run(process.execPath, ['build.mjs'], {
    cwd: join(root, 'examples', 'microvm'),
    echo: 'stderr',
  });
  return code === 0;
}

if (isMain(import.meta.url)) process.exitCode = (await buildMicrovm()) ? 0 : 1;
