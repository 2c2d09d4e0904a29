//! What devices reach by DMA: the one interface of type1 containers ([`crate::type1`]) and of iommufd's address spaces
//! ([`crate::iommufd`]).
//!
//! An address space maps guest memory at I/O virtual addresses, which for a guest are its physical ones. What is mapped
//! stays in this process's address space for as long: neither kernel interface takes a reference of its own to the mapping,
//! and iommufd looks at the addresses again whenever another device is attached.

use std::fmt;
use std::os::fd::BorrowedFd;

use towline_core::channel::ChannelError;
use towline_core::memory::MemoryRange;

use crate::memory::HeldMemory;

pub(crate) mod areas;
mod guest;
pub(crate) mod locked;

pub use guest::GuestMapping;

/// What lies behind a mapping.
#[derive(Debug)]
pub enum Backing<'a> {
    /// Memory that this process has mapped ([`crate::memory::MappedMemory::hold`]); its length is that of the mapping. It
    /// is let go of when it is unmapped.
    Memory(HeldMemory),
    /// A file from `offset` (in bytes, a multiple of the page size) on. iommufd takes a memfd and doesn't need it mapped in
    /// any process; type1 maps it into this one.
    File {
        /// The file; the kernel keeps it as long as it needs it.
        fd: BorrowedFd<'a>,
        /// Where the mapping begins in it, in bytes.
        offset: u64,
    },
}

/// A space of I/O virtual addresses that one or more devices use.
pub trait AddressSpace: fmt::Debug + Send + Sync {
    /// Maps `len` bytes at `iova`. Both are multiples of the smallest page of the IOMMU (4096 bytes on x86).
    ///
    /// `writable`: whether the device may write it; reading is always allowed.
    ///
    /// # Errors
    /// `Limit` for what can't be (empty, beyond the end of the address space or of the backing, too many mappings) and for
    /// `ENOMEM`, which most often is `RLIMIT_MEMLOCK`; `State` where some of it is mapped already; otherwise what the kernel
    /// said, `EINVAL` for addresses outside of [`AddressSpace::usable`]. Nothing stays mapped then.
    fn map(&self, iova: u64, len: u64, backing: Backing<'_>, writable: bool) -> Result<(), ChannelError>;

    /// Unmaps everything in `iova .. iova + len` and returns how many bytes that was, 0 where nothing was mapped there.
    /// When it returns, the device can't reach any of it.
    ///
    /// # Errors
    /// `State` where the range cuts a mapping in two (nothing is unmapped then), otherwise what the kernel said: what comes
    /// before the mapping that failed is unmapped then, the rest is not.
    fn unmap(&self, iova: u64, len: u64) -> Result<u64, ChannelError>;

    /// Where things can be mapped at all, ascending. It narrows when devices are added. Ranges that end at the last address
    /// are told one byte short, as their length may not be representable.
    ///
    /// # Errors
    /// What the kernel said.
    fn usable(&self) -> Result<Vec<MemoryRange>, ChannelError>;

    /// What is mapped, ascending. One call of [`AddressSpace::map`] may have made several of these.
    fn mapped(&self) -> Vec<MemoryRange>;
}
