//! The calls of a VM's file descriptor.

use std::fmt::Debug;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::raw::c_void;

use rustix::io::{Errno, fcntl_dupfd_cloexec};
use towline_core::channel::{ChannelError, ChannelErrorKind};

use super::abi::{self, ClearDirtyLog, DirtyLog, EnableCap, UserspaceMemoryRegion};
use super::bits::GuardedBits;
use super::slot::KvmSlot;
use crate::errno::errno_text;
use crate::raw_ioctl::{with_argument, with_struct};

/// What the sources ask of a VM, so that tests have one that is broken.
pub(super) trait Vm: Debug + Send + Sync {
    /// Switches `KVM_MEM_LOG_DIRTY_PAGES` of a slot.
    fn set_logging(&self, slot: &KvmSlot, on: bool) -> Result<(), Errno>;
    /// Manual protection with `options`.
    fn enable_manual_protect(&self, options: u64) -> Result<(), Errno>;
    /// The answer to `KVM_CHECK_EXTENSION`.
    fn extension(&self, cap: u32) -> Result<u64, Errno>;
    /// All of a slot's log into the first words of `bits`, which hold as many pages as the slot has.
    fn get_log(&self, slot: &KvmSlot, bits: &mut GuardedBits) -> Result<(), Errno>;
    /// Clears what is set in `words`, whose first bit is `first_page`, a multiple of 64.
    fn clear_log(&self, slot: &KvmSlot, first_page: u64, pages: u32, words: &mut [u64]) -> Result<(), Errno>;
    /// Takes back what was harvested of all rings.
    fn reset_rings(&self) -> Result<(), Errno>;
}

/// The VM.
#[derive(Debug)]
pub(super) struct KvmVm {
    fd: OwnedFd,
}

impl KvmVm {
    /// Duplicates `fd`, and finds out whether it is a VM that this process may command.
    pub(super) fn new(fd: BorrowedFd<'_>) -> Result<Self, ChannelError> {
        let fd = fcntl_dupfd_cloexec(fd, 0).map_err(|errno| failed("fcntl(F_DUPFD_CLOEXEC) of the VM", errno))?;
        let vm = Self { fd };
        // Asked of /dev/kvm only; everything else there looks like a VM at first.
        // SAFETY: this ioctl takes nothing.
        if unsafe { with_argument(vm.fd(), abi::GET_API_VERSION, number(0)) }.is_ok() {
            return Err(unsupported("the descriptor is that of /dev/kvm, not of a virtual machine"));
        }
        match vm.extension(abi::CAP_USER_MEMORY) {
            Ok(1..) => Ok(vm),
            Ok(0) => Err(unsupported("this KVM has no KVM_CAP_USER_MEMORY")),
            Err(Errno::NOTTY | Errno::INVAL) => Err(unsupported("the descriptor is not that of a KVM virtual machine")),
            Err(errno) => Err(failed("KVM_CHECK_EXTENSION", errno)),
        }
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn number(value: u64) -> *mut c_void {
    std::ptr::without_provenance_mut(value as usize)
}

impl Vm for KvmVm {
    fn set_logging(&self, slot: &KvmSlot, on: bool) -> Result<(), Errno> {
        let mut region = UserspaceMemoryRegion {
            slot: slot.slot,
            flags: (slot.flags & !abi::MEM_LOG_DIRTY_PAGES) | if on { abi::MEM_LOG_DIRTY_PAGES } else { 0 },
            guest_phys_addr: slot.gpa,
            memory_size: slot.len,
            userspace_addr: slot.userspace_addr,
        };
        // SAFETY: the structure of this ioctl. What it names is what the caller of `KvmDirty` has given to KVM before, so nothing but
        // the flag changes; whoever made the `KvmSlot` has promised that.
        unsafe { with_struct(self.fd(), abi::SET_USER_MEMORY_REGION, &mut region) }.map(drop)
    }

    fn enable_manual_protect(&self, options: u64) -> Result<(), Errno> {
        let cap = abi::CAP_MANUAL_DIRTY_LOG_PROTECT2;
        let mut enable = EnableCap { cap, flags: 0, args: [options, 0, 0, 0], pad: [0; 64] };
        // SAFETY: the structure of this ioctl; no addresses are in it.
        unsafe { with_struct(self.fd(), abi::ENABLE_CAP, &mut enable) }.map(drop)
    }

    fn extension(&self, cap: u32) -> Result<u64, Errno> {
        // SAFETY: this ioctl takes a number.
        let answer = unsafe { with_argument(self.fd(), abi::CHECK_EXTENSION, number(u64::from(cap))) }?;
        Ok(u64::try_from(answer).unwrap_or(0))
    }

    fn get_log(&self, slot: &KvmSlot, bits: &mut GuardedBits) -> Result<(), Errno> {
        let words = bits.zeroed(slot.words());
        if words.len() < slot.words() {
            return Err(Errno::NOMEM);
        }
        let mut log = DirtyLog { slot: slot.slot, padding: 0, dirty_bitmap: words.as_mut_ptr() as u64 };
        // SAFETY: the structure of this ioctl. The kernel writes a bit for each page that the slot has. Were that more than `words` holds,
        // since somebody made the slot larger meanwhile, it would come to the guard behind them and fail with EFAULT.
        unsafe { with_struct(self.fd(), abi::GET_DIRTY_LOG, &mut log) }.map(drop)
    }

    fn clear_log(&self, slot: &KvmSlot, first_page: u64, pages: u32, words: &mut [u64]) -> Result<(), Errno> {
        if (words.len() as u64) * 64 < u64::from(pages) {
            return Err(Errno::INVAL);
        }
        let dirty_bitmap = words.as_mut_ptr() as u64;
        let mut clear = ClearDirtyLog { slot: slot.slot, num_pages: pages, first_page, dirty_bitmap };
        // SAFETY: the structure of this ioctl; the kernel reads `pages` bits in whole words, which `words` has.
        unsafe { with_struct(self.fd(), abi::CLEAR_DIRTY_LOG, &mut clear) }.map(drop)
    }

    fn reset_rings(&self) -> Result<(), Errno> {
        loop {
            // SAFETY: this ioctl takes nothing.
            match unsafe { with_argument(self.fd(), abi::RESET_DIRTY_RINGS, number(0)) } {
                // Newer kernels stop for a signal.
                Err(Errno::INTR) => {}
                other => return other.map(drop),
            }
        }
    }
}

/// An error of one of these calls, with what it means there.
pub(super) fn failed(what: &str, errno: Errno) -> ChannelError {
    use ChannelErrorKind as Kind;
    let (kind, meaning) = match errno {
        Errno::IO => (
            Kind::Gone,
            ": the virtual machine belongs to another process, the only one in which KVM's ioctls on it work, or it is dead",
        ),
        Errno::NOENT => (Kind::State, ": there is no such slot, or somebody switched its logging off"),
        Errno::NXIO => (Kind::Unsupported, ": the virtual machine has dirty rings, and so no dirty log"),
        Errno::NOTTY | Errno::OPNOTSUPP => (Kind::Unsupported, ""),
        Errno::NOMEM | Errno::MFILE | Errno::NFILE => (Kind::Limit, ""),
        Errno::BADF => (Kind::Gone, ""),
        _ => (Kind::Device, ""),
    };
    let number = errno.raw_os_error();
    let message = format!("{what}: {}{meaning}", errno_text(number));
    ChannelError { errno: Some(number), ..ChannelError::new(kind, message) }
}

pub(super) fn unsupported(message: impl Into<String>) -> ChannelError {
    ChannelError::new(ChannelErrorKind::Unsupported, message)
}
