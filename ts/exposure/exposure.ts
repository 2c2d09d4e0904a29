/**
 * How a controlled function is made visible.
 */
import type { WaitOptions } from '../abort.js';
import { TowlineError } from '../errors.js';
import type { ControlledFunction, ExposeOptions, ExposureName } from '../function/types.js';
import { kernelExposure } from './kernel.js';
import { noExposure } from './none.js';
import { vfioExposure } from './vfio.js';
import { vfioUserExposure } from './vfio-user.js';

/** Who owns what of a function while it is exposed. What the exposure owns goes into the stream as a section of its own. */
export interface ExposureOwnership {
  /** Config space. */
  readonly configSpace: 'exposure' | 'vmm' | 'kernel' | 'nobody';
  /** MSI-X table and interrupt wiring. */
  readonly interrupts: 'exposure' | 'vmm' | 'kernel' | 'nobody';
}

/** One way to make a function visible. */
export interface Exposure {
  readonly name: ExposureName;
  readonly ownership: ExposureOwnership;
  /** Why it can't be used here, or for `fn`; `undefined` where it can, as far as that is known without trying. */
  refusal(fn?: ControlledFunction): string | undefined;
  /** Makes the function visible, whole or not at all. */
  show(fn: ControlledFunction, options?: ExposeOptions): Promise<void>;
  /** Hides it again. Idempotent. */
  hide(fn: ControlledFunction, options?: WaitOptions): Promise<void>;
}

const exposures: Readonly<Record<ExposureName, Exposure>> = {
  none: noExposure,
  kernel: kernelExposure,
  vfio: vfioExposure,
  'vfio-user': vfioUserExposure,
};

/**
 * The exposure of that name.
 * @throws TowlineError `ERR_TOWLINE_EXPOSURE` where it can't be used here, or for `fn`; the message holds the reason.
 */
export function exposureFor(name: ExposureName, fn?: ControlledFunction): Exposure {
  const exposure = exposures[name];
  const refusal = exposure.refusal(fn);
  if (refusal !== undefined) {
    throw new TowlineError('ERR_TOWLINE_EXPOSURE', `exposure ${name}: ${refusal}`, { function: fn?.uuid });
  }
  return exposure;
}
