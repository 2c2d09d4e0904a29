//! Guest RAM: ranges with holes between them, each mapped from a descriptor.

use std::fs::File;
use std::os::fd::{BorrowedFd, RawFd};

use vm_memory::{
    ByteValued, Bytes, FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _,
    GuestRegionMmap, MmapRegion,
};

use crate::error::{Error, Result};
use crate::layout::{HOLE_GPA, MAX_RANGES, PAGE, RAM_LIMIT};

/// The least that the first range has.
const LEAST_FIRST: u64 = 64 << 20;

/// A range as the caller gives it.
#[derive(Clone, Copy, Debug)]
pub struct RangeSpec {
    pub gpa: u64,
    pub len: u64,
    pub fd: RawFd,
    pub fd_offset: u64,
}

/// A range as it is mapped.
#[derive(Debug)]
pub struct Range {
    pub gpa: u64,
    pub len: u64,
    /// Duplicate of the caller's, for the device.
    pub file: File,
    pub fd_offset: u64,
    /// Where it is mapped in this process.
    pub host: u64,
}

/// All of it.
pub struct Ram {
    memory: GuestMemoryMmap,
    ranges: Vec<Range>,
}

fn check(specs: &[RangeSpec]) -> Result<()> {
    let bad = |what: &str| Err(Error::Argument(format!("memory: {what}")));
    if specs.is_empty() || specs.len() > MAX_RANGES {
        return bad("there have to be 1 to 8 ranges");
    }
    let mut end = 0;
    for (n, spec) in specs.iter().enumerate() {
        let aligned = [spec.gpa, spec.len, spec.fd_offset].iter().all(|v| v.is_multiple_of(PAGE));
        if !aligned || spec.len == 0 {
            return bad("addresses, lengths and offsets have to be multiples of the page size, lengths not 0");
        }
        let Some(next) = spec.gpa.checked_add(spec.len) else { return bad("a range ends beyond the address space") };
        if spec.gpa < end {
            return bad("ranges have to ascend without overlapping");
        }
        if n == 0 && (spec.gpa != 0 || spec.len < LEAST_FIRST) {
            return bad("the first range has to begin at 0 and have 64 MiB at least");
        }
        if spec.gpa < 1 << 32 && next > HOLE_GPA {
            return bad("a range reaches into the hole below 4 GiB");
        }
        if next > RAM_LIMIT {
            return bad("a range ends above 64 GiB");
        }
        if spec.fd < 0 {
            return bad("a descriptor is negative");
        }
        end = next;
    }
    Ok(())
}

impl Ram {
    /// Maps the ranges.
    ///
    /// # Errors
    /// [`Error::Argument`] for ranges that can't be, [`Error::System`].
    pub fn new(specs: &[RangeSpec]) -> Result<Self> {
        check(specs)?;
        let mut regions = Vec::new();
        let mut ranges = Vec::new();
        for spec in specs {
            // SAFETY: the caller's descriptor is open at least as long as the call that it was given to; it is duplicated here.
            let fd = unsafe { BorrowedFd::borrow_raw(spec.fd) };
            let file = File::from(fd.try_clone_to_owned().map_err(Error::system("dup of a memory descriptor"))?);
            let offset = FileOffset::new(file.try_clone().map_err(Error::system("dup"))?, spec.fd_offset);
            let len = usize::try_from(spec.len).map_err(|_| Error::Argument("memory: a range is too long".into()))?;
            let mapped = MmapRegion::from_file(offset, len).map_err(|e| Error::Argument(format!("memory: {e}")))?;
            let host = mapped.as_ptr() as u64;
            let region = GuestRegionMmap::new(mapped, GuestAddress(spec.gpa))
                .ok_or_else(|| Error::Argument("memory: a range ends beyond the address space".into()))?;
            regions.push(region);
            ranges.push(Range { gpa: spec.gpa, len: spec.len, file, fd_offset: spec.fd_offset, host });
        }
        let memory = GuestMemoryMmap::from_regions(regions).map_err(|e| Error::Argument(format!("memory: {e}")))?;
        Ok(Self { memory, ranges })
    }

    /// The ranges, ascending.
    pub fn ranges(&self) -> &[Range] {
        &self.ranges
    }

    /// Copies bytes out; `false` where not all of them are RAM.
    pub fn read(&self, gpa: u64, out: &mut [u8]) -> bool {
        self.memory.read_slice(out, GuestAddress(gpa)).is_ok()
    }

    /// Copies bytes in; `false` where not all of them are RAM, and then some may be written.
    pub fn write(&self, gpa: u64, data: &[u8]) -> bool {
        self.memory.write_slice(data, GuestAddress(gpa)).is_ok()
    }

    /// Reads a structure; `None` where it is not RAM.
    pub fn read_obj<T: ByteValued>(&self, gpa: u64) -> Option<T> {
        self.memory.read_obj(GuestAddress(gpa)).ok()
    }

    /// Writes a structure; `false` where it is not RAM.
    pub fn write_obj<T: ByteValued>(&self, gpa: u64, value: T) -> bool {
        self.memory.write_obj(value, GuestAddress(gpa)).is_ok()
    }

    /// Reads an aligned number in one load, as its writer stored it in one.
    pub fn load<T: vm_memory::AtomicAccess>(&self, gpa: u64) -> Option<T> {
        self.memory.load(GuestAddress(gpa), std::sync::atomic::Ordering::SeqCst).ok()
    }

    /// Has every page mapped for writing in this process.
    pub fn populate(&self) -> Result<()> {
        for region in self.memory.iter() {
            let Ok(len) = usize::try_from(region.len()) else { continue };
            // SAFETY: the whole mapping of a region, which lives as long as `self`; populating changes no content.
            let r = unsafe { libc::madvise(region.as_ptr().cast(), len, libc::MADV_POPULATE_WRITE) };
            if r != 0 {
                return Err(Error::last("madvise(MADV_POPULATE_WRITE)"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_cannot_be_are_refused() {
        let spec = |gpa, len| RangeSpec { gpa, len, fd: 0, fd_offset: 0 };
        let first = spec(0, LEAST_FIRST);
        assert!(check(&[first, spec(4 << 30, 1 << 30)]).is_ok());
        assert!(check(&[spec(0, HOLE_GPA), spec(4 << 30, 60 << 30)]).is_ok());
        for bad in [
            vec![],
            vec![spec(PAGE, LEAST_FIRST)],
            vec![spec(0, LEAST_FIRST - PAGE)],
            vec![spec(0, HOLE_GPA + PAGE)],
            vec![first, spec(0xd000_0000, PAGE)],
            vec![first, spec(LEAST_FIRST - PAGE, PAGE)],
            vec![first, spec(4 << 30, (60 << 30) + PAGE)],
            vec![first, spec(u64::MAX - 4095, PAGE)],
            vec![first, spec(LEAST_FIRST, 0)],
            vec![first, spec(LEAST_FIRST, 100)],
            vec![RangeSpec { fd: -1, ..first }],
            vec![RangeSpec { fd_offset: 1, ..first }],
            vec![first; 9],
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
