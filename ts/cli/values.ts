/**
 * Reads values of the command line.
 */

const units: Readonly<Record<string, bigint>> = { '': 1n, k: 1n << 10n, m: 1n << 20n, g: 1n << 30n, t: 1n << 40n };

/** A size in bytes: `4096`, `64K`, `512M`, `2GiB`; powers of 1024. */
export function parseSize(text: string): bigint {
  const match = /^(\d{1,18})\s*([kmgt]?)(?:i?b)?$/i.exec(text.trim());
  const unit = units[(match?.[2] ?? '').toLowerCase()];
  if (match?.[1] === undefined || unit === undefined)
    throw new SyntaxError(`"${text}" is no size; write 4096, 64K, 512M or 2G`);
  return BigInt(match[1]) * unit;
}

/** A whole number from `least` to `most`. */
export function parseCount(least: number, most: number): (text: string) => number {
  return (text) => {
    const value = Number(text);
    if (!/^\d+$/.test(text) || !Number.isSafeInteger(value) || value < least || value > most) {
      throw new SyntaxError(`"${text}" is no whole number from ${least} to ${most}`);
    }
    return value;
  };
}

/** `on` or `off`. */
export function parseOnOff(text: string): boolean {
  if (text === 'on') return true;
  if (text === 'off') return false;
  throw new SyntaxError(`"${text}" is neither on nor off`);
}

/** `PATH:SIZE[:BLOCK]`, BLOCK being 512 or 4096. */
export function parseNamespace(text: string): { path: string; sizeBytes: bigint; lbaSizeBytes?: number } {
  const match = /^(.+?):([^:]+?)(?::(512|4096))?$/.exec(text);
  if (match?.[1] === undefined || match[2] === undefined)
    throw new SyntaxError(`"${text}" is not PATH:SIZE or PATH:SIZE:BLOCK`);
  const namespace = { path: match[1], sizeBytes: parseSize(match[2]) };
  return match[3] === undefined ? namespace : { ...namespace, lbaSizeBytes: Number(match[3]) };
}

/** Plain text. */
export function parseText(text: string): string {
  if (text.length === 0) throw new SyntaxError('an empty text');
  return text;
}

/** Bytes for people: `1.5 MiB`. */
export function showBytes(bytes: number): string {
  const names = ['bytes', 'KiB', 'MiB', 'GiB', 'TiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < names.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? value : value.toFixed(1)} ${names[unit] ?? ''}`;
}
