// What `npm run test:kernel` runs in the guest: one entry is one row of its table for each kernel it names. Add yours below.
//
// A suite is a program that runs in the guest, prints TAP and exits with 0 or 1. Suites of the same machine and kernel share one boot
// and run in the order of this file, so each leaves the devices as it found them. After each, the kernel's log is looked through:
// a warning there fails the suite.
//
// What is there in the guest: the checkout, read-only, at /towline/checkout; a tmpfs on /tmp; /towline/run, which the host sees too;
// debugfs; nvme-cli, fio, lspci, devlink, ip, mkfs.ext4; Node as `node`. Nothing else of the root can be written.

/**
 * @typedef {'built' | 'debian'} Kernel `built` by kernel.config (iommufd, cdev, fault injection, VFIO in debugfs), or Debian's own,
 *   which has VFIO by group and container only.
 *
 * @typedef {object} Machine
 * @property {readonly string[]} [devices] Arguments of QEMU, one string a device: split at blanks, none inside an argument but in JSON
 *   written without blanks. Sockets and files are /towline/run/…; `$role` becomes the guest's role.
 * @property {string} [append] Added to the kernel's command line.
 * @property {Record<string, number>} [disks] Empty files /towline/run/NAME of so many MiB, made for each boot.
 * @property {readonly string[]} [setup] Shell lines that run once in the guest, each whole by itself. What they `export` is seen by
 *   the suites. A line that fails fails the boot's suites.
 * @property {string} [expects] Messages of the kernel that are no complaint here, as `grep -E` takes them: what its suites provoke.
 * @property {RegExp} [mayCrash] What QEMU says when it fails by a fault of its own that is known here. The boot is run once more then, where
 *   nothing had failed before, and its row says so.
 * @property {1 | 2} [guests] 2: two guests of this kind boot, with a network between them. Every suite runs in both, with
 *   `$TOWLINE_ROLE` (`source` or `destination`), its own `$TOWLINE_ADDRESS` and the other's `$TOWLINE_PEER`, and their TAP is added
 *   up; /towline/run is the same folder in both. Both begin a suite at the same time, and neither goes off before the other is done.
 * @property {string} [host] A Node program that runs outside while the guest does, started before it: a file name in
 *   dist-test/kernel/host (test/kernel/host/NAME.ts) without its ending. See test/kernel/host/mailbox.ts.
 * @property {number} [megabytes] The guest's memory, 1024 unless told.
 * @property {boolean} [privateMemory] The guest's memory has no descriptor that QEMU could hand on.
 *
 * @typedef {object} Suite
 * @property {string} name Short and unique, for `--only`.
 * @property {string} path What of towline it runs, for the table.
 * @property {string} oracle What judges it, for the table: not towline itself.
 * @property {readonly Kernel[]} kernels
 * @property {keyof typeof machines} machine
 * @property {{ crate: string, example: string } | { node: string }} program `crates/…/examples/EXAMPLE.rs` or EXAMPLE/main.rs, or
 *   test/kernel/guest/tests/NODE.ts, written with node:test.
 * @property {string} [args] The program's arguments, as words of a shell.
 * @property {readonly string[]} [setup] Shell lines before the program, in the same shell; one that fails fails the suite.
 * @property {boolean} smoke Whether `--smoke` runs it, which is with the first of its kernels only.
 * @property {number} timeoutSeconds The longest it may take on a busy machine; four times of what it takes alone is a good figure.
 */

/** Lines for the setup of a machine: mtty devices of these types, their UUIDs in `$mttys`. @param {...string} types */
const mttys = (...types) => [
  'modprobe mtty',
  `export mttys=; n=1; for t in ${types.join(' ')}; do u=11111111-0000-4000-8000-00000000000$n; echo $u > /sys/devices/virtual/mtty/mtty/mdev_supported_types/$t/create || break; mttys="$mttys $u"; n=$((n + 1)); done; [ $n -gt ${types.length} ]`,
];

/** A PCIe root port and what is behind it. @param {number} n @param {string} device */
const port = (n, device) => `-device pcie-root-port,id=rp${n},slot=${n},chassis=${n} -device ${device},bus=rp${n}`;

/** QEMU's NVMe controller with SR-IOV: 4 VFs, flexible queues and vectors, one namespace on /towline/run/nvme.img. */
const nvmeSriov = [
  '-device nvme-subsys,id=ss0 -drive file=/towline/run/nvme.img,if=none,id=d0,format=raw',
  port(
    0,
    'nvme,id=nvme0,serial=abc,subsys=ss0,sriov_max_vfs=4,sriov_vq_flexible=8,sriov_vi_flexible=4,max_ioqpairs=26,msix_qsize=20',
  ),
  '-device nvme-ns,drive=d0,bus=nvme0,shared=on',
];

/** A root port `rp-ID` for hot plug, and behind it the function on the vfio-user socket /towline/run/SOCKET.sock. */
const plug = (/** @type {number} */ n, /** @type {string} */ id, socket = id) =>
  `-device pcie-root-port,id=rp-${id},slot=${n},chassis=${n} ` +
  `-device {"driver":"vfio-user-pci","id":"${id}","bus":"rp-${id}","socket":{"type":"unix","path":"/towline/run/${socket}.sock"}}`;

/** Hot plug by the ports themselves: the kernel has no driver for the one by ACPI. */
const nativeHotPlug = '-global ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off';

/** For test/kernel/host/servers.ts, which says why. */
const consoles = '-device virtio-gpu-pci,max_outputs=16';

/** Its client of vfio-user fails an assertion when a server goes that has not read everything: README.md, traps. */
const serverGone = /error_setv: Assertion/;

export const machines = /** @satisfies {Record<string, Machine>} */ ({
  /** Five mtty devices in `$mttys` (two of a model, one of another, two more), and a PCI function that doesn't migrate in `$pci`. */
  mtty: {
    devices: [port(0, 'igb')],
    setup: [
      ...mttys('mtty-2', 'mtty-2', 'mtty-1', 'mtty-2', 'mtty-2'),
      'modprobe vfio-pci',
      'export pci=0000:01:00.0',
      'echo vfio-pci > /sys/bus/pci/devices/$pci/driver_override',
      'echo $pci > /sys/bus/pci/drivers_probe',
    ],
  },
  /** Nothing but the kernel. */
  plain: {},
  /** NVMe with SR-IOV at 0000:01:00.0 and igb at 0000:02:00.0, both PFs with their kernel drivers, no VF yet; netdevsim can be loaded. */
  sriov: {
    devices: [...nvmeSriov, port(1, 'igb')],
    disks: { 'nvme.img': 256 },
    setup: ['modprobe nvme', 'modprobe igb', 'modprobe vfio-pci'],
  },
  /** A PF, a VF and a SIOV-like function of an embedded subsystem (test/kernel/host/judge.ts) at 0000:01:00.0, 02 and 03. */
  judge: {
    devices: [nativeHotPlug, consoles, plug(1, 'pf'), plug(2, 'vf'), plug(3, 'siov')],
    // Without multipath each controller has a disk of its own, also where they share a namespace.
    append: 'nvme_core.io_timeout=10 nvme_core.admin_timeout=10 nvme_core.multipath=N',
    // Its server is killed while the guest is at work.
    expects: 'nvme nvme[0-9]+: (controller is down|I/O .*timeout)',
    mayCrash: serverGone,
    setup: ['modprobe nvme', 'modprobe ext4'],
    host: 'judge',
  },
  /** Three VFs of an embedded subsystem (test/kernel/host/messages.ts), two of them behind BAR policies, at 0000:01:00.0, 02 and 03; guest memory without a descriptor. */
  messages: {
    devices: [plug(1, 'open'), plug(2, 'narrow'), plug(3, 'deaf')],
    privateMemory: true,
    append: 'nvme_core.multipath=N',
    setup: ['modprobe nvme'],
    host: 'messages',
  },
  /** The controlling PF of an embedded subsystem (test/kernel/host/hmlm.ts) at 0000:01:00.0, and its VFs, offline, at 02 and 03. */
  hmlm: {
    devices: [plug(1, 'mmc'), plug(2, 'first'), plug(3, 'second')],
    append: 'nvme_core.multipath=N',
    setup: ['modprobe nvme'],
    host: 'hmlm',
  },
  /** Two guests, each with the controlling PF of a subsystem of its own (test/kernel/host/controlling.ts) at 0000:01:00.0, and a port to plug at 02. */
  controlling: {
    guests: 2,
    mayCrash: serverGone,
    devices: [nativeHotPlug, consoles, plug(1, 'ctl', '$role-ctl'), '-device pcie-root-port,id=rp-fn,slot=2,chassis=2'],
    append: 'nvme_core.multipath=N',
    setup: ['modprobe nvme'],
    host: 'controlling',
  },
  /** NVMe with SR-IOV in `$pci`, with its kernel driver and without VFs, and two mtty devices in `$mttys`. */
  iommu: {
    devices: nvmeSriov,
    disks: { 'nvme.img': 64 },
    setup: [...mttys('mtty-2', 'mtty-2'), 'modprobe nvme', 'modprobe vfio-pci', 'export pci=0000:01:00.0'],
  },
  /** Two guests with two mtty devices each in `$mttys`. */
  pair: { guests: 2, setup: mttys('mtty-2', 'mtty-2') },
});

/** @type {readonly Suite[]} */
export const suites = [
  {
    name: 'mtty',
    path: 'VFIO by group and by cdev: every arc, streams, resets, DMA log of mtty',
    oracle: 'debugfs of VFIO, mtty registers read back, errno of the kernel',
    kernels: ['built', 'debian'],
    machine: 'mtty',
    program: { crate: 'towline-linux', example: 'vm_mtty' },
    args: '$mttys $pci',
    smoke: true,
    timeoutSeconds: 240,
  },
  {
    name: 'vfio-pci',
    path: 'vfio-pci by group and by cdev: BARs under a policy, MSI-X, an admin command by hand, VF tokens',
    oracle: 'sysfs (resource, config), /proc/interrupts, errno of the kernel, Identify of the controller',
    kernels: ['built', 'debian'],
    machine: 'sriov',
    program: { crate: 'towline-linux', example: 'vm_vfio_pci' },
    args: '0000:01:00.0 0000:02:00.0',
    smoke: false,
    timeoutSeconds: 240,
  },
  {
    name: 'migration',
    path: 'sessions over mtty, one and two functions',
    oracle: 'mtty registers and memory read back at the destination',
    kernels: ['built', 'debian'],
    machine: 'mtty',
    program: { crate: 'towline-engine', example: 'mtty_migration' },
    args: '$mttys $pci',
    smoke: false,
    timeoutSeconds: 300,
  },
  {
    name: 'mtty-api',
    path: 'TypeScript API: driver mdev, two functions of one guest in one session; one with its interrupts',
    oracle: 'debugfs of VFIO, mtty registers read back, eventfds that the kernel signals',
    kernels: ['built'],
    machine: 'mtty',
    program: { node: 'mtty-api' },
    args: '$mttys',
    smoke: false,
    timeoutSeconds: 200,
  },
  {
    name: 'pair-move',
    path: 'towline migrate and receive, mtty from kernel to kernel and back',
    oracle: 'mtty registers and guest memory read back, debugfs of VFIO in both kernels',
    kernels: ['built'],
    machine: 'pair',
    program: { node: 'mtty-pair' },
    args: 'move',
    smoke: true,
    timeoutSeconds: 400,
  },
  {
    name: 'pair-crashes',
    path: 'towline serve killed at each point of the handoff, recover',
    oracle: 'debugfs of VFIO in both kernels against both journals, VFIO opened again, mtty registers',
    kernels: ['built'],
    machine: 'pair',
    program: { node: 'mtty-pair' },
    args: 'crashes',
    smoke: false,
    timeoutSeconds: 1200,
  },
  {
    name: 'pair-links',
    path: 'link cut in and before each kind of frame of a migration, network down, recover',
    oracle: 'debugfs of VFIO in both kernels against both journals, mtty registers',
    kernels: ['built'],
    machine: 'pair',
    program: { node: 'mtty-pair' },
    args: 'links',
    smoke: false,
    timeoutSeconds: 600,
  },
  {
    name: 'host',
    path: 'PCI and mdev sysfs: discovery, VFs, drivers; NVMe passthrough',
    oracle: 'lspci, nvme-cli, readlink, errno of the kernel',
    kernels: ['built', 'debian'],
    machine: 'sriov',
    program: { crate: 'towline-linux', example: 'vm_host' },
    setup: ['echo N > /sys/module/vfio_pci/parameters/enable_sriov'],
    smoke: false,
    timeoutSeconds: 300,
  },
  {
    name: 'devlink',
    path: 'devlink: devices, ports, eswitch, refusals',
    oracle: 'devlink of iproute2, errno and words of the kernel',
    kernels: ['built'],
    machine: 'plain',
    program: { crate: 'towline-linux', example: 'vm_devlink' },
    smoke: true,
    timeoutSeconds: 120,
  },
  {
    name: 'layouts',
    path: 'NVMe and HMLM: layouts, opcodes, command dwords',
    oracle: 'headers of libnvme 1.13, compiled by gcc',
    kernels: ['built'],
    machine: 'plain',
    program: { crate: 'towline-nvme', example: 'vm_layout' },
    args: '/towline/checkout/test/kernel/guest/libnvme-offsets.c',
    smoke: true,
    timeoutSeconds: 120,
  },
  {
    name: 'judge',
    path: 'vfio-user: embedded PF, VF and SIOV-like function',
    oracle: "Linux's nvme driver, nvme-cli, fio verify, e2fsck",
    kernels: ['debian'],
    machine: 'judge',
    program: { node: 'judge' },
    smoke: false,
    timeoutSeconds: 900,
  },
  {
    name: 'messages',
    path: 'vfio-user: guest memory without a descriptor, DMA by messages both ways on one socket',
    oracle: "Linux's nvme driver, nvme-cli, fio verify, cmp",
    kernels: ['debian'],
    machine: 'messages',
    program: { node: 'messages' },
    smoke: false,
    timeoutSeconds: 300,
  },
  {
    name: 'bar-policy',
    path: 'vfio-user: BAR policies as the guest meets them',
    oracle: "the BAR mapped by a C program, beside one without a policy; Linux's nvme driver, fio verify",
    kernels: ['debian'],
    machine: 'messages',
    program: { node: 'bar-policy' },
    smoke: false,
    timeoutSeconds: 240,
  },
  {
    name: 'controlling',
    path: 'driver nvme over /dev/nvme0 of the embedded PF, its state to another kernel by HMLM',
    oracle: 'nvme-cli list-secondary, virt-mgmt, id-ctrl; fio verify in the other guest',
    kernels: ['debian'],
    machine: 'controlling',
    program: { node: 'controlling' },
    smoke: false,
    timeoutSeconds: 400,
  },
  {
    name: 'list',
    path: 'list: controlling functions and what they control',
    oracle: 'lspci, nvme-cli, the devlink tool, sysfs',
    kernels: ['built'],
    machine: 'sriov',
    program: { node: 'list' },
    smoke: false,
    timeoutSeconds: 300,
  },
  {
    name: 'explain',
    path: 'explain, also while a process owns the device',
    oracle: 'VFIO in debugfs, nvme-cli, EBUSY of the kernel, inotify on /dev/vfio',
    kernels: ['built', 'debian'],
    machine: 'sriov',
    program: { node: 'explain' },
    smoke: false,
    timeoutSeconds: 600,
  },
  {
    name: 'qemu-owner',
    path: 'list and explain while QEMU has the device, by group and cdev',
    oracle: 'VFIO in debugfs, inotify on /dev/vfio, the monitor of that QEMU',
    kernels: ['built', 'debian'],
    machine: 'sriov',
    program: { node: 'qemu-owner' },
    smoke: false,
    timeoutSeconds: 400,
  },
  {
    name: 'conformance',
    path: 'the conformance kit on VFIO devices, by group and cdev',
    oracle: "the kernel's state machine, VFIO in debugfs",
    kernels: ['built', 'debian'],
    machine: 'sriov',
    program: { node: 'conformance' },
    smoke: false,
    timeoutSeconds: 900,
  },
  {
    name: 'nvme-provision',
    path: 'driver nvme: provision, expose and release of VFs by their PF',
    oracle: 'nvme-cli list-secondary and primary-ctrl-caps, sysfs, lspci, e2fsck and dd by the other controller',
    kernels: ['built'],
    machine: 'sriov',
    program: { node: 'nvme-provision' },
    smoke: true,
    timeoutSeconds: 400,
  },
  {
    name: 'vfio-exposure',
    path: 'exposure vfio of an NVMe VF, by group and cdev, and back',
    oracle: 'sysfs, nvme-cli show-regs, EBUSY of the kernel, cmp of the disk',
    kernels: ['built'],
    machine: 'sriov',
    program: { node: 'vfio-exposure' },
    smoke: false,
    timeoutSeconds: 300,
  },
  {
    name: 'igb',
    path: 'driver sriov: VFs of igb by sysfs alone',
    oracle: 'sysfs, lspci, network devices of igbvf',
    kernels: ['built', 'debian'],
    machine: 'sriov',
    program: { node: 'igb' },
    smoke: false,
    timeoutSeconds: 300,
  },
  {
    name: 'mdev',
    path: 'driver mdev: mtty devices by type, by group and cdev',
    oracle: 'sysfs, VFIO in debugfs, EBUSY of the kernel',
    kernels: ['built', 'debian'],
    machine: 'sriov',
    program: { node: 'mdev' },
    smoke: false,
    timeoutSeconds: 300,
  },
  {
    name: 'cli-provision',
    path: 'towline serve, provision, expose, explain and release at an NVMe PF',
    oracle: 'nvme-cli list-secondary, sysfs, dd',
    kernels: ['built'],
    machine: 'sriov',
    program: { node: 'cli-provision' },
    smoke: false,
    timeoutSeconds: 300,
  },
  {
    name: 'devlink-driver',
    path: 'driver devlink: VF ports of netdevsim, and what its driver lacks',
    oracle: 'devlink port show, EOPNOTSUPP of the kernel',
    kernels: ['built'],
    machine: 'sriov',
    program: { node: 'devlink-driver' },
    smoke: false,
    timeoutSeconds: 120,
  },
  {
    name: 'hmlm',
    path: "live migration by the controlling function through Linux's nvme driver",
    oracle: 'nvme-cli lm, id-ctrl and list-secondary, dd, the log of the nvme driver',
    kernels: ['debian'],
    machine: 'hmlm',
    program: { crate: 'towline-linux', example: 'vm_hmlm' },
    args: '0000:01:00.0 0000:02:00.0 0000:03:00.0',
    smoke: false,
    timeoutSeconds: 300,
  },
  {
    name: 'iommufd',
    path: 'iommufd: address spaces, dirty pages by the IOMMU',
    oracle: "kernel's mock IOMMU: count of dirtied pages, check of mapped physical pages; errno",
    kernels: ['built'],
    machine: 'plain',
    program: { crate: 'towline-linux', example: 'vm_iommufd' },
    smoke: true,
    timeoutSeconds: 400,
  },
  {
    name: 'type1',
    path: 'type1: mapping and dirty pages; an IOMMU that tracks none',
    oracle: 'rules of the kernel: all ones for a PCI device, all zero for mtty; errno',
    kernels: ['built', 'debian'],
    machine: 'iommu',
    program: { crate: 'towline-linux', example: 'vm_type1' },
    args: '$pci $mttys',
    smoke: true,
    timeoutSeconds: 120,
  },
  {
    name: 'faults',
    path: 'migrate, track and remove a mediated device while allocations of the kernel fail (fail-nth)',
    oracle: 'ENOMEM by name, /proc/self/fd, debugfs of VFIO, the sequence afterwards',
    kernels: ['built'],
    machine: 'iommu',
    program: { crate: 'towline-linux', example: 'vm_faults' },
    args: '$mttys $pci',
    // A line for each failure, without the call trace by which complaints are known.
    setup: ['for verbose in /sys/kernel/debug/fail*/verbose; do echo 1 > $verbose; done'],
    smoke: false,
    timeoutSeconds: 400,
  },
  {
    name: 'provision-faults',
    path: 'what provisioning asks of sysfs, passthrough and devlink while allocations of the kernel fail (fail-nth)',
    oracle: 'ENOMEM by name, /proc/self/fd, drivers and resources as they were, the sequence afterwards',
    kernels: ['built'],
    machine: 'iommu',
    program: { crate: 'towline-linux', example: 'vm_provision_faults' },
    args: '$pci',
    setup: ['for verbose in /sys/kernel/debug/fail*/verbose; do echo 1 > $verbose; done', 'modprobe netdevsim'],
    smoke: false,
    timeoutSeconds: 400,
  },
];
