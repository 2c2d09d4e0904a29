//! The atomics of `published.rs`, apart from it so that a model checker's can take their place.

pub(super) use core::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

/// Counters over which readers are spread.
pub(super) const STRIPES: usize = 8;

/// One of them, by the address of the caller's stack, which differs between threads.
#[inline]
pub(super) fn stripe() -> usize {
    let marker = 0u8;
    let stack = (&raw const marker).addr() as u64 >> 12;
    (stack.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61) as usize % STRIPES
}

/// While waiting for a reader.
#[inline]
pub(super) fn pause() {
    core::hint::spin_loop();
}
