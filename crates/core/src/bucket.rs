//! [`TokenBucket`]: how long to wait so that a rate is kept.

use core::time::Duration;

/// Token bucket arithmetic over a clock in nanoseconds that the caller reads, so that it is tested by counting. A token is a byte, a
/// command, whatever is limited.
#[derive(Clone, Copy, Debug)]
pub struct TokenBucket {
    per_s: u64,
    burst: u64,
    /// Tokens in units of 1e-9, so that nothing is lost by rounding. May be negative: a debt is waited for.
    tokens: i128,
    last_ns: u64,
}

const NS: i128 = 1_000_000_000;

impl TokenBucket {
    /// A bucket which gives `per_s` tokens a second (at least 1) and holds what comes in within 20 ms.
    #[must_use]
    pub fn new(per_s: u64, now_ns: u64) -> Self {
        let burst = (per_s / 50).max(1);
        Self { per_s: per_s.max(1), burst, tokens: i128::from(burst) * NS, last_ns: now_ns }
    }

    /// Takes `tokens` and returns how long to wait before they may be used. What is waited for is owed, so that a batch may be
    /// larger than the bucket. With 0 it only tells whether anything is owed.
    pub fn take(&mut self, tokens: u64, now_ns: u64) -> Duration {
        let elapsed = now_ns.saturating_sub(self.last_ns);
        self.last_ns = now_ns.max(self.last_ns);
        let full = i128::from(self.burst) * NS;
        self.tokens = (self.tokens + i128::from(elapsed) * i128::from(self.per_s)).min(full);
        self.tokens -= i128::from(tokens) * NS;
        if self.tokens >= 0 {
            return Duration::ZERO;
        }
        let wait_ns = (-self.tokens) / i128::from(self.per_s);
        Duration::from_nanos(u64::try_from(wait_ns).unwrap_or(u64::MAX))
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
        assert!(
            bucket.take(0, 3_600_000_000_000) >= Duration::from_micros(1_000),
            "asking takes nothing and owes still"
        );
    }
}
