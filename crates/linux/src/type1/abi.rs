//! The structures of `include/uapi/linux/vfio.h` for containers. Those with data behind them have a flexible array in the
//! binding, so what is sent is declared here, whole.

use rustix::ioctl::{Opcode, opcode};
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};

/// `_IO(VFIO_TYPE, VFIO_BASE + n)`. On containers only: the numbers mean other things on devices.
const fn io(n: u8) -> Opcode {
    opcode::none(VFIO_TYPE, VFIO_BASE as u8 + n)
}

pub(super) const GET_INFO: Opcode = io(12);
pub(super) const MAP_DMA: Opcode = io(13);
pub(super) const UNMAP_DMA: Opcode = io(14);
pub(super) const DIRTY_PAGES: Opcode = io(17);

/// `struct vfio_bitmap`, its address as a number.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Bitmap {
    pub pgsize: u64,
    /// In bytes.
    pub size: u64,
    pub data: u64,
}

/// `struct vfio_iommu_type1_dma_unmap` with its bitmap.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unmap {
    pub argsz: u32,
    pub flags: u32,
    pub iova: u64,
    pub size: u64,
    pub bitmap: Bitmap,
}

/// `struct vfio_iommu_type1_dirty_bitmap` with a `struct vfio_iommu_type1_dirty_bitmap_get` behind it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct DirtyPages {
    pub argsz: u32,
    pub flags: u32,
    pub iova: u64,
    pub size: u64,
    pub bitmap: Bitmap,
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use vfio_bindings::bindings::vfio::*;

    use super::*;
    use crate::uapi_layout::{field, number, size};

    #[test]
    fn numbers_and_structures_are_those_of_the_header() {
        for (name, opcode) in [
            ("VFIO_IOMMU_GET_INFO", GET_INFO),
            ("VFIO_IOMMU_MAP_DMA", MAP_DMA),
            ("VFIO_IOMMU_UNMAP_DMA", UNMAP_DMA),
            ("VFIO_IOMMU_DIRTY_PAGES", DIRTY_PAGES),
        ] {
            assert_eq!(u64::from(opcode), number(name), "{name}");
        }
        assert_eq!(size_of::<vfio_iommu_type1_info>(), size("vfio_iommu_type1_info"));
        assert_eq!(offset_of!(vfio_iommu_type1_info, cap_offset), field("vfio_iommu_type1_info.cap_offset").0);
        assert_eq!(offset_of!(vfio_iommu_type1_info, iova_pgsizes), field("vfio_iommu_type1_info.iova_pgsizes").0);
        let migration = "vfio_iommu_type1_info_cap_migration";
        assert_eq!(size_of::<vfio_iommu_type1_info_cap_migration>(), size(migration));
        for (name, offset) in [
            ("flags", offset_of!(vfio_iommu_type1_info_cap_migration, flags)),
            ("pgsize_bitmap", offset_of!(vfio_iommu_type1_info_cap_migration, pgsize_bitmap)),
            ("max_dirty_bitmap_size", offset_of!(vfio_iommu_type1_info_cap_migration, max_dirty_bitmap_size)),
        ] {
            assert_eq!(offset, field(&format!("{migration}.{name}")).0, "{name}");
        }
        assert_eq!(size_of::<vfio_iommu_type1_info_cap_iova_range>(), size("vfio_iommu_type1_info_cap_iova_range"));
        assert_eq!(size_of::<vfio_iommu_type1_dma_map>(), size("vfio_iommu_type1_dma_map"));
        for (name, offset) in [
            ("vaddr", offset_of!(vfio_iommu_type1_dma_map, vaddr)),
            ("iova", offset_of!(vfio_iommu_type1_dma_map, iova)),
            ("size", offset_of!(vfio_iommu_type1_dma_map, size)),
        ] {
            assert_eq!(offset, field(&format!("vfio_iommu_type1_dma_map.{name}")).0, "{name}");
        }
        // Ours are the header's with their data behind them.
        assert_eq!(size_of::<Bitmap>(), size("vfio_bitmap"));
        assert_eq!(offset_of!(Unmap, bitmap), size("vfio_iommu_type1_dma_unmap"));
        assert_eq!(offset_of!(Unmap, size), offset_of!(vfio_iommu_type1_dma_unmap, size));
        assert_eq!(offset_of!(DirtyPages, iova), size("vfio_iommu_type1_dirty_bitmap"));
        let get = size("vfio_iommu_type1_dirty_bitmap");
        assert_eq!(offset_of!(DirtyPages, bitmap) - get, field("vfio_iommu_type1_dirty_bitmap_get.bitmap").0);
        assert_eq!(size_of::<DirtyPages>() - get, size("vfio_iommu_type1_dirty_bitmap_get"));
        assert_eq!(offset_of!(Bitmap, size), offset_of!(vfio_bitmap, size));
        assert_eq!(offset_of!(Bitmap, data), offset_of!(vfio_bitmap, data));
    }
}
