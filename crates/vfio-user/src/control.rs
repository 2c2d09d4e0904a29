//! What others want of the thread that reads a connection, and when it has come so far.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
struct Inner {
    /// Number of the last wish, and of the last one that was fulfilled.
    asked: u64,
    done: u64,
}

/// "Everything that the client has sent so far is done": wished by any thread, told by the one that reads.
#[derive(Debug, Default)]
pub(crate) struct Control {
    inner: Mutex<Inner>,
    changed: Condvar,
}

/// How long a thread sleeps before it looks whether what it waits for is gone altogether.
const LOOK: Duration = Duration::from_millis(20);

impl Control {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wishes it. Whoever does wakes the thread that reads, and then waits by [`Control::wait`].
    pub(crate) fn ask(&self) -> u64 {
        let mut inner = self.lock();
        inner.asked += 1;
        inner.asked
    }

    /// The wish that is to be fulfilled, if there is one.
    pub(crate) fn wish(&self) -> Option<u64> {
        let inner = self.lock();
        (inner.asked > inner.done).then_some(inner.asked)
    }

    /// A wish, and all before it, are fulfilled.
    pub(crate) fn fulfil(&self, wish: u64) {
        let mut inner = self.lock();
        inner.done = inner.done.max(wish);
        self.changed.notify_all();
    }

    /// Waits until a wish is fulfilled, at most `limit`, or as long as `there` says that somebody could fulfil it. Returns whether it was, or
    /// nobody is there any more.
    pub(crate) fn wait(&self, wish: u64, limit: Duration, there: impl Fn() -> bool) -> bool {
        let deadline = Instant::now() + limit;
        let mut inner = self.lock();
        while inner.done < wish {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            drop(inner);
            if !there() {
                return true;
            }
            inner = self.lock();
            if inner.done < wish {
                inner = self.changed.wait_timeout(inner, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
            }
        }
        true
    }
}
