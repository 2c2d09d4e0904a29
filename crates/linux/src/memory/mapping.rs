//! One shared mapping and the copies in and out of it: everything about guest memory that needs `unsafe`.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use towline_core::memory::MappedSlice;

const WORD: usize = size_of::<u64>();

/// From so many bytes on, one string instruction is faster than a loop over words, most of all where memory is not in a cache.
#[cfg(target_arch = "x86_64")]
const STRING_BYTES: usize = 1024;

/// # Safety
/// `from` is readable and `to` writable for `len` bytes; the two don't overlap. Either may be memory that others access meanwhile.
#[cfg(target_arch = "x86_64")]
unsafe fn copy_string(from: *const u8, to: *mut u8, len: usize) {
    // SAFETY: the caller vouches for both ranges. To the compiler this is opaque, so it assumes nothing about bytes that change
    // meanwhile; to the processor it is a sequence of loads and stores of single bytes (Intel SDM, "REP MOVSB"), each of them
    // atomic. The direction flag is clear in every assembly block.
    unsafe {
        std::arch::asm!(
            "rep movsb",
            inout("rcx") len => _,
            inout("rsi") from => _,
            inout("rdi") to => _,
            options(nostack, preserves_flags)
        );
    }
}

/// A shared mapping of a file, unmapped on drop.
///
/// Invariant: `base .. base + len` is mapped, readable, and writable where `writable`, until drop; `base` is page aligned.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to no thread, and every access to its bytes through `&self` is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `fd` from `offset`. The caller has checked that both are page aligned and inside of the file.
    pub(super) fn new(fd: BorrowedFd<'_>, offset: u64, len: usize, writable: bool) -> rustix::io::Result<Self> {
        let prot = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: no address is asked for, so the kernel chooses one at which nothing else of this process lies.
        let base =
            unsafe { mmap(std::ptr::null_mut(), len, prot, MapFlags::SHARED | MapFlags::NORESERVE, fd, offset) }?;
        match NonNull::new(base.cast::<u8>()) {
            Some(base) => Ok(Self { base, len, writable }),
            None => Err(rustix::io::Errno::NOMEM),
        }
    }

    pub(super) fn writable(&self) -> bool {
        self.writable
    }

    /// The address of `offset`, where `offset .. offset + len` is inside.
    fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset <= self.len`, so the result is inside of the mapping or one past its end.
        Some(unsafe { self.base.add(offset) })
    }

    /// The bytes `offset .. offset + len` for as long as the mapping lives.
    pub(super) fn slice(&self, offset: usize, len: usize) -> Option<MappedSlice> {
        self.at(offset, len).map(|ptr| MappedSlice { ptr, len })
    }

    /// Copies out. `false`, and nothing done, where the range is not inside.
    pub(super) fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, out.len()) else { return false };
        #[cfg(target_arch = "x86_64")]
        if out.len() >= STRING_BYTES {
            // SAFETY: `at` checked the whole range; `out` is ours, and no reference to mapped bytes exists.
            unsafe { copy_string(from.as_ptr(), out.as_mut_ptr(), out.len()) };
            return true;
        }
        let (head, rest) = out.split_at_mut(lead(offset, out.len()));
        let mut from = from.as_ptr();
        for byte in head {
            // SAFETY: `at` checked the whole range; `from` steps through it one byte at a time.
            (*byte, from) = unsafe { (AtomicU8::from_ptr(from).load(Ordering::Relaxed), from.add(1)) };
        }
        let mut words = rest.chunks_exact_mut(WORD);
        for word in &mut words {
            // SAFETY: inside of the range that `at` checked, and aligned to 8: `base` is, and `lead` stepped up to a
            // multiple of 8. References are never made; everybody who touches the bytes does so by atomics or from outside of
            // this program.
            let value = unsafe { AtomicU64::from_ptr(from.cast()).load(Ordering::Relaxed) };
            word.copy_from_slice(&value.to_ne_bytes());
            // SAFETY: one word further is inside of the checked range or one past its end.
            from = unsafe { from.add(WORD) };
        }
        for byte in words.into_remainder() {
            // SAFETY: as for the head.
            (*byte, from) = unsafe { (AtomicU8::from_ptr(from).load(Ordering::Relaxed), from.add(1)) };
        }
        true
    }

    /// Copies in. `false`, and nothing done, where the range is not inside or the mapping is read-only.
    pub(super) fn write(&self, offset: usize, data: &[u8]) -> bool {
        let Some(to) = self.at(offset, data.len()).filter(|_| self.writable) else { return false };
        #[cfg(target_arch = "x86_64")]
        if data.len() >= STRING_BYTES {
            // SAFETY: `at` checked the whole range, which is writable; `data` is no mapped memory, as no reference to that exists.
            unsafe { copy_string(data.as_ptr(), to.as_ptr(), data.len()) };
            return true;
        }
        let (head, rest) = data.split_at(lead(offset, data.len()));
        let mut to = to.as_ptr();
        for byte in head {
            // SAFETY: `at` checked the whole range; `to` steps through it one byte at a time; the mapping is writable.
            to = unsafe {
                AtomicU8::from_ptr(to).store(*byte, Ordering::Relaxed);
                to.add(1)
            };
        }
        let (words, tail) = rest.as_chunks::<WORD>();
        for word in words {
            // SAFETY: inside of the checked range, writable, and aligned to 8 as in `read`.
            to = unsafe {
                AtomicU64::from_ptr(to.cast()).store(u64::from_ne_bytes(*word), Ordering::Relaxed);
                to.add(WORD)
            };
        }
        for byte in tail {
            // SAFETY: as for the head.
            to = unsafe {
                AtomicU8::from_ptr(to).store(*byte, Ordering::Relaxed);
                to.add(1)
            };
        }
        true
    }

    /// Loads a little-endian u32. `None` where it is not inside or not aligned.
    pub(super) fn load_u32(&self, offset: usize) -> Option<u32> {
        let at = self.at(offset, 4).filter(|_| offset.is_multiple_of(4))?;
        // SAFETY: inside, and aligned to 4 because `base` is page aligned.
        Some(u32::from_le(unsafe { AtomicU32::from_ptr(at.as_ptr().cast()).load(Ordering::Acquire) }))
    }

    /// Stores a little-endian u32. `false` where it is not inside, not aligned, or the mapping is read-only.
    pub(super) fn store_u32(&self, offset: usize, value: u32) -> bool {
        let Some(at) = self.at(offset, 4).filter(|_| offset.is_multiple_of(4) && self.writable) else { return false };
        // SAFETY: inside, writable, and aligned to 4 because `base` is page aligned.
        unsafe { AtomicU32::from_ptr(at.as_ptr().cast()).store(value.to_le(), Ordering::Release) };
        true
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `new` made exactly this mapping; nobody can hold an address into it beyond the life of `self`, which
        // `MappedMemory` keeps alive for every access. A failure leaks address space and nothing else.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// How many bytes lie before the first multiple of 8, at most `len`.
fn lead(offset: usize, len: usize) -> usize {
    (offset.wrapping_neg() % WORD).min(len)
}
