//! [`Ioas`]: an address space.

use std::os::fd::AsFd;
use std::sync::Arc;

use iommufd_bindings::{iommu_iova_range, iommufd_option_IOMMU_OPTION_HUGE_PAGES as OPTION_HUGE_PAGES};
use rustix::io::Errno;
use towline_core::channel::ChannelError;
use towline_core::memory::MemoryRange;

use super::ioctl;
use super::object::{Iommufd, Object};
use crate::address_space::areas::{Areas, Unmapped};
use crate::address_space::{AddressSpace, Backing};
use crate::iommu_error::{MEMLOCK, failed, limit};
use crate::memory::HeldMemory;

/// The most ranges that are taken from the kernel. A range is a gap between reserved ones, of which machines have tens.
const MAX_RANGES: usize = 65536;

/// Where an address space can map, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IovaRanges {
    /// Ascending. One that ends at the last address is told one byte short.
    pub ranges: Vec<MemoryRange>,
    /// What addresses and lengths have to be a multiple of, in bytes; at most the page size.
    pub alignment: u64,
}

/// An I/O address space (`IOMMU_IOAS_ALLOC`). Devices are attached to it, or to a [`super::Hwpt`] over it.
#[derive(Debug)]
pub struct Ioas {
    object: Object,
    areas: Arc<Areas>,
}

impl Ioas {
    /// Makes an empty one.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn allocate(iommu: &Arc<Iommufd>) -> Result<Arc<Self>, ChannelError> {
        let id = ioctl::ioas_alloc(iommu.as_fd()).map_err(|errno| failed("IOMMU_IOAS_ALLOC", errno, ""))?;
        Ok(Arc::new(Self { object: Object::new(iommu, "IOAS", id), areas: Arc::default() }))
    }

    /// Its number, for attaching a device (`VFIO_DEVICE_ATTACH_IOMMUFD_PT`); 0 once it is closed.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.object.id()
    }

    /// The descriptor that it lives in.
    #[must_use]
    pub fn iommufd(&self) -> &Arc<Iommufd> {
        self.object.iommu()
    }

    pub(super) fn areas(&self) -> &Arc<Areas> {
        &self.areas
    }

    /// `IOMMU_IOAS_IOVA_RANGES`. Changes with every device that is attached or detached.
    ///
    /// # Errors
    /// What the kernel said; `Limit` for more ranges than any machine has.
    pub fn iova_ranges(&self) -> Result<IovaRanges, ChannelError> {
        let mut room = 0;
        // The number may grow in between, when a device is attached.
        for _ in 0..4 {
            let mut found = vec![iommu_iova_range::default(); room];
            let (count, alignment) = ioctl::iova_ranges(self.iommufd().as_fd(), self.id(), &mut found)
                .map_err(|errno| failed(&format!("IOMMU_IOAS_IOVA_RANGES of {}", self.id()), errno, ""))?;
            let count = count as usize;
            if count > MAX_RANGES {
                return Err(limit(format!("IOMMU_IOAS_IOVA_RANGES: {count} ranges")));
            }
            if count <= room {
                found.truncate(count);
                let ranges = found.iter().filter(|r| r.last >= r.start);
                let ranges = ranges.map(|r| MemoryRange { gpa: r.start, len: (r.last - r.start).saturating_add(1) });
                return Ok(IovaRanges { ranges: ranges.map(clip).collect(), alignment });
            }
            room = count;
        }
        Err(limit("IOMMU_IOAS_IOVA_RANGES: their number keeps growing"))
    }

    /// Whether mappings may use large I/O pages.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn huge_pages(&self) -> Result<bool, ChannelError> {
        ioctl::option_get(self.iommufd().as_fd(), self.id(), OPTION_HUGE_PAGES)
            .map(|value| value != 0)
            .map_err(|errno| failed("IOMMU_OPTION HUGE_PAGES", errno, ""))
    }

    /// Forbids large I/O pages, which make dirty tracking coarse: a write dirties all of a large page. To be set before
    /// anything is mapped.
    ///
    /// # Errors
    /// What the kernel said: `EBUSY`, `EADDRINUSE` where mappings or devices are there that disagree.
    pub fn set_huge_pages(&self, allowed: bool) -> Result<(), ChannelError> {
        ioctl::option_set(self.iommufd().as_fd(), self.id(), OPTION_HUGE_PAGES, allowed.into()).map_err(|errno| {
            let meaning = match errno {
                Errno::BUSY | Errno::ADDRINUSE | Errno::INVAL => "it is set before anything is mapped",
                _ => "",
            };
            failed("IOMMU_OPTION HUGE_PAGES", errno, meaning)
        })
    }

    /// Unmaps everything and destroys it. Idempotent.
    ///
    /// # Errors
    /// `EBUSY` while a device or a [`super::Hwpt`] uses it; then it is as it was, but that nothing may be mapped any more.
    pub fn close(&self) -> Result<(), ChannelError> {
        if self.id() == 0 {
            return Ok(());
        }
        for range in self.areas.all() {
            self.unmap(range.gpa, range.len)?;
        }
        self.object.destroy()
    }

    fn map_one(&self, area: (u64, u64), offset: u64, backing: &Kept<'_>, writable: bool) -> Result<(), ChannelError> {
        let (iommu, id) = (self.iommufd().as_fd(), self.id());
        let (call, result) = match backing {
            Kept::Address(address) => {
                let Some(address) = address.checked_add(offset) else { return Err(limit("an address overflows")) };
                // SAFETY: `address` is inside of memory that `Areas` holds until it is unmapped (for ever where that
                // fails), and to which references are never made (`HeldMemory::slice`).
                let result = unsafe { ioctl::map(iommu, id, area, address, writable) };
                ("IOMMU_IOAS_MAP", result)
            }
            Kept::File(fd, start) => {
                let Some(start) = start.checked_add(offset) else { return Err(limit("a file offset overflows")) };
                ("IOMMU_IOAS_MAP_FILE", ioctl::map_file(iommu, id, area, (*fd, start), writable))
            }
        };
        result.map_err(|errno| {
            let meaning = match errno {
                Errno::NOMEM => MEMLOCK,
                Errno::INVAL => "not aligned, no memfd, or outside of what the IOMMU of an attached device can map",
                Errno::NOENT => "the address space is closed",
                _ => "",
            };
            failed(&format!("{call} of {:#x} (+{:#x} bytes)", area.0, area.1), errno, meaning)
        })
    }

    fn unmap_one(&self, iova: u64, len: u64) -> Result<Unmapped, ChannelError> {
        // Which pages are dirty is not asked before: the device may write until it is unmapped, and afterwards nobody can
        // tell. All of it counts.
        match ioctl::unmap(self.iommufd().as_fd(), self.id(), iova, len) {
            Ok(bytes) => Ok(Unmapped { bytes, dirty: None }),
            Err(errno) => Err(failed(&format!("IOMMU_IOAS_UNMAP of {iova:#x} (+{len:#x} bytes)"), errno, "")),
        }
    }
}

/// [`Backing`] while the kernel is asked.
enum Kept<'a> {
    Address(u64),
    File(std::os::fd::BorrowedFd<'a>, u64),
}

/// A length of 2^64 is not representable; one that ends there is one byte shorter.
fn clip(range: MemoryRange) -> MemoryRange {
    MemoryRange { gpa: range.gpa, len: range.len.min(u64::MAX - range.gpa) }
}

/// The address of held memory.
pub(crate) fn address(held: &HeldMemory) -> Result<u64, ChannelError> {
    let slice = held.slice().ok_or_else(|| limit("held memory has no address"))?;
    Ok(slice.ptr.as_ptr().expose_provenance() as u64)
}

impl AddressSpace for Ioas {
    fn map(&self, iova: u64, len: u64, backing: Backing<'_>, writable: bool) -> Result<(), ChannelError> {
        let (kept, held) = match backing {
            Backing::Memory(held) => (Kept::Address(address(&held)?), Some(held)),
            Backing::File { fd, offset } => (Kept::File(fd, offset), None),
        };
        let map_one = &mut |offset, iova, len| self.map_one((iova, len), offset, &kept, writable);
        let unmap_one = &mut |iova, len, _| self.unmap_one(iova, len);
        self.areas.map((iova, len), writable, held, u64::MAX, map_one, unmap_one)
    }

    fn unmap(&self, iova: u64, len: u64) -> Result<u64, ChannelError> {
        self.areas.unmap(iova, len, &mut |iova, len, _| self.unmap_one(iova, len))
    }

    fn usable(&self) -> Result<Vec<MemoryRange>, ChannelError> {
        self.iova_ranges().map(|found| found.ranges)
    }

    fn mapped(&self) -> Vec<MemoryRange> {
        self.areas.all()
    }
}

impl Drop for Ioas {
    fn drop(&mut self) {
        if self.id() == 0 {
            return;
        }
        self.areas.unmap_all(&mut |iova, len, _| self.unmap_one(iova, len));
        // Where it goes, its mappings go with it; where a device keeps it, another page table may look at the addresses again.
        match self.object.destroy() {
            Ok(()) => self.areas.forget(),
            Err(_) => self.areas.leak(),
        }
    }
}
