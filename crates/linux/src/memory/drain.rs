//! Waits until every access to a region that is on its way out has ended.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

/// Counts the accesses that are under way.
#[derive(Debug, Default)]
pub(super) struct Drain {
    active: AtomicUsize,
    closing: AtomicBool,
    lock: Mutex<()>,
    ended: Condvar,
}

impl Drain {
    /// An access begins. The caller holds the lock under which [`Drain::wait`]'s caller made the region unreachable.
    pub(super) fn enter(&self) {
        self.active.fetch_add(1, Ordering::SeqCst);
    }

    /// An access ends.
    pub(super) fn leave(&self) {
        // Sequentially consistent on both sides: either this sees `closing`, or the waiter sees the count without this access.
        if self.active.fetch_sub(1, Ordering::SeqCst) == 1 && self.closing.load(Ordering::SeqCst) {
            // Taken so that the notification cannot fall between the waiter's check and its sleep.
            let _held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
            self.ended.notify_all();
        }
    }

    /// Returns when no access is under way. Nobody calls [`Drain::enter`] any more.
    pub(super) fn wait(&self) {
        self.closing.store(true, Ordering::SeqCst);
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        while self.active.load(Ordering::SeqCst) != 0 {
            held = self.ended.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
    }
}
