/**
 * The VFIO device of a function, opened when it is first needed: it has a single owner, so that nobody else could have it meanwhile.
 */
import type { WaitOptions } from '../../abort.js';
import { TowlineError } from '../../errors.js';
import {
  kNative,
  type DirtySource,
  type PendingState,
  type ReadResult,
  type StateChannel,
} from '../../function/channel.js';
import type { DeviceState, MigrationFlags } from '../../function/state.js';
import type { ExposureState } from '../../function/types.js';
import type { GuestMemory } from '../../migration/memory.js';
import type { NativeStateChannel } from '../../native/binding.js';
import type { HostPort, OpenVfio, VfioInfo } from '../host/port.js';
import { configState, type Wiring } from './config.js';
import { UntrackedWrites } from './untracked.js';

/** How the VFIO device of a function is opened. */
export interface VfioOpenOptions {
  /** `cdev`: `/dev/vfio/devices/vfioN` with iommufd; `group`: `/dev/vfio/N`. Default `auto`: cdev where there is one. */
  by?: 'auto' | 'group' | 'cdev' | undefined;
  /** UUID of the VF token, needed where the PF is bound to vfio-pci. */
  token?: string | undefined;
  /**
   * Let the IOMMU track what the device writes, where it can and the device does not. Default: true. For a device whose descriptor somebody else
   * lent, `false` says that its opener tracks it, and gives that dirty source to the migration itself.
   */
  dirtyTracking?: boolean | undefined;
}

/** See the file's comment. */
export class VfioHandle {
  /** PCI address or UUID of the mediated device. */
  readonly name: string;
  readonly channel: StateChannel;
  readonly #host: HostPort;
  readonly #options: VfioOpenOptions;
  #open: OpenVfio | undefined;
  #opening: Promise<OpenVfio> | undefined;
  #fd: number | null = null;
  #memory: GuestMemory | undefined;
  #untracked: UntrackedWrites | undefined;
  #wiring: Wiring | undefined;

  constructor(host: HostPort, name: string, options: VfioOpenOptions = {}) {
    this.#host = host;
    this.name = name;
    this.#options = options;
    this.channel = new VfioChannel(this);
  }

  /** The device, where it is open. */
  get current(): OpenVfio | undefined {
    return this.#open;
  }

  /** What it told when it was opened; `undefined` while it is not. */
  get info(): VfioInfo | undefined {
    return this.#open?.info;
  }

  /** The host that it is on. */
  get host(): HostPort {
    return this.#host;
  }

  /** Whether its descriptor is somebody else's, who therefore has it open. */
  get borrowed(): boolean {
    return this.#fd !== null;
  }

  /** Whether a VF token is given when it is opened. */
  get hasToken(): boolean {
    return this.#options.token !== undefined;
  }

  /**
   * Takes a descriptor of the device that somebody else has opened, a VMM say; it is duplicated at the next {@link VfioHandle.open}, and has
   * to stay open until then. `null` forgets it.
   * @throws TowlineError `ERR_TOWLINE_BUSY` where the device is open already.
   */
  adopt(fd: number | null): void {
    if (this.#open !== undefined) throw new TowlineError('ERR_TOWLINE_BUSY', `${this.name} is open already`);
    this.#fd = fd;
  }

  /** Opens the device, and maps the guest memory for it. Idempotent. */
  open(): Promise<OpenVfio> {
    this.#opening ??= this.#start().catch((error: unknown) => {
      this.#opening = undefined;
      throw error;
    });
    return this.#opening;
  }

  async #start(): Promise<OpenVfio> {
    const { by, token, dirtyTracking } = this.#options;
    const device = await this.#host.openVfio(
      {
        name: this.name,
        ...(by === undefined ? {} : { by }),
        ...(token === undefined ? {} : { token }),
        ...(dirtyTracking === undefined ? {} : { dirtyTracking }),
      },
      this.#fd,
    );
    // Whose descriptor was taken has mapped its memory by itself.
    if (this.#memory !== undefined && this.#fd === null) {
      try {
        await device.mapMemory(this.#memory);
      } catch (error) {
        await device.close();
        throw error;
      }
    }
    this.#open = device;
    return device;
  }

  /** The guest memory that its DMA goes to, from when it is opened. */
  async attachMemory(memory: GuestMemory): Promise<void> {
    if (this.#open !== undefined && this.#fd === null) await this.#open.mapMemory(memory);
    this.#memory = memory;
  }

  /** Takes the guest memory away again. */
  async detachMemory(): Promise<void> {
    if (this.#memory !== undefined && this.#fd === null) await this.#open?.unmapMemory();
    this.#memory = undefined;
  }

  /**
   * Who tells what it wrote. Where nobody can, all of guest memory counts as written at every harvest; none is left out only for a device whose
   * opener said, by `dirtyTracking: false`, that it tracks it itself.
   * @throws TowlineError `ERR_TOWLINE_STATE` while it is not open: no source would read as "writes nothing".
   */
  dirtySources(): readonly DirtySource[] {
    const { source } = this.opened();
    if (source !== null) return [source];
    if (this.borrowed && this.#options.dirtyTracking === false) return [];
    this.#untracked ??= new UntrackedWrites();
    return [this.#untracked];
  }

  /**
   * Config space and the wiring of interrupts, where they are this process's. Of a device whose descriptor somebody else lent they are that one's, a
   * VMM's say, who restores them by himself.
   */
  get exposureState(): ExposureState | undefined {
    if (this.borrowed || this.#open?.config === undefined) return undefined;
    return configState(this.#open, this.#open.config, () => this.#wiring);
  }

  /**
   * Wires eventfds to the vectors of an index from 0 on; -1 leaves one out, an empty list disables the index. They stay the caller's and have
   * to stay open: a migration that comes here wires those that the source had wired. A device has one index wired at a time.
   * @throws TowlineError `ERR_TOWLINE_UNSUPPORTED` for a device without config space.
   */
  async setIrqs(index: number, eventfds: readonly number[]): Promise<void> {
    const { config } = this.opened();
    if (config === undefined) {
      throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `the VFIO device ${this.name} has no interrupts of PCI`);
    }
    await config.setIrqs(index, eventfds);
    if (eventfds.length > 0) this.#wiring = { index, eventfds: [...eventfds] };
    else if (this.#wiring?.index === index) this.#wiring = undefined;
  }

  /** The open device. @throws TowlineError `ERR_TOWLINE_STATE` while it is not. */
  opened(): OpenVfio {
    if (this.#open !== undefined) return this.#open;
    throw new TowlineError(
      'ERR_TOWLINE_STATE',
      `the VFIO device ${this.name} is not open: call open() of its function`,
    );
  }

  /** Closes the device; it can be opened again. Idempotent. */
  async close(): Promise<void> {
    const opening = this.#opening;
    if (opening === undefined) return;
    const device = await opening.catch(() => undefined);
    this.#opening = undefined;
    this.#open = undefined;
    this.#wiring = undefined;
    await device?.close();
  }
}

/** The one channel of a function, whichever open device is behind it. */
class VfioChannel implements StateChannel {
  readonly #handle: VfioHandle;
  #closed = false;

  constructor(handle: VfioHandle) {
    this.#handle = handle;
  }

  get flags(): MigrationFlags {
    return this.#handle.opened().channel.flags;
  }

  get format(): string | undefined {
    return this.#handle.current?.channel.format;
  }

  get verifies(): boolean | undefined {
    return this.#handle.current?.channel.verifies;
  }

  get [kNative](): NativeStateChannel | undefined {
    return this.#handle.opened().channel[kNative];
  }

  async state(options?: WaitOptions): Promise<DeviceState> {
    return (await this.#channel()).state(options);
  }

  async setState(to: DeviceState, options?: WaitOptions): Promise<void> {
    return (await this.#channel()).setState(to, options);
  }

  async read(maxBytes: number, options?: WaitOptions): Promise<ReadResult> {
    return (await this.#channel()).read(maxBytes, options);
  }

  async write(data: Uint8Array, options?: WaitOptions): Promise<void> {
    return (await this.#channel()).write(data, options);
  }

  async pending(options?: WaitOptions): Promise<PendingState> {
    return (await this.#channel()).pending(options);
  }

  async reset(options?: WaitOptions): Promise<void> {
    return (await this.#channel()).reset(options);
  }

  async close(): Promise<void> {
    if (this.#closed) return;
    this.#closed = true;
    await this.#handle.close();
  }

  async #channel(): Promise<StateChannel> {
    if (this.#closed) throw new TowlineError('ERR_TOWLINE_CLOSED', 'the state channel is closed');
    return (await this.#handle.open()).channel;
  }
}
