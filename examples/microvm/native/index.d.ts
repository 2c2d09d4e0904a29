/**
 * The native half of the microvm: KVM, vCPU threads, a vfio-user client, and the guest's image.
 *
 * Nothing in here knows of towline: memory comes as file descriptors, the device as a vfio-user socket, the BAR filter as its flat bytes.
 * What can't be done is an `Error` whose message begins with `microvm: `; so is every call of a closed {@link Vm} that does
 * not say otherwise.
 */

/** Why no microvm can run here, in words (no `/dev/kvm`, not x86-64, …); `undefined` where one can. */
export function unavailable(): string | undefined;

/** The guest program as `build.mjs` built it from `guest/`: a flat image for guest address 1 MiB. */
export function guestImage(): Uint8Array;

/** Guest-physical addresses; `guest/layout.h` is the other half. */
export const LAYOUT: {
  /** Parameters, written by {@link Vm.boot} once. In RAM. */
  readonly parameters: 0x1000;
  /** What the guest tells: counters, heartbeats. In RAM, written by the guest alone. */
  readonly status: 0x2000;
  /** A page that the device writes all the time, nobody else writes, and nobody reads. In RAM. */
  readonly telemetry: 0x5_2000;
  /** Commands and rates. A page of the VMM, **not** RAM: it lies in the hole and does not migrate; its content is the section `control`. */
  readonly control: 0xd020_0000;
  /** BAR 0 of the device: registers and doorbells. No memory slot: accesses exit. */
  readonly bar0: 0xd000_0000;
  /** BAR 4: MSI-X table and pending bits. The VMM has the table. */
  readonly bar4: 0xd010_0000;
  /** The device's config space, 4 KiB, as ECAM has it. */
  readonly config: 0xd011_0000;
  /** No RAM from here to 4 GiB. */
  readonly hole: 0xc000_0000;
};

/** A range of guest RAM. */
export interface RamRange {
  /** Page aligned; a multiple of 2 MiB where the descriptor is of huge pages. */
  gpa: bigint;
  len: bigint;
  /** Mapped shared; duplicated, so closing it stays with the caller. */
  fd: number;
  fdOffset?: bigint;
}

export interface VmOptions {
  /** 1 or 2. Default 2. */
  vcpus?: number;
  /**
   * RAM, ascending, without overlap; at most 8 ranges. The first begins at 0 and has at least 64 MiB. Nothing in
   * {@link LAYOUT.hole} to 4 GiB, nothing above 64 GiB.
   */
  memory: readonly RamRange[];
  /** Dirty pages by rings with so many entries a vCPU (a power of two) in place of the log. Default 0: the log. */
  dirtyRingEntries?: number;
  /** Where records go (a pipe or file; see {@link RECORD_BYTES}). Duplicated. A write that blocks holds the vCPU up: none is dropped. */
  logFd?: number;
  /** Stands in every record: tells processes apart. 0 to 255. */
  hostTag?: number;
}

/**
 * Records have 64 bytes and the layout of the demo's tenant (`crates/tenant/src/record.rs`); the demo's witness reads them. The guest fills
 * in what it knows; the VMM adds host tag, epoch and time, and makes `started`, `stopped` and `drained` by itself.
 */
export const RECORD_BYTES: 64;

/** A memory slot of the VM, for `KVM_GET_DIRTY_LOG`, `KVM_SET_USER_MEMORY_REGION`. */
export interface MemorySlot {
  slot: number;
  gpa: bigint;
  len: bigint;
  /** Where it is mapped in this process. */
  userspaceAddress: bigint;
  /** Flags as given to KVM last. */
  flags: number;
}

/** How the guest is started. All of it is in guest memory afterwards and moves with it. */
export interface GuestParameters {
  /** Start of its random numbers, and part of its blocks. Default 1. */
  seed?: bigint;
  /** Units of 4 KiB that it uses of the namespace, from block 0 on; each vCPU has its half. 2 to 2^24. Default 8192. */
  units?: number;
  /** Reads and writes in flight, of each vCPU. 1 to 63. Default 32. */
  queueDepth?: number;
  /** The most units of one command, 1 to 8. Default 4. */
  maxUnits?: number;
  /** Default 1. */
  nsid?: number;
  /** Touches every page of RAM that it may write before it says that it runs: the first touch is dear. Default true. */
  warm?: boolean;
  /** Doorbells by a shadow page and `KVM_IOEVENTFD` in place of MMIO exits; has to agree with {@link DeviceOptions.doorbells}. Default 'mmio'. */
  doorbells?: 'mmio' | 'ioeventfd';
}

/** What the guest does, changeable at any time. */
export interface Load {
  /** Commands a second, of all vCPUs together, at most. Default 1500. */
  iops: number;
  /** Share of reads among reads and writes, 0 to 100. Default 50. */
  readPercent: number;
  /** Pages that its CPUs write a second, together. Default 2000. */
  dirtyPagesPerS: number;
  /** Pages that they write to. At most {@link GuestStatus.workingSetLimit}. Default: half of that, at most 16384. */
  workingSetPages: number;
  /** How long the guest sleeps at most (HLT, woken by its local APIC's timer) when there is nothing to do. 200 to 100000, or 0: it never sleeps. Default 1000. */
  heartbeatUs: number;
}

/** The device that the VM reaches over a vfio-user socket. */
export interface DeviceOptions {
  socketPath: string;
  /** Flat bytes of the compiled BAR filter for BAR 0 (`filter.toBytes()`). Evaluated on the vCPU's thread, before the socket. Default: none. */
  filter?: Uint8Array;
  /** Default 'mmio'. With 'ioeventfd' a doorbell that the filter lets pass does not exit; a thread forwards it. */
  doorbells?: 'mmio' | 'ioeventfd';
  /** How long an answer may take, in milliseconds; after that the device is gone for this VM. Default 10000. */
  timeoutMs?: number;
}

/** What was found out about the device on connecting. */
export interface DeviceInfo {
  bar0Bytes: bigint;
  bar4Bytes: bigint;
  vectors: number;
}

export interface Drained {
  /** Commands still in flight when the time was up. */
  pending: number;
  /** Sequence that the next command would have. */
  nextSeq: bigint;
}

/** What the guest says about itself; from its status page, readable at any time. */
export interface GuestStatus {
  phase: 'off' | 'booting' | 'running' | 'drained' | 'stopped' | 'failed';
  /** Why it failed, in words of `guest/layout.h`; `undefined` else. */
  failure: string | undefined;
  /** Counted by each vCPU. */
  vcpus: GuestVcpuStatus[];
  /** Sums over the vCPUs. */
  total: GuestCounters;
  /** Frequency of the guest's TSC in kHz. */
  tscKhz: number;
  /** Largest time between two heartbeats of any vCPU since {@link Vm.resetGaps}, in milliseconds: a pause as the guest feels it. */
  heartbeatGapMs: number;
  nextSeq: bigint;
  /** Most pages that {@link Load.workingSetPages} may be. */
  workingSetLimit: number;
}

export interface GuestCounters {
  /** Rounds of its main loop, each with a heartbeat. */
  heartbeats: bigint;
  writes: bigint;
  reads: bigint;
  flushes: bigint;
  inFlight: bigint;
  /** Completions for commands that were not in flight. */
  duplicates: bigint;
  /** Commands that ended with an error status. */
  errors: bigint;
  /** Units that a read found other than the guest expected. */
  mismatches: bigint;
  /** Pages of its working set that it found other than it had left them: memory that was lost. */
  memoryErrors: bigint;
  /** Checks of registers that should never change (XMM, debug registers, MSRs, CR4, GS base) that failed: vCPU state that was lost. */
  stateErrors: bigint;
  /** Times that the TSC went back. */
  tscErrors: bigint;
  /** Interrupts of the device. */
  interrupts: bigint;
  /** Completions that were there for half a second (20 looks of the guest) without an interrupt, and were found by looking: interrupts that were lost. */
  lostInterrupts: bigint;
  pagesWritten: bigint;
  doorbells: bigint;
}

export interface GuestVcpuStatus extends GuestCounters {
  /** TSC at the last heartbeat. */
  lastTsc: bigint;
  /** Largest gap in TSC ticks. */
  largestGapTicks: bigint;
  /** Number of the phase, and of the failure; `guest/layout.h` has the words. */
  phase: bigint;
  failureCode: bigint;
}

/** What the VMM counts. */
export interface VmCounters {
  exits: {
    mmioRead: bigint;
    mmioWrite: bigint;
    pio: bigint;
    halt: bigint;
    /** By a signal: pauses and throttling. */
    interrupted: bigint;
    ringFull: bigint;
    other: bigint;
  };
  doorbells: { mmio: bigint; ioeventfd: bigint };
  /** What the filter did to accesses of BAR 0. */
  filter: { passed: bigint; changed: bigint; denied: bigint };
  records: bigint;
  /** Messages to the device and answers that were waited for. */
  deviceMessages: bigint;
  deviceWaits: bigint;
  /** Nanoseconds that vCPUs spent held back by {@link Vm.setThrottle}. */
  throttledNs: bigint;
}

/**
 * A virtual machine. The order of things:
 *
 * - a guest that starts here: `new Vm`, `connect`, `boot`, `armInterrupts`, `run`;
 * - one that comes from elsewhere: `new Vm`, `connect`, (memory and device state are loaded), `restore`, `armInterrupts`, `run`;
 * - leaving: `pause`, (the device is suspended), `save`, and after commit `close`; after a rollback `run`.
 */
export class Vm {
  /** @throws where KVM refuses, or an option is out of range. */
  constructor(options: VmOptions);

  /** KVM's descriptor of the VM. Stays the VM's: valid until {@link close}. */
  readonly vmFd: number;
  /** KVM's descriptors of the vCPUs, in order. */
  readonly vcpuFds: readonly number[];
  /** RAM slots, one a range, in the order of {@link VmOptions.memory}. The control page has slot 511 and is never logged. */
  slots(): MemorySlot[];
  /** Entries of each vCPU's dirty ring; 0 where the log is used. */
  readonly dirtyRingEntries: number;
  /**
   * Adds 1 to this eventfd each time that a vCPU leaves because its dirty ring is full; duplicated. The vCPU waits until the eventfd's
   * counter is 0 again (whoever harvests reads it), or 10 ms, and enters again.
   */
  setRingFullEvent(eventFd: number | undefined): void;

  /** Maps every page of RAM in this process (`MADV_POPULATE_WRITE`), and for the guest where KVM can (`KVM_PRE_FAULT_MEMORY`). */
  warm(): Promise<void>;

  /** Connects to the device: regions, vectors, all RAM by its descriptors (DMA_MAP), an eventfd a vector (SET_IRQS). Config space is left as it is. */
  connect(options: DeviceOptions): Promise<DeviceInfo>;
  /** Leaves the device: its interrupts, its doorbells, its socket. Idempotent. The guest must be paused. */
  disconnect(): void;
  /** Resets the device by message. */
  resetDevice(): Promise<void>;
  /** Reads the device's config space. */
  readConfig(offset: number, length: number): Uint8Array;
  /** Writes it; 1, 2 or 4 bytes. */
  writeConfig(offset: number, data: Uint8Array): void;
  /** Replaces the BAR filter; the next access sees it. Write-one-to-clear shadows begin anew. */
  setFilter(filter: Uint8Array | undefined): void;

  /** Puts image, parameters, page tables into RAM and every vCPU at its start. Nothing runs yet. */
  boot(image: Uint8Array, parameters?: GuestParameters): void;
  /** Hands the device's eventfds to KVM. What was signalled before is delivered now. Idempotent. */
  armInterrupts(): void;
  /** Whether {@link armInterrupts} was called. */
  readonly interruptsArmed: boolean;

  /**
   * Lets the vCPUs run. The first time in this process it is a new incarnation: the epoch in the control page is one more than that of the section
   * `control` (or 1). Logs `started`. Idempotent.
   */
  run(): void;
  /**
   * Stops every vCPU between two instructions and forwards every doorbell that was rung. When the promise is fulfilled no vCPU writes memory, doorbells or
   * log. Logs `stopped`. Idempotent.
   */
  pause(): Promise<void>;
  readonly running: boolean;
  /** Waits until the guest says that it runs (boots, enables the controller, creates its queues), at most so long. */
  ready(timeoutMs: number): Promise<void>;
  /** Tells the guest to submit no more and waits for what is in flight; then logs `drained`. {@link undrain} lets it go on. The vCPUs must run. */
  drain(timeoutMs: number): Promise<Drained>;
  /** Lets the guest submit again. */
  undrain(): void;

  setLoad(load: Partial<Load>): void;
  load(): Load;
  /** Takes so much of each vCPU's time, 0 to 99 percent, by holding its thread back in slices of 10 ms. */
  setThrottle(percent: number): void;
  /** The guest forgets its largest gap between heartbeats, at its next heartbeat. */
  resetGaps(): void;

  /** Names of the sections, in the order in which they are restored. They depend on the number of vCPUs alone. */
  sectionNames(): string[];
  /** All sections; the VM must stand still. Each is versioned, and refused where its length or anything in it can't be. */
  save(): Record<string, Uint8Array>;
  /**
   * Restores all sections, in their order whatever the order given. The VM must not have run. The TSC goes on from where it was, with the time that
   * has passed since.
   * @throws where one is missing, unknown, or can't be; the VM is then good for nothing but {@link close}.
   */
  restore(sections: Readonly<Record<string, Uint8Array>>): void;

  status(): GuestStatus;
  counters(): VmCounters;
  /** Why a vCPU or the device's connection failed, in words; `undefined` while all is well. */
  readonly failure: string | undefined;

  /**
   * Ends threads and connections, closes descriptors, unmaps memory. Idempotent, and when it returns nothing of this VM runs. {@link status},
   * {@link counters} and {@link failure} go on telling what was last.
   */
  close(): void;
  /** As {@link close}. */
  [Symbol.dispose](): void;
}

/** The evaluator that a vCPU's thread has for its accesses to BAR 0, over an array of bytes: for comparing it with others. Nobody answers traps. */
export class FilteredBytes {
  /** @throws where the filter's bytes are not whole. */
  constructor(filter: Uint8Array, target: Uint8Array);
  /** Reads 1 to 8 bytes. */
  read(offset: bigint, length: number): Uint8Array;
  /** Writes 1 to 8 bytes. */
  write(offset: bigint, data: Uint8Array): void;
  /** A copy of the bytes behind the filter. */
  target(): Uint8Array;
}
