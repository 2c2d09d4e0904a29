//! The system calls: one function an ioctl, on `/dev/iommu` only.

use std::os::fd::{AsRawFd, BorrowedFd};

use iommufd_bindings::{
    iommu_destroy, iommu_hw_info, iommu_hwpt_alloc, iommu_hwpt_get_dirty_bitmap, iommu_hwpt_set_dirty_tracking,
    iommu_ioas_alloc, iommu_ioas_iova_ranges, iommu_ioas_map, iommu_ioas_map_file, iommu_ioas_unmap, iommu_iova_range,
    iommu_option, iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING as ALLOC_DIRTY_TRACKING,
    iommufd_hwpt_get_dirty_bitmap_flags_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR as NO_CLEAR,
    iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE as TRACKING_ENABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA as MAP_FIXED_IOVA,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as MAP_READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as MAP_WRITEABLE,
    iommufd_option_ops_IOMMU_OPTION_OP_GET as OPTION_GET, iommufd_option_ops_IOMMU_OPTION_OP_SET as OPTION_SET,
};
use rustix::io::Errno;

use super::abi;
use crate::raw_ioctl::with_struct;

/// The size of a structure as its own first field.
const fn size<T>() -> u32 {
    size_of::<T>() as u32
}

/// `IOMMU_DESTROY`.
pub(super) fn destroy(iommu: BorrowedFd<'_>, id: u32) -> Result<(), Errno> {
    let mut cmd = iommu_destroy { size: size::<iommu_destroy>(), id };
    // SAFETY: the structure of this ioctl, with its size; it holds no addresses.
    unsafe { with_struct(iommu, abi::DESTROY, &mut cmd) }.map(drop)
}

/// `IOMMU_IOAS_ALLOC`: the object.
pub(super) fn ioas_alloc(iommu: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut cmd = iommu_ioas_alloc { size: size::<iommu_ioas_alloc>(), ..Default::default() };
    // SAFETY: as above.
    unsafe { with_struct(iommu, abi::IOAS_ALLOC, &mut cmd) }?;
    Ok(cmd.out_ioas_id)
}

/// `IOMMU_IOAS_IOVA_RANGES`: how many ranges there are, and the alignment. `EMSGSIZE` doesn't fail here: there are then more
/// than `out` has room for, and the contents of `out` are those that fit.
pub(super) fn iova_ranges(
    iommu: BorrowedFd<'_>,
    ioas_id: u32,
    out: &mut [iommu_iova_range],
) -> Result<(u32, u64), Errno> {
    let mut cmd = iommu_ioas_iova_ranges {
        size: size::<iommu_ioas_iova_ranges>(),
        ioas_id,
        num_iovas: u32::try_from(out.len()).unwrap_or(u32::MAX),
        allowed_iovas: out.as_mut_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    // SAFETY: the structure of this ioctl, with its size. The kernel writes at most `num_iovas` elements of `out`, which is
    // exclusively borrowed; any bytes are valid ones.
    match unsafe { with_struct(iommu, abi::IOAS_IOVA_RANGES, &mut cmd) } {
        Ok(_) | Err(Errno::MSGSIZE) => Ok((cmd.num_iovas, cmd.out_iova_alignment)),
        Err(errno) => Err(errno),
    }
}

fn map_flags(writable: bool) -> u32 {
    MAP_FIXED_IOVA | MAP_READABLE | if writable { MAP_WRITEABLE } else { 0 }
}

/// `IOMMU_IOAS_MAP` at a fixed address.
///
/// # Safety
/// `user_va .. user_va + length` stays mapped in this process until it is unmapped from the IOAS, and no Rust reference to
/// these bytes exists meanwhile: a device reads them, and writes them where `writable`.
pub(super) unsafe fn map(
    iommu: BorrowedFd<'_>,
    ioas_id: u32,
    (iova, length): (u64, u64),
    user_va: u64,
    writable: bool,
) -> Result<(), Errno> {
    let size = size::<iommu_ioas_map>();
    let mut cmd =
        iommu_ioas_map { size, flags: map_flags(writable), ioas_id, user_va, length, iova, ..Default::default() };
    // SAFETY: the structure of this ioctl, with its size; the caller vouches for the memory that it names.
    unsafe { with_struct(iommu, abi::IOAS_MAP, &mut cmd) }.map(drop)
}

/// `IOMMU_IOAS_MAP_FILE` at a fixed address.
pub(super) fn map_file(
    iommu: BorrowedFd<'_>,
    ioas_id: u32,
    (iova, length): (u64, u64),
    (file, start): (BorrowedFd<'_>, u64),
    writable: bool,
) -> Result<(), Errno> {
    let mut cmd = iommu_ioas_map_file {
        size: size::<iommu_ioas_map_file>(),
        flags: map_flags(writable),
        ioas_id,
        fd: file.as_raw_fd(),
        start,
        length,
        iova,
    };
    // SAFETY: the structure of this ioctl, with its size. Devices reach the pages of the file, which is not memory of this
    // process but where that has mapped it shared, and such memory is never referred to.
    unsafe { with_struct(iommu, abi::IOAS_MAP_FILE, &mut cmd) }.map(drop)
}

/// `IOMMU_IOAS_UNMAP`: how many bytes.
pub(super) fn unmap(iommu: BorrowedFd<'_>, ioas_id: u32, iova: u64, length: u64) -> Result<u64, Errno> {
    let mut cmd = iommu_ioas_unmap { size: size::<iommu_ioas_unmap>(), ioas_id, iova, length };
    // SAFETY: the structure of this ioctl, with its size; it holds no addresses of this process.
    unsafe { with_struct(iommu, abi::IOAS_UNMAP, &mut cmd) }?;
    Ok(cmd.length)
}

fn option(iommu: BorrowedFd<'_>, object_id: u32, option_id: u32, op: u32, val64: u64) -> Result<u64, Errno> {
    // Operations are 0 and 1.
    let op = op as u16;
    let mut cmd = iommu_option { size: size::<iommu_option>(), option_id, op, object_id, val64, ..Default::default() };
    // SAFETY: the structure of this ioctl, with its size; it holds no addresses.
    unsafe { with_struct(iommu, abi::OPTION, &mut cmd) }?;
    Ok(cmd.val64)
}

/// `IOMMU_OPTION`, GET.
pub(super) fn option_get(iommu: BorrowedFd<'_>, object_id: u32, option_id: u32) -> Result<u64, Errno> {
    option(iommu, object_id, option_id, OPTION_GET, 0)
}

/// `IOMMU_OPTION`, SET.
pub(super) fn option_set(iommu: BorrowedFd<'_>, object_id: u32, option_id: u32, value: u64) -> Result<(), Errno> {
    option(iommu, object_id, option_id, OPTION_SET, value).map(drop)
}

/// `IOMMU_HWPT_ALLOC` over an IOAS: the object.
pub(super) fn hwpt_alloc(iommu: BorrowedFd<'_>, dev_id: u32, ioas_id: u32, dirty_tracking: bool) -> Result<u32, Errno> {
    let mut cmd = iommu_hwpt_alloc {
        size: size::<iommu_hwpt_alloc>(),
        flags: if dirty_tracking { ALLOC_DIRTY_TRACKING } else { 0 },
        dev_id,
        pt_id: ioas_id,
        ..Default::default()
    };
    // SAFETY: the structure of this ioctl, with its size; `data_len` is 0, so no address is used.
    unsafe { with_struct(iommu, abi::HWPT_ALLOC, &mut cmd) }?;
    Ok(cmd.out_hwpt_id)
}

/// `IOMMU_GET_HW_INFO` without the driver's own data: its type and the capability bits.
pub(super) fn hw_info(iommu: BorrowedFd<'_>, dev_id: u32) -> Result<(u32, u64), Errno> {
    let mut cmd = iommu_hw_info { size: size::<iommu_hw_info>(), dev_id, ..Default::default() };
    // SAFETY: the structure of this ioctl, with its size; `data_len` is 0, so nothing is written elsewhere.
    unsafe { with_struct(iommu, abi::GET_HW_INFO, &mut cmd) }?;
    // SAFETY: both variants of the union are the same u32.
    Ok((unsafe { cmd.__bindgen_anon_1.out_data_type }, cmd.out_capabilities))
}

/// `IOMMU_HWPT_SET_DIRTY_TRACKING`.
pub(super) fn set_dirty_tracking(iommu: BorrowedFd<'_>, hwpt_id: u32, enable: bool) -> Result<(), Errno> {
    let size = size::<iommu_hwpt_set_dirty_tracking>();
    let flags = if enable { TRACKING_ENABLE } else { 0 };
    let mut cmd = iommu_hwpt_set_dirty_tracking { size, flags, hwpt_id, __reserved: 0 };
    // SAFETY: the structure of this ioctl, with its size; it holds no addresses.
    unsafe { with_struct(iommu, abi::HWPT_SET_DIRTY_TRACKING, &mut cmd) }.map(drop)
}

/// `IOMMU_HWPT_GET_DIRTY_BITMAP`: sets bits of `bitmap`, which has one for each `page_size` of `length`; without `keep` they
/// are cleared in the IOMMU.
///
/// `EINVAL` where `bitmap` is too short or `page_size` no power of two: the kernel checks neither.
pub(super) fn get_dirty_bitmap(
    iommu: BorrowedFd<'_>,
    hwpt_id: u32,
    (iova, length): (u64, u64),
    page_size: u64,
    bitmap: &mut [u64],
    keep: bool,
) -> Result<(), Errno> {
    if !page_size.is_power_of_two() || length.div_ceil(page_size).div_ceil(64) > bitmap.len() as u64 {
        return Err(Errno::INVAL);
    }
    let mut cmd = iommu_hwpt_get_dirty_bitmap {
        size: size::<iommu_hwpt_get_dirty_bitmap>(),
        hwpt_id,
        flags: if keep { NO_CLEAR } else { 0 },
        iova,
        length,
        page_size,
        data: bitmap.as_mut_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    // SAFETY: the structure of this ioctl, with its size. The kernel sets bits of the bytes of `data` that belong to
    // `length / page_size` bits, all of which are in `bitmap`, as was just checked; it is exclusively borrowed.
    unsafe { with_struct(iommu, abi::HWPT_GET_DIRTY_BITMAP, &mut cmd) }.map(drop)
}
