/**
 * Reading and explaining migration streams.
 * @module
 */
export type { SectionKind, StreamDamage, StreamFrame, StreamItem, StreamLimits } from './frames.js';
export { describe, inspect, summarise, type InspectOptions, type StreamSummary } from './inspect.js';
