//! The rate limit that the controlling function puts on another controller's I/O, so that its writes to guest memory slow down.
//!
//! Commands are delayed and never failed: while a controller owes time, it fetches nothing from its I/O queues. What it had
//! fetched is done, so that Suspend has nothing to wait for because of the limit. The admin queue is never held up.
//! The limit is a fact of this host: it is no part of the controller state, and ends when the controller goes offline.

use std::time::Instant;

use towline_core::bucket::TokenBucket;

use super::engine::Engine;
use super::queue::{Failure, Outcome};
use super::subsystem::Inner;
use crate::command::SubmissionEntry;
use crate::limit::{RateLimit, RateLimitPart};
use crate::status::StatusCode;

/// What a controller may do in a second.
#[derive(Clone, Debug, Default)]
pub(crate) struct Limiter {
    buckets: Option<Buckets>,
    /// While its I/O queues wait: until when.
    held_until: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Buckets {
    limit: RateLimit,
    since: Instant,
    bytes: Option<TokenBucket>,
    commands: Option<TokenBucket>,
}

impl Buckets {
    fn now_ns(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.since).as_nanos()).unwrap_or(u64::MAX)
    }
}

impl Limiter {
    fn set(&mut self, limit: RateLimit) {
        let bucket = |rate: u64| (rate != 0).then(|| TokenBucket::new(rate, 0));
        self.held_until = None;
        self.buckets = (limit != RateLimit::NONE).then(|| Buckets {
            limit,
            since: Instant::now(),
            bytes: bucket(limit.bytes_per_s),
            commands: bucket(limit.commands_per_s.into()),
        });
    }

    /// What was set; [`RateLimit::NONE`] where nothing was.
    pub fn limit(&self) -> RateLimit {
        self.buckets.as_ref().map_or(RateLimit::NONE, |buckets| buckets.limit)
    }

    /// Lifts it.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// Whether the I/O queues have to wait now; [`Limiter::deadline`] tells for how long then.
    pub fn holds(&mut self) -> bool {
        let Some(buckets) = &mut self.buckets else { return false };
        let now = Instant::now();
        let now_ns = buckets.now_ns(now);
        let owed = [&mut buckets.bytes, &mut buckets.commands].into_iter().flatten().map(|b| b.take(0, now_ns)).max();
        let wait = owed.filter(|wait| !wait.is_zero());
        self.held_until = wait.and_then(|wait| now.checked_add(wait));
        wait.is_some()
    }

    /// A command of so many bytes of data was carried out.
    pub fn charge(&mut self, data_bytes: u64) {
        let Some(buckets) = &mut self.buckets else { return };
        let now_ns = buckets.now_ns(Instant::now());
        if let Some(bytes) = &mut buckets.bytes {
            bytes.take(data_bytes, now_ns);
        }
        if let Some(commands) = &mut buckets.commands {
            commands.take(1, now_ns);
        }
    }

    /// Nothing waits for the limit any more.
    pub fn release(&mut self) {
        self.held_until = None;
    }

    /// When the I/O queues are to be looked at again.
    pub fn deadline(&self) -> Option<Instant> {
        self.held_until
    }
}

impl Engine {
    /// The controller that a rate limit is about. One that is offline has none, and gets none: its next tenant starts without.
    fn limited<R>(&self, cdw11: u32, f: impl FnOnce(&mut Limiter) -> R) -> Result<R, Failure> {
        let inner: std::sync::Arc<Inner> =
            self.subsystem.as_ref().and_then(std::sync::Weak::upgrade).ok_or(StatusCode::InvalidField)?;
        let target = self.target(&inner, cdw11 as u16)?;
        target.with(|engine| {
            if engine.presence() != super::front::Presence::Online {
                return Err(StatusCode::InvalidSecondaryControllerState.into());
            }
            Ok(f(&mut engine.limiter))
        })
    }

    /// Set Features of [`crate::command::feature::RATE_LIMIT`].
    pub(crate) fn set_rate_limit(&self, entry: &SubmissionEntry) -> Outcome {
        if entry.cdw11 >> 16 != 0 {
            return Err(StatusCode::InvalidField.into());
        }
        let bytes_per_s = u64::from(entry.cdw12) | u64::from(entry.cdw13) << 32;
        let limit = RateLimit { bytes_per_s, commands_per_s: entry.cdw15 };
        self.limited(entry.cdw11, |limiter| limiter.set(limit)).map(|()| 0)
    }

    /// Get Features of it.
    pub(crate) fn get_rate_limit(&self, entry: &SubmissionEntry) -> Outcome {
        let part = RateLimitPart::of((entry.cdw11 >> 16) as u16).ok_or(StatusCode::InvalidField)?;
        let limit = self.limited(entry.cdw11, |limiter| limiter.limit())?;
        Ok(match part {
            RateLimitPart::BytesPerSecond => limit.bytes_per_s,
            RateLimitPart::CommandsPerSecond => limit.commands_per_s.into(),
        })
    }
}
