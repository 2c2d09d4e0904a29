/**
 * The driver `mdev`: mediated devices, which the driver of their parent makes by type. They are SIOV-like: no config space, routing id or
 * reset line of their own but what that driver gives them.
 */
import { throwIfAborted, type WaitOptions } from '../abort.js';
import { TowlineError } from '../errors.js';
import type { ControlledFunction, FunctionConfig, FunctionSpec, Reason } from '../function/types.js';
import type { GuestMemory } from '../migration/memory.js';
import { BaseControllingFunction } from './controlling.js';
import type { ControllingDriver, DiscoveredController, KindCapacity } from './driver.js';
import { NativeHostPort, type HostPort, type MdevParent } from './host/port.js';
import { refuseConfig } from './host/words.js';
import { MdevFunction } from './mdev/function.js';
import { kernelReasons } from '../host/vfio-reasons.js';
import { checkNotOpen } from './vfio/explain.js';
import { VfioHandle, type VfioOpenOptions } from './vfio/handle.js';

export { MdevFunction } from './mdev/function.js';

/** Options of {@link MdevDriver}. */
export interface MdevOptions {
  /** The type of devices whose spec names none. Default: the only one that has instances left. */
  type?: string | undefined;
  /** How VFIO devices are opened. */
  vfio?: VfioOpenOptions | undefined;
  /** @internal For tests. */
  host?: HostPort | undefined;
}

/** A parent of mediated devices. */
export class MdevControllingFunction extends BaseControllingFunction<MdevFunction> {
  readonly #host: HostPort;
  readonly #path: string;
  readonly #options: MdevOptions;

  /** @internal */
  constructor(host: HostPort, address: string, path: string, options: MdevOptions) {
    super('mdev', address);
    this.#host = host;
    this.#path = path;
    this.#options = options;
  }

  async capacity(): Promise<readonly KindCapacity[]> {
    this.checkOpen();
    const parent = await this.#parent();
    // Types share what the parent has: as many more as of the smallest one, where none is named.
    const types = parent.types.filter((t) => this.#options.type === undefined || t.id === this.#options.type);
    const free = Math.max(0, ...types.map((t) => t.availableInstances));
    return [{ kind: 'siov', total: free + parent.devices.length, free }];
  }

  async explain(): Promise<readonly Reason[]> {
    this.checkOpen();
    await this.#parent();
    return kernelReasons(await this.#host.kernel(), false);
  }

  /** Maps guest memory for its DMA, from when it is opened. */
  async attachMemory(fn: ControlledFunction, memory: GuestMemory): Promise<void> {
    return this.own(fn).attachMemory(memory);
  }

  /** Takes the guest memory away again. */
  async detachMemory(fn: ControlledFunction): Promise<void> {
    return this.own(fn).detachMemory();
  }

  protected async refresh(): Promise<void> {
    const { devices } = await this.#parent();
    for (const fn of this.known()) if (!devices.some((d) => d.uuid === fn.uuid)) this.lose(fn);
    for (const device of devices) {
      if (this.known().some((fn) => fn.uuid === device.uuid)) continue;
      const spec: FunctionSpec = { kind: 'siov', migration: true };
      const fn = this.#make(device.type, { uuid: device.uuid, name: device.uuid }, spec);
      for (const state of ['provisioned', 'configured', 'migration-enabled'] as const) fn.advance(state);
      fn.advance('exposed', { expose: 'vfio' });
      this.add(fn);
    }
  }

  protected async claim(
    spec: FunctionSpec,
    identity: { uuid: string; name: string | undefined },
  ): Promise<MdevFunction> {
    if (spec.kind !== 'siov') {
      throw new TowlineError(
        'ERR_TOWLINE_NO_RESOURCES',
        `mediated devices are of the kind siov, and a ${spec.kind} was asked for`,
      );
    }
    const parent = await this.#parent();
    if (parent.devices.some((d) => d.uuid === identity.uuid)) {
      throw new TowlineError('ERR_TOWLINE_EXISTS', `there is a mediated device ${identity.uuid} already`, {
        function: identity.uuid,
      });
    }
    const type = chooseType(parent, spec.type ?? this.#options.type);
    await this.#host.mdevCreate(this.#path, type, identity.uuid);
    const name = identity.name ?? identity.uuid;
    return this.#make(type, { uuid: identity.uuid, name }, { kind: 'siov', migration: false, expose: 'none' });
  }

  protected async give(fn: MdevFunction, config: FunctionConfig): Promise<Partial<FunctionSpec>> {
    refuseConfig(
      fn.name,
      config,
      ['queues', 'vectors', 'namespaces', 'hwAddress'],
      'what a mediated device has is said by its type',
    );
    const { type } = config as FunctionSpec;
    if (type !== undefined && type !== fn.type) {
      throw new TowlineError(
        'ERR_TOWLINE_UNSUPPORTED',
        `${fn.name} is of the type ${fn.type}, which can't be changed`,
        {
          function: fn.uuid,
        },
      );
    }
    return {};
  }

  protected async enable(fn: MdevFunction, options: WaitOptions): Promise<void> {
    const reasons = (await fn.explain(options)).filter(
      (r) => r.code !== 'migration-not-enabled' && r.code !== 'in-use',
    );
    const [first] = reasons;
    if (first === undefined) return;
    throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `migration of ${fn.name} can't be enabled: ${first.message}`, {
      function: fn.uuid,
      details: { reasons },
    });
  }

  protected async withdraw(fn: MdevFunction): Promise<void> {
    const device = (await this.#parent()).devices.find((d) => d.uuid === fn.uuid);
    if (device === undefined) return;
    // It can be opened whatever its exposure: its VFIO device is there for as long as it is.
    await checkNotOpen(this.#host, fn.uuid, device);
    await this.#host.mdevRemove(fn.uuid);
  }

  protected async end(): Promise<void> {
    // Nothing of the parent is held.
  }

  #make(type: string, identity: { uuid: string; name: string }, spec: FunctionSpec): MdevFunction {
    const handle = new VfioHandle(this.#host, identity.uuid, this.#options.vfio);
    return new MdevFunction(this, this.#host, this.#path, type, identity, spec, handle);
  }

  async #parent(): Promise<MdevParent> {
    const parent = (await this.#host.mdev()).find((p) => p.path === this.#path);
    if (parent === undefined) {
      throw new TowlineError(
        'ERR_TOWLINE_GONE',
        `there is no parent of mediated devices at /sys/${this.#path} any more`,
      );
    }
    return parent;
  }
}

/** The type that is wanted, or the only one that can be. */
function chooseType(parent: MdevParent, wanted: string | undefined): string {
  const all = parent.types.map((t) => `${t.id} (${t.availableInstances} left)`).join(', ') || 'none';
  const left = parent.types.filter((t) => t.availableInstances > 0);
  if (wanted !== undefined) {
    if (!parent.types.some((t) => t.id === wanted)) {
      throw new TowlineError('ERR_TOWLINE_NOT_FOUND', `${parent.name} has no type ${wanted}; it has: ${all}`);
    }
    if (left.some((t) => t.id === wanted)) return wanted;
    throw new TowlineError('ERR_TOWLINE_NO_RESOURCES', `${parent.name} has no instance of ${wanted} left: ${all}`);
  }
  const [only, ...more] = left;
  if (only === undefined)
    throw new TowlineError('ERR_TOWLINE_NO_RESOURCES', `${parent.name} has no instance left: ${all}`);
  if (more.length === 0) return only.id;
  throw new TowlineError('ERR_TOWLINE_INVALID_ARGUMENT', `name the type of the mediated device, one of: ${all}`);
}

/** Parents of mediated devices. */
export class MdevDriver implements ControllingDriver {
  readonly name = 'mdev';
  readonly #options: MdevOptions;
  readonly #host: HostPort;

  /** @param options - For every parent that it opens. */
  constructor(options: MdevOptions = {}) {
    this.#options = options;
    this.#host = options.host ?? new NativeHostPort();
  }

  async discover(): Promise<readonly DiscoveredController[]> {
    const parents = await this.#host.mdev();
    return parents.map((parent) => ({
      address: addressOf(parent, parents),
      description: `mediated devices of ${parent.name}: ${parent.types.map((t) => t.id).join(', ') || 'no types'}`,
      reasons: [],
    }));
  }

  /**
   * Opens a parent.
   * @param address - Its name (`mtty`), or its path in sysfs (`/sys/devices/virtual/mtty/mtty`).
   * @throws TowlineError `ERR_TOWLINE_NOT_FOUND` where there is none, `ERR_TOWLINE_INVALID_ARGUMENT` where a name stands for several.
   */
  async open(address: string, options: WaitOptions = {}): Promise<MdevControllingFunction> {
    throwIfAborted(options.signal);
    const parents = await this.#host.mdev();
    const path = address.replace(/^\/sys\//, '').replace(/\/+$/, '');
    const [found, ...more] = parents.filter((p) => p.path === path || p.name === address);
    if (found === undefined) {
      const known = parents.map((p) => addressOf(p, parents)).join(', ') || 'none';
      throw new TowlineError(
        'ERR_TOWLINE_NOT_FOUND',
        `there is no parent of mediated devices ${address}; there is: ${known}`,
      );
    }
    if (more.length > 0) {
      const paths = [found, ...more].map((p) => `/sys/${p.path}`).join(', ');
      throw new TowlineError(
        'ERR_TOWLINE_INVALID_ARGUMENT',
        `${address} stands for several parents: name one of ${paths}`,
      );
    }
    return new MdevControllingFunction(this.#host, addressOf(found, parents), found.path, this.#options);
  }
}

/** The name where it is the only one, the path otherwise. */
function addressOf(parent: MdevParent, all: readonly MdevParent[]): string {
  return all.filter((p) => p.name === parent.name).length === 1 ? parent.name : parent.path;
}
