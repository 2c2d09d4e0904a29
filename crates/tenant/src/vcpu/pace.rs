//! Rates.

use std::time::{Duration, Instant};

/// What a pause or a slow turn may leave to catch up with.
const MOST_OWED: Duration = Duration::from_millis(20);

/// Lets things happen at a rate. Not part of the tenant's state: time does not migrate.
pub(super) struct Pace {
    per_second: f64,
    owed: f64,
    last: Instant,
}

impl Pace {
    pub(super) fn new(per_second: f64) -> Self {
        Self { per_second, owed: 0.0, last: Instant::now() }
    }

    /// How many may happen now, with `share` (0 to 1) of the rate.
    pub(super) fn due(&mut self, share: f64) -> u64 {
        let now = Instant::now();
        let per_second = self.per_second * share;
        self.owed += now.duration_since(self.last).as_secs_f64() * per_second;
        self.owed = self.owed.min((per_second * MOST_OWED.as_secs_f64()).max(1.0));
        self.last = now;
        self.owed as u64
    }

    pub(super) fn took_one(&mut self) {
        self.owed -= 1.0;
    }
}
