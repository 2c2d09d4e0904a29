//! How long a link waits: until it is cancelled, or nothing has moved for too long.

use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::LinkError;

/// See the file's comment.
pub(super) struct Patience {
    pub(super) idle_timeout: Duration,
    pub(super) cancel: Option<Cancel>,
}

impl Patience {
    pub(super) fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, cancel: None }
    }

    /// Whether to go on at all.
    pub(super) fn check_cancel(&self) -> Result<(), LinkError> {
        match &self.cancel {
            Some(cancel) if cancel.is_cancelled() => Err(LinkError::Cancelled),
            _ => Ok(()),
        }
    }

    /// Whether to go on waiting for `peer`, of whom nothing came `since`.
    pub(super) fn check_wait(&self, peer: &str, since: Instant, attempted: &'static str) -> Result<(), LinkError> {
        self.check_cancel()?;
        let idle = since.elapsed();
        if idle >= self.idle_timeout {
            let idle_ms = u64::try_from(idle.as_millis()).unwrap_or(u64::MAX);
            return Err(LinkError::Idle { peer: peer.to_owned(), attempted, idle_ms });
        }
        Ok(())
    }
}
