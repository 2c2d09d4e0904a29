import type { NativeBinding } from './binding.js';
import { loadNative } from './load.js';

/** The native addon, typed. Loaded at the first call, so that what needs none (types, the wire format) imports anywhere. */
export function binding(): NativeBinding {
  return loadNative() as NativeBinding;
}
