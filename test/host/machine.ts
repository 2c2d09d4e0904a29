/** A made-up host: what its kernel would tell, and nothing that could open a VFIO device. */
import type { HostReader } from '#towline/host/read.js';
import type { DevlinkPort, HostKernel, MdevParent, PciFunction } from '#towline/drivers/host/port.js';
import type { NvmeIdentify, NvmeSecondary } from '#towline/native/binding.js';
import { TowlineError } from '#towline/errors.js';

export const UUID = '6f1c0d5e-0000-4000-8000-000000000001';

const hex = (value: number, digits: number): string => value.toString(16).toUpperCase().padStart(digits, '0');

/** A PCI function; what is left out is a network card of nobody. */
export function pci(address: string, fields: Partial<PciFunction> = {}): PciFunction {
  const { vendor = 0x8086, device = 0x10c9, class: code = 0x020000 } = fields;
  return {
    address,
    vendor,
    device,
    subsystemVendor: 0,
    subsystemDevice: 0,
    class: code,
    revision: 1,
    modalias: `pci:v${hex(vendor, 8)}d${hex(device, 8)}sv00000000sd00000000bc${hex(code >> 16, 2)}sc${hex((code >> 8) & 255, 2)}i${hex(code & 255, 2)}`,
    driver: null,
    driverOverride: null,
    iommuGroup: 10,
    numaNode: null,
    sriov: null,
    virtfns: [],
    physfn: null,
    vfIndex: null,
    vfMsixCount: null,
    resetMethods: ['flr'],
    vfioDevice: null,
    bars: [],
    nvme: null,
    vfioState: null,
    ...fields,
  };
}

export const sriov = (totalVfs: number, numVfs: number): NonNullable<PciFunction['sriov']> => ({
  totalVfs,
  numVfs,
  driversAutoprobe: true,
  offset: 1,
  stride: 1,
  vfDevice: 0,
  vfTotalMsix: null,
});

export const kernel: HostKernel = {
  release: '7.2.13',
  iommu: true,
  container: true,
  cdev: true,
  iommufd: true,
  pciDrivers: ['vfio-pci', 'nvme', 'mlx5_core'],
  mdev: true,
  vfioDebugfs: false,
  vfioAliases: [
    { pattern: 'vfio_pci:v*d*sv*sd*bc*sc*i*', module: 'vfio_pci', driver: 'vfio-pci' },
    { pattern: 'vfio_pci:v000015B3d0000101Esv*sd*bc*sc*i*', module: 'mlx5_vfio_pci', driver: null },
  ],
};

export const bareKernel: HostKernel = {
  release: '6.18.0',
  iommu: false,
  container: false,
  cdev: false,
  iommufd: false,
  pciDrivers: ['virtio-pci'],
  mdev: false,
  vfioDebugfs: false,
  vfioAliases: [],
};

const NVME = { class: 0x010802, vendor: 0x1b36, device: 0x0010 } as const;

/** A ConnectX with two VFs, an NVMe controller with two, a card with mediated devices, a parent without a PCI device, a switch in software. */
export const machine: {
  pci: PciFunction[];
  mdev: MdevParent[];
  ports: DevlinkPort[];
  devlink: { bus: string; device: string }[];
} = {
  pci: [
    pci('0000:00:1f.0', { class: 0x060100, driver: 'lpc_ich' }),
    pci('0000:01:00.0', {
      vendor: 0x15b3,
      device: 0x1021,
      driver: 'mlx5_core',
      sriov: sriov(8, 2),
      virtfns: ['0000:01:00.1', '0000:01:00.2'],
    }),
    pci('0000:01:00.1', {
      vendor: 0x15b3,
      device: 0x101e,
      driver: 'mlx5_core',
      physfn: '0000:01:00.0',
      vfIndex: 0,
      iommuGroup: 11,
    }),
    pci('0000:01:00.2', {
      vendor: 0x15b3,
      device: 0x101e,
      driver: 'mlx5_vfio_pci',
      physfn: '0000:01:00.0',
      vfIndex: 1,
      iommuGroup: 12,
      vfioDevice: 'vfio0',
    }),
    pci('0000:02:00.0', {
      ...NVME,
      driver: 'nvme',
      iommuGroup: 20,
      sriov: sriov(4, 2),
      virtfns: ['0000:02:00.1', '0000:02:00.2'],
      nvme: { name: 'nvme0', cntlid: 0, subsystemNqn: 'nqn.2019-08.org.qemu:ss0', state: 'live' },
    }),
    pci('0000:02:00.1', {
      ...NVME,
      physfn: '0000:02:00.0',
      vfIndex: 0,
      iommuGroup: 21,
      driver: 'vfio-pci',
      vfioDevice: 'vfio1',
    }),
    pci('0000:02:00.2', { ...NVME, physfn: '0000:02:00.0', vfIndex: 1, iommuGroup: 22 }),
    pci('0000:03:00.0', { class: 0x030000, vendor: 0x8086, device: 0x5912, driver: 'i915', iommuGroup: 30 }),
    pci('0000:04:00.0', {
      vendor: 0x8086,
      device: 0x10c9,
      driver: 'vfio-pci',
      iommuGroup: 40,
      vfioDevice: 'vfio2',
      sriov: sriov(7, 1),
      virtfns: ['0000:04:10.0'],
    }),
    pci('0000:04:10.0', {
      vendor: 0x8086,
      device: 0x10ca,
      driver: 'vfio-pci',
      iommuGroup: 41,
      vfioDevice: 'vfio3',
      physfn: '0000:04:00.0',
      vfIndex: 0,
    }),
    pci('0000:05:00.0', {
      vendor: 0x10de,
      device: 0x2342,
      class: 0x030200,
      driver: 'nvgrace_gpu_vfio_pci',
      iommuGroup: 50,
      vfioDevice: 'vfio4',
    }),
    pci('0000:06:00.0', { driver: 'vfio-pci', iommuGroup: 60, vfioDevice: 'vfio5' }),
    pci('0000:06:00.1', { driver: 'e1000e', iommuGroup: 60 }),
  ],
  mdev: [
    {
      path: 'devices/virtual/mtty/mtty',
      name: 'mtty',
      types: [
        { id: 'mtty-2', name: 'Dual port serial', deviceApi: 'vfio-pci', availableInstances: 11, description: null },
      ],
      devices: [{ uuid: UUID, type: 'mtty-2', driver: 'mtty', iommuGroup: 5, vfioDevice: 'vfio9', vfioState: null }],
    },
    {
      path: 'devices/pci0000:00/0000:03:00.0',
      name: '0000:03:00.0',
      types: [{ id: 'i915-GVTg_V5_4', name: null, deviceApi: 'vfio-pci', availableInstances: 1, description: null }],
      devices: [],
    },
  ],
  devlink: [
    { bus: 'pci', device: '0000:01:00.0' },
    { bus: 'netdevsim', device: 'netdevsim1' },
  ],
  ports: [
    port('pci', '0000:01:00.0', 1, 'physical'),
    {
      ...port('pci', '0000:01:00.0', 2, 'pci-vf'),
      pf: 0,
      vf: 0,
      function: { hwAddr: '02:00:00:00:00:01', state: null, opstate: null, migratable: false, roce: true },
    },
    {
      ...port('pci', '0000:01:00.0', 3, 'pci-vf'),
      pf: 0,
      vf: 1,
      function: { hwAddr: '02:00:00:00:00:02', state: null, opstate: null, migratable: true, roce: true },
    },
    {
      ...port('pci', '0000:01:00.0', 32768, 'pci-sf'),
      pf: 0,
      sf: 88,
      function: { hwAddr: '02:00:00:00:00:03', state: 'inactive', opstate: 'detached', migratable: null, roce: null },
    },
    { ...port('netdevsim', 'netdevsim1', 128, 'pci-vf'), pf: 0, vf: 0 },
  ],
};

function port(bus: string, device: string, index: number, flavour: DevlinkPort['flavour']): DevlinkPort {
  return { bus, device, index, flavour, netdev: null, controller: null, pf: null, vf: null, sf: null, function: null };
}

export interface Told {
  kernel?: HostKernel;
  pci?: readonly PciFunction[];
  mdev?: readonly MdevParent[];
  ports?: readonly DevlinkPort[];
  devlink?: readonly { bus: string; device: string }[];
  /** Processes by the path that they have open. */
  open?: Readonly<Record<string, number[]>>;
  /** What `/dev/nvme0` answers; where it is left out it can't be opened. */
  identify?: Partial<NvmeIdentify>;
  secondaries?: NvmeSecondary[];
}

const refused = (what: string): never => {
  throw new TowlineError('ERR_TOWLINE_PERMISSION', `${what}: EACCES`, { errno: 13 });
};

/** {@link machine}, with changes. */
export function host(told: Told = {}): HostReader & { readonly nvmeOpen: () => number } {
  let nvmeOpen = 0;
  const reader = {
    kernel: async () => told.kernel ?? kernel,
    pci: async () => told.pci ?? machine.pci,
    mdev: async () => told.mdev ?? machine.mdev,
    devlinkDevices: async () => told.devlink ?? machine.devlink,
    devlinkPorts: async () => told.ports ?? machine.ports,
    openers: async (paths: readonly string[]) => paths.flatMap((path) => told.open?.[path] ?? []),
    openNvme: async (path: string) => {
      if (told.identify === undefined || path !== '/dev/nvme0') return refused(`open ${path}`);
      const identify = { cntlid: 0, hmlms: false, trackMemory: false, ...told.identify };
      nvmeOpen += 1;
      return {
        identify: async () => identify,
        secondaries: async () => told.secondaries ?? [],
        stateFormats: async () => ({ versions: [0], uuids: [] }),
        close: () => (nvmeOpen -= 1),
      };
    },
    nvmeOpen: () => nvmeOpen,
  };
  // Whatever else is asked of it is a call that list and explain must not make.
  return new Proxy(reader as unknown as HostReader & { nvmeOpen: () => number }, {
    get: (target, name) => {
      if (Object.hasOwn(target, name)) return Reflect.get(target, name) as unknown;
      throw new Error(`list and explain asked the host for ${String(name)}`);
    },
  });
}
