/**
 * Quirks: what is odd about a device, as data, and the BAR policies that follow from it.
 */
import { TowlineError } from '../../errors.js';
import { barPolicy, u16, u32, u8, type BarPolicyBuilder } from '../policy.js';
import { quirks as known } from './known.js';
import type { Quirk, QuirkPlace } from './quirk.js';

export {
  checkQuirk,
  type Quirk,
  type QuirkBar,
  type QuirkConfig,
  type QuirkMatch,
  type QuirkPlace,
  type QuirkReset,
} from './quirk.js';
export { quirks } from './known.js';

/** What a quirk is matched by. */
export interface QuirkSubject {
  readonly vendor?: number | undefined;
  readonly device?: number | undefined;
  /** Whether it is a VF; left out where that is not known, and then it may be one. */
  readonly vf?: boolean | undefined;
  /** Kernel driver that it is bound to. */
  readonly driver?: string | null | undefined;
}

/** Module names have underscores where driver names may have dashes. */
const plain = (name: string): string => name.replaceAll('-', '_');

const names = (list: readonly string[], driver: string | null | undefined): boolean =>
  typeof driver === 'string' && list.some((name) => plain(name) === plain(driver));

/** Every quirk of a function; none for a sane one. `from`: the records to look at, the known ones by default. */
export function quirksFor(fn: QuirkSubject, from: readonly Quirk[] = known): readonly Quirk[] {
  return from.filter(({ match }) => {
    if (match.vendor !== undefined && match.vendor !== fn.vendor) return false;
    if (match.devices !== undefined && (fn.device === undefined || !match.devices.includes(fn.device))) return false;
    if (match.vf === true && fn.vf === false) return false;
    if (match.drivers !== undefined && !names(match.drivers, fn.driver)) return false;
    return match.vendor !== undefined || match.drivers !== undefined;
  });
}

/** A byte of a BAR from a place in it. */
function at({ numerator, denominator }: QuirkPlace, barBytes: bigint): bigint {
  return (barBytes * BigInt(numerator)) / BigInt(denominator);
}

/**
 * The policy that a quirk asks for a BAR of `barBytes`, or `undefined` where it asks for none.
 *
 * @param barBytes - The BAR as the device has it: of a PCI function the size of its resource in sysfs.
 * @param driver - Kernel driver through which the BAR is reached. What that driver does itself is not done twice: its region is cut
 * already.
 */
export function quirkPolicy(
  quirk: Quirk,
  bar: number,
  barBytes: bigint,
  driver?: string | null,
): BarPolicyBuilder | undefined {
  const wanted = quirk.bars.filter((b) => b.bar === bar && !names(b.doneBy, driver));
  if (wanted.length === 0) return undefined;
  if (barBytes < 1n) throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `a BAR of ${barBytes} bytes`);
  let policy = barPolicy(barBytes);
  for (const [index, { action, from, to }] of wanted.entries()) {
    const name = `quirk ${quirk.name}, BAR ${bar}, rule ${index}`;
    const first = at(from, barBytes);
    if (action === 'truncate') policy = policy.truncate(name, first);
    else {
      const length = at(to ?? { numerator: 1, denominator: 1 }, barBytes) - first;
      policy = action === 'hide' ? policy.hide(name, first, length) : policy.trap(name, first, length);
    }
  }
  return policy;
}

/**
 * The policy that a quirk asks for the first 256 bytes of the config space, or `undefined` where it asks for none. Only reads are
 * changed.
 */
export function quirkConfigPolicy(quirk: Quirk, driver?: string | null): BarPolicyBuilder | undefined {
  const wanted = quirk.config.filter((c) => !names(c.doneBy, driver));
  if (wanted.length === 0) return undefined;
  const pattern = { 1: u8, 2: u16, 4: u32 } as const;
  return wanted.reduce((policy, { register, offset, bytes, value }) => {
    const name = `${quirk.name}: ${register}`;
    const [first, length] = [BigInt(offset), BigInt(bytes)];
    if (value === null) return policy.trap(name, first, length, 'both');
    const or = pattern[bytes](value);
    return policy.rule({ name, offset: first, length, access: 'read', action: { kind: 'bits', and: u8(0), or } });
  }, barPolicy(256n));
}
