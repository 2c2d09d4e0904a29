export {
  discoverHost,
  type HostController,
  type HostFunction,
  type HostKernelInfo,
  type HostMdevType,
  type HostPortInfo,
  type HostTree,
} from './tree.js';
export { explainHost, type HostAbility, type HostExplanation, type HostQuirk } from './explain.js';
export type { HostOptions, HostProblem } from './read.js';
export { variantDrivers, type VariantDriver } from './variants.js';
