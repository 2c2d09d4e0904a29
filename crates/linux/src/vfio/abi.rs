//! Numbers and layouts of `include/uapi/linux/vfio.h`, checked at compile time against what a C compiler says.

use core::mem::{offset_of, size_of};

use rustix::ioctl::{Opcode, opcode};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_TYPE, vfio_device_feature_mig_data_size, vfio_device_feature_mig_state,
    vfio_device_feature_migration, vfio_device_info, vfio_group_status, vfio_precopy_info, vfio_region_info,
};

/// The argument of `VFIO_DEVICE_FEATURE`: `struct vfio_device_feature` with the data of one feature behind it. The binding has
/// a flexible array there, which leaves the alignment of the data open.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Feature<T> {
    pub argsz: u32,
    pub flags: u32,
    pub data: T,
}

/// `_IO(VFIO_TYPE, VFIO_BASE + n)`: VFIO's ioctls do not tell sizes.
const fn io(n: u8) -> Opcode {
    opcode::none(VFIO_TYPE, VFIO_BASE as u8 + n)
}

pub(super) const GET_API_VERSION: Opcode = io(0);
pub(super) const CHECK_EXTENSION: Opcode = io(1);
pub(super) const SET_IOMMU: Opcode = io(2);
pub(super) const GROUP_GET_STATUS: Opcode = io(3);
pub(super) const GROUP_SET_CONTAINER: Opcode = io(4);
pub(super) const GROUP_GET_DEVICE_FD: Opcode = io(6);
pub(super) const DEVICE_GET_INFO: Opcode = io(7);
pub(super) const DEVICE_GET_REGION_INFO: Opcode = io(8);
pub(super) const DEVICE_RESET: Opcode = io(11);
pub(super) const DEVICE_FEATURE: Opcode = io(17);
/// On a data_fd only.
pub(super) const MIG_GET_PRECOPY_INFO: Opcode = io(21);

const _: () = {
    assert!(GET_API_VERSION == 0x3b64);
    assert!(CHECK_EXTENSION == 0x3b65);
    assert!(SET_IOMMU == 0x3b66);
    assert!(GROUP_GET_STATUS == 0x3b67);
    assert!(GROUP_SET_CONTAINER == 0x3b68);
    assert!(GROUP_GET_DEVICE_FD == 0x3b6a);
    assert!(DEVICE_GET_INFO == 0x3b6b);
    assert!(DEVICE_GET_REGION_INFO == 0x3b6c);
    assert!(DEVICE_RESET == 0x3b6f);
    assert!(DEVICE_FEATURE == 0x3b75);
    assert!(MIG_GET_PRECOPY_INFO == 0x3b79);

    assert!(size_of::<vfio_group_status>() == 8);
    assert!(size_of::<vfio_device_info>() == 24);
    assert!(size_of::<vfio_region_info>() == 32);
    assert!(size_of::<vfio_device_feature_migration>() == 8);
    assert!(size_of::<vfio_device_feature_mig_state>() == 8);
    assert!(offset_of!(vfio_device_feature_mig_state, data_fd) == 4);
    assert!(size_of::<vfio_device_feature_mig_data_size>() == 8);
    assert!(size_of::<vfio_precopy_info>() == 24);
    assert!(offset_of!(vfio_precopy_info, initial_bytes) == 8);
    assert!(offset_of!(vfio_precopy_info, dirty_bytes) == 16);

    // The header is 8 bytes and the data follows at once, whatever its alignment.
    assert!(offset_of!(Feature<vfio_device_feature_migration>, data) == 8);
    assert!(offset_of!(Feature<vfio_device_feature_mig_state>, data) == 8);
    assert!(offset_of!(Feature<vfio_device_feature_mig_data_size>, data) == 8);
    assert!(size_of::<Feature<vfio_device_feature_migration>>() == 16);
    assert!(size_of::<Feature<vfio_device_feature_mig_state>>() == 16);
    assert!(size_of::<Feature<vfio_device_feature_mig_data_size>>() == 16);
};

#[cfg(test)]
mod tests {
    use towline_core::fsm::{DeviceState, MigrationFlags};
    use vfio_bindings::bindings::vfio::*;

    /// core has no dependencies, so its numbers are written down there a second time.
    #[test]
    fn core_has_the_kernels_numbers() {
        let numbers = [
            (DeviceState::Error, vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR),
            (DeviceState::Stop, vfio_device_mig_state_VFIO_DEVICE_STATE_STOP),
            (DeviceState::Running, vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING),
            (DeviceState::StopCopy, vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY),
            (DeviceState::Resuming, vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING),
            (DeviceState::RunningP2p, vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P),
            (DeviceState::PreCopy, vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY),
            (DeviceState::PreCopyP2p, vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY_P2P),
        ];
        assert_eq!(numbers.len(), DeviceState::ALL.len());
        for (state, number) in numbers {
            assert_eq!(u32::from(state), number, "{state}");
        }
        assert_eq!(vfio_device_mig_state_VFIO_DEVICE_STATE_NR as usize, numbers.len());
        assert_eq!(MigrationFlags::STOP_COPY, u64::from(VFIO_MIGRATION_STOP_COPY));
        assert_eq!(MigrationFlags::P2P, u64::from(VFIO_MIGRATION_P2P));
        assert_eq!(MigrationFlags::PRE_COPY, u64::from(VFIO_MIGRATION_PRE_COPY));
    }
}
