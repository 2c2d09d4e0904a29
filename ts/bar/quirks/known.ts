/**
 * The odd devices that are known. Everything in here is data with the file of the Linux kernel (7.2) that it comes from; none of these
 * devices was ever at hand, so it was read, not run, except for `mtty`.
 */
import type { Quirk } from './quirk.js';

const HALF = { numerator: 1, denominator: 2 } as const;

/** The known quirks. */
export const quirks: readonly Quirk[] = [
  {
    name: 'hisi-acc',
    match: { vendor: 0x19e5, devices: [0xa251, 0xa256, 0xa259] },
    bars: [
      {
        bar: 2,
        action: 'truncate',
        from: HALF,
        why: 'in VF_CTRL mode the upper half of the BAR has the registers that control migration, and a guest may only see the functional half; in PF_CTRL mode these registers are in the BAR of the PF, and the driver gives the whole region',
        doneBy: ['hisi_acc_vfio_pci'],
      },
    ],
    config: [],
    reset: {
      flr: 'pass',
      deferred: false,
      note: 'the driver waits before a reset until the queue manager has ended one that is under way, up to 60 s',
    },
    combineResuming: false,
    notes: [
      'The end of the bytes of the moment is read as 0 bytes, not ENOMSG, while pre-copying.',
      'The first 40 bytes of the state are match data: a foreign destination is refused when they are written.',
    ],
    source: 'drivers/vfio/pci/hisilicon/hisi_acc_vfio_pci.c',
  },
  {
    name: 'mlx5',
    match: { vendor: 0x15b3, devices: [0x101e] },
    bars: [],
    config: [],
    reset: {
      flr: 'trap',
      deferred: true,
      note: 'a function level reset brings the migration state back to RUNNING and ends its descriptors; the driver puts that off until its state lock is free',
    },
    combineResuming: true,
    notes: [
      'VFIO_MIG_GET_PRECOPY_INFO fetches the next increment: ask and read in turns, or pre-copy never advances.',
      'The end of a state that was cut off is not noticed by the driver; the manifest of the stream notices it.',
      'The one driver whose data descriptor can be polled and be non-blocking, and the one that sets REINIT in PRECOPY_INFO.',
      'Tracks at most 2^42 bytes in one range: ranges are split.',
    ],
    source: 'drivers/vfio/pci/mlx5/main.c',
  },
  {
    name: 'virtio-net-legacy',
    match: { vendor: 0x1af4, devices: [0x1041], vf: true },
    bars: [
      {
        bar: 0,
        action: 'trap',
        from: { numerator: 0, denominator: 1 },
        to: { numerator: 1, denominator: 1 },
        why: 'a legacy guest driver needs an I/O BAR 0, which the VF does not have: accesses become commands on the admin queue of the PF',
        doneBy: ['virtio_vfio_pci'],
      },
    ],
    config: [
      {
        register: 'PCI_DEVICE_ID',
        offset: 0x02,
        bytes: 2,
        value: 0x1000,
        why: 'a transitional network device',
        doneBy: ['virtio_vfio_pci'],
      },
      {
        register: 'PCI_REVISION_ID',
        offset: 0x08,
        bytes: 1,
        value: 0,
        why: 'transitional devices have revision 0',
        doneBy: ['virtio_vfio_pci'],
      },
      {
        register: 'PCI_BASE_ADDRESS_0',
        offset: 0x10,
        bytes: 4,
        value: null,
        why: 'the I/O BAR is virtual',
        doneBy: ['virtio_vfio_pci'],
      },
      {
        register: 'PCI_SUBSYSTEM_VENDOR_ID',
        offset: 0x2c,
        bytes: 2,
        value: 0x1af4,
        why: 'as of a transitional device',
        doneBy: ['virtio_vfio_pci'],
      },
      {
        register: 'PCI_SUBSYSTEM_ID',
        offset: 0x2e,
        bytes: 2,
        value: 1,
        why: 'of a transitional device it is the virtio device, 1 being network',
        doneBy: ['virtio_vfio_pci'],
      },
    ],
    reset: { flr: 'trap', deferred: true, note: 'the driver puts its part off until its state lock is free' },
    combineResuming: false,
    notes: [
      'Only where the admin queue of the PF has the legacy commands; otherwise the device is an ordinary modern one.',
    ],
    source: 'drivers/vfio/pci/virtio/legacy_io.c',
  },
  {
    name: 'virtio',
    match: { vendor: 0x1af4, devices: [0x1041, 0x1042], vf: true },
    bars: [],
    config: [],
    reset: { flr: 'trap', deferred: true, note: 'the driver puts its part off until its state lock is free' },
    combineResuming: false,
    notes: [
      'VFIO_MIG_GET_PRECOPY_INFO fetches the next increment, and asks the device at most once a second.',
      'The end of a state that was cut off is not noticed by the driver; the manifest of the stream notices it.',
      'P2P stops the device as a whole.',
    ],
    source: 'drivers/vfio/pci/virtio/migrate.c',
  },
  {
    name: 'pds',
    match: { vendor: 0x1dd8, devices: [0x1003] },
    bars: [],
    config: [],
    reset: {
      flr: 'pass',
      deferred: false,
      note: 'the one driver that enters ERROR by itself, when its firmware reports a recovery',
    },
    combineResuming: false,
    notes: [
      'The driver stops its DMA log on the way from STOP_COPY to STOP: harvest before.',
      'At most 64 KiB of state.',
    ],
    source: 'drivers/vfio/pci/pds/lm.c',
  },
  {
    name: 'qat',
    match: { vendor: 0x8086, devices: [0x4941, 0x4943, 0x4945, 0x4947, 0x4949] },
    bars: [],
    config: [],
    reset: { flr: 'pass', deferred: false, note: 'the driver resets its migration state after the device' },
    combineResuming: false,
    notes: [
      'The end of the bytes of the moment is read as 0 bytes, not ENOMSG, while pre-copying.',
      'The driver has no device features of its own: those of vfio-pci (VF token, low power) give ENOTTY.',
      'P2P stops the device as a whole. At most 4096 bytes of state; the part that describes the set-up comes while pre-copying.',
    ],
    source: 'drivers/vfio/pci/qat/main.c',
  },
  {
    name: 'xe',
    match: { vendor: 0x8086, drivers: ['xe-vfio-pci'] },
    bars: [],
    config: [],
    reset: {
      flr: 'trap',
      deferred: true,
      note: 'the driver prepares each reset with the PF, waits for its end, and puts its own part off until its state lock is free',
    },
    combineResuming: false,
    notes: ['P2P pauses the VF as a whole.', 'The state holds the contents of the video memory of the VF.'],
    source: 'drivers/vfio/pci/xe/main.c',
  },
  {
    name: 'nvgrace-gpu',
    match: { vendor: 0x10de, devices: [0x2342, 0x2345, 0x2348, 0x2941, 0x31c2] },
    bars: [],
    config: [],
    reset: null,
    combineResuming: false,
    notes: [
      'BAR 2 and BAR 4 are made up by the driver from the memory of the GPU; the device does not have them.',
      'It does not migrate.',
    ],
    source: 'drivers/vfio/pci/nvgrace-gpu/main.c',
  },
  {
    name: 'ism',
    match: { vendor: 0x1014, devices: [0x04ed] },
    bars: [],
    config: [],
    reset: null,
    combineResuming: false,
    notes: [
      's390 only: its BARs are reached by instructions of their own and can not be mapped.',
      'It does not migrate.',
    ],
    source: 'drivers/vfio/pci/ism/main.c',
  },
  {
    name: 'mtty',
    match: { drivers: ['mtty'] },
    bars: [],
    config: [],
    reset: {
      flr: 'pass',
      deferred: true,
      note: 'VFIO_DEVICE_RESET works, though VFIO_DEVICE_GET_INFO does not say so',
    },
    combineResuming: false,
    notes: [
      'Its state survives that it is closed: reset it first.',
      'The end of the bytes of the moment is read as 0 bytes, not ENOMSG, while pre-copying.',
      'Its DMA log is a stub that is always clean: it does no DMA.',
    ],
    source: 'samples/vfio-mdev/mtty.c',
  },
];
