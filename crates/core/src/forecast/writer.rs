//! How fast somebody writes, and how much memory that goes over again and again, from counts of distinct pages.

use super::math::{clean, one_minus_exp_neg};

/// More than this share of what a steady writer without a working set would dirty in the longer time shows no working set.
const UNSATURATED: f64 = 0.9;
/// With so many writes a page of the working set, all of it is dirty: the rate is at least that.
const ALL_DIRTY: f64 = 4.0;
/// Bisection steps.
const STEPS: u32 = 60;

/// Distinct bytes that were dirtied in a short time and in a longer one, both at the same pace. Two lengths tell what one can't: a
/// writer that goes over the same memory dirties less in the longer time than its pace says.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TwoCounts {
    /// Milliseconds.
    pub short_ms: f64,
    /// Bytes of distinct pages dirtied in them.
    pub short_bytes: f64,
    /// Milliseconds.
    pub long_ms: f64,
    /// Bytes of distinct pages dirtied in them.
    pub long_bytes: f64,
}

/// How somebody writes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Writer {
    /// Bytes of pages written a second, each write counting its whole page, those that were dirty already too.
    pub bytes_per_s: f64,
    /// What it goes over again and again; `None` where nothing tells.
    pub working_set_bytes: Option<u64>,
}

impl TwoCounts {
    /// The writer that fits both counts, where the writes hit a working set at random: `W (1 - e^(-r t / W))` bytes in a time `t`.
    /// Without a usable short count it is the mean of the longer one.
    #[must_use]
    pub fn writer(&self) -> Writer {
        let (short_ms, short) = (clean(self.short_ms), clean(self.short_bytes));
        let (long_ms, long) = (clean(self.long_ms), clean(self.long_bytes));
        let plain = |bytes: f64, ms: f64| {
            let bytes_per_s = if ms > 0.0 { clean(bytes / ms * 1e3) } else { 0.0 };
            Writer { bytes_per_s, working_set_bytes: None }
        };
        if short <= 0.0 || short_ms <= 0.0 {
            return plain(long, long_ms);
        }
        let times = long_ms / short_ms;
        if times < 1.5 || long >= UNSATURATED * times * short {
            return plain(short, short_ms);
        }
        // With y writes a page in the short time: long / short = (1 - e^-(times y)) / (1 - e^-y), which falls from `times` to 1.
        let ratio = |y: f64| one_minus_exp_neg(times * y) / one_minus_exp_neg(y);
        let (mut low, mut high) = (1e-6, ALL_DIRTY);
        if long <= short * ratio(high) {
            low = high;
        }
        for _ in 0..STEPS {
            let middle = 0.5 * (low + high);
            if ratio(middle) * short > long {
                low = middle;
            } else {
                high = middle;
            }
        }
        let set = (short / one_minus_exp_neg(high)).max(long);
        Writer { bytes_per_s: clean(high * set / short_ms * 1e3), working_set_bytes: Some(set as u64) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(rate_per_ms: f64, set: f64, short_ms: f64, long_ms: f64) -> TwoCounts {
        let dirtied = |ms: f64| set * one_minus_exp_neg(rate_per_ms * ms / set);
        TwoCounts { short_ms, short_bytes: dirtied(short_ms), long_ms, long_bytes: dirtied(long_ms) }
    }

    #[test]
    fn finds_the_writer_that_made_the_counts() {
        for (rate, set) in [(1e5, 16e6), (1e4, 3e6), (2e5, 64e6)] {
            for (short, long) in [(50.0, 400.0), (12.5, 3000.0), (100.0, 1000.0)] {
                let found = counts(rate, set, short, long).writer();
                let Some(found_set) = found.working_set_bytes else {
                    // It was looked at for too short a time.
                    assert!(rate * long / set < 0.3, "{rate} {set} {short} {long}");
                    continue;
                };
                assert!((found_set as f64 / set - 1.0).abs() < 0.01, "{found:?} for {rate} {set} {short} {long}");
                assert!((found.bytes_per_s / rate / 1e3 - 1.0).abs() < 0.01, "{found:?} for {rate} {set}");
            }
        }
    }

    #[test]
    fn says_nothing_that_the_counts_do_not_show() {
        let steady = TwoCounts { short_ms: 10.0, short_bytes: 1e6, long_ms: 100.0, long_bytes: 9.5e6 };
        assert_eq!(steady.writer(), Writer { bytes_per_s: 1e8, working_set_bytes: None });
        let once = TwoCounts { long_ms: 100.0, long_bytes: 1e6, ..TwoCounts::default() };
        assert_eq!(once.writer(), Writer { bytes_per_s: 1e7, working_set_bytes: None });
        assert_eq!(TwoCounts::default().writer(), Writer::default());
        // All of it was dirty after the short time already: so fast at least.
        let all = TwoCounts { short_ms: 10.0, short_bytes: 1e6, long_ms: 100.0, long_bytes: 1e6 };
        let found = all.writer();
        assert!(
            found.bytes_per_s >= 1e8 * ALL_DIRTY
                && found.working_set_bytes.is_some_and(|w| (1_000_000..1_050_000).contains(&w)),
            "{found:?}"
        );
        for bad in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
            for n in 0..4 {
                let mut c = [10.0, 1e6, 100.0, 5e6];
                c[n] = bad;
                let found = TwoCounts { short_ms: c[0], short_bytes: c[1], long_ms: c[2], long_bytes: c[3] }.writer();
                assert!(found.bytes_per_s.is_finite() && found.bytes_per_s >= 0.0, "{found:?}");
            }
        }
    }
}
