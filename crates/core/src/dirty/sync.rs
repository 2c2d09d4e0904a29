//! The atomics of this module. `tests/loom_dirty.rs` puts loom's in their place and compiles the same `levels.rs`.

use alloc::boxed::Box;
pub(super) use core::sync::atomic::{AtomicU64, Ordering};

/// `count` words of zero. The pages of a large allocation stay untouched until they are marked.
pub(super) fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
    let words: Box<[u64]> = alloc::vec![0u64; count].into_boxed_slice();
    let raw = Box::into_raw(words);
    // SAFETY: `AtomicU64` has the size and bit validity of `u64`, and `u64`'s alignment is checked below to be the
    // same, so that the allocation is freed with the layout that it was made with; `raw` is owned and not used again.
    unsafe { Box::from_raw(raw as *mut [AtomicU64]) }
}

const _: () = assert!(align_of::<u64>() == align_of::<AtomicU64>() && size_of::<u64>() == size_of::<AtomicU64>());
