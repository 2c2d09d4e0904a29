/**
 * The life of a controlled function, and the one call that takes it from nothing to visible.
 */
import { throwIfAborted, type WaitOptions } from '../abort.js';
import type { ControllingFunction } from '../drivers/driver.js';
import { TowlineError } from '../errors.js';
import { checkSpec } from './spec.js';
import type { ControlledFunction, FunctionSpec, LifecycleState } from './types.js';
import { withUndo } from './undo.js';

/** From which states each state is reached. `released` and `lost` are reached from everywhere. */
const arcs: Readonly<Record<LifecycleState, readonly LifecycleState[]>> = {
  absent: [],
  provisioned: ['absent'],
  configured: ['provisioned', 'configured', 'migration-enabled', 'exposed'],
  'migration-enabled': ['configured', 'migration-enabled', 'exposed'],
  exposed: ['configured', 'migration-enabled', 'exposed'],
  released: ['absent', 'provisioned', 'configured', 'migration-enabled', 'exposed', 'released', 'lost'],
  lost: ['absent', 'provisioned', 'configured', 'migration-enabled', 'exposed', 'lost'],
};

/** Whether a function may go from `from` to `to`. */
export function isLifecycleArc(from: LifecycleState, to: LifecycleState): boolean {
  return arcs[to].includes(from);
}

/**
 * Refuses a step that does not fit.
 * @throws TowlineError `ERR_TOWLINE_STATE`, with the state in `state` and the function in `function`.
 */
export function checkLifecycleArc(
  fn: { readonly uuid: string; readonly name: string },
  from: LifecycleState,
  to: LifecycleState,
): void {
  if (isLifecycleArc(from, to)) return;
  throw new TowlineError(
    'ERR_TOWLINE_STATE',
    `${fn.name} is ${from} and can't become ${to}; that is possible from: ${arcs[to].join(', ')}`,
    {
      function: fn.uuid,
      state: from,
    },
  );
}

/**
 * Provisions a function, gives it its resources, enables migration and makes it visible, in this order: nobody sees it before
 * it is complete. Where a step fails, or `signal` fires, the steps before are undone in reverse order.
 */
export async function provisionFunction(
  controlling: ControllingFunction,
  spec: FunctionSpec,
  options: WaitOptions = {},
): Promise<ControlledFunction> {
  checkSpec(spec);
  return withUndo(async (steps) => {
    const fn = await steps.do(
      'provision',
      () => controlling.provision(spec, options),
      // The undo has to run also after the caller's signal has fired, so it does not get it.
      (made) => controlling.release(made),
    );
    throwIfAborted(options.signal);
    await controlling.configure(fn, spec, options);
    throwIfAborted(options.signal);
    if (spec.migration ?? true) await controlling.enableMigration(fn, options);
    throwIfAborted(options.signal);
    const exposure = spec.expose ?? 'none';
    if (exposure !== 'none') await controlling.expose(fn, exposure, options);
    return fn;
  });
}
