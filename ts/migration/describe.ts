import type { WaitOptions } from '../abort.js';
import { TowlineError } from '../errors.js';
import type { FunctionDescriptor, MigratableFunction } from '../function/types.js';
import type { OfferedFunction } from './offer.js';

/** `explain()` has the last word before anything is opened. */
export async function refuseUnmigratable(
  functions: readonly MigratableFunction[],
  options: { copy?: boolean } = {},
): Promise<void> {
  if (functions.length === 0) throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', 'there is no function to migrate');
  for (const fn of functions) {
    const [first, ...more] = await fn.explain(options);
    if (first === undefined) continue;
    const code = first.code === 'in-doubt' ? 'ERR_TOWLINE_IN_DOUBT' : 'ERR_TOWLINE_STATE';
    throw new TowlineError(code, `${fn.name} can't be ${options.copy ? 'copied' : 'migrated'}: ${first.message}`, {
      function: fn.uuid,
      details: { reasons: [first, ...more] },
    });
  }
}

/** Opens what has a single owner: before the channels and dirty sources of the functions are taken. */
export async function openAll(functions: readonly MigratableFunction[], options?: WaitOptions): Promise<void> {
  for (const fn of functions) await fn.open?.(options);
}

/** What the driver tells of a function, and what its state bytes are, where its channel knows. */
async function describe(f: MigratableFunction): Promise<FunctionDescriptor> {
  await f.open?.();
  const descriptor = await f.descriptor();
  const { format } = f.channel();
  const exposure = f.exposureState?.format;
  const state = 'the bytes of device state mean something only to the driver and the model of device that wrote them';
  const seen = 'the guest has seen the function by this exposure: expose it so at the destination before the migration';
  return {
    ...descriptor,
    ...(format === undefined ? {} : { 'state-format': { value: format, rule: 'equal', why: state } }),
    ...(exposure === undefined ? {} : { 'exposure-format': { value: exposure, rule: 'equal', why: seen } }),
  };
}

/** What is offered, or compared with an offer. */
export async function describeAll(functions: readonly MigratableFunction[]): Promise<OfferedFunction[]> {
  const described = [];
  for (const f of functions) described.push({ uuid: f.uuid, name: f.name, descriptor: await describe(f) });
  return described;
}
