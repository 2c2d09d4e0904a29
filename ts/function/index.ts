export {
  kNative,
  type DirtySource,
  type MemoryRange,
  type PendingState,
  type ReadResult,
  type StateChannel,
} from './channel.js';
export { BaseFunction } from './controlled.js';
export { isLifecycleArc, provisionFunction } from './lifecycle.js';
export { deviceStates, type DeviceState, type MigrationFlags } from './state.js';
export {
  exposureNames,
  functionKinds,
  type ControlledFunction,
  type ExplainOptions,
  type ExposeOptions,
  type ExposureHandover,
  type ExposureState,
  type ExposureName,
  type Fact,
  type FactRule,
  type FactValue,
  type FunctionConfig,
  type FunctionDescriptor,
  type FunctionIdentity,
  type FunctionKind,
  type FunctionLocation,
  type FunctionSpec,
  type LifecycleState,
  type MigratableFunction,
  type Reason,
  type ReasonCode,
  type Visibility,
} from './types.js';
