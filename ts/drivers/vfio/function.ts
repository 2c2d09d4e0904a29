/**
 * A controlled function whose device state goes over its VFIO device.
 */
import { throwIfAborted, type WaitOptions } from '../../abort.js';
import { BaseFunction } from '../../function/controlled.js';
import type { DirtySource, StateChannel } from '../../function/channel.js';
import type { ExposureState, FunctionIdentity, FunctionLocation, FunctionSpec, Reason } from '../../function/types.js';
import type { GuestMemory } from '../../migration/memory.js';
import type { ControllingFunction } from '../driver.js';
import type { VfioHandle } from './handle.js';

/** See {@link BaseFunction}. */
export abstract class VfioFunction extends BaseFunction {
  abstract readonly location: FunctionLocation;
  readonly #handle: VfioHandle;

  /** @internal */
  constructor(controlling: ControllingFunction, identity: FunctionIdentity, spec: FunctionSpec, handle: VfioHandle) {
    super(controlling, identity, spec);
    this.#handle = handle;
  }

  /** @internal */
  get handle(): VfioHandle {
    return this.#handle;
  }

  /** Config space and interrupts, where this process has opened the device itself; under a VMM they are the VMM's. */
  get exposureState(): ExposureState | undefined {
    return this.#handle.exposureState;
  }

  protected openChannel(): StateChannel {
    return this.#handle.channel;
  }

  protected openDirtySources(): readonly DirtySource[] {
    return this.#handle.dirtySources();
  }

  /** Those of the device as it is open now: one that was bound to another driver meanwhile has others. */
  override dirtySources(): readonly DirtySource[] {
    this.channel();
    return this.openDirtySources();
  }

  /**
   * Opens its VFIO device, which has a single owner: from then on until {@link BaseFunction.close} it is this process.
   * @throws TowlineError with the errno of what the kernel refused; `ERR_TOWLINE_BUSY` where somebody else has it.
   */
  async open(options: WaitOptions = {}): Promise<void> {
    throwIfAborted(options.signal);
    await this.#handle.open();
  }

  /**
   * Takes the device from a process that has opened it already, a VMM say: `fd` is its VFIO device descriptor. It is duplicated when the
   * function is opened, and has to stay open until then. `null` forgets it.
   */
  useDevice(fd: number | null): void {
    this.#handle.adopt(fd);
  }

  /**
   * Wires eventfds to its interrupts `index` (0 INTx, 1 MSI, 2 MSI-X), from vector 0 on; -1 leaves one out, an empty list disables them. They
   * stay the caller's, and have to stay open as long as they are wired. At the destination of a migration they are wired before it: which of
   * them are armed there is what the source had.
   */
  async wireInterrupts(index: number, eventfds: readonly number[]): Promise<void> {
    await this.#handle.setIrqs(index, eventfds);
  }

  /** Maps guest memory for its DMA, IOVA = guest address, from when it is opened. */
  attachMemory(memory: GuestMemory): Promise<void> {
    return this.#handle.attachMemory(memory);
  }

  /** Takes the guest memory away again. */
  detachMemory(): Promise<void> {
    return this.#handle.detachMemory();
  }

  override async close(): Promise<void> {
    await super.close();
    await this.#handle.close();
  }

  protected abstract override explainDevice(options?: WaitOptions): Promise<readonly Reason[]>;
}
