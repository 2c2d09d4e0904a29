//! A read-write lock that spins: `no_std` has no other.
//!
//! Readers hold it for a few instructions, writers (a range of guest memory comes or goes, tracking starts or stops) are
//! rare. A writer waits for readers and keeps new ones out.

use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use core::sync::atomic::{AtomicU32, Ordering};

const WRITER: u32 = 1 << 31;

pub(super) struct SpinRw<T> {
    /// [`WRITER`], or how many readers.
    state: AtomicU32,
    value: UnsafeCell<T>,
}

// SAFETY: as std's RwLock: `&T` reaches several threads (T: Sync), and `&mut T` any thread (T: Send).
unsafe impl<T: Send + Sync> Sync for SpinRw<T> {}

pub(super) struct Read<'a, T>(&'a SpinRw<T>);
pub(super) struct Write<'a, T>(&'a SpinRw<T>);

impl<T> SpinRw<T> {
    pub(super) const fn new(value: T) -> Self {
        Self { state: AtomicU32::new(0), value: UnsafeCell::new(value) }
    }

    pub(super) fn read(&self) -> Read<'_, T> {
        loop {
            // Adding first costs one step where a compare-and-set loop would take several under contention. Fewer than
            // 2^31 threads exist, so readers that back out again never reach the writer's bit.
            if self.state.fetch_add(1, Ordering::Acquire) & WRITER == 0 {
                return Read(self);
            }
            self.state.fetch_sub(1, Ordering::Relaxed);
            while self.state.load(Ordering::Relaxed) & WRITER != 0 {
                core::hint::spin_loop();
            }
        }
    }

    pub(super) fn write(&self) -> Write<'_, T> {
        while self.state.fetch_or(WRITER, Ordering::Acquire) & WRITER != 0 {
            while self.state.load(Ordering::Relaxed) & WRITER != 0 {
                core::hint::spin_loop();
            }
        }
        // The bit keeps new readers out; wait for the old ones.
        while self.state.load(Ordering::Acquire) != WRITER {
            core::hint::spin_loop();
        }
        Write(self)
    }
}

impl<T> Deref for Read<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: this reader is counted, so no writer holds the lock.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> Drop for Read<'_, T> {
    fn drop(&mut self) {
        self.0.state.fetch_sub(1, Ordering::Release);
    }
}

impl<T> Deref for Write<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the only writer, and no reader is counted that got past the writer's bit.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Write<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and `&mut self` makes this reference the only one.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Write<'_, T> {
    fn drop(&mut self) {
        // Not a store of 0: readers that are backing out are still counted.
        self.0.state.fetch_and(!WRITER, Ordering::Release);
    }
}

impl<T: Default> Default for SpinRw<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}
