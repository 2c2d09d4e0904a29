/**
 * What an embedded subsystem is made of.
 */
import { createHash } from 'node:crypto';
import { TowlineError } from '../../errors.js';
import { checkUuid } from '../../function/spec.js';
import type { EmbeddedConfig } from '../../native/binding.js';
import { checkNguid, createSparse, identityOf } from './namespace-file.js';

/** A disk in a file. */
export interface EmbeddedNamespace {
  /** Created where it is missing; several subsystems, in several processes, may open the same one. */
  path: string;
  /** A multiple of `lbaSizeBytes`. */
  sizeBytes: bigint;
  /** 512 or 4096. Default: 4096. */
  lbaSizeBytes?: number | undefined;
  /** 32 hexadecimal digits. Default: the one kept beside the file. */
  nguid?: string | undefined;
  /** Default: the one kept beside the file. */
  uuid?: string | undefined;
  /** Several controllers may have it at once. Without it no function that has it can be migrated. Default: true. */
  shared?: boolean | undefined;
}

/** An embedded subsystem. */
export interface EmbeddedOptions {
  /** Its address for {@link ControllingDriver.open}: `embedded:<name>`. 1 to 32 letters, digits, dots or dashes. */
  name: string;
  /** Identity of the subsystem. Default: made from the name. */
  uuid?: string | undefined;
  /** Serial number, 1 to 20 printable characters. Default: made from the name. */
  serial?: string | undefined;
  /** The first is namespace 1. At most 128. */
  namespaces?: readonly EmbeddedNamespace[] | undefined;
  /** PFs beside the controlling one, 0 to 16. Default: 1. */
  furtherPfs?: number | undefined;
  /** VFs at most; together with `maxSiov` at most 127. Default: 4. */
  maxVfs?: number | undefined;
  /** SIOV-like functions at most. Default: 4. */
  maxSiov?: number | undefined;
  /** Queue pairs that can be assigned, admin queues included. 0 to 65535. Default: 72. */
  flexibleQueues?: number | undefined;
  /** Vectors that can be assigned. 0 to 65535. Default: 72. */
  flexibleVectors?: number | undefined;
}

function uuidFromName(name: string): string {
  const hash = createHash('sha256').update(`towline embedded ${name}`).digest();
  hash[6] = ((hash[6] ?? 0) & 0x0f) | 0x80;
  hash[8] = ((hash[8] ?? 0) & 0x3f) | 0x80;
  const hex = hash.toString('hex');
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20, 32)].join('-');
}

/** Checks the name; everything else is checked by the model, which knows its limits. */
export function checkName(name: string): string {
  if (!/^[A-Za-z0-9.-]{1,32}$/.test(name)) {
    throw new TowlineError(
      'ERR_TOWLINE_INVALID_ARGUMENT',
      'the name of a subsystem has 1 to 32 letters, digits, dots or dashes',
    );
  }
  return name;
}

/** Creates missing files and fills in what is left out. */
export async function completeConfig(options: EmbeddedOptions): Promise<EmbeddedConfig> {
  const name = checkName(options.name);
  const namespaces: EmbeddedConfig['namespaces'] = [];
  for (const n of options.namespaces ?? []) {
    await createSparse(n.path, n.sizeBytes);
    const kept =
      n.nguid !== undefined && n.uuid !== undefined ? { nguid: n.nguid, uuid: n.uuid } : await identityOf(n.path);
    namespaces.push({
      path: n.path,
      sizeBytes: n.sizeBytes.toString(),
      lbaSizeBytes: n.lbaSizeBytes ?? 4096,
      nguid: checkNguid(n.nguid ?? kept.nguid),
      uuid: checkUuid(n.uuid ?? kept.uuid),
      shared: n.shared ?? true,
    });
  }
  return {
    uuid: options.uuid === undefined ? uuidFromName(name) : checkUuid(options.uuid),
    serial: options.serial ?? name.slice(0, 20),
    namespaces,
    furtherPfs: options.furtherPfs ?? 1,
    maxVfs: options.maxVfs ?? 4,
    maxSiov: options.maxSiov ?? 4,
    flexibleVq: options.flexibleQueues ?? 72,
    flexibleVi: options.flexibleVectors ?? 72,
  };
}
