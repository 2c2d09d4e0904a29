/**
 * A mediated device: a share of its parent, made by the parent's driver and given to user space by VFIO.
 */
import { TowlineError } from '../../errors.js';
import type {
  ExposureName,
  FunctionDescriptor,
  FunctionIdentity,
  FunctionLocation,
  FunctionSpec,
  Reason,
  Visibility,
} from '../../function/types.js';
import type { ControllingFunction } from '../driver.js';
import type { HostPort, MdevParent } from '../host/port.js';
import { checkNotOpen, explainMdev, gone } from '../vfio/explain.js';
import { VfioFunction } from '../vfio/function.js';
import type { VfioHandle } from '../vfio/handle.js';

/** A device as its parent lists it. */
export type MdevDevice = MdevParent['devices'][number];

/** A function of the driver `mdev`. Its UUID is that of the mediated device. */
export class MdevFunction extends VfioFunction {
  readonly location: FunctionLocation;
  readonly visibility: Readonly<Partial<Record<ExposureName, Visibility | string>>>;
  /** Its type, `mtty-2` say. */
  readonly type: string;
  readonly #host: HostPort;
  readonly #parent: string;

  /** @internal */
  constructor(
    controlling: ControllingFunction,
    host: HostPort,
    parentPath: string,
    type: string,
    identity: FunctionIdentity,
    spec: FunctionSpec,
    handle: VfioHandle,
  ) {
    super(controlling, identity, { ...spec, type }, handle);
    this.#host = host;
    this.#parent = parentPath;
    this.type = type;
    this.location = { bus: 'mdev', address: this.uuid };
    this.visibility = {
      // The kernel gave it to VFIO as it was made. Hiding it is letting go of it: there is no other way but to remove it.
      vfio: {
        show: async () => {
          const device = await this.#device();
          if (device !== undefined && (device.iommuGroup !== null || device.vfioDevice !== null)) return;
          throw new TowlineError(
            'ERR_TOWLINE_EXPOSURE',
            `exposure vfio of ${this.uuid}: ${device === undefined ? 'it is gone' : 'no VFIO driver has taken it'}`,
            { function: this.uuid },
          );
        },
        hide: async () => {
          const device = await this.#device();
          if (device !== undefined) await checkNotOpen(host, this.uuid, device);
          await handle.close();
        },
      },
      kernel: 'a mediated device has no driver of the kernel: only VFIO takes it',
    };
  }

  async #device(): Promise<MdevDevice | undefined> {
    const parent = (await this.#host.mdev()).find((p) => p.path === this.#parent);
    return parent?.devices.find((d) => d.uuid === this.uuid);
  }

  async descriptor(): Promise<FunctionDescriptor> {
    const facts: Record<string, FunctionDescriptor[string]> = {
      technology: { value: 'vfio-mdev', rule: 'equal', why: 'device state of one technology means nothing to another' },
      kind: { value: this.kind, rule: 'equal', why: 'the guest sees another configuration space otherwise' },
      type: { value: this.type, rule: 'equal', why: 'the type is the model of the device that the guest sees' },
    };
    const { info } = this.handle;
    if (info !== undefined) {
      facts['migration-flags'] = {
        value: info.migration,
        rule: 'equal',
        why: 'the states that both sides go through have to exist on both (bit 0 STOP_COPY, 1 P2P, 2 PRE_COPY)',
      };
    }
    return facts;
  }

  protected async explainDevice(): Promise<readonly Reason[]> {
    const device = await this.#device();
    if (device === undefined) return [gone(this.uuid)];
    return explainMdev(this.#host, await this.#host.kernel(), device, this.handle);
  }

  /** Whether another process has it open. */
  async inUse(): Promise<boolean> {
    return (await this.explainDevice()).some((r) => r.code === 'in-use');
  }
}
