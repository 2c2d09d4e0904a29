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
