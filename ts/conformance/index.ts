/**
 * The conformance kit: runs against any implementation of `StateChannel`, `DirtySource` and `ControllingDriver`.
 * @module
 */
export { isReachable, statesOf } from './arcs.js';
export { conformStateChannel } from './channel.js';
export type { CheckOutcome, CheckResult } from './check.js';
export { conformDirtySource } from './dirty.js';
export { conformDriver, type DriverSubject } from './driver.js';
export { conformExposureState } from './exposure.js';
export { conformFunction, type ConformFunctionOptions } from './function.js';
export type {
  ChannelInstance,
  ChannelSubject,
  DirtyInstance,
  DirtySubject,
  ExposureInstance,
  ExposureSubject,
} from './subjects.js';
