//! Where the device's interrupts arrive, and what the tenant sleeps on.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use towline_nvme::model::InterruptSink;

/// MSI-X messages that were not looked at yet.
#[derive(Debug, Default)]
pub struct TenantInterrupts {
    inner: Mutex<Inner>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    pending: bool,
    raised: u64,
}

impl InterruptSink for TenantInterrupts {
    fn raise(&self, vector: u16) {
        Self::raise(self, vector);
    }
}

impl TenantInterrupts {
    /// Without any pending.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The device signals `vector`. All vectors wake the same thread, which looks at every queue.
    pub fn raise(&self, vector: u16) {
        let _ = vector;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.raised += 1;
        inner.pending = true;
        self.arrived.notify_one();
    }

    /// How many were raised.
    #[must_use]
    pub fn raised(&self) -> u64 {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).raised
    }

    /// Wakes the sleeper without an interrupt.
    pub(crate) fn kick(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).pending = true;
        self.arrived.notify_all();
    }

    /// Sleeps until something arrives, at most `timeout`.
    pub(crate) fn wait(&self, timeout: Duration) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if !inner.pending {
            inner = self.arrived.wait_timeout(inner, timeout).unwrap_or_else(PoisonError::into_inner).0;
        }
        inner.pending = false;
    }
}
