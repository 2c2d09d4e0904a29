//! The bandwidth limit.

use std::time::{Duration, Instant};

use crate::cancel::Cancel;
use crate::error::EngineError;

/// Token bucket arithmetic over a clock in nanoseconds that the caller reads, so that it is tested by counting.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    bytes_per_s: u64,
    burst_bytes: u64,
    /// Tokens in units of bytes * 1e9, so that nothing is lost by rounding. May be negative: a debt is waited for.
    tokens: i128,
    last_ns: u64,
}

const NS: i128 = 1_000_000_000;

impl TokenBucket {
    /// A bucket which gives `bytes_per_s` (at least 1) and holds what comes in within 20 ms.
    #[must_use]
    pub fn new(bytes_per_s: u64, now_ns: u64) -> Self {
        let burst_bytes = (bytes_per_s / 50).max(1);
        Self { bytes_per_s: bytes_per_s.max(1), burst_bytes, tokens: i128::from(burst_bytes) * NS, last_ns: now_ns }
    }

    /// Takes `bytes` and returns how long to wait before sending them. What is waited for is owed, so that a batch may be
    /// larger than the bucket.
    pub fn take(&mut self, bytes: u64, now_ns: u64) -> Duration {
        let elapsed = now_ns.saturating_sub(self.last_ns);
        self.last_ns = now_ns.max(self.last_ns);
        let full = i128::from(self.burst_bytes) * NS;
        self.tokens = (self.tokens + i128::from(elapsed) * i128::from(self.bytes_per_s)).min(full);
        self.tokens -= i128::from(bytes) * NS;
        if self.tokens >= 0 {
            return Duration::ZERO;
        }
        let wait_ns = (-self.tokens) / i128::from(self.bytes_per_s);
        Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(u64::MAX))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends `n` batches as fast as the bucket lets, and tells the nanoseconds that it took.
    fn run(bucket: &mut TokenBucket, n: u64, bytes: u64) -> u64 {
        let mut now = 0;
        for _ in 0..n {
            now += u64::try_from(bucket.take(bytes, now).as_nanos()).unwrap();
        }
        now
    }

    #[test]
    fn the_rate_is_kept_whatever_the_batch() {
        for rate in [1_000, 1_000_000, 12_500_000_000] {
            for bytes in [1, 4096, 1 << 20] {
                let n = (rate / bytes).clamp(100, 20_000);
                let ns = run(&mut TokenBucket::new(rate, 0), n, bytes);
                let sent = u128::from(n * bytes);
                let allowed =
                    u128::from(rate) * u128::from(ns) / 1_000_000_000 + u128::from(rate / 50) + u128::from(bytes);
                assert!(sent <= allowed, "rate {rate} batch {bytes}: sent {sent}, allowed {allowed}");
                // And it is not held back below the rate either.
                assert!(u128::from(ns) <= sent * 1_000_000_000 / u128::from(rate) + u128::from(n));
            }
        }
    }

    #[test]
    fn idle_time_does_not_pile_up() {
        let mut bucket = TokenBucket::new(1_000_000, 0);
        // An hour of silence buys 20 ms worth, no more.
        assert!(bucket.take(20_000, 3_600_000_000_000).is_zero());
        assert!(bucket.take(1_000, 3_600_000_000_000) >= Duration::from_micros(1_000));
    }
}
