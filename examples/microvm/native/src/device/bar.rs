//! BAR 0 as the guest reaches it: through the filter, on the vCPU's own thread, then over the socket.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::client::Client;
use crate::filter::{Filter, Outcome, Target};

/// Where doorbells begin in BAR 0 (NVMe Base 2.1, 3.1.4; CAP.DSTRD is 0 here).
pub const DOORBELLS: u64 = 0x1000;

/// What the filter did.
#[derive(Default)]
pub struct FilterCounts {
    pub passed: AtomicU64,
    pub changed: AtomicU64,
    pub denied: AtomicU64,
}

/// See the module.
pub struct Bar0 {
    client: Arc<Client>,
    bytes: u64,
    filter: RwLock<Option<Arc<Filter>>>,
    pub counts: FilterCounts,
}

/// The BAR at the other end of the socket. An access that fails reads as ones, as one to a device that is gone.
struct Remote<'a>(&'a Client);

impl Target for Remote<'_> {
    fn read(&self, offset: u64, out: &mut [u8]) {
        if self.0.read(0, offset, out).is_err() {
            out.fill(0xff);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // A doorbell is not waited for: it only says that there is something to look at. The client keeps why it failed.
        let _ = if offset >= DOORBELLS { self.0.post(0, offset, data) } else { self.0.write(0, offset, data) };
    }
}

impl Bar0 {
    pub fn new(client: Arc<Client>, bytes: u64, filter: Option<Filter>) -> Self {
        Self { client, bytes, filter: RwLock::new(filter.map(Arc::new)), counts: FilterCounts::default() }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn filter(&self) -> Option<Arc<Filter>> {
        self.filter.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub fn set_filter(&self, filter: Option<Filter>) {
        *self.filter.write().unwrap_or_else(PoisonError::into_inner) = filter.map(Arc::new);
    }

    fn count(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Passed => &self.counts.passed,
            Outcome::Changed => &self.counts.changed,
            Outcome::Denied => &self.counts.denied,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub fn read(&self, offset: u64, out: &mut [u8]) {
        let remote = Remote(&self.client);
        match self.filter() {
            Some(filter) => self.count(filter.read(&remote, offset, out)),
            None => remote.read(offset, out),
        }
    }

    pub fn write(&self, offset: u64, data: &[u8]) {
        let remote = Remote(&self.client);
        match self.filter() {
            Some(filter) => self.count(filter.write(&remote, offset, data)),
            None => remote.write(offset, data),
        }
    }

    /// Whether a doorbell reaches the device as it is rung, so that nobody has to look at the access itself.
    pub fn passes_doorbell(&self, offset: u64) -> bool {
        offset.checked_add(4).is_some_and(|end| end <= self.bytes)
            && self.filter().is_none_or(|f| f.passes_write32(offset))
    }
}
