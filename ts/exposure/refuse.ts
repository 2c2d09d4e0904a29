import { TowlineError } from '../errors.js';
import type { ExposureName } from '../function/types.js';
import type { Exposure, ExposureOwnership } from './exposure.js';

/** An exposure that this release does not have, and says why. */
export function refusingExposure(name: ExposureName, ownership: ExposureOwnership, reason: string): Exposure {
  return {
    name,
    ownership,
    refusal: () => reason,
    show: async (fn) => {
      throw new TowlineError('ERR_TOWLINE_EXPOSURE', `exposure ${name}: ${reason}`, { function: fn.uuid });
    },
    // Nothing was ever shown by it.
    hide: async () => undefined,
  };
}
