import { TowlineError } from '../errors.js';
import type { ControlledFunction, ExposureName, Visibility } from '../function/types.js';
import type { Exposure, ExposureOwnership } from './exposure.js';

/**
 * An exposure that each function does in its own way, told by its driver in `visibility`.
 * @param missing - Why a function that does not tell has none of it.
 */
export function exposureByDriver(name: ExposureName, ownership: ExposureOwnership, missing: string): Exposure {
  const refusal = (fn: ControlledFunction | undefined): string | undefined => {
    if (fn === undefined) return undefined;
    const how = fn.visibility?.[name];
    return how === undefined ? missing : typeof how === 'string' ? how : undefined;
  };
  const visibility = (fn: ControlledFunction): Visibility => {
    const how = fn.visibility?.[name];
    if (how !== undefined && typeof how !== 'string') return how;
    throw new TowlineError('ERR_TOWLINE_EXPOSURE', `exposure ${name}: ${how ?? missing}`, { function: fn.uuid });
  };
  return {
    name,
    ownership,
    refusal,
    show: async (fn, options) => visibility(fn).show(options),
    hide: async (fn, options) => visibility(fn).hide(options),
  };
}
