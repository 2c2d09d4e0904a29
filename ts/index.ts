/**
 * Live-migrates PCI functions by commanding their controlling function.
 * @module
 */
export type { WaitOptions } from './abort.js';
export * from './bar/index.js';
export { BaseControllingFunction } from './drivers/controlling.js';
export type {
  ControllingDriver,
  ControllingFunction,
  DiscoveredController,
  KindCapacity,
  RateLimit,
} from './drivers/driver.js';
export {
  EmbeddedControllingFunction,
  EmbeddedDriver,
  type EmbeddedNamespace,
  type EmbeddedOptions,
} from './drivers/embedded.js';
export { kvmDirtySource, type KvmDirtyOptions, type KvmDirtySource, type KvmRing, type KvmSlot } from './dirty/kvm.js';
export {
  processDirtySource,
  type ProcessDirtyOptions,
  type ProcessDirtySource,
  type WatchedRange,
} from './dirty/process.js';
export { DevlinkControllingFunction, DevlinkDriver, DevlinkFunction, type DevlinkOptions } from './drivers/devlink.js';
export { MdevControllingFunction, MdevDriver, MdevFunction, type MdevOptions } from './drivers/mdev.js';
export {
  NvmeControllingFunction,
  NvmeDriver,
  NvmeFunction,
  type NvmeOptions,
  type NvmeWanted,
  type NvmeAdmin,
  type NvmeBackend,
  type NvmeControllerInfo,
  type NvmeIdentify,
  type NvmeNamespace,
  type NvmePrimaryCaps,
  type NvmeSecondary,
  type NvmeStateFormats,
} from './drivers/nvme.js';
export {
  SriovControllingFunction,
  SriovDriver,
  SriovFunction,
  type SriovOptions,
  type VfioOpenOptions,
  type VfPoolOptions,
} from './drivers/sriov.js';
export { VfioFunction } from './drivers/vfio/function.js';
export {
  errorCodes,
  isErrorCode,
  isTowlineError,
  TowlineError,
  type TowlineErrorCode,
  type TowlineErrorFields,
  type TowlineErrorJson,
} from './errors.js';
export type { NvmeResource } from './drivers/nvme/admin.js';
export type { EmbeddedController } from './native/binding.js';
export { exposureFor, type Exposure, type ExposureOwnership } from './exposure/exposure.js';
export * from './function/index.js';
export * from './host/index.js';
export { checkpoint } from './migration/checkpoint.js';
export {
  checkpointModes,
  type CheckpointFileOptions,
  type CheckpointMode,
  type CheckpointOptions,
  type CheckpointPolicy,
  type RestoreOptions,
} from './migration/checkpoint-options.js';
export { receive } from './migration/destination.js';
export type { Doubt, Settled } from './migration/doubt.js';
export type { FaultPoints } from './migration/faults.js';
export type { Fence, FenceRecord, Role } from './migration/fence.js';
export {
  forecast,
  type Count,
  type DirtyWriter,
  type Forecast,
  type ForecastDowntime,
  type ForecastInput,
  type ForecastNeeds,
  type Obstacle,
} from './migration/forecast.js';
export { Journal, type JournalSession, type Verdict } from './migration/journal.js';
export type { Link } from './migration/link.js';
export { GuestMemory, type MemoryRegion } from './migration/memory.js';
export { Migration } from './migration/migration.js';
export { compareDescriptors, type Mismatch } from './migration/offer.js';
export type {
  Functions,
  MigrateOptions,
  ReceiveOptions,
  SectionContent,
  SectionsTogether,
  SectionTakers,
  Sections,
  SideOptions,
} from './migration/options.js';
export { SectionFds } from './migration/sections.js';
export { PHASES, type Phase, type PhaseTime } from './migration/phases.js';
export type { ConvergeReport, ConvergeStep } from './migration/converge.js';
export type { ConvergePolicy, DirtyRates, Means, MeansState } from './migration/means.js';
export type { MigrationPolicy } from './migration/policy.js';
export { DIAGNOSTICS_CHANNEL, type MigrationEvent } from './migration/progress.js';
export type { ReleaseFailure } from './migration/release.js';
export type { MigrationReport, Outcome } from './migration/report.js';
export { recover, type Recovered, type RecoverOptions } from './migration/recover.js';
export { restore } from './migration/restore.js';
export { MigrationSession } from './migration/session.js';
export type { SessionAdvice, SessionLimits, SessionMeans, SessionSample } from './migration/session-advice.js';
export type { DestinationSession, DestinationSessionState } from './migration/session-destination.js';
export type {
  DestinationSessionOptions,
  FunctionOutcome,
  Harvest,
  PrecopyState,
  SectionDigest,
  SessionAsked,
  SessionOffer,
  SessionOptions,
  SessionTiming,
  SourceSessionOptions,
} from './migration/session-options.js';
export type { SourceSession, SourceSessionState } from './migration/session-source.js';
export type { ReceiveHalf, SendHalf } from './migration/session-stream.js';
export { migrate } from './migration/source.js';
export { warmUp } from './migration/warm-up.js';
export type { DirtyBySource } from './migration/writers.js';
export { version } from './version.js';
