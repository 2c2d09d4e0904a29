//! A shared pointer that is read without a lock and replaced while it is read.
//!
//! A reader announces itself in a counter, loads the pointer, looks, and leaves. A writer exchanges the pointer and then
//! finds each counter at zero once, by a read-modify-write: a reader that counts later reads from that operation, so it
//! finds the new pointer; one that counted earlier has left. The old pointer then has no reader by this structure's
//! reference, which can be handed back. No code of a user runs between announcing and leaving, so the wait is a few
//! nanoseconds, unless the scheduler takes a reader away there. Readers are spread over a few counters, so that vCPUs do
//! not share a cache line.

use alloc::sync::Arc;
use core::marker::PhantomData;

use super::sync::{AtomicPtr, AtomicUsize, Ordering, STRIPES, pause, stripe};

/// One counter a cache line pair: adjacent-line prefetch couples two lines on x86-64.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Counter(AtomicUsize);

#[derive(Debug)]
pub(super) struct Published<T> {
    current: AtomicPtr<T>,
    readers: [Counter; STRIPES],
    owns: PhantomData<Arc<T>>,
}

struct Reading<'a>(&'a AtomicUsize);

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Release);
    }
}

impl<T> Published<T> {
    pub fn new(value: Arc<T>) -> Self {
        Self {
            current: AtomicPtr::new(Arc::into_raw(value).cast_mut()),
            readers: Default::default(),
            owns: PhantomData,
        }
    }

    /// Looks at the current value. `look` must be short and must not call out.
    #[inline]
    pub fn with<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        let _reading = self.enter();
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: `current` came from `Arc::into_raw` and this structure owns one reference to it until `replace` has
        // exchanged it and then found this reader's counter at zero, which is not before `_reading` is dropped.
        look(unsafe { &*current })
    }

    /// The current value, to be kept.
    pub fn load(&self) -> Arc<T> {
        let _reading = self.enter();
        let current = self.current.load(Ordering::Acquire);
        // SAFETY: as in `with`, the reference that this structure owns is alive until `_reading` is dropped, so the count
        // may be raised; `from_raw` then takes the reference that was just added.
        unsafe {
            Arc::increment_strong_count(current);
            Arc::from_raw(current)
        }
    }

    /// Exchanges the value and returns the old one, once no reader looks at it by this structure's reference.
    pub fn replace(&self, value: Arc<T>) -> Arc<T> {
        let old = self.current.swap(Arc::into_raw(value).cast_mut(), Ordering::AcqRel);
        for counter in &self.readers {
            while !Self::quiet(&counter.0) {
                pause();
            }
        }
        // SAFETY: `old` came from `Arc::into_raw`. It was taken out of `current` by an exchange, so no other writer has it,
        // and no reader does any more, as argued above: the reference that this structure owned is ours.
        unsafe { Arc::from_raw(old) }
    }

    /// Whether nobody is counted. The load keeps the wait from fighting the readers for the cache line; what decides is the
    /// read-modify-write, which is in one order with the readers' own.
    fn quiet(counter: &AtomicUsize) -> bool {
        counter.load(Ordering::Relaxed) == 0 && counter.fetch_add(0, Ordering::AcqRel) == 0
    }

    #[inline]
    fn enter(&self) -> Reading<'_> {
        let counter = &self.readers[stripe()].0;
        // Acquire: to see the pointer that a writer had put there before it found this counter at zero.
        counter.fetch_add(1, Ordering::AcqRel);
        Reading(counter)
    }
}

impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self` excludes readers and writers; the pointer came from `Arc::into_raw` and its reference is ours.
        drop(unsafe { Arc::from_raw(self.current.load(Ordering::Acquire)) });
    }
}
