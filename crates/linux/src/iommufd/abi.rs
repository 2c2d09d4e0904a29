//! Numbers of `include/uapi/linux/iommufd.h`. The structures come from the binding, which asserts its own layouts; the tests
//! compare both with what a C compiler says.

use iommufd_bindings::{
    IOMMUFD_CMD_DESTROY, IOMMUFD_CMD_GET_HW_INFO, IOMMUFD_CMD_HWPT_ALLOC, IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP,
    IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING, IOMMUFD_CMD_IOAS_ALLOC, IOMMUFD_CMD_IOAS_IOVA_RANGES, IOMMUFD_CMD_IOAS_MAP,
    IOMMUFD_CMD_IOAS_MAP_FILE, IOMMUFD_CMD_IOAS_UNMAP, IOMMUFD_CMD_OPTION, IOMMUFD_TYPE,
};
use rustix::ioctl::{Opcode, opcode};

/// `_IO(IOMMUFD_TYPE, command)`: the size is in the structure.
const fn io(command: u32) -> Opcode {
    opcode::none(IOMMUFD_TYPE, command as u8)
}

pub(super) const DESTROY: Opcode = io(IOMMUFD_CMD_DESTROY);
pub(super) const IOAS_ALLOC: Opcode = io(IOMMUFD_CMD_IOAS_ALLOC);
pub(super) const IOAS_IOVA_RANGES: Opcode = io(IOMMUFD_CMD_IOAS_IOVA_RANGES);
pub(super) const IOAS_MAP: Opcode = io(IOMMUFD_CMD_IOAS_MAP);
pub(super) const IOAS_UNMAP: Opcode = io(IOMMUFD_CMD_IOAS_UNMAP);
pub(super) const OPTION: Opcode = io(IOMMUFD_CMD_OPTION);
pub(super) const HWPT_ALLOC: Opcode = io(IOMMUFD_CMD_HWPT_ALLOC);
pub(super) const GET_HW_INFO: Opcode = io(IOMMUFD_CMD_GET_HW_INFO);
pub(super) const HWPT_SET_DIRTY_TRACKING: Opcode = io(IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING);
pub(super) const HWPT_GET_DIRTY_BITMAP: Opcode = io(IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP);
pub(super) const IOAS_MAP_FILE: Opcode = io(IOMMUFD_CMD_IOAS_MAP_FILE);

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use iommufd_bindings::*;

    use super::*;
    use crate::uapi_layout::{field, number, size};

    #[test]
    fn numbers_are_those_of_the_header() {
        for (name, opcode) in [
            ("IOMMU_DESTROY", DESTROY),
            ("IOMMU_IOAS_ALLOC", IOAS_ALLOC),
            ("IOMMU_IOAS_IOVA_RANGES", IOAS_IOVA_RANGES),
            ("IOMMU_IOAS_MAP", IOAS_MAP),
            ("IOMMU_IOAS_UNMAP", IOAS_UNMAP),
            ("IOMMU_OPTION", OPTION),
            ("IOMMU_HWPT_ALLOC", HWPT_ALLOC),
            ("IOMMU_GET_HW_INFO", GET_HW_INFO),
            ("IOMMU_HWPT_SET_DIRTY_TRACKING", HWPT_SET_DIRTY_TRACKING),
            ("IOMMU_HWPT_GET_DIRTY_BITMAP", HWPT_GET_DIRTY_BITMAP),
            ("IOMMU_IOAS_MAP_FILE", IOAS_MAP_FILE),
        ] {
            assert_eq!(u64::from(opcode), number(name), "{name}");
        }
    }

    #[test]
    fn structures_are_those_of_the_header() {
        macro_rules! sizes {
            ($($name:ident),*) => { $(assert_eq!(size_of::<$name>(), size(stringify!($name)), stringify!($name));)* };
        }
        sizes!(
            iommu_destroy,
            iommu_ioas_alloc,
            iommu_ioas_iova_ranges,
            iommu_ioas_map,
            iommu_ioas_map_file,
            iommu_ioas_unmap,
            iommu_option,
            iommu_hwpt_alloc,
            iommu_hw_info,
            iommu_hwpt_set_dirty_tracking,
            iommu_hwpt_get_dirty_bitmap
        );
        macro_rules! fields {
            ($($name:ident.$field:ident),*) => {
                $(assert_eq!(
                    offset_of!($name, $field), field(concat!(stringify!($name), ".", stringify!($field))).0,
                    "{}.{}", stringify!($name), stringify!($field)
                );)*
            };
        }
        fields!(
            iommu_hwpt_alloc.dev_id,
            iommu_hwpt_alloc.pt_id,
            iommu_hwpt_alloc.out_hwpt_id,
            iommu_hwpt_alloc.data_type,
            iommu_hwpt_alloc.data_uptr,
            iommu_hwpt_alloc.fault_id,
            iommu_hw_info.out_capabilities,
            iommu_hwpt_get_dirty_bitmap.iova,
            iommu_hwpt_get_dirty_bitmap.page_size,
            iommu_hwpt_get_dirty_bitmap.data
        );
    }
}
