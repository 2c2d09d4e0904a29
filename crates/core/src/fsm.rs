//! The VFIO v2 migration state machine (`include/uapi/linux/vfio.h`, `drivers/vfio/vfio_main.c`).

/// A device state of the VFIO v2 migration protocol, with the kernel's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
#[allow(missing_docs)]
pub enum DeviceState {
    Error = 0,
    Stop = 1,
    Running = 2,
    StopCopy = 3,
    Resuming = 4,
    RunningP2p = 5,
    PreCopy = 6,
    PreCopyP2p = 7,
}

/// The capability set of `VFIO_DEVICE_FEATURE_MIGRATION`: bit 0 STOP_COPY, bit 1 P2P, bit 2 PRE_COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MigrationFlags(pub u64);
