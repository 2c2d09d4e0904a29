//! Numbers and structures of userfaultfd (`include/uapi/linux/userfaultfd.h`) and of `PAGEMAP_SCAN` (`include/uapi/linux/fs.h`).

use rustix::ioctl::{Opcode, opcode};

/// `struct uffdio_api`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Api {
    pub api: u64,
    pub features: u64,
    pub ioctls: u64,
}

/// `struct uffdio_range`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Range {
    pub start: u64,
    pub len: u64,
}

/// `struct uffdio_register`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct Register {
    pub range: Range,
    pub mode: u64,
    pub ioctls: u64,
}

/// `struct uffdio_writeprotect`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct WriteProtect {
    pub range: Range,
    pub mode: u64,
}

/// `struct pm_scan_arg`
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct ScanArg {
    pub size: u64,
    pub flags: u64,
    pub start: u64,
    pub end: u64,
    pub walk_end: u64,
    pub vec: u64,
    pub vec_len: u64,
    pub max_pages: u64,
    pub category_inverted: u64,
    pub category_mask: u64,
    pub category_anyof_mask: u64,
    pub return_mask: u64,
}

/// `struct page_region`
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Region {
    pub start: u64,
    pub end: u64,
    pub categories: u64,
}

/// `UFFDIO`
const GROUP: u8 = 0xaa;

pub(super) const UFFDIO_API: Opcode = opcode::read_write::<Api>(GROUP, 0x3f);
pub(super) const UFFDIO_REGISTER: Opcode = opcode::read_write::<Register>(GROUP, 0x00);
pub(super) const UFFDIO_UNREGISTER: Opcode = opcode::read::<Range>(GROUP, 0x01);
pub(super) const UFFDIO_WRITEPROTECT: Opcode = opcode::read_write::<WriteProtect>(GROUP, 0x06);
pub(super) const PAGEMAP_SCAN: Opcode = opcode::read_write::<ScanArg>(b'f', 16);

/// `UFFD_API`
pub(super) const API: u64 = 0xaa;
/// `UFFD_USER_MODE_ONLY`: what any process may have. Nothing is ever delivered to user space here, so that is enough.
pub(super) const USER_MODE_ONLY: u32 = 1;
/// `UFFD_FEATURE_WP_HUGETLBFS_SHMEM`, Linux 5.19: write protection of other than anonymous memory.
pub(super) const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// `UFFD_FEATURE_WP_UNPOPULATED`, Linux 6.4: of pages that aren't there yet.
pub(super) const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
/// `UFFD_FEATURE_WP_ASYNC`, Linux 6.7: the kernel itself lets the write pass and notes it.
pub(super) const FEATURE_WP_ASYNC: u64 = 1 << 15;
/// `UFFDIO_REGISTER_MODE_WP`
pub(super) const REGISTER_MODE_WP: u64 = 2;
/// `UFFDIO_WRITEPROTECT_MODE_WP`
pub(super) const WRITEPROTECT_MODE_WP: u64 = 1;

/// `PM_SCAN_WP_MATCHING`: what is told is protected again in the same step.
pub(super) const SCAN_WP_MATCHING: u64 = 1;
/// `PM_SCAN_CHECK_WPASYNC`: fails with `EPERM` where memory is not registered.
pub(super) const SCAN_CHECK_WPASYNC: u64 = 2;
/// `PAGE_IS_WRITTEN`
pub(super) const PAGE_IS_WRITTEN: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_what_a_c_compiler_makes_of_the_headers() {
        assert_eq!(UFFDIO_API, 0xc018_aa3f);
        assert_eq!(UFFDIO_REGISTER, 0xc020_aa00);
        assert_eq!(UFFDIO_UNREGISTER, 0x8010_aa01);
        assert_eq!(UFFDIO_WRITEPROTECT, 0xc018_aa06);
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
        assert_eq!(size_of::<Region>(), 24);
    }
}
