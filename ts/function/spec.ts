/**
 * Checks what callers ask of a function, before any driver sees it.
 */
import { TowlineError } from '../errors.js';
import { exposureNames, functionKinds, type FunctionConfig, type FunctionSpec } from './types.js';

const uuidPattern = /^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/;

/** The most namespaces in one call; a controller list of Namespace Attachment could hold more (NVMe Base 2.1). */
const MAX_NAMESPACES = 1024;

function invalid(message: string): never {
  throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', message);
}

function checkCount(what: string, value: unknown, least: number, most: number): void {
  if (value === undefined) return;
  if (typeof value !== 'number' || !Number.isSafeInteger(value) || value < least || value > most) {
    invalid(`${what} is ${String(value)}; it has to be a whole number from ${least} to ${most}`);
  }
}

/** A UUID in lower case with dashes, or an error. */
export function checkUuid(uuid: string): string {
  const lower = uuid.toLowerCase();
  if (!uuidPattern.test(lower)) invalid(`${JSON.stringify(uuid.slice(0, 80))} is no UUID`);
  return lower;
}

/** Checks a {@link FunctionConfig}. */
export function checkConfig(config: FunctionConfig): void {
  checkCount('queues', config.queues, 1, 65535);
  checkCount('vectors', config.vectors, 1, 2048);
  if (config.namespaces === undefined) return;
  if (config.namespaces.length > MAX_NAMESPACES)
    invalid(`${config.namespaces.length} namespaces; at most ${MAX_NAMESPACES}`);
  for (const nsid of config.namespaces) checkCount('a namespace', nsid, 1, 0xffff_fffd);
  if (new Set(config.namespaces).size !== config.namespaces.length) invalid('a namespace is named twice');
}

/** Checks a {@link FunctionSpec}. */
export function checkSpec(spec: FunctionSpec): void {
  if (!functionKinds.includes(spec.kind))
    invalid(`kind is ${String(spec.kind)}; it has to be one of ${functionKinds.join(', ')}`);
  if (spec.uuid !== undefined) checkUuid(spec.uuid);
  if (spec.name !== undefined && !/^[\w.:-]{1,64}$/.test(spec.name)) {
    invalid('a name has 1 to 64 letters, digits, dots, colons, dashes or underscores');
  }
  if (spec.expose !== undefined && !exposureNames.includes(spec.expose)) {
    invalid(`expose is ${String(spec.expose)}; it has to be one of ${exposureNames.join(', ')}`);
  }
  checkConfig(spec);
}
