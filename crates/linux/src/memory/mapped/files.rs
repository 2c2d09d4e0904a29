//! The files behind the regions, for who has to map them elsewhere.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::PoisonError;

use rustix::io::fcntl_dupfd_cloexec;

use super::{MapError, MappedMemory, system};

/// One region and the file that it lies in.
#[derive(Debug)]
pub struct RegionFile {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// A duplicate of the file's descriptor, closed on `exec`.
    pub fd: OwnedFd,
    /// Where in the file the region begins, in bytes.
    pub fd_offset: u64,
    /// Whether it was added as writable.
    pub is_writable: bool,
}

impl MappedMemory {
    /// Every region with its file, ascending by address.
    ///
    /// # Errors
    /// [`MapError::System`] where no descriptor is left.
    pub fn files(&self) -> Result<Vec<RegionFile>, MapError> {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        regions
            .iter()
            .map(|r| {
                Ok(RegionFile {
                    gpa: r.gpa,
                    len: r.end - r.gpa,
                    fd: fcntl_dupfd_cloexec(&r.fd, 0).map_err(system("fcntl(F_DUPFD_CLOEXEC)"))?,
                    fd_offset: r.fd_offset,
                    is_writable: r.mapping.writable(),
                })
            })
            .collect()
    }

    /// Calls `each` with every region, ascending by address: address, length, this memory's own descriptor, offset in its file. The
    /// descriptor stays open for as long as the region is there.
    pub fn for_each_file(&self, each: &mut dyn FnMut(u64, u64, BorrowedFd<'_>, u64)) {
        use std::os::fd::AsFd;
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        for r in regions.iter() {
            each(r.gpa, r.end - r.gpa, r.fd.as_fd(), r.fd_offset);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, AsRawFd};

    use towline_core::memory::GuestMemory;

    use super::*;
    use crate::memory::{Access, RegionOptions, memfd};

    #[test]
    fn other_mappings_of_the_files_are_the_same_memory() {
        let memory = MappedMemory::new();
        let (low, high) = (memfd("low", 0x3000).unwrap(), memfd("high", 0x1000).unwrap());
        memory.add_region(0x10_0000, high.as_fd(), 0, 0x1000).unwrap();
        memory.add_region(0, low.as_fd(), 0x1000, 0x2000).unwrap();
        let read_only = RegionOptions { access: Access::ReadOnly, ..RegionOptions::default() };
        memory.add_region_with(0x8000, low.as_fd(), 0, 0x1000, read_only).unwrap();
        let other = MappedMemory::new();
        let files = memory.files().unwrap();
        let what: Vec<(u64, u64, u64, bool)> =
            files.iter().map(|f| (f.gpa, f.len, f.fd_offset, f.is_writable)).collect();
        assert_eq!(what, [(0, 0x2000, 0x1000, true), (0x8000, 0x1000, 0, false), (0x10_0000, 0x1000, 0, true)]);
        for file in &files {
            other.add_region(file.gpa, file.fd.as_fd(), file.fd_offset, file.len).unwrap();
        }
        memory.write(0x1ffe, b"ab").unwrap();
        memory.write(0x10_0000, b"cd").unwrap();
        let mut out = [0; 2];
        other.read(0x1ffe, &mut out).unwrap();
        assert_eq!(&out, b"ab");
        other.read(0x10_0000, &mut out).unwrap();
        assert_eq!(&out, b"cd");
        let mut seen = 0;
        memory.for_each_file(&mut |gpa, len, fd, offset| {
            seen += 1;
            assert!(fd.as_raw_fd() >= 0);
            assert!(what.iter().any(|w| (w.0, w.1, w.2) == (gpa, len, offset)));
        });
        assert_eq!(seen, 3);
    }
}
