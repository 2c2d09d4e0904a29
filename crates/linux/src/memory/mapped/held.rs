//! [`HeldMemory`]: guest memory that a device may reach for longer than one call.

use std::os::fd::{AsFd, BorrowedFd};

use towline_core::memory::{MappedSlice, MemoryError, MemoryErrorKind};

use super::{MappedMemory, Pin, Region};

/// A piece of one region that stays mapped where it is until this is dropped: what an IOMMU maps for a device.
///
/// [`MappedMemory::remove_region`] waits for it, as it waits for every access: a region is first unmapped from the address
/// spaces of devices, then removed.
pub struct HeldMemory {
    pin: Pin,
    /// In the region; `offset + len` is inside.
    offset: usize,
    len: usize,
}

impl std::fmt::Debug for HeldMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let region: &Region = &self.pin.0;
        f.debug_struct("HeldMemory")
            .field("gpa", &(region.gpa + self.offset as u64))
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl HeldMemory {
    /// The mapped bytes. They are written by others at any time: no reference to them is ever made.
    #[must_use]
    pub fn slice(&self) -> Option<MappedSlice> {
        self.pin.0.mapping.slice(self.offset, self.len)
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.len as u64
    }

    /// Whether this process may write it, and so whether a device may on its behalf.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.pin.0.mapping.writable()
    }

    /// The file behind it, and where in that file it begins, in bytes.
    #[must_use]
    pub fn file(&self) -> (BorrowedFd<'_>, u64) {
        (self.pin.0.fd.as_fd(), self.pin.0.fd_offset + self.offset as u64)
    }
}

impl MappedMemory {
    /// Holds `gpa .. gpa + len`, which lies in one region.
    ///
    /// # Errors
    /// [`MemoryErrorKind::Unmapped`] where it is empty or not wholly in one region.
    pub fn hold(&self, gpa: u64, len: u64) -> Result<HeldMemory, MemoryError> {
        let unmapped = MemoryError { gpa, len, kind: MemoryErrorKind::Unmapped };
        let end = gpa.checked_add(len).filter(|_| len != 0).ok_or(unmapped)?;
        let regions = self.regions.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let region = regions.iter().find(|r| r.gpa <= gpa && end <= r.end).ok_or(unmapped)?;
        // Both fit: the region is mapped, so its length is a usize.
        let (Ok(offset), Ok(len)) = (usize::try_from(gpa - region.gpa), usize::try_from(len)) else {
            return Err(unmapped);
        };
        Ok(HeldMemory { pin: Pin::new(region), offset, len })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use towline_core::memory::GuestMemory;

    use super::*;
    use crate::memory::memfd;

    #[test]
    fn what_is_held_stays_mapped_and_removal_waits_for_it() {
        let memory = Arc::new(MappedMemory::new());
        let fd = memfd("held", 0x4000).unwrap();
        memory.add_region(0x10000, fd.as_fd(), 0x1000, 0x3000).unwrap();
        memory.write(0x11000, b"abc").unwrap();
        let held = memory.hold(0x11000, 0x1000).unwrap();
        assert_eq!(held.len_bytes(), 0x1000);
        assert!(held.is_writable());
        assert_eq!(held.file().1, 0x2000);

        let removed = Arc::new(AtomicBool::new(false));
        let thread = {
            let (memory, removed) = (Arc::clone(&memory), Arc::clone(&removed));
            std::thread::spawn(move || {
                memory.remove_region(0x10000, 0x3000).unwrap();
                removed.store(true, Ordering::SeqCst);
            })
        };
        while !memory.ranges().is_empty() {
            std::thread::yield_now();
        }
        std::thread::sleep(Duration::from_millis(20));
        assert!(!removed.load(Ordering::SeqCst), "removed while held");
        let slice = held.slice().unwrap();
        // SAFETY: held, hence mapped; nobody writes it in this test.
        assert_eq!(unsafe { slice.ptr.as_ptr().cast::<[u8; 3]>().read() }, *b"abc");
        drop(held);
        thread.join().unwrap();
        assert!(memory.hold(0x11000, 0x1000).is_err());
    }

    #[test]
    fn only_what_lies_in_one_region_is_held() {
        let memory = MappedMemory::new();
        let fd = memfd("held", 0x2000).unwrap();
        memory.add_region(0x1000, fd.as_fd(), 0, 0x1000).unwrap();
        memory.add_region(0x2000, fd.as_fd(), 0x1000, 0x1000).unwrap();
        for (gpa, len) in [(0x1000, 0), (0, 0x1000), (0x1000, 0x2000), (0x2800, 0x1000), (u64::MAX, 2)] {
            assert_eq!(memory.hold(gpa, len).unwrap_err().kind, MemoryErrorKind::Unmapped, "{gpa:#x} {len:#x}");
        }
        assert!(memory.hold(0x2fff, 1).is_ok());
    }
}
