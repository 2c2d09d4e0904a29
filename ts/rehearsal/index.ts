/**
 * Rehearsals without hardware: an embedded NVMe subsystem, a tenant that uses it, faults and rates.
 * @module
 */
export type { EmbeddedNamespace, EmbeddedOptions } from '../drivers/embedded.js';
export { checkpointPoints, faultPoints, type FaultPoints } from '../migration/faults.js';
export type { EmbeddedController, EmbeddedFault } from '../native/binding.js';
export { setFaults, setRates, type Fault, type FaultAction, type Rates } from './faults.js';
export { parseFaultRule, parseRates, type FaultRule } from './rule.js';
export { memfd } from './memfd.js';
export { embedded, EmbeddedSubsystem, type FunctionFault } from './subsystem.js';
export { Tenant, type Drained, type TenantLayout, type TenantSpec } from './tenant.js';
