import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';

import { run } from './process.mjs';

/**
 * @typedef {object} Metadata What is used of the output of `cargo metadata`.
 * @property {{ id: string, name: string, version: string, license: string | null, source: string | null,
 *   manifest_path: string }[]} packages
 * @property {{ nodes: { id: string, deps: { pkg: string, dep_kinds: { kind: string | null }[] }[] }[] }} resolve
 */

/**
 * The foreign crates that are linked into a crate of this workspace, sorted by name.
 * @param {Metadata} metadata
 * @param {string} name
 */
export function linkedCrates(metadata, name) {
  const packages = new Map(metadata.packages.map((entry) => [entry.id, entry]));
  const nodes = new Map(metadata.resolve.nodes.map((node) => [node.id, node]));
  const start = metadata.packages.find((entry) => entry.name === name && entry.source === null);
  if (start === undefined) throw new Error(`there is no crate ${name}`);
  const found = new Set([start.id]);
  for (const id of found) {
    for (const dependency of nodes.get(id)?.deps ?? []) {
      // A kind of null is a normal dependency; the others run at build time or in tests only.
      if (dependency.dep_kinds.some((entry) => entry.kind === null)) found.add(dependency.pkg);
    }
  }
  return [...found]
    .flatMap((id) => packages.get(id) ?? [])
    .filter((entry) => entry.source !== null)
    .toSorted((a, b) => a.name.localeCompare(b.name) || a.version.localeCompare(b.version));
}

/**
 * The licences of everything that is linked into the native part, as its binary package has to carry them.
 * @returns {Promise<string>}
 */
export async function thirdPartyLicences() {
  const args = ['metadata', '--format-version=1', '--locked', '--filter-platform=x86_64-unknown-linux-gnu'];
  const { code, stdout, stderr } = await run('cargo', args, { echo: 'hide' });
  if (code !== 0) throw new Error(`cargo metadata failed: ${stderr}`);
  const parts = ['The native part of towline contains the following software.\n'];
  for (const entry of linkedCrates(JSON.parse(stdout), 'towline-napi')) {
    const folder = dirname(entry.manifest_path);
    const files = readdirSync(folder).filter((file) => /^(?:licen[cs]e|copying|notice|copyright)/i.test(file));
    const texts = files.toSorted().map((file) => readFileSync(join(folder, file), 'utf8').trim());
    parts.push(
      [`${'-'.repeat(80)}\n${entry.name} ${entry.version}, ${entry.license ?? 'see below'}`, ...texts].join('\n\n'),
    );
  }
  return `${parts.join('\n')}\n`;
}
