//! The type1 (version 2) IOMMU model of a VFIO container: mapping, and its record of dirty pages
//! (`drivers/vfio/vfio_iommu_type1.c`).
//!
//! A container has no IOMMU model before a device of some group is opened in it, and loses it, with all mappings, when the
//! last one is closed.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;
use rustix::param::page_size;
use towline_core::channel::ChannelError;
use towline_core::memory::MemoryRange;

use crate::address_space::areas::{Areas, Unmapped};
use crate::address_space::{AddressSpace, Backing};
use crate::iommu_error::{MEMLOCK, failed, limit};
use crate::memory::{MappedMemory, RegionOptions};
use crate::vfio::Container;

mod abi;
mod dirty;
mod info;
mod ioctl;

pub use dirty::Type1Dirty;
pub use info::{MigrationInfo, Type1Info};

/// The most bytes that one mapping of the kernel's gets. Bitmaps are fetched a mapping at a time, as a request may not cut
/// one in two: this keeps them at 2 MiB.
const PIECE: u64 = 64 << 30;

/// The address space of a container.
#[derive(Debug)]
pub struct Type1 {
    container: Arc<Container>,
    areas: Arc<Areas>,
    /// The page size of bitmaps while a [`Type1Dirty`] tracks, otherwise 0.
    tracking: AtomicU64,
}

impl Type1 {
    /// The address space of `container`, to which nobody else maps anything. There is one of these for a container.
    #[must_use]
    pub fn new(container: Arc<Container>) -> Arc<Self> {
        Arc::new(Self { container, areas: Arc::default(), tracking: AtomicU64::new(0) })
    }

    /// What the container's IOMMU can do (`VFIO_IOMMU_GET_INFO`). It changes with every device.
    ///
    /// # Errors
    /// What the kernel said: `EINVAL` before a device is opened in the container. `Limit` where the answer makes no sense.
    pub fn info(&self) -> Result<Type1Info, ChannelError> {
        let mut words = 3;
        for _ in 0..4 {
            let info = ioctl::get_info(self.container.as_fd(), words).map_err(|errno| {
                let meaning = if errno == Errno::INVAL { "no device is open in this container" } else { "" };
                failed("VFIO_IOMMU_GET_INFO", errno, meaning)
            })?;
            let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
            let needed = bytes.first_chunk().map_or(0, |b| u32::from_ne_bytes(*b)) as usize;
            if needed > info::MAX_INFO_BYTES {
                return Err(limit(format!("VFIO_IOMMU_GET_INFO: it would be {needed} bytes")));
            }
            if needed <= bytes.len() {
                return Type1Info::parse(bytes.get(..needed.max(24)).unwrap_or(&bytes));
            }
            words = needed.div_ceil(8);
        }
        Err(limit("VFIO_IOMMU_GET_INFO: it keeps growing"))
    }

    fn map_one(&self, area: (u64, u64), vaddr: u64, writable: bool) -> Result<(), ChannelError> {
        // SAFETY: `vaddr` is inside of memory that `Areas` holds until it is unmapped, to which references are never made
        // (`HeldMemory::slice`). The kernel pins the pages themselves.
        unsafe { ioctl::map(self.container.as_fd(), area, vaddr, writable) }.map_err(|errno| {
            let meaning = match errno {
                Errno::NOMEM => MEMLOCK,
                Errno::INVAL => {
                    "not aligned, outside of what the IOMMU can map, or no device is open in this container"
                }
                Errno::NOSPC => "no more mappings (dma_entry_limit of vfio_iommu_type1)",
                _ => "",
            };
            failed(&format!("VFIO_IOMMU_MAP_DMA of {:#x} (+{:#x} bytes)", area.0, area.1), errno, meaning)
        })
    }

    fn unmap_one(&self, iova: u64, len: u64, watched: bool) -> Result<Unmapped, ChannelError> {
        let container = self.container.as_fd();
        let pgsize = self.tracking.load(Ordering::Acquire);
        if watched && pgsize != 0 {
            let mut bits = vec![0; words_of(len, pgsize)];
            if let Ok(bytes) = ioctl::unmap_dirty(container, (iova, len), pgsize, &mut bits) {
                return Ok(Unmapped { bytes, dirty: Some((pgsize, to_bytes(&bits))) });
            }
            // Without its bitmap all of it counts as dirty.
        }
        ioctl::unmap(container, iova, len).map(|bytes| Unmapped { bytes, dirty: None }).map_err(|errno| {
            let meaning = if errno == Errno::INVAL { "no device is open in this container any more" } else { "" };
            failed(&format!("VFIO_IOMMU_UNMAP_DMA of {iova:#x} (+{len:#x} bytes)"), errno, meaning)
        })
    }
}

/// How many words a bitmap of `len` bytes in pages of `pgsize` has. `pgsize` is a power of two, `len` that of a mapping.
fn words_of(len: u64, pgsize: u64) -> usize {
    usize::try_from((len / pgsize.max(1)).div_ceil(64)).unwrap_or(usize::MAX)
}

/// A bitmap as [`towline_core::channel::DirtySink`] takes it: the kernel writes words of this machine, x86 and arm are
/// little-endian, and others are made so.
fn to_bytes(bits: &[u64]) -> Vec<u8> {
    bits.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl AddressSpace for Type1 {
    fn map(&self, iova: u64, len: u64, backing: Backing<'_>, writable: bool) -> Result<(), ChannelError> {
        let held = match backing {
            Backing::Memory(held) => held,
            Backing::File { fd, offset } => {
                // Nobody reads or writes through this mapping, so it does no harm where the file shrinks under it.
                let memory = MappedMemory::new();
                let options = RegionOptions { allow_shrinkable: true, ..RegionOptions::default() };
                memory.add_region_with(0, fd, offset, len, options).map_err(|error| limit(error.to_string()))?;
                memory.hold(0, len).map_err(|error| limit(error.to_string()))?
            }
        };
        let address = crate::iommufd::address(&held)?;
        let page = page_size() as u64;
        if !address.is_multiple_of(page) || !iova.is_multiple_of(page) || !len.is_multiple_of(page) {
            return Err(limit(format!("{iova:#x} (+{len:#x} bytes): not a multiple of {page} bytes")));
        }
        let map_one = &mut |offset: u64, iova, len| self.map_one((iova, len), address + offset, writable);
        let unmap_one = &mut |iova, len, watched| self.unmap_one(iova, len, watched);
        self.areas.map((iova, len), writable, Some(held), PIECE, map_one, unmap_one)
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<u64, ChannelError> {
        self.areas.unmap(iova, len, &mut |iova, len, watched| self.unmap_one(iova, len, watched))
    }

    /// Empty where the kernel doesn't tell.
    fn usable(&self) -> Result<Vec<MemoryRange>, ChannelError> {
        self.info().map(|info| info.ranges)
    }

    fn mapped(&self) -> Vec<MemoryRange> {
        self.areas.all()
    }
}

impl Drop for Type1 {
    fn drop(&mut self) {
        // Without a device there is no model and there are no mappings; all that is left to do is to let go of the memory.
        // With one, what could not be unmapped is never let go of: a mediated device may pin it later.
        if self.info().is_err_and(|error| error.errno == Some(Errno::INVAL.raw_os_error())) {
            self.areas.forget();
        } else {
            self.areas.unmap_all(&mut |iova, len, _| self.unmap_one(iova, len, false));
            self.areas.leak();
        }
    }
}
