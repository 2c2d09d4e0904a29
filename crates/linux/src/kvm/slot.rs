//! [`KvmSlot`]: a memory slot, and what of it can be checked.

use rustix::param::page_size;
use towline_core::memory::MemoryRange;

use super::abi;
use crate::self_maps::is_mapped;
use crate::track_error::TrackError;

/// A memory slot as the VMM gave it to KVM by `KVM_SET_USER_MEMORY_REGION`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvmSlot {
    /// Its number, with the address space in bits 16 to 31.
    pub slot: u32,
    /// First guest-physical address, a multiple of the page size.
    pub gpa: u64,
    /// Length in bytes, a multiple of the page size, less than 2^31 pages.
    pub len: u64,
    /// Where its memory is in this process: exactly what KVM was given. Switching logging on names all of a slot again; with another
    /// address or length KVM refuses, with another `gpa` it moves the slot, and with another number it may make a new one.
    pub userspace_addr: u64,
    /// `KVM_MEM_LOG_DIRTY_PAGES` (1) where the VMM has switched logging on itself, and `KVM_MEM_READONLY` (2). Others can't be tracked.
    pub flags: u32,
}

impl KvmSlot {
    /// In which of the VM's address spaces it is: 1 is that of system management mode.
    pub(super) fn address_space(&self) -> u32 {
        self.slot >> 16
    }

    pub(super) fn range(&self) -> MemoryRange {
        MemoryRange { gpa: self.gpa, len: self.len }
    }

    pub(super) fn pages(&self) -> u64 {
        self.len / page_size() as u64
    }

    /// Words of its bitmap.
    pub(super) fn words(&self) -> usize {
        // Fits: at most 2^31 pages.
        self.pages().div_ceil(64) as usize
    }

    /// Whether vCPUs write it at all; for a read-only slot they come to the VMM.
    pub(super) fn is_writable(&self) -> bool {
        self.flags & abi::MEM_READONLY == 0
    }

    /// The VMM has logging on, and keeps it.
    pub(super) fn logs_already(&self) -> bool {
        self.flags & abi::MEM_LOG_DIRTY_PAGES != 0
    }

    fn touches(&self, other: &Self) -> bool {
        self.address_space() == other.address_space()
            && self.gpa < other.gpa.saturating_add(other.len)
            && other.gpa < self.gpa.saturating_add(self.len)
    }

    /// # Errors
    /// [`TrackError::Argument`] for what can't be a slot, or is not mapped here; [`TrackError::Exists`] where it collides with one of `others`.
    pub(super) fn check<'a>(&self, others: impl IntoIterator<Item = &'a Self>) -> Result<(), TrackError> {
        let page = page_size() as u64;
        let Self { slot, gpa, len, userspace_addr, flags } = *self;
        let bad = |what: String| Err(TrackError::Argument(format!("memory slot {slot}: {what}")));
        if len == 0 || [gpa, len, userspace_addr].iter().any(|v| !v.is_multiple_of(page)) {
            return bad(format!("{gpa:#x} (+{len:#x} bytes) at {userspace_addr:#x} is empty or not aligned to {page}"));
        }
        if len / page > abi::MAX_SLOT_PAGES {
            return bad(format!("{len:#x} bytes are more than {} pages", abi::MAX_SLOT_PAGES));
        }
        let (Some(_), Some(end)) = (gpa.checked_add(len), userspace_addr.checked_add(len)) else {
            return bad(format!("{gpa:#x} (+{len:#x} bytes) at {userspace_addr:#x} ends beyond the address space"));
        };
        if flags & !(abi::MEM_LOG_DIRTY_PAGES | abi::MEM_READONLY) != 0 {
            return bad(format!("flags {flags:#x}: only KVM_MEM_LOG_DIRTY_PAGES and KVM_MEM_READONLY can be handled"));
        }
        for other in others {
            if other.slot == slot {
                return Err(TrackError::Exists(format!("memory slot {slot} is there already")));
            }
            if self.touches(other) {
                let what = format!("memory slot {slot}: {gpa:#x} (+{len:#x} bytes) overlaps slot {}", other.slot);
                return Err(TrackError::Exists(what));
            }
        }
        match is_mapped(userspace_addr..end, false) {
            Ok(true) => Ok(()),
            Ok(false) => bad(format!("{userspace_addr:#x} (+{len:#x} bytes) is not wholly mapped in this process")),
            Err(error) => bad(format!("/proc/self/maps can't be read: {error}")),
        }
    }
}
