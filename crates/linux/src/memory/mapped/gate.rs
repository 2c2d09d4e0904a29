//! Memory that two processes map, and only one may write: the one that owns the guest.

use std::sync::atomic::{AtomicBool, Ordering};

use super::MappedMemory;

/// Whether writes pass. Open unless it was made shut.
#[derive(Debug, Default)]
pub(super) struct Gate {
    shut: AtomicBool,
}

impl Gate {
    pub(super) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }
}

impl MappedMemory {
    /// Memory without any region, which refuses every write with [`towline_core::memory::MemoryErrorKind::NotOurs`] until
    /// [`MappedMemory::open_gate`]: the guest that runs in it belongs to another process still.
    ///
    /// What was mapped by other means, from the same files or through [`MappedMemory::hold`], is not held up by this.
    #[must_use]
    pub fn shut() -> Self {
        Self { gate: Gate { shut: AtomicBool::new(true) }, ..Self::default() }
    }

    /// The guest is this process's from here on. Does nothing where writes pass already.
    pub fn open_gate(&self) {
        self.gate.shut.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use towline_core::memory::{GuestMemory, MemoryErrorKind};

    use super::*;
    use crate::memory::memfd;

    #[test]
    fn writes_wait_for_the_gate_and_reads_do_not() {
        let fd = memfd("gate", 4096).unwrap();
        let (ours, theirs) = (MappedMemory::new(), MappedMemory::shut());
        ours.add_region(0, fd.as_fd(), 0, 4096).unwrap();
        theirs.add_region(0, fd.as_fd(), 0, 4096).unwrap();
        ours.write(8, b"guest").unwrap();
        let mut out = [0; 5];
        theirs.read(8, &mut out).unwrap();
        assert_eq!(&out, b"guest");
        assert_eq!(theirs.write(8, b"x").unwrap_err().kind, MemoryErrorKind::NotOurs);
        assert_eq!(theirs.store_u32(8, 1).unwrap_err().kind, MemoryErrorKind::NotOurs);
        ours.read(8, &mut out).unwrap();
        assert_eq!(&out, b"guest");
        theirs.open_gate();
        theirs.write(8, b"owner").unwrap();
        ours.read(8, &mut out).unwrap();
        assert_eq!(&out, b"owner");
    }
}
