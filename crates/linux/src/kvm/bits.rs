//! [`GuardedBits`]: memory for a slot's bitmap whose end the kernel can't cross.

use std::ptr::NonNull;

use rustix::mm::{MapFlags, MprotectFlags, ProtFlags, mmap_anonymous, mprotect, munmap};
use rustix::param::page_size;
use towline_core::channel::ChannelError;

use super::vm::failed;

/// Words with a page behind them that nobody can write.
///
/// KVM writes as many bits as a slot has pages, and is not told how many there is room for. The VMM may have replaced the slot by a larger
/// one without saying so; then the call fails, and no memory of this process is overwritten.
#[derive(Debug)]
pub(super) struct GuardedBits {
    base: NonNull<u8>,
    /// Without the guard.
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread; access goes by the rules of `&` and `&mut`.
unsafe impl Send for GuardedBits {}

impl GuardedBits {
    /// Room for `words` words, at least 1.
    pub(super) fn new(words: usize) -> Result<Self, ChannelError> {
        let page = page_size();
        let no_memory = || failed("mmap of a bitmap", rustix::io::Errno::NOMEM);
        let bytes = words.max(1).checked_mul(8).and_then(|b| b.checked_next_multiple_of(page)).ok_or_else(no_memory)?;
        let len = bytes.checked_add(page).ok_or_else(no_memory)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so the kernel chooses one at which nothing else of this process lies.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE | MapFlags::NORESERVE) }
            .map_err(|errno| failed(&format!("mmap of a bitmap of {len} bytes"), errno))?;
        let bits = Self { base: NonNull::new(base.cast()).ok_or_else(no_memory)?, bytes };
        // SAFETY: the last page of exactly this mapping, which nobody uses yet.
        unsafe { mprotect(bits.base.as_ptr().add(bytes).cast(), page, MprotectFlags::empty()) }
            .map_err(|errno| failed("mprotect of a bitmap's guard", errno))?;
        Ok(bits)
    }

    /// The most words that there are.
    pub(super) fn capacity(&self) -> usize {
        self.bytes / 8
    }

    /// The last `words` words before the guard, all 0; fewer where there aren't as many.
    pub(super) fn zeroed(&mut self, words: usize) -> &mut [u64] {
        let words = self.words(words);
        words.fill(0);
        words
    }

    /// The last `words` words before the guard as they are; fewer where there aren't as many.
    pub(super) fn words(&mut self, words: usize) -> &mut [u64] {
        let words = words.min(self.bytes / 8);
        // SAFETY: `base .. base + bytes` is mapped, readable and writable until drop, `bytes` and `base` are multiples of a page, and
        // nobody else has it; the kernel writes it only during calls that borrow the slice. Any bytes are words.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(self.bytes - words * 8).cast(), words) }
    }
}

impl Drop for GuardedBits {
    fn drop(&mut self) {
        // SAFETY: `new` made exactly this mapping, and slices of it don't outlive `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes + page_size()) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_kernel_writes_up_to_the_guard_and_no_further() {
        let mut bits = GuardedBits::new(600).unwrap();
        let words = bits.zeroed(600);
        assert_eq!(words.len(), 600);
        words.fill(7);
        assert!(bits.words(600).iter().all(|w| *w == 7));
        let file = std::fs::File::open("/dev/zero").unwrap();
        let start = bits.words(600).as_mut_ptr().cast::<u8>();
        // SAFETY: 600 words of our own; bytes behind them are never reached, as the kernel stops at the guard.
        let room = unsafe { std::slice::from_raw_parts_mut(start, 600 * 8) };
        assert_eq!(rustix::io::read(file.as_fd(), &mut *room).unwrap(), 4800);
        // SAFETY: only the kernel uses the length, and finds out that the page behind is not to be written.
        let beyond = unsafe { std::slice::from_raw_parts_mut(start.wrapping_add(4800), 1) };
        assert_eq!(rustix::io::read(file.as_fd(), beyond), Err(rustix::io::Errno::FAULT));
        assert!(bits.words(usize::MAX).len() >= 600);
    }
}
