export { BarFilter, type BarRange, type BarRuleHit, type ByteVerdict } from './filter.js';
export { FilteredBar, type BarTarget, type BarTrapHandler } from './filtered.js';
export {
  barPolicy,
  BarPolicyBuilder,
  compileBarPolicy,
  u16,
  u32,
  u64,
  u8,
  type BarAccess,
  type BarAction,
  type BarDefault,
  type BarFill,
  type BarPattern,
  type BarPolicy,
  type BarRule,
} from './policy.js';
export {
  checkQuirk,
  quirkConfigPolicy,
  quirkPolicy,
  quirks,
  quirksFor,
  type Quirk,
  type QuirkBar,
  type QuirkConfig,
  type QuirkMatch,
  type QuirkPlace,
  type QuirkReset,
  type QuirkSubject,
} from './quirks/index.js';
