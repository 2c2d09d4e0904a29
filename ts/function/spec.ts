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

/** A unicast hardware address of six bytes; the kernel's drivers refuse others (`is_valid_ether_addr`). */
function checkHwAddress(address: string): void {
  if (!/^[\da-f]{2}(:[\da-f]{2}){5}$/i.test(address))
    invalid(`${JSON.stringify(String(address).slice(0, 80))} is no hardware address (02:00:00:00:00:01)`);
  if ((Number.parseInt(address.slice(0, 2), 16) & 1) !== 0 || /^[0:]*$/.test(address))
    invalid(`${address} is a multicast or empty address; a function needs an address of its own`);
}

/** Checks a {@link FunctionConfig}. */
export function checkConfig(config: FunctionConfig): void {
  checkCount('queues', config.queues, 1, 65535);
  checkCount('vectors', config.vectors, 1, 2048);
  if (config.hwAddress !== undefined) checkHwAddress(config.hwAddress);
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
  // The kernel's own names are `<driver>-<type>`: one part of a path in sysfs.
  if (spec.type !== undefined && !/^[\w][\w.:+-]{0,127}$/.test(spec.type)) {
    invalid('a type has 1 to 128 letters, digits, dots, colons, plus signs, dashes or underscores');
  }
  checkConfig(spec);
}
