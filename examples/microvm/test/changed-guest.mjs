// The guest with something of its source replaced: for what has to be noticed, and for what is too seldom otherwise.
import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { compileGuest } from '../build.mjs';

/**
 * @param {string} name of the file
 * @param {Record<string, string>} changes what comes in whose place; each has to be there exactly once
 * @returns {Uint8Array} the image
 */
export function changedGuest(name, changes) {
  const folder = mkdtempSync(join(tmpdir(), 'microvm-guest-'));
  try {
    cpSync(fileURLToPath(new URL('../guest', import.meta.url)), folder, { recursive: true });
    const file = join(folder, name);
    let source = readFileSync(file, 'utf8');
    for (const [from, to] of Object.entries(changes)) {
      if (source.split(from).length !== 2) throw new Error(`${name} does not have once: ${from}`);
      source = source.replace(from, to);
    }
    writeFileSync(file, source);
    const image = join(folder, 'guest.bin');
    if (!compileGuest(folder, image)) throw new Error('it does not compile');
    return new Uint8Array(readFileSync(image));
  } finally {
    rmSync(folder, { recursive: true });
  }
}
