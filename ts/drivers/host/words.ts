/**
 * Small things that several drivers say in the same way.
 */
import { TowlineError } from '../../errors.js';
import type { FunctionConfig } from '../../function/types.js';
import type { HostPort, PciFunction } from './port.js';

/** The function at a PCI address, or an error where it is gone. */
export async function pciFunction(host: HostPort, address: string): Promise<PciFunction> {
  const found = await host.pciFunction(address);
  if (found === null) throw new TowlineError('ERR_TOWLINE_GONE', `there is no PCI function ${address} any more`);
  return found;
}

/** A PCI address with its domain and in lower case; `undefined` for what is none. */
export function pciAddress(text: string): string | undefined {
  const match = /^(?:([\da-f]{4,8}):)?([\da-f]{2}:[01][\da-f]\.[0-7])$/i.exec(text);
  return match === null ? undefined : `${match[1] ?? '0000'}:${match[2]}`.toLowerCase();
}

/** Refuses what a driver has no means to give. */
export function refuseConfig(
  who: string,
  config: FunctionConfig,
  what: readonly (keyof FunctionConfig)[],
  mend: string,
): void {
  for (const key of what) {
    const value = config[key];
    if (value === undefined || (Array.isArray(value) && value.length === 0)) continue;
    throw new TowlineError(
      'ERR_TOWLINE_UNSUPPORTED',
      `${key} of ${who} can't be set by its controlling function: ${mend}`,
    );
  }
}

/** A four-digit PCI identifier in hex, as `lspci -n` prints it. */
export function hex(id: number): string {
  return id.toString(16).padStart(4, '0');
}

/** The error `code` with another code and more words; errno, system call and cause stay. */
export function reworded(error: TowlineError, code: TowlineError['code'], message: string): TowlineError {
  return new TowlineError(code, message, {
    errno: error.errno,
    syscall: error.syscall,
    function: error.function,
    nvmeStatus: error.nvmeStatus,
    cause: error,
    details: error.details,
  });
}
