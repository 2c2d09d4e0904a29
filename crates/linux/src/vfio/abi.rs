//! Numbers and layouts of `include/uapi/linux/vfio.h`. The structures are those of `vfio-bindings`, which the tests check
//! against what a C compiler says of the header.

use rustix::ioctl::{Opcode, opcode};
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};

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
pub(super) const DEVICE_GET_IRQ_INFO: Opcode = io(9);
pub(super) const DEVICE_SET_IRQS: Opcode = io(10);
pub(super) const DEVICE_RESET: Opcode = io(11);
pub(super) const DEVICE_FEATURE: Opcode = io(17);
pub(super) const DEVICE_BIND_IOMMUFD: Opcode = io(18);
pub(super) const DEVICE_ATTACH_IOMMUFD_PT: Opcode = io(19);
pub(super) const DEVICE_DETACH_IOMMUFD_PT: Opcode = io(20);
/// On a data_fd only.
pub(super) const MIG_GET_PRECOPY_INFO: Opcode = io(21);

/// The size of `struct vfio_device_bind_iommufd` before it had a token: kernels that don't know tokens refuse nothing of it.
pub(super) const BIND_WITHOUT_TOKEN: u32 = 16;

#[cfg(test)]
mod tests {
    use core::mem::{offset_of, size_of};

    use towline_core::fsm::{DeviceState, MigrationFlags};
    use vfio_bindings::bindings::vfio::*;

    use super::*;
    use crate::uapi_layout::{field, number, size};

    #[test]
    fn ioctls_have_the_numbers_of_the_header() {
        let numbers = [
            ("VFIO_GET_API_VERSION", GET_API_VERSION),
            ("VFIO_CHECK_EXTENSION", CHECK_EXTENSION),
            ("VFIO_SET_IOMMU", SET_IOMMU),
            ("VFIO_GROUP_GET_STATUS", GROUP_GET_STATUS),
            ("VFIO_GROUP_SET_CONTAINER", GROUP_SET_CONTAINER),
            ("VFIO_GROUP_GET_DEVICE_FD", GROUP_GET_DEVICE_FD),
            ("VFIO_DEVICE_GET_INFO", DEVICE_GET_INFO),
            ("VFIO_DEVICE_GET_REGION_INFO", DEVICE_GET_REGION_INFO),
            ("VFIO_DEVICE_GET_IRQ_INFO", DEVICE_GET_IRQ_INFO),
            ("VFIO_DEVICE_SET_IRQS", DEVICE_SET_IRQS),
            ("VFIO_DEVICE_RESET", DEVICE_RESET),
            ("VFIO_DEVICE_FEATURE", DEVICE_FEATURE),
            ("VFIO_DEVICE_BIND_IOMMUFD", DEVICE_BIND_IOMMUFD),
            ("VFIO_DEVICE_ATTACH_IOMMUFD_PT", DEVICE_ATTACH_IOMMUFD_PT),
            ("VFIO_DEVICE_DETACH_IOMMUFD_PT", DEVICE_DETACH_IOMMUFD_PT),
            ("VFIO_MIG_GET_PRECOPY_INFO", MIG_GET_PRECOPY_INFO),
        ];
        for (name, ours) in numbers {
            assert_eq!(u64::from(ours), number(name), "{name}");
        }
    }

    #[test]
    fn structures_have_the_sizes_of_the_header() {
        macro_rules! sizes {
            ($($name:ident),* $(,)?) => {
                $( assert_eq!(size_of::<$name>(), size(stringify!($name)), stringify!($name)); )*
            };
        }
        sizes!(
            vfio_group_status,
            vfio_device_info,
            vfio_region_info,
            vfio_irq_info,
            vfio_irq_set,
            vfio_device_feature,
            vfio_device_bind_iommufd,
            vfio_device_attach_iommufd_pt,
            vfio_device_detach_iommufd_pt,
            vfio_device_feature_migration,
            vfio_device_feature_mig_state,
            vfio_device_feature_mig_data_size,
            vfio_precopy_info,
            vfio_device_feature_dma_logging_control,
            vfio_device_feature_dma_logging_range,
            vfio_device_feature_dma_logging_report,
        );
    }

    #[test]
    fn fields_are_where_the_header_has_them() {
        macro_rules! fields {
            ($($name:ident . $field:ident),* $(,)?) => {
                $( assert_eq!(offset_of!($name, $field), field(concat!(stringify!($name), ".", stringify!($field))).0); )*
            };
        }
        fields!(
            vfio_device_bind_iommufd.iommufd,
            vfio_device_bind_iommufd.out_devid,
            vfio_device_bind_iommufd.token_uuid_ptr,
            vfio_device_attach_iommufd_pt.pt_id,
            vfio_device_attach_iommufd_pt.pasid,
            vfio_precopy_info.initial_bytes,
            vfio_precopy_info.dirty_bytes,
            vfio_device_feature_dma_logging_control.num_ranges,
            vfio_device_feature_dma_logging_control.ranges,
            vfio_device_feature_dma_logging_report.bitmap,
        );
        assert_eq!(BIND_WITHOUT_TOKEN as usize, field("vfio_device_bind_iommufd.token_uuid_ptr").0);
        // The header of a feature is 8 bytes and the data follows at once, whatever its alignment.
        assert_eq!(offset_of!(Feature<vfio_device_feature_migration>, data), size("vfio_device_feature"));
        assert_eq!(offset_of!(Feature<vfio_device_feature_dma_logging_control>, data), size("vfio_device_feature"));
        assert_eq!(size_of::<Feature<vfio_device_feature_dma_logging_report>>(), 8 + 32);
    }

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
