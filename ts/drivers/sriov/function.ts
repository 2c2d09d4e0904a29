/**
 * A VF of a PF that needs nothing but the kernel's means.
 */
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
import type { HostPort, PciFunction } from '../host/port.js';
import { hex, pciFunction } from '../host/words.js';
import { explainPci } from '../vfio/explain.js';
import { VfioFunction } from '../vfio/function.js';
import type { VfioHandle } from '../vfio/handle.js';

/** What the state and the guest of a PCI function depend on. */
export function pciDescriptor(pci: PciFunction, handle: VfioHandle): FunctionDescriptor {
  const facts: Record<string, FunctionDescriptor[string]> = {
    'pci-id': {
      value: `${hex(pci.vendor)}:${hex(pci.device)}`,
      rule: 'equal',
      why: 'the guest has chosen its driver by them',
    },
    'pci-subsystem': {
      value: `${hex(pci.subsystemVendor)}:${hex(pci.subsystemDevice)}`,
      rule: 'equal',
      why: 'the guest has chosen its driver by them',
    },
    'pci-class': { value: pci.class.toString(16).padStart(6, '0'), rule: 'equal', why: 'the guest read it' },
    'pci-revision': { value: pci.revision, rule: 'equal', why: 'the guest read it' },
    bars: {
      value: pci.bars.map((b) => `${b.index}:${b.sizeBytes}:${b.flags.toString(16)}`),
      rule: 'equal',
      why: 'the guest has mapped them (index:bytes:flags)',
    },
    driver: {
      value: pci.driver ?? 'none',
      rule: 'equal',
      why: 'the bytes of device state mean something only to the driver that wrote them',
    },
  };
  if (handle.info !== undefined) {
    facts['vectors'] = {
      value: Math.max(0, ...handle.info.irqs.filter((i) => i.index <= 2).map((i) => i.count)),
      rule: 'at-least',
      why: 'every interrupt vector that the guest uses needs one',
    };
    facts['migration-flags'] = {
      value: handle.info.migration,
      rule: 'equal',
      why: 'the states that both sides go through have to exist on both (bit 0 STOP_COPY, 1 P2P, 2 PRE_COPY)',
    };
  }
  return facts;
}

/** A VF of the driver `sriov`. */
export class SriovFunction extends VfioFunction {
  readonly location: FunctionLocation;
  readonly visibility: Readonly<Partial<Record<ExposureName, Visibility | string>>>;
  /** Index of the VF, from 0. */
  readonly index: number;
  readonly #host: HostPort;

  /** @internal */
  constructor(
    controlling: ControllingFunction,
    host: HostPort,
    pci: PciFunction,
    identity: FunctionIdentity,
    spec: FunctionSpec,
    handle: VfioHandle,
  ) {
    super(controlling, identity, spec, handle);
    this.#host = host;
    this.index = pci.vfIndex ?? 0;
    this.location = { bus: 'pci', address: pci.address };
    this.visibility = pciVisibility({
      host,
      address: pci.address,
      migration: () => this.spec.migration === true,
      letGo: () => handle.close(),
    });
  }

  async descriptor(): Promise<FunctionDescriptor> {
    const pci = await pciFunction(this.#host, this.location.address);
    return {
      technology: { value: 'vfio-pci', rule: 'equal', why: 'device state of one technology means nothing to another' },
      kind: { value: this.kind, rule: 'equal', why: 'the guest sees another configuration space otherwise' },
      ...pciDescriptor(pci, this.handle),
    };
  }

  protected explainDevice(): Promise<readonly Reason[]> {
    return explainPci(this.#host, this.location.address, this.handle);
  }

  /** Whether another process has its VFIO device open, or a driver of the kernel uses it. */
  async inUse(): Promise<boolean> {
    if (this.exposure === 'kernel') return true;
    return (await explainPci(this.#host, this.location.address, this.handle)).some((r) => r.code === 'in-use');
  }
}
