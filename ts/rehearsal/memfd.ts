import { nativeSync } from '../errors.js';
import { binding } from '../native/api.js';

/**
 * Anonymous memory that can be passed to other processes. Returns a file descriptor that the caller closes.
 * @param lengthBytes - More than 0, a multiple of 4096.
 */
export function memfd(name: string, lengthBytes: bigint): number {
  return nativeSync(() => binding().memfd(name, lengthBytes));
}
