//! Guest memory, as everything that does DMA, sends pages or receives them sees it.
//!
//! Copying in and out always works. A mapped slice exists only where there is a file descriptor behind the range (a
//! vfio-user peer may have none), so callers that want one must live without it. Ranges come and go while a function
//! runs: an implementation keeps a range alive for as long as a call on it is under way, so that removing a range
//! drains the DMA into it first.

use alloc::vec::Vec;
use core::fmt;
use core::ptr::NonNull;

/// A range of guest-physical addresses: `gpa .. gpa + len`, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemoryRange {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes, never 0.
    pub len: u64,
}

impl MemoryRange {
    /// One past the last address; `None` where that is not representable.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.gpa.checked_add(self.len)
    }
}

/// Why an access to guest memory was refused. Nothing outside of a registered range was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryError {
    /// First guest-physical address of the access.
    pub gpa: u64,
    /// Length of the access in bytes.
    pub len: u64,
    /// What was wrong with it.
    pub kind: MemoryErrorKind,
}

/// See [`MemoryError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryErrorKind {
    /// At least one byte lies in no registered range, or the address overflows.
    Unmapped,
    /// The range may not be written.
    ReadOnly,
    /// A 32-bit access was not aligned to four bytes.
    Misaligned,
    /// The other side of a message-served range did not answer.
    Gone,
    /// The guest's owner is another process still: this one may read, and write once the guest was handed over.
    NotOurs,
}

impl fmt::Display for MemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self.kind {
            MemoryErrorKind::Unmapped => "is not in a registered guest memory range",
            MemoryErrorKind::ReadOnly => "is read-only",
            MemoryErrorKind::Misaligned => "is not aligned to 4 bytes",
            MemoryErrorKind::Gone => "is served by a peer that is gone",
            MemoryErrorKind::NotOurs => "belongs to another process until its guest was handed over",
        };
        write!(f, "guest address {:#x} (+{} bytes) {why}", self.gpa, self.len)
    }
}

impl core::error::Error for MemoryError {}

/// Bytes of guest memory that are mapped into this process, for the length of one call.
///
/// The guest and its devices write the same bytes at any time: take copies before checking what they mean, and never
/// form a Rust reference to them.
#[derive(Clone, Copy, Debug)]
pub struct MappedSlice {
    /// First byte.
    pub ptr: NonNull<u8>,
    /// Length in bytes.
    pub len: usize,
}

/// Guest memory. Shared by every device of a guest and by the migration.
pub trait GuestMemory: Send + Sync {
    /// Copies `out.len()` bytes starting at `gpa` out of guest memory. May cross adjacent ranges.
    ///
    /// # Errors
    /// [`MemoryErrorKind::Unmapped`]; `out` may then be partly overwritten.
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies `data` into guest memory at `gpa`. May cross adjacent ranges.
    ///
    /// # Errors
    /// [`MemoryErrorKind::Unmapped`], [`MemoryErrorKind::ReadOnly`] or [`MemoryErrorKind::NotOurs`]; the whole access is checked before the
    /// first byte is written.
    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError>;

    /// Reads a little-endian u32 with acquire ordering. `gpa` is a multiple of 4.
    ///
    /// # Errors
    /// As [`GuestMemory::read`], and [`MemoryErrorKind::Misaligned`].
    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError>;

    /// Writes a little-endian u32 with release ordering: whoever sees it sees every earlier write. `gpa` is a multiple of 4.
    ///
    /// # Errors
    /// As [`GuestMemory::write`], and [`MemoryErrorKind::Misaligned`].
    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError>;

    /// The registered ranges in ascending order, as they are now.
    fn ranges(&self) -> Vec<MemoryRange>;

    /// Calls `f` with the mapped bytes of `gpa .. gpa + len` and returns `true`; returns `false` without calling it where the
    /// range is not mapped contiguously in this process. The mapping outlives the call, not more.
    ///
    /// # Errors
    /// [`MemoryErrorKind::Unmapped`].
    fn with_mapped(&self, gpa: u64, len: usize, f: &mut dyn FnMut(MappedSlice)) -> Result<bool, MemoryError> {
        let _ = (gpa, len, f);
        Ok(false)
    }

    /// The parts of `range` that were ever written, as far as that is known cheaply (holes of a sparse file are not read
    /// and never sent). The default knows nothing and returns the whole range.
    fn populated(&self, range: MemoryRange) -> Vec<MemoryRange> {
        alloc::vec![range]
    }
}
