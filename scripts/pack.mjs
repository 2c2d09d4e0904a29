// `node scripts/pack.mjs FOLDER`: builds and packs the two tarballs, towline and its platform package, into FOLDER.
// The platform package is declared as an optional dependency only in the packed package.json: while it is not
// published, a declaration in the repository would break `npm ci`.
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';

import { buildNative } from './build-native.mjs';
import { buildTs } from './build-ts.mjs';
import { thirdPartyLicences } from './lib/licences.mjs';
import { isMain, root, run } from './lib/process.mjs';

const platformFolder = join(root, 'npm', 'linux-x64-gnu');

/**
 * @param {string} folder where the tarballs go; made if missing
 * @returns {Promise<{ main: string, platform: string }>} the paths of the tarballs
 */
export async function pack(folder) {
  if (!(await buildNative()) || !(await buildTs())) throw new Error('the build failed');
  mkdirSync(folder, { recursive: true });
  const stage = mkdtempSync(join(tmpdir(), 'towline-pack-'));
  try {
    const manifest = readJson(join(root, 'package.json'));
    const platformManifest = readJson(join(platformFolder, 'package.json'));
    if (manifest.version !== platformManifest.version) {
      throw new Error(
        `versions differ: towline ${manifest.version}, ${platformManifest.name} ${platformManifest.version}`,
      );
    }
    /** @type {Record<string, unknown>} */
    const packed = {
      ...manifest,
      optionalDependencies: { ...manifest.optionalDependencies, [platformManifest.name]: platformManifest.version },
    };
    delete packed['devDependencies'];
    delete packed['scripts'];

    const main = join(stage, 'main');
    for (const entry of ['dist', 'LICENSE', 'README.md', 'CHANGELOG.md']) {
      cpSync(join(root, entry), join(main, entry), { recursive: true });
    }
    writeFileSync(join(main, 'package.json'), `${JSON.stringify(packed, null, 2)}\n`);

    const platform = join(stage, 'platform');
    cpSync(platformFolder, platform, { recursive: true });
    cpSync(join(root, 'LICENSE'), join(platform, 'LICENSE'));
    writeFileSync(join(platform, 'THIRD-PARTY-LICENSES.txt'), await thirdPartyLicences());

    return { main: await npmPack(main, folder), platform: await npmPack(platform, folder) };
  } finally {
    rmSync(stage, { recursive: true, force: true });
  }
}

/**
 * @param {string} file
 * @returns {Record<string, any>}
 */
const readJson = (file) => JSON.parse(readFileSync(file, 'utf8'));

/**
 * @param {string} source
 * @param {string} folder
 */
async function npmPack(source, folder) {
  const args = ['pack', '--json', '--pack-destination', resolve(folder)];
  const { code, stdout, stderr } = await run('npm', args, { cwd: source, echo: 'hide' });
  if (code !== 0) throw new Error(`npm pack failed: ${stderr}`);
  const [packed] = /** @type {{ filename: string }[]} */ (JSON.parse(stdout));
  if (packed === undefined) throw new Error('npm pack packed nothing');
  return join(resolve(folder), packed.filename);
}

if (isMain(import.meta.url)) {
  const [folder] = process.argv.slice(2);
  if (folder === undefined) {
    process.stderr.write('usage: node scripts/pack.mjs FOLDER\n');
    process.exit(2);
  }
  const { main, platform } = await pack(folder);
  process.stdout.write(`${main}\n${platform}\n`);
}
