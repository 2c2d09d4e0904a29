//! The bandwidth limit.

use std::time::Instant;

use towline_core::bucket::TokenBucket;

use crate::cancel::Cancel;
use crate::error::EngineError;

/// Holds a sender back to a limit; without one it costs nothing.
#[derive(Debug)]
pub struct Pacer {
    bucket: Option<TokenBucket>,
    start: Instant,
}

impl Pacer {
    /// `limit` in bytes per second.
    #[must_use]
    pub fn new(limit: Option<u64>) -> Self {
        Self { bucket: limit.map(|l| TokenBucket::new(l, 0)), start: Instant::now() }
    }

    /// Waits until `bytes` may be sent.
    ///
    /// # Errors
    /// [`EngineError::Cancelled`].
    pub fn pace(&mut self, bytes: u64, cancel: &Cancel) -> Result<(), EngineError> {
        let now = self.now_ns();
        let Some(bucket) = &mut self.bucket else { return Ok(()) };
        let wait = bucket.take(bytes, now);
        if wait.is_zero() { Ok(()) } else { cancel.sleep(wait) }
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
