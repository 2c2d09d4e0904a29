/** One virtual machine: RAM, vCPUs, and an NVMe function of towline's that it reaches over a vfio-user socket. */
import type { GuestMemory, ControlledFunction, FunctionKind, KvmDirtySource } from 'towline';
import type { EmbeddedSubsystem } from 'towline/rehearsal';
import { Vm, guestImage, type GuestParameters, type Load } from '#native';
import { barFilter } from './bar.js';
import { vcpuDirtySource } from './vcpu-dirty.js';

/** What a machine is made of. */
export interface MachineOptions {
  vcpus: number;
  /** By rings with so many entries a vCPU, or by the log where it is 0. */
  dirtyRingEntries: number;
  doorbells: 'mmio' | 'ioeventfd';
  /** Kind and identity of the function; the same at both ends of a migration. */
  kind: FunctionKind;
  uuid: string;
  nsid: number;
  /** Where the function is served; nothing may be there. */
  socketPath: string;
  /** The guest tells what it was told, and the VMM writes it there. */
  logFd: number;
  hostTag: number;
}

/** Provisions a function, and shows it on its socket. */
export async function showFunction(
  subsystem: EmbeddedSubsystem,
  { kind, uuid, vcpus, nsid, socketPath }: MachineOptions,
): Promise<ControlledFunction> {
  // One vector for the admin queue, and a queue with a vector for each vCPU.
  const fn = await subsystem.provision({ kind, uuid, queues: vcpus, vectors: vcpus + 1, namespaces: [nsid] });
  await fn.expose('vfio-user', { socketPath });
  return fn;
}

/** Starts here, or waits for one that comes from elsewhere; see `migrate-away.ts` and `take-in.ts`. */
export class Machine {
  private constructor(
    readonly vm: Vm,
    readonly fn: ControlledFunction,
    /** RAM as towline has it: the same pages as KVM's slots and the device's DMA. */
    readonly memory: GuestMemory,
    readonly vcpuDirty: KvmDirtySource,
    private readonly options: MachineOptions,
  ) {}

  /** Makes a machine around `memory` and `fn`; nothing runs. */
  static async make(fn: ControlledFunction, memory: GuestMemory, options: MachineOptions): Promise<Machine> {
    const { socketPath, doorbells, logFd, hostTag, vcpus, dirtyRingEntries } = options;
    const vm = new Vm({ vcpus, memory: memory.regions(), dirtyRingEntries, logFd, hostTag });
    await vm.connect({ socketPath, filter: barFilter().toBytes(), doorbells });
    return new Machine(vm, fn, memory, vcpuDirtySource(vm), options);
  }

  /** Starts the guest here, and waits until its driver has the device. */
  async boot(parameters: GuestParameters, load: Partial<Load>): Promise<void> {
    const { vm } = this;
    vm.setLoad(load);
    vm.boot(guestImage(), { nsid: this.options.nsid, doorbells: this.options.doorbells, ...parameters });
    vm.armInterrupts();
    vm.run();
    // Its first touch of a page is dear.
    const gibibytes = this.memory.ranges().reduce((sum, { len }) => sum + Number(len), 0) / 2 ** 30;
    await vm.ready(60_000 * Math.max(1, gibibytes));
  }

  /** Lets go of everything. A function that was migrated away was released by then. */
  async close(): Promise<void> {
    await this.vm.pause();
    this.vm.disconnect();
    await this.vcpuDirty.close();
    await this.fn.release();
    this.vm.close();
    this.memory.close();
  }
}
