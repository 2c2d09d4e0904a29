//! Cancellation of everything that waits.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::EngineError;

/// Wakes a thread that is blocked on a link. Called from any thread, any number of times.
pub trait Wake: Send + Sync {
    /// Makes a blocked read return. Must not block.
    fn wake(&self);
}

#[derive(Default)]
struct State {
    cancelled: bool,
    /// From COMMIT-INTENT on nobody can cancel any more.
    too_late: bool,
    wakers: Vec<Arc<dyn Wake>>,
}

/// A shared flag: once set, every waiting call of the session returns [`EngineError::Cancelled`].
///
/// A session closes it at COMMIT-INTENT: from then on [`Cancel::cancel`] returns `false` and does nothing.
#[derive(Clone, Default)]
pub struct Cancel(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

impl std::fmt::Debug for Cancel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cancel").field("cancelled", &self.is_cancelled()).finish()
    }
}

impl Cancel {
    /// A flag that is not set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is two flags and a list; a panic elsewhere can't leave it half changed.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Cancels. Returns `false` where it is too late: COMMIT-INTENT is being made durable or is.
    pub fn cancel(&self) -> bool {
        let wakers = {
            let mut state = self.lock();
            if state.too_late {
                return false;
            }
            state.cancelled = true;
            state.wakers.clone()
        };
        self.0.changed.notify_all();
        for waker in wakers {
            waker.wake();
        }
        true
    }

    /// Whether it was cancelled in time.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.lock().cancelled
    }

    /// Fails once cancelled.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`].
    pub fn check(&self) -> Result<(), EngineError> {
        if self.is_cancelled() { Err(EngineError::Cancelled) } else { Ok(()) }
    }

    /// Waits, at most `duration`.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] as soon as it is.
    pub fn sleep(&self, duration: Duration) -> Result<(), EngineError> {
        let end = Instant::now() + duration;
        let mut state = self.lock();
        loop {
            if state.cancelled {
                return Err(EngineError::Cancelled);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has `waker` called on cancellation; at once where that has happened already.
    pub fn register(&self, waker: Arc<dyn Wake>) {
        let cancelled = {
            let mut state = self.lock();
            state.wakers.push(Arc::clone(&waker));
            state.cancelled
        };
        if cancelled {
            waker.wake();
        }
    }

    /// Makes cancelling impossible from here on: called right before COMMIT-INTENT. Decides a race with [`Cancel::cancel`].
    ///
    /// # Errors
    /// [`EngineError::Cancelled`] where that came first.
    pub fn close(&self) -> Result<(), EngineError> {
        let mut state = self.lock();
        if state.cancelled {
            return Err(EngineError::Cancelled);
        }
        state.too_late = true;
        Ok(())
    }
}
