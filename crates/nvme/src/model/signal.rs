//! Wakes a worker. Setting it twice is setting it once; nothing is lost between a look and a wait.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// The guarded value, also where another thread panicked with it: every value behind our locks is valid at any time.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
pub(crate) struct Signal {
    set: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub(crate) fn set(&self) {
        *lock(&self.set) = true;
        self.changed.notify_one();
    }

    /// Waits until it is set or `deadline` has passed, and clears it.
    pub(crate) fn wait(&self, deadline: Option<Instant>) {
        let mut set = lock(&self.set);
        while !*set {
            match deadline {
                None => set = self.changed.wait(set).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|d| !d.is_zero()) else {
                        break;
                    };
                    set = self.changed.wait_timeout(set, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        *set = false;
    }
}
