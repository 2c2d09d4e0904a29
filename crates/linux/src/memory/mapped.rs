//! [`MappedMemory`]: the regions of one guest.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{SealFlags, SeekFrom, fcntl_get_seals, fstat, fstatfs, seek};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::param::page_size;
use towline_core::memory::{GuestMemory, MappedSlice, MemoryError, MemoryErrorKind, MemoryRange};

use super::drain::Drain;
use super::mapping::Mapping;

mod files;
mod gate;
mod held;

pub use files::RegionFile;
use gate::Gate;
pub use held::HeldMemory;

/// The most regions one guest has. VMMs have tens; a peer that maps without end is stopped here.
pub const MAX_REGIONS: usize = 4096;

/// `HUGETLBFS_MAGIC` (`include/uapi/linux/magic.h`).
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

/// The most extents that [`GuestMemory::populated`] tells apart; what lies beyond is reported as one populated range.
const MAX_EXTENTS: usize = 1 << 20;

/// What may be done to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Access {
    /// Read and written.
    #[default]
    ReadWrite,
    /// Read only: writes fail with [`MemoryErrorKind::ReadOnly`].
    ReadOnly,
}

/// How [`MappedMemory::add_region_with`] maps a region.
#[derive(Clone, Copy, Debug, Default)]
pub struct RegionOptions {
    /// What may be done to it.
    pub access: Access,
    /// Takes a file that is not sealed against shrinking. Who can shrink it can then kill this process by `SIGBUS`: only
    /// for files that nobody else may write, `/dev/shm` among them, which cannot be sealed. Files on hugetlbfs count as not
    /// sealed whatever their seals, as an access that finds no free huge page is a `SIGBUS` too.
    pub allow_shrinkable: bool,
}

/// Why a region was neither added nor removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// An address, offset or length is not a multiple of the page size, or the length is 0.
    #[error("guest memory region {gpa:#x} (+{len:#x} bytes, file offset {fd_offset:#x}) is empty or not page aligned")]
    Misaligned {
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
        /// Offset in the file in bytes.
        fd_offset: u64,
    },
    /// The end of the region is not representable.
    #[error("guest memory region {gpa:#x} (+{len:#x} bytes) ends beyond the address space")]
    Overflow {
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Some part of it is already a region.
    #[error("guest memory region {gpa:#x} (+{len:#x} bytes) overlaps the region at {other:#x}")]
    Overlap {
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
        /// Guest-physical address of the region that is there.
        other: u64,
    },
    /// The file is shorter than the region needs.
    #[error("the file of {file_len} bytes ends before the region does, at {end}")]
    BeyondFile {
        /// Size of the file in bytes.
        file_len: u64,
        /// End of the region in the file in bytes.
        end: u64,
    },
    /// The file could shrink under the mapping, or is on hugetlbfs, and [`RegionOptions::allow_shrinkable`] was not given.
    #[error("the file is not sealed against shrinking (F_SEAL_SHRINK), or on hugetlbfs, where no seal helps")]
    Shrinkable,
    /// [`MAX_REGIONS`] are there.
    #[error("more than {MAX_REGIONS} guest memory regions")]
    TooMany,
    /// No region has exactly this address and length.
    #[error("no guest memory region is {gpa:#x} (+{len:#x} bytes)")]
    NoSuchRegion {
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A system call failed.
    #[error("{call}: {source}")]
    System {
        /// Its name.
        call: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

fn system(call: &'static str) -> impl FnOnce(Errno) -> MapError {
    move |errno| MapError::System { call, source: errno.into() }
}

#[derive(Debug)]
struct Region {
    gpa: u64,
    /// `gpa` + length, checked when the region was made.
    end: u64,
    mapping: Mapping,
    fd: OwnedFd,
    fd_offset: u64,
    drain: Drain,
}

/// A region that cannot go away before this does.
struct Pin(Arc<Region>);

impl Pin {
    fn new(region: &Arc<Region>) -> Self {
        region.drain.enter();
        Self(Arc::clone(region))
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.drain.leave();
    }
}

/// The mapped memory of one guest. Share it by `Arc`: every method takes `&self`, and regions come and go while others access.
///
/// A lookup takes a read lock for the length of a binary search; the access itself holds no lock.
#[derive(Debug, Default)]
pub struct MappedMemory {
    /// Ascending by `gpa`, not overlapping.
    regions: RwLock<Vec<Arc<Region>>>,
    gate: Gate,
}

impl MappedMemory {
    /// Memory without any region.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `fd_offset .. fd_offset + len` of the file `fd` the guest memory `gpa .. gpa + len`, readable and writable.
    /// All three are multiples of the page size. The descriptor is duplicated.
    ///
    /// # Errors
    /// [`MapError`]; then nothing has changed.
    pub fn add_region(&self, gpa: u64, fd: BorrowedFd<'_>, fd_offset: u64, len: u64) -> Result<(), MapError> {
        self.add_region_with(gpa, fd, fd_offset, len, RegionOptions::default())
    }

    /// As [`MappedMemory::add_region`], with options.
    ///
    /// # Errors
    /// [`MapError`]; then nothing has changed.
    pub fn add_region_with(
        &self,
        gpa: u64,
        fd: BorrowedFd<'_>,
        fd_offset: u64,
        len: u64,
        options: RegionOptions,
    ) -> Result<(), MapError> {
        let page = page_size() as u64;
        if len == 0 || [gpa, fd_offset, len].iter().any(|v| !v.is_multiple_of(page)) {
            return Err(MapError::Misaligned { gpa, len, fd_offset });
        }
        let (Some(end), Some(file_end), Ok(map_len)) =
            (gpa.checked_add(len), fd_offset.checked_add(len), usize::try_from(len))
        else {
            return Err(MapError::Overflow { gpa, len });
        };
        let file_len = u64::try_from(fstat(fd).map_err(system("fstat"))?.st_size).unwrap_or(0);
        if file_end > file_len {
            return Err(MapError::BeyondFile { file_len, end: file_end });
        }
        if !options.allow_shrinkable && !keeps_its_pages(fd)? {
            return Err(MapError::Shrinkable);
        }
        let fd = fcntl_dupfd_cloexec(fd, 0).map_err(system("fcntl(F_DUPFD_CLOEXEC)"))?;
        let mapping = Mapping::new(fd.as_fd(), fd_offset, map_len, options.access == Access::ReadWrite)
            .map_err(system("mmap"))?;
        let region = Arc::new(Region { gpa, end, mapping, fd, fd_offset, drain: Drain::default() });

        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        let index = regions.partition_point(|r| r.end <= gpa);
        if let Some(other) = regions.get(index).filter(|r| r.gpa < end) {
            return Err(MapError::Overlap { gpa, len, other: other.gpa });
        }
        if regions.len() >= MAX_REGIONS {
            return Err(MapError::TooMany);
        }
        regions.insert(index, region);
        Ok(())
    }

    /// Takes away the region that was added as exactly `gpa .. gpa + len`. No access finds it any more, and when this
    /// returns, the accesses that were under way have ended.
    ///
    /// Never call it from within [`GuestMemory::with_mapped`] on the same region: it would wait for itself.
    ///
    /// # Errors
    /// [`MapError::NoSuchRegion`].
    pub fn remove_region(&self, gpa: u64, len: u64) -> Result<(), MapError> {
        let region = {
            let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
            let index = regions
                .iter()
                .position(|r| r.gpa == gpa && r.end - r.gpa == len)
                .ok_or(MapError::NoSuchRegion { gpa, len })?;
            regions.remove(index)
        };
        region.drain.wait();
        Ok(())
    }

    /// Pins the regions of `gpa .. gpa + len` and calls `each` with every piece: region, offset in it, range of the access.
    fn access(
        &self,
        gpa: u64,
        len: usize,
        write: bool,
        mut each: impl FnMut(&Region, usize, std::ops::Range<usize>) -> bool,
    ) -> Result<(), MemoryError> {
        let fail = |kind| MemoryError { gpa, len: len as u64, kind };
        let end = gpa.checked_add(len as u64).ok_or_else(|| fail(MemoryErrorKind::Unmapped))?;
        if len == 0 {
            return Ok(());
        }
        if write && self.gate.is_shut() {
            return Err(fail(MemoryErrorKind::NotOurs));
        }
        let mut first: Option<Pin> = None;
        let mut more: Vec<Pin> = Vec::new();
        {
            let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
            let mut next = gpa;
            let index = regions.partition_point(|r| r.end <= gpa);
            for region in regions.get(index..).unwrap_or_default() {
                if region.gpa > next {
                    break;
                }
                if write && !region.mapping.writable() {
                    return Err(fail(MemoryErrorKind::ReadOnly));
                }
                match first {
                    None => first = Some(Pin::new(region)),
                    Some(_) => more.push(Pin::new(region)),
                }
                next = region.end;
                if next >= end {
                    break;
                }
            }
            if next < end {
                return Err(fail(MemoryErrorKind::Unmapped));
            }
        }
        for Pin(region) in first.iter().chain(&more) {
            let (from, to) = (gpa.max(region.gpa), end.min(region.end));
            // All differences are at most `len` or the length of a mapping, and so fit a usize.
            if !each(region, (from - region.gpa) as usize, (from - gpa) as usize..(to - gpa) as usize) {
                return Err(fail(MemoryErrorKind::Unmapped));
            }
        }
        Ok(())
    }
}

impl GuestMemory for MappedMemory {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        self.access(gpa, out.len(), false, |region, offset, piece| {
            out.get_mut(piece).is_some_and(|out| region.mapping.read(offset, out))
        })
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.access(gpa, data.len(), true, |region, offset, piece| {
            data.get(piece).is_some_and(|data| region.mapping.write(offset, data))
        })
    }

    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        if !gpa.is_multiple_of(4) {
            return Err(MemoryError { gpa, len: 4, kind: MemoryErrorKind::Misaligned });
        }
        let mut value = 0;
        self.access(gpa, 4, false, |region, offset, _| {
            region.mapping.load_u32(offset).map(|loaded| value = loaded).is_some()
        })?;
        Ok(value)
    }

    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        if !gpa.is_multiple_of(4) {
            return Err(MemoryError { gpa, len: 4, kind: MemoryErrorKind::Misaligned });
        }
        self.access(gpa, 4, true, |region, offset, _| region.mapping.store_u32(offset, value))
    }

    fn ranges(&self) -> Vec<MemoryRange> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions.iter().map(|r| MemoryRange { gpa: r.gpa, len: r.end - r.gpa }).collect()
    }

    /// `false` also where the range spans two regions.
    fn with_mapped(&self, gpa: u64, len: usize, f: &mut dyn FnMut(MappedSlice)) -> Result<bool, MemoryError> {
        let mut called = false;
        self.access(gpa, len, false, |region, offset, piece| {
            if piece.len() == len
                && let Some(slice) = region.mapping.slice(offset, len)
            {
                f(slice);
                called = true;
            }
            true
        })?;
        Ok(called)
    }

    /// By `SEEK_DATA` and `SEEK_HOLE` (`lseek(2)`): the parts of the files that are allocated, in whole pages. Moves the file
    /// position that all duplicates of the descriptor share. Parts of `range` in no region are left out.
    fn populated(&self, range: MemoryRange) -> Vec<MemoryRange> {
        let mut found = Vec::new();
        let pins: Vec<Pin> = {
            let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
            let end = range.gpa.saturating_add(range.len);
            regions.iter().filter(|r| r.gpa < end && r.end > range.gpa).map(Pin::new).collect()
        };
        for Pin(region) in &pins {
            let from = range.gpa.max(region.gpa);
            let to = range.gpa.saturating_add(range.len).min(region.end);
            extents(region, from, to, &mut found);
        }
        found
    }
}

/// Whether access to a file's pages can't end in `SIGBUS`. On hugetlbfs it can, even below a seal: mappings here don't reserve, and
/// neither does whoever punches a hole, so a page that isn't there yet needs a huge page that is free just then.
fn keeps_its_pages(fd: BorrowedFd<'_>) -> Result<bool, MapError> {
    // F_GET_SEALS fails with EINVAL on files that know no seals.
    let sealed = fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
    // The type is of another width on some targets.
    Ok(sealed && fstatfs(fd).map_err(system("fstatfs"))?.f_type as u64 & 0xffff_ffff != HUGETLBFS_MAGIC)
}

/// Adds the allocated parts of `from .. to`, which lies in `region`, to `found`.
fn extents(region: &Region, from: u64, to: u64, found: &mut Vec<MemoryRange>) {
    // Guest address and file offset differ by a constant; neither addition overflows, since the region's end was checked in both.
    let offset_of = |gpa: u64| gpa - region.gpa + region.fd_offset;
    let gpa_of = |offset: u64| offset - region.fd_offset + region.gpa;
    let mut at = from;
    while at < to {
        let data = match seek(&region.fd, SeekFrom::Data(offset_of(at))) {
            // The page that holds the first byte, in case that the file's blocks are smaller than a page.
            Ok(offset) if offset >= offset_of(at) => {
                let page = page_size() as u64;
                gpa_of((offset / page * page).max(offset_of(at)))
            }
            // ENXIO: only a hole up to the end of the file.
            Err(Errno::NXIO) => return,
            // Not a file that tells: everything counts as written.
            _ => at,
        };
        if data >= to {
            return;
        }
        let hole = match seek(&region.fd, SeekFrom::Hole(offset_of(data))) {
            Ok(offset) if offset > offset_of(data) && found.len() < MAX_EXTENTS => {
                let page = page_size() as u64;
                gpa_of(offset.next_multiple_of(page).min(offset_of(to)))
            }
            _ => to,
        };
        match found.last_mut() {
            Some(last) if last.gpa + last.len == data => last.len += hole - data,
            _ => found.push(MemoryRange { gpa: data, len: hole - data }),
        }
        at = hole;
    }
}

#[cfg(test)]
mod tests;
