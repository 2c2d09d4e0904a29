//! [`Rings`]: the dirty rings of a VM's vCPUs.
//!
//! Each entry goes from empty to dirty (KVM, with its page in it), to harvested (user space), and with `KVM_RESET_DIRTY_RINGS`, which
//! watches for the page's next write again, to empty (Documentation/virt/kvm/api.rst, "KVM_CAP_DIRTY_LOG_RING"). Pages are read only after
//! that call.

use std::fmt::Debug;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
use rustix::param::page_size;
use towline_core::channel::{ChannelError, ChannelErrorKind};

use super::abi::{self, DirtyGfn};
use super::vm::{failed, unsupported};

/// An entry as KVM wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Slot, with its address space.
    pub slot: u32,
    /// Page in the slot.
    pub page: u64,
}

/// The entries of one ring, oldest first.
pub(super) trait Entries: Debug + Send {
    /// The next one, which then counts as harvested.
    fn next(&mut self) -> Option<Entry>;
    /// The most that there can be.
    fn entries(&self) -> u32;
}

/// The ring of one vCPU, mapped.
///
/// Invariant: `base` is the beginning of a mapping of `entries` entries and one page more, readable and writable, until drop.
#[derive(Debug)]
pub(super) struct VcpuRing {
    base: NonNull<DirtyGfn>,
    /// A power of two.
    entries: u32,
    /// Of the mapping, in bytes.
    mapped: usize,
    /// Where the next entry is, counted on without wrapping.
    next: u32,
    /// Keeps the ring.
    _vcpu: OwnedFd,
}

// SAFETY: the mapping belongs to no thread, and its entries are accessed by atomics only.
unsafe impl Send for VcpuRing {}

impl VcpuRing {
    /// Maps the ring of `vcpu`, whose file descriptor is duplicated. How many entries it has is found out.
    pub(super) fn new(vcpu: BorrowedFd<'_>) -> Result<Self, ChannelError> {
        let vcpu = fcntl_dupfd_cloexec(vcpu, 0).map_err(|errno| failed("fcntl(F_DUPFD_CLOEXEC) of a vCPU", errno))?;
        let page = page_size();
        // The largest ring, and a page behind it that can't be there.
        let mapped = abi::RING_MAX_ENTRIES as usize * size_of::<DirtyGfn>() + page;
        let offset = abi::RING_PAGE_OFFSET * page as u64;
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: no address is asked for, so the kernel chooses one at which nothing else of this process lies.
        let base =
            unsafe { mmap(std::ptr::null_mut(), mapped, prot, flags, vcpu.as_fd(), offset) }.map_err(|errno| {
                match errno {
                    Errno::NODEV | Errno::INVAL | Errno::ACCESS => {
                        unsupported("a descriptor is not that of a vCPU, or this KVM has no dirty rings")
                    }
                    errno => failed("mmap of a dirty ring", errno),
                }
            })?;
        let base = NonNull::new(base.cast::<DirtyGfn>()).ok_or_else(|| failed("mmap of a dirty ring", Errno::NOMEM))?;
        let mut ring = Self { base, entries: 0, mapped, next: 0, _vcpu: vcpu };
        // An access behind the ring's end would be a SIGBUS, and KVM tells its size to nobody; this asks page by page.
        let present = |bytes: usize| {
            // SAFETY: inside of the mapping that was just made; pages are only made present.
            unsafe { madvise(base.as_ptr().cast::<u8>().add(bytes).cast(), page, Advice::LinuxPopulateRead) }
        };
        let mut bytes = 0;
        let end = loop {
            match present(bytes) {
                Ok(()) => bytes += page,
                Err(errno) => break errno,
            }
            if bytes >= mapped {
                break Errno::TOOBIG;
            }
        };
        let entries = bytes / size_of::<DirtyGfn>();
        match end {
            Errno::FAULT if entries.is_power_of_two() => {
                // At most 65536: that much is mapped.
                ring.entries = entries as u32;
                Ok(ring)
            }
            Errno::FAULT if entries == 0 => Err(unsupported(
                "this virtual machine has no dirty rings: its VMM enables KVM_CAP_DIRTY_LOG_RING before it makes the first vCPU",
            )),
            Errno::FAULT => Err(unsupported(format!("a dirty ring has {entries} entries, which is no power of two"))),
            errno => Err(failed("madvise(MADV_POPULATE_READ) of a dirty ring, Linux 5.14", errno)),
        }
    }

    fn at(&self) -> NonNull<u8> {
        let index = (self.next & (self.entries - 1)) as usize;
        // SAFETY: `index` is less than `entries`, which the mapping holds; `entries` is not 0 in a ring that `new` gave out.
        unsafe { self.base.add(index) }.cast()
    }
}

impl Entries for VcpuRing {
    fn next(&mut self) -> Option<Entry> {
        let at = self.at().as_ptr();
        // SAFETY: an aligned field of an entry inside of the mapping. KVM writes it meanwhile, and this process by atomics only.
        let flags = unsafe { AtomicU32::from_ptr(at.add(offset_of!(DirtyGfn, flags)).cast()) };
        // With acquire: what KVM wrote before it set the flag is seen. One that is harvested already ends a whole round of the ring.
        if flags.load(Ordering::Acquire) & (abi::GFN_DIRTY | abi::GFN_RESET) != abi::GFN_DIRTY {
            return None;
        }
        // SAFETY: as for the flags.
        let (slot, page) = unsafe {
            (
                AtomicU32::from_ptr(at.add(offset_of!(DirtyGfn, slot)).cast()).load(Ordering::Relaxed),
                AtomicU64::from_ptr(at.add(offset_of!(DirtyGfn, offset)).cast()).load(Ordering::Relaxed),
            )
        };
        // With release: KVM reuses the entry only after it was read.
        flags.store(abi::GFN_DIRTY | abi::GFN_RESET, Ordering::Release);
        self.next = self.next.wrapping_add(1);
        Some(Entry { slot, page })
    }

    fn entries(&self) -> u32 {
        self.entries
    }
}

impl Drop for VcpuRing {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made; no address of it is kept.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

/// The rings of all vCPUs.
#[derive(Debug, Default)]
pub(super) struct Rings(Vec<Box<dyn Entries>>);

/// More vCPUs than any KVM has (`KVM_MAX_VCPUS` is at most 4096).
const MAX_VCPUS: usize = 4096;

impl Rings {
    pub(super) fn new(vcpus: &[BorrowedFd<'_>], entries: Option<u32>) -> Result<Self, ChannelError> {
        if vcpus.is_empty() || vcpus.len() > MAX_VCPUS {
            let message = format!("{} dirty rings: one for each vCPU is needed, 1 to {MAX_VCPUS}", vcpus.len());
            return Err(ChannelError::new(ChannelErrorKind::Limit, message));
        }
        let mut rings: Vec<Box<dyn Entries>> = Vec::with_capacity(vcpus.len());
        for vcpu in vcpus {
            let ring = VcpuRing::new(*vcpu)?;
            if let Some(expected) = entries.filter(|n| *n != ring.entries) {
                let message = format!("the dirty rings have {} entries, and not {expected}", ring.entries);
                return Err(ChannelError::new(ChannelErrorKind::Limit, message));
            }
            rings.push(Box::new(ring));
        }
        Ok(Self(rings))
    }

    #[cfg(test)]
    pub(super) fn of(rings: Vec<Box<dyn Entries>>) -> Self {
        Self(rings)
    }

    /// Harvests what is there, at most one round of each ring: a vCPU that goes on writing is left for the next time. Says whether
    /// there was anything to be reset.
    pub(super) fn harvest(&mut self, each: &mut dyn FnMut(Entry)) -> bool {
        let mut any = false;
        for ring in &mut self.0 {
            for _ in 0..ring.entries() {
                let Some(entry) = ring.next() else { break };
                any = true;
                each(entry);
            }
        }
        any
    }
}
