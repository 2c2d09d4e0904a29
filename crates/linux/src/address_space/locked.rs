//! [`LockedBits`]: memory for bitmaps that the kernel can always write.

use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use towline_core::channel::ChannelError;

use crate::iommu_error::failed;

/// Words that are in memory and locked there from the beginning.
///
/// iommufd and the logs of VFIO devices pin the bitmap while they clear dirty bits; where they can't, the bits are cleared, told
/// nowhere, and the call succeeds. So what it is given is private memory that has its pages already, keeps them, and isn't shared with a child.
#[derive(Debug)]
pub(crate) struct LockedBits {
    base: NonNull<u64>,
    words: usize,
}

// SAFETY: the mapping belongs to no thread; access goes by the rules of `&` and `&mut`.
unsafe impl Send for LockedBits {}

impl LockedBits {
    /// `words` words of 0, at least 1.
    pub(crate) fn new(words: usize) -> Result<Self, ChannelError> {
        let words = words.max(1);
        let len = words.saturating_mul(8);
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::POPULATE);
        // SAFETY: no address is asked for, so the kernel chooses one at which nothing else of this process lies.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, prot, flags) }
            .map_err(|errno| failed(&format!("mmap of a bitmap of {len} bytes"), errno, ""))?;
        let base = NonNull::new(base.cast::<u64>())
            .ok_or_else(|| failed("mmap of a bitmap", rustix::io::Errno::NOMEM, "address 0"))?;
        let bits = Self { base, words };
        // SAFETY: exactly the mapping that was just made. It stays valid memory.
        unsafe { mlock(base.as_ptr().cast(), len) }.map_err(|errno| {
            let meaning = "the bitmap of dirty pages has to be locked (RLIMIT_MEMLOCK, CAP_IPC_LOCK)";
            failed(&format!("mlock of {len} bytes"), errno, meaning)
        })?;
        // A child would share the pages, and the next write here would be to a copy. A failure costs that copy only.
        // SAFETY: the mapping that was just made; a child doesn't have it then, and no code of a child uses it.
        let _ = unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxDontFork) };
        Ok(bits)
    }

    /// How many there are.
    pub(crate) fn words(&self) -> usize {
        self.words
    }

    /// The first `words` words, all 0; fewer where there aren't as many.
    pub(crate) fn zeroed(&mut self, words: usize) -> &mut [u64] {
        // SAFETY: `base` is mapped, readable, writable and aligned for `self.words` words until drop; nobody else has it, and
        // the kernel writes it only during calls that borrow the slice. Any bytes are words.
        let all = unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.words) };
        let some = &mut all[..words.min(self.words)];
        some.fill(0);
        some
    }
}

impl Drop for LockedBits {
    fn drop(&mut self) {
        // SAFETY: `new` made exactly this mapping, and slices of it don't outlive `self`.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.words * 8) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_locked_zero_and_as_long_as_asked() {
        let locked = || {
            let status = std::fs::read_to_string("/proc/thread-self/smaps").unwrap();
            status.matches(" lo ").count() + status.matches(" lo\n").count()
        };
        let before = locked();
        let mut bits = LockedBits::new(8192).unwrap();
        assert!(locked() > before, "no locked mapping more");
        let words = bits.zeroed(8192);
        assert_eq!(words.len(), 8192);
        assert!(words.iter().all(|w| *w == 0));
        words.fill(7);
        assert_eq!(bits.zeroed(3), [0; 3]);
        assert_eq!(bits.zeroed(9000).len(), 8192);
        assert_eq!(bits.words(), 8192);
    }
}
