/**
 * Files behind namespaces. A file's identity is kept beside it, so that every subsystem that opens the file calls it by the
 * same NGUID and UUID: that is how two hosts recognise a shared disk.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { constants } from 'node:fs';
import { open, readFile, link, rm, writeFile } from 'node:fs/promises';
import { TowlineError, unwrapFault } from '../../errors.js';
import { checkUuid } from '../../function/spec.js';

/** Identity of a disk. */
export interface NamespaceIdentity {
  /** 32 hexadecimal digits. */
  readonly nguid: string;
  /** Lower-case with dashes. */
  readonly uuid: string;
}

/** Where the identity of the disk in `path` is kept. */
export function identityPath(path: string): string {
  return `${path}.identity.json`;
}

/** An NGUID as 32 lower-case hexadecimal digits, not all zero, or an error. */
export function checkNguid(nguid: string): string {
  const plain = nguid.toLowerCase().replaceAll('-', '');
  if (!/^[0-9a-f]{32}$/.test(plain) || /^0+$/.test(plain)) {
    throw new TowlineError(
      'ERR_TOWLINE_INVALID_ARGUMENT',
      `${JSON.stringify(nguid.slice(0, 80))} is no NGUID (32 hexadecimal digits, not all zero)`,
    );
  }
  return plain;
}

/** Creates the file where it is missing, sparse, and makes it at least `sizeBytes` long. It is never made shorter. */
export async function createSparse(path: string, sizeBytes: bigint): Promise<void> {
  if (sizeBytes <= 0n || sizeBytes > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new TowlineError(
      'ERR_TOWLINE_INVALID_ARGUMENT',
      `a namespace of ${sizeBytes} bytes; it has to be 1 to 2^53 - 1`,
    );
  }
  try {
    const file = await open(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    try {
      const { size } = await file.stat();
      if (BigInt(size) < sizeBytes) await file.truncate(Number(sizeBytes));
    } finally {
      await file.close();
    }
  } catch (error) {
    throw unwrapFault(error);
  }
}

async function readIdentity(path: string): Promise<NamespaceIdentity | undefined> {
  let text: string;
  try {
    text = await readFile(identityPath(path), 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw unwrapFault(error);
  }
  try {
    const value = JSON.parse(text) as Partial<NamespaceIdentity> | null;
    if (typeof value?.nguid === 'string' && typeof value.uuid === 'string') {
      return { nguid: checkNguid(value.nguid), uuid: checkUuid(value.uuid) };
    }
  } catch {
    // Told below, with the path.
  }
  throw new TowlineError('ERR_TOWLINE_FILE', `${identityPath(path)} does not hold an NGUID and a UUID`);
}

/** The identity kept beside `path`; a random one is made and kept where there is none. */
export async function identityOf(path: string): Promise<NamespaceIdentity> {
  const kept = await readIdentity(path);
  if (kept !== undefined) return kept;
  const made: NamespaceIdentity = { nguid: randomBytes(16).toString('hex'), uuid: randomUUID() };
  const temporary = `${identityPath(path)}.${process.pid}.${randomBytes(4).toString('hex')}`;
  try {
    await writeFile(temporary, `${JSON.stringify(made)}\n`, { mode: 0o600, flag: 'wx' });
    // A link fails where somebody was first; then theirs counts.
    await link(temporary, identityPath(path));
    return made;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw unwrapFault(error);
    const theirs = await readIdentity(path);
    if (theirs === undefined) throw unwrapFault(error);
    return theirs;
  } finally {
    await rm(temporary, { force: true });
  }
}
