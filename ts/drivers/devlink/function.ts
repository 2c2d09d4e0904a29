/**
 * The function behind a devlink port: a VF, or a subfunction (SF).
 */
import type { WaitOptions } from '../../abort.js';
import { TowlineError } from '../../errors.js';
import { pciVisibility } from '../../exposure/pci.js';
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
import type { DevlinkPort, HostPort } from '../host/port.js';
import { pciFunction } from '../host/words.js';
import { pciDescriptor } from '../sriov/function.js';
import { explainPci, gone } from '../vfio/explain.js';
import { VfioFunction } from '../vfio/function.js';
import type { VfioHandle } from '../vfio/handle.js';

/** What a devlink function is made of. */
export interface DevlinkParts {
  readonly host: HostPort;
  readonly port: DevlinkPort;
  /** Of a VF on this host. */
  readonly pciAddress: string | undefined;
  readonly handle: VfioHandle;
}

/** A port by its devlink name, `pci/0000:01:00.0/98304`. */
export function portName({ bus, device, index }: Pick<DevlinkPort, 'bus' | 'device' | 'index'>): string {
  return `${bus}/${device}/${index}`;
}

/** A function of the driver `devlink`. */
export class DevlinkFunction extends VfioFunction {
  readonly location: FunctionLocation;
  readonly visibility: Readonly<Partial<Record<ExposureName, Visibility | string>>>;
  /** Its port, `pci/0000:01:00.0/98304`. */
  readonly port: string;
  /** Index of its port. */
  readonly portIndex: number;
  /** What its port said before it was configured: what it is given back. @internal */
  readonly before: { readonly hwAddr: string | null; readonly migratable: boolean | null };
  /** @internal */
  readonly pciAddress: string | undefined;
  readonly #host: HostPort;

  /** @internal */
  constructor(controlling: ControllingFunction, identity: FunctionIdentity, spec: FunctionSpec, parts: DevlinkParts) {
    super(controlling, identity, spec, parts.handle);
    const { host, port, pciAddress, handle } = parts;
    this.#host = host;
    this.port = portName(port);
    this.portIndex = port.index;
    this.pciAddress = pciAddress;
    this.before = { hwAddr: port.function?.hwAddr ?? null, migratable: port.function?.migratable ?? null };
    if (pciAddress !== undefined) {
      this.location = { bus: 'pci', address: pciAddress };
      const migration = (): boolean => this.spec.migration === true;
      this.visibility = pciVisibility({ host, address: pciAddress, migration, letGo: () => handle.close() });
    } else {
      this.location = { bus: 'devlink', address: this.port };
      this.visibility = port.flavour === 'pci-sf' ? subfunction(host, port) : notHere(this.port);
    }
  }

  override async open(options: WaitOptions = {}): Promise<void> {
    if (this.pciAddress !== undefined) return super.open(options);
    throw new TowlineError('ERR_TOWLINE_UNSUPPORTED', `the function of ${this.port} has no VFIO device on this host`, {
      function: this.uuid,
    });
  }

  /** Its port as it is now; `undefined` where it is gone. @internal */
  async portNow(): Promise<DevlinkPort | undefined> {
    return (await this.#host.devlinkPorts()).find((p) => portName(p) === this.port);
  }

  async descriptor(): Promise<FunctionDescriptor> {
    const kind = {
      value: this.kind,
      rule: 'equal',
      why: 'the guest sees another configuration space otherwise',
    } as const;
    const why = 'device state of one technology means nothing to another';
    if (this.pciAddress === undefined) return { technology: { value: 'devlink', rule: 'equal', why }, kind };
    const pci = await pciFunction(this.#host, this.pciAddress);
    return { technology: { value: 'vfio-pci', rule: 'equal', why }, kind, ...pciDescriptor(pci, this.handle) };
  }

  protected async explainDevice(): Promise<readonly Reason[]> {
    const port = await this.portNow();
    if (port === undefined) return [gone(this.port)];
    if (this.pciAddress === undefined) {
      return [
        {
          code: 'no-variant-driver',
          message: `the function of ${this.port} has no VFIO device on this host`,
          mend: 'migrate a VF: no driver of the kernel gives a subfunction to VFIO',
        },
      ];
    }
    const reasons = await explainPci(this.#host, this.pciAddress, this.handle);
    const migratable = port.function?.migratable ?? null;
    if (migratable === null) {
      reasons.push({
        code: 'controlling-function-cannot-migrate',
        message: `the port ${this.port} has no attribute migratable, so its driver can't prepare the VF for migration`,
        mend: 'use a device and driver whose ports have it (mlx5, ConnectX-7), or provision it by the driver sriov',
      });
    }
    return reasons;
  }

  /** Whether another process has its VFIO device open, or a driver of the kernel uses it. */
  async inUse(): Promise<boolean> {
    if (this.exposure === 'kernel') return true;
    if (this.pciAddress === undefined) return false;
    return (await explainPci(this.#host, this.pciAddress, this.handle)).some((r) => r.code === 'in-use');
  }
}

/** An SF becomes visible by its state: active, it is a device on the auxiliary bus, which the kernel's driver takes. */
function subfunction(host: HostPort, port: DevlinkPort): DevlinkFunction['visibility'] {
  const { bus, device, index } = port;
  const now = async (): Promise<DevlinkPort | undefined> =>
    (await host.devlinkPorts()).find((p) => portName(p) === portName(port));
  return {
    kernel: {
      show: async () => {
        if ((await now())?.function?.state !== 'active')
          await host.devlinkSetPort(bus, device, index, { state: 'active' });
      },
      hide: async () => {
        if ((await now())?.function?.state === 'active')
          await host.devlinkSetPort(bus, device, index, { state: 'inactive' });
      },
    },
    vfio: 'a subfunction is no PCI function: no driver of the kernel gives it to VFIO',
  };
}

/** The function of a port whose host is another one (a SmartNIC's), or that is simulated. */
function notHere(port: string): DevlinkFunction['visibility'] {
  const why = `the function of ${port} is no PCI function of this host`;
  return { kernel: why, vfio: why };
}
