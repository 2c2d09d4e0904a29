/**
 * What a quirk is: a record of how one odd device differs, as data. It is code for no device: the BAR compiler, the exposures and
 * `explain` read it.
 */
import { TowlineError } from '../../errors.js';

/** Which functions a quirk is about. A function has to match everything that is given. */
export interface QuirkMatch {
  /** PCI vendor. */
  readonly vendor?: number | undefined;
  /** PCI devices of that vendor; any where left out. */
  readonly devices?: readonly number[] | undefined;
  /** Only VFs: PFs have the same identity and are sane. */
  readonly vf?: true | undefined;
  /** Kernel drivers that the function is bound to. For what has no PCI identity, a mediated device say. */
  readonly drivers?: readonly string[] | undefined;
}

/** A place in a BAR: a fraction of its size, so that one record holds for every size of the BAR. */
export interface QuirkPlace {
  readonly numerator: number;
  /** A power of two up to 2^20, so that the place is a whole byte. */
  readonly denominator: number;
}

/** What has to happen to one BAR. */
export interface QuirkBar {
  /** 0 to 5. */
  readonly bar: number;
  /**
   * - `truncate`: a guest sees a BAR that ends at `from`.
   * - `hide`: `from` to `to` reads as zero and drops writes.
   * - `trap`: `from` to `to` is answered by the exposure.
   */
  readonly action: 'truncate' | 'hide' | 'trap';
  readonly from: QuirkPlace;
  /** End of `hide` and `trap`, exclusive. Left out for `truncate`. */
  readonly to?: QuirkPlace | undefined;
  /** What is there, and when that holds. */
  readonly why: string;
  /** Kernel drivers that do it themselves: a region that one of them gives is the right one already. */
  readonly doneBy: readonly string[];
}

/** A register of the config space that a guest has to read differently. */
export interface QuirkConfig {
  /** Name in include/uapi/linux/pci_regs.h. */
  readonly register: string;
  /** In the config space, from 0. */
  readonly offset: number;
  readonly bytes: 1 | 2 | 4;
  /** What reads give; `null`: it is answered by the exposure. */
  readonly value: number | null;
  readonly why: string;
  /** As in {@link QuirkBar}. */
  readonly doneBy: readonly string[];
}

/** What a reset of the function needs. */
export interface QuirkReset {
  /** `trap`: a function level reset by the guest has to be trapped, since migration state has to follow it. `pass`: it need not. */
  readonly flr: 'trap' | 'pass';
  /** The driver puts its part off until its state lock is free: the state may be read a moment too early after a reset. */
  readonly deferred: boolean;
  readonly note: string;
}

/** An odd device. */
export interface Quirk {
  /** Stable. */
  readonly name: string;
  readonly match: QuirkMatch;
  readonly bars: readonly QuirkBar[];
  readonly config: readonly QuirkConfig[];
  readonly reset: QuirkReset | null;
  /** Ask for one arc from `running` to `resuming` instead of stopping first: a stop in between starts queues over the loaded state. */
  readonly combineResuming: boolean;
  /** What whoever drives it has to know, a sentence each. */
  readonly notes: readonly string[];
  /** Where it comes from: a file of the Linux kernel. */
  readonly source: string;
}

function bad(name: string, what: string): never {
  throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `quirk ${name}: ${what}`);
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isId = (value: unknown): value is number =>
  Number.isInteger(value) && Number(value) >= 0 && Number(value) <= 0xffff;
const isText = (value: unknown): value is string =>
  typeof value === 'string' && value.length > 0 && value.length <= 1000;
const isTexts = (value: unknown): value is string[] =>
  Array.isArray(value) && value.length <= 64 && value.every(isText);

function checkKeys(name: string, what: string, value: Record<string, unknown>, known: readonly string[]): void {
  const stranger = Object.keys(value).find((key) => !known.includes(key));
  if (stranger !== undefined) bad(name, `${what} has no ${stranger}; it has ${known.join(', ')}`);
}

function checkMatch(name: string, match: unknown): void {
  if (!isObject(match)) return bad(name, 'match has to be an object');
  checkKeys(name, 'match', match, ['vendor', 'devices', 'vf', 'drivers']);
  const { vendor, devices, vf, drivers } = match;
  if (vf !== undefined && vf !== true) bad(name, 'match.vf is true or left out');
  if (vendor === undefined && drivers === undefined)
    bad(name, 'match names neither a vendor nor a driver: it would match everything');
  if (vendor !== undefined && !isId(vendor)) bad(name, 'match.vendor has to be 0 to 0xffff');
  if (
    devices !== undefined &&
    (vendor === undefined || !Array.isArray(devices) || devices.length > 256 || !devices.every(isId))
  )
    bad(name, 'match.devices has to be a list of at most 256 numbers up to 0xffff, with a vendor');
  if (drivers !== undefined && (!isTexts(drivers) || drivers.length === 0))
    bad(name, 'match.drivers has to be a list of names');
}

function checkPlace(name: string, place: unknown, what: string): number {
  if (!isObject(place)) return bad(name, `${what} has to be a fraction`);
  checkKeys(name, what, place, ['numerator', 'denominator']);
  const { numerator, denominator } = place as { numerator?: unknown; denominator?: unknown };
  if (
    typeof denominator !== 'number' ||
    !Number.isInteger(Math.log2(denominator)) ||
    denominator < 1 ||
    denominator > 2 ** 20 ||
    typeof numerator !== 'number' ||
    !Number.isInteger(numerator) ||
    numerator < 0 ||
    numerator > denominator
  ) {
    return bad(name, `${what} has to be from 0 to 1, its denominator a power of two up to 2^20`);
  }
  return numerator / denominator;
}

function checkBar(name: string, bar: unknown): void {
  if (!isObject(bar)) return bad(name, 'a BAR has to be an object');
  checkKeys(name, 'a BAR', bar, ['bar', 'action', 'from', 'to', 'why', 'doneBy']);
  const index = bar['bar'];
  if (typeof index !== 'number' || !Number.isInteger(index) || index < 0 || index > 5) bad(name, 'a BAR is 0 to 5');
  const from = checkPlace(name, bar['from'], 'from');
  if (bar['action'] === 'truncate') {
    if (bar['to'] !== undefined) bad(name, 'truncate has no end');
    if (from === 0 || from === 1) bad(name, 'truncate leaves nothing, or all of it');
  } else if (bar['action'] === 'hide' || bar['action'] === 'trap') {
    if (checkPlace(name, bar['to'], 'to') <= from) bad(name, 'an empty range');
  } else bad(name, 'the action of a BAR is truncate, hide or trap');
  if (!isText(bar['why'])) bad(name, 'a BAR has to say why');
  if (!isTexts(bar['doneBy'])) bad(name, 'doneBy has to be a list of drivers');
}

function checkConfig(name: string, config: unknown): void {
  if (!isObject(config)) return bad(name, 'a register has to be an object');
  checkKeys(name, 'a register', config, ['register', 'offset', 'bytes', 'value', 'why', 'doneBy']);
  const { register, offset, bytes, value, why, doneBy } = config;
  if (!isText(register) || !isText(why) || !isTexts(doneBy))
    bad(name, 'a register has a name, a reason and the drivers that do it');
  if (bytes !== 1 && bytes !== 2 && bytes !== 4) bad(name, 'a register has 1, 2 or 4 bytes');
  if (!Number.isInteger(offset) || Number(offset) < 0 || Number(offset) + Number(bytes) > 256)
    bad(name, 'a register lies in the first 256 bytes');
  if (value !== null && (!Number.isInteger(value) || Number(value) < 0 || Number(value) >= 2 ** (8 * Number(bytes))))
    bad(name, 'the value of a register has to fit it');
}

/**
 * Checks a quirk from outside.
 * @throws TowlineError `ERR_TOWLINE_INVALID_ARGUMENT` names what is wrong.
 */
export function checkQuirk(value: unknown): Quirk {
  if (!isObject(value) || !isText(value['name']) || !/^[a-z][a-z0-9-]{0,63}$/.test(value['name'])) {
    throw new TowlineError(
      'ERR_TOWLINE_INVALID_ARGUMENT',
      'a quirk has a name of lower-case letters, digits and dashes',
    );
  }
  const name = value['name'];
  checkKeys(name, 'a quirk', value, ['name', 'match', 'bars', 'config', 'reset', 'combineResuming', 'notes', 'source']);
  checkMatch(name, value['match']);
  const { bars, config, reset, combineResuming, notes, source } = value;
  if (!Array.isArray(bars) || bars.length > 64) bad(name, 'bars has to be a list of at most 64');
  for (const bar of bars as unknown[]) checkBar(name, bar);
  if (!Array.isArray(config) || config.length > 64) bad(name, 'config has to be a list of at most 64');
  for (const register of config as unknown[]) checkConfig(name, register);
  if (reset !== null) {
    if (!isObject(reset)) return bad(name, 'reset has to be an object or null');
    checkKeys(name, 'reset', reset, ['flr', 'deferred', 'note']);
    if (
      (reset['flr'] !== 'trap' && reset['flr'] !== 'pass') ||
      typeof reset['deferred'] !== 'boolean' ||
      !isText(reset['note'])
    )
      bad(name, 'reset has flr (trap or pass), deferred (true or false) and a note');
  }
  if (typeof combineResuming !== 'boolean') bad(name, 'combineResuming has to be true or false');
  if (!isTexts(notes)) bad(name, 'notes has to be a list of sentences');
  if (!isText(source)) bad(name, 'source has to name a file');
  return value as unknown as Quirk;
}
