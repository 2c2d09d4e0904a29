//! The system calls: one function an ioctl, on containers only.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
    VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP, VFIO_IOMMU_DIRTY_PAGES_FLAG_START, VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
};

use super::abi::{self, Bitmap, DirtyPages, Unmap};
use crate::raw_ioctl::{with_struct, with_words};

/// The size of a structure as its `argsz`.
const fn argsz<T>() -> u32 {
    size_of::<T>() as u32
}

/// `VFIO_IOMMU_GET_INFO` with room for `words` words; the first one then tells how many bytes there would be. At least the
/// fixed part, 3 words, is written.
pub(super) fn get_info(container: BorrowedFd<'_>, words: usize) -> Result<Vec<u64>, Errno> {
    let mut info = vec![0u64; words.max(3)];
    let bytes = u32::try_from(info.len() * 8).map_err(|_| Errno::TOOBIG)?;
    // `argsz` is the first u32, `flags` the second.
    if let Some(first) = info.first_mut() {
        *first = u64::from_ne_bytes(first_word(bytes));
    }
    // SAFETY: the structure of this ioctl, with as many bytes behind it as `argsz` tells; any bytes are words.
    unsafe { with_words(container, abi::GET_INFO, &mut info) }?;
    Ok(info)
}

fn first_word(argsz: u32) -> [u8; 8] {
    let mut word = [0; 8];
    word[..4].copy_from_slice(&argsz.to_ne_bytes());
    word
}

/// `VFIO_IOMMU_MAP_DMA`.
///
/// # Safety
/// `vaddr .. vaddr + size` is mapped in this process, and no Rust reference to these bytes exists until they are unmapped
/// from the container: a device reads them, and writes them where `writable`.
pub(super) unsafe fn map(
    container: BorrowedFd<'_>,
    (iova, size): (u64, u64),
    vaddr: u64,
    writable: bool,
) -> Result<(), Errno> {
    let flags = VFIO_DMA_MAP_FLAG_READ | if writable { VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
    let argsz = argsz::<vfio_iommu_type1_dma_map>();
    let mut map = vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size };
    // SAFETY: the structure of this ioctl, with its size; the caller vouches for the memory that it names.
    unsafe { with_struct(container, abi::MAP_DMA, &mut map) }.map(drop)
}

/// `VFIO_IOMMU_UNMAP_DMA`: how many bytes.
pub(super) fn unmap(container: BorrowedFd<'_>, iova: u64, size: u64) -> Result<u64, Errno> {
    let argsz = argsz::<vfio_iommu_type1_dma_unmap>();
    let mut unmap = vfio_iommu_type1_dma_unmap { argsz, iova, size, ..Default::default() };
    // SAFETY: the structure of this ioctl, with its size; without flags the kernel looks at nothing behind it.
    unsafe { with_struct(container, abi::UNMAP_DMA, &mut unmap) }?;
    Ok(unmap.size)
}

/// A bitmap as the kernel wants it. `EINVAL` where `bits` has no bit for each page, rounded up to words, and for page sizes
/// that are no power of two: the kernel computes `__ffs(pgsize)` before it checks anything, which for 0 is undefined.
fn bitmap(bits: &mut [u64], size: u64, pgsize: u64) -> Result<Bitmap, Errno> {
    if !pgsize.is_power_of_two() || size == 0 || (size / pgsize).div_ceil(64) > bits.len() as u64 {
        return Err(Errno::INVAL);
    }
    Ok(Bitmap { pgsize, size: size_of_val(bits) as u64, data: bits.as_mut_ptr().expose_provenance() as u64 })
}

/// `VFIO_IOMMU_UNMAP_DMA` with `VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP` of exactly one mapping: how many bytes.
pub(super) fn unmap_dirty(
    container: BorrowedFd<'_>,
    (iova, size): (u64, u64),
    pgsize: u64,
    bits: &mut [u64],
) -> Result<u64, Errno> {
    let bitmap = bitmap(bits, size, pgsize)?;
    let flags = VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP;
    let mut unmap = Unmap { argsz: argsz::<Unmap>(), flags, iova, size, bitmap };
    // SAFETY: the structure of this ioctl with its bitmap behind it, and its size. The kernel writes one bit for each page of
    // `size`, rounded up to words, which `bits` has; it is exclusively borrowed.
    unsafe { with_struct(container, abi::UNMAP_DMA, &mut unmap) }?;
    Ok(unmap.size)
}

/// `VFIO_IOMMU_DIRTY_PAGES`, START or STOP.
pub(super) fn set_tracking(container: BorrowedFd<'_>, on: bool) -> Result<(), Errno> {
    // Never 0: the kernel computes `__ffs(flags)`.
    let flags = if on { VFIO_IOMMU_DIRTY_PAGES_FLAG_START } else { VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP };
    let mut dirty = DirtyPages { argsz: 8, flags, ..Default::default() };
    // SAFETY: the structure of this ioctl, of which only the first 8 bytes are looked at with these flags.
    unsafe { with_struct(container, abi::DIRTY_PAGES, &mut dirty) }.map(drop)
}

/// `VFIO_IOMMU_DIRTY_PAGES`, GET_BITMAP of exactly one mapping. The kernel writes whole words; `bits` is zeroed first.
pub(super) fn get_bitmap(
    container: BorrowedFd<'_>,
    (iova, size): (u64, u64),
    pgsize: u64,
    bits: &mut [u64],
) -> Result<(), Errno> {
    bits.fill(0);
    let bitmap = bitmap(bits, size, pgsize)?;
    let flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP;
    let mut dirty = DirtyPages { argsz: argsz::<DirtyPages>(), flags, iova, size, bitmap };
    // SAFETY: the structure of this ioctl with its data behind it, and its size. The kernel writes one bit for each page of
    // `size`, rounded up to words, which `bits` has; it is exclusively borrowed.
    unsafe { with_struct(container, abi::DIRTY_PAGES, &mut dirty) }.map(drop)
}
