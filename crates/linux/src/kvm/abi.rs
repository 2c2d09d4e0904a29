//! Numbers and structures of KVM's dirty tracking (`include/uapi/linux/kvm.h`), for 64-bit hosts.

use rustix::ioctl::{Opcode, opcode};

/// `KVMIO`.
const GROUP: u8 = 0xae;

/// `struct kvm_userspace_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct UserspaceMemoryRegion {
    pub slot: u32,
    pub flags: u32,
    pub guest_phys_addr: u64,
    pub memory_size: u64,
    pub userspace_addr: u64,
}

/// `struct kvm_enable_cap`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct EnableCap {
    pub cap: u32,
    pub flags: u32,
    pub args: [u64; 4],
    pub pad: [u8; 64],
}

/// `struct kvm_dirty_log`; the kernel writes one bit a page to `dirty_bitmap`, in whole words of 64.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct DirtyLog {
    pub slot: u32,
    pub padding: u32,
    pub dirty_bitmap: u64,
}

/// `struct kvm_clear_dirty_log`; bit 0 of `dirty_bitmap` is `first_page`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ClearDirtyLog {
    pub slot: u32,
    pub num_pages: u32,
    pub first_page: u64,
    pub dirty_bitmap: u64,
}

/// `struct kvm_dirty_gfn`: an entry of a dirty ring, which KVM writes and user space hands back by its flags.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct DirtyGfn {
    pub flags: u32,
    pub slot: u32,
    pub offset: u64,
}

pub(super) const GET_API_VERSION: Opcode = opcode::none(GROUP, 0x00);
pub(super) const CHECK_EXTENSION: Opcode = opcode::none(GROUP, 0x03);
pub(super) const GET_DIRTY_LOG: Opcode = opcode::write::<DirtyLog>(GROUP, 0x42);
pub(super) const SET_USER_MEMORY_REGION: Opcode = opcode::write::<UserspaceMemoryRegion>(GROUP, 0x46);
pub(super) const ENABLE_CAP: Opcode = opcode::write::<EnableCap>(GROUP, 0xa3);
pub(super) const CLEAR_DIRTY_LOG: Opcode = opcode::read_write::<ClearDirtyLog>(GROUP, 0xc0);
pub(super) const RESET_DIRTY_RINGS: Opcode = opcode::none(GROUP, 0xc7);

pub(super) const CAP_USER_MEMORY: u32 = 3;
pub(super) const CAP_MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;
/// `KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE`
pub(super) const MANUAL_PROTECT_ENABLE: u64 = 1;
/// `KVM_DIRTY_LOG_INITIALLY_SET`
pub(super) const INITIALLY_SET: u64 = 2;

/// `KVM_MEM_LOG_DIRTY_PAGES`
pub(super) const MEM_LOG_DIRTY_PAGES: u32 = 1;
/// `KVM_MEM_READONLY`
pub(super) const MEM_READONLY: u32 = 2;

/// `KVM_DIRTY_LOG_PAGE_OFFSET`: where in a vCPU's file its ring is, in pages; the same on every architecture that has rings.
pub(super) const RING_PAGE_OFFSET: u64 = 64;
/// `KVM_DIRTY_GFN_F_DIRTY`
pub(super) const GFN_DIRTY: u32 = 1;
/// `KVM_DIRTY_GFN_F_RESET`
pub(super) const GFN_RESET: u32 = 2;
/// `KVM_DIRTY_RING_MAX_ENTRIES` (`include/linux/kvm_dirty_ring.h`)
pub(super) const RING_MAX_ENTRIES: u32 = 65536;

/// `KVM_MEM_MAX_NR_PAGES` (`include/linux/kvm_host.h`): the most pages of a slot.
pub(super) const MAX_SLOT_PAGES: u64 = (1 << 31) - 1;
/// `KVM_USER_MEM_SLOTS` is at most this in every address space (`SHRT_MAX`).
pub(super) const MAX_SLOTS: usize = 32767;

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use kvm_bindings as k;

    use super::*;

    #[test]
    fn structures_are_those_of_the_header() {
        assert_eq!(size_of::<UserspaceMemoryRegion>(), size_of::<k::kvm_userspace_memory_region>());
        assert_eq!(
            offset_of!(UserspaceMemoryRegion, userspace_addr),
            offset_of!(k::kvm_userspace_memory_region, userspace_addr)
        );
        assert_eq!(size_of::<EnableCap>(), size_of::<k::kvm_enable_cap>());
        assert_eq!(offset_of!(EnableCap, args), offset_of!(k::kvm_enable_cap, args));
        assert_eq!(size_of::<DirtyLog>(), size_of::<k::kvm_dirty_log>());
        assert_eq!(size_of::<ClearDirtyLog>(), size_of::<k::kvm_clear_dirty_log>());
        assert_eq!(offset_of!(ClearDirtyLog, first_page), offset_of!(k::kvm_clear_dirty_log, first_page));
        assert_eq!(size_of::<DirtyGfn>(), size_of::<k::kvm_dirty_gfn>());
        assert_eq!(offset_of!(DirtyGfn, offset), offset_of!(k::kvm_dirty_gfn, offset));
    }

    #[test]
    fn numbers_are_those_of_the_header() {
        assert_eq!(CAP_USER_MEMORY, k::KVM_CAP_USER_MEMORY);
        assert_eq!(CAP_MANUAL_DIRTY_LOG_PROTECT2, k::KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2);
        assert_eq!(MANUAL_PROTECT_ENABLE, u64::from(k::KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE));
        assert_eq!(INITIALLY_SET, u64::from(k::KVM_DIRTY_LOG_INITIALLY_SET));
        assert_eq!(MEM_LOG_DIRTY_PAGES, k::KVM_MEM_LOG_DIRTY_PAGES);
        assert_eq!(MEM_READONLY, k::KVM_MEM_READONLY);
        assert_eq!(RING_PAGE_OFFSET, u64::from(k::KVM_DIRTY_LOG_PAGE_OFFSET));
        assert_eq!(GFN_DIRTY | GFN_RESET, k::KVM_DIRTY_GFN_F_MASK);
        // As a C compiler has them.
        assert_eq!(GET_DIRTY_LOG, 0x4010_ae42);
        assert_eq!(SET_USER_MEMORY_REGION, 0x4020_ae46);
        assert_eq!(ENABLE_CAP, 0x4068_aea3);
        assert_eq!(CLEAR_DIRTY_LOG, 0xc018_aec0);
        assert_eq!((CHECK_EXTENSION, RESET_DIRTY_RINGS), (0xae03, 0xaec7));
    }
}
