//! How fast somebody writes, and how much memory that goes over again and again, from counts of distinct pages.

use super::math::{clean, one_minus_exp_neg};

/// More than this share of what a steady writer would dirty in the longer time shows nothing that is written again and again.
const UNSATURATED: f64 = 0.9;
/// With so many writes a page, all of it is dirty: the rate is at least that.
const ALL_DIRTY: f64 = 4.0;
/// Bisection steps.
const STEPS: u32 = 60;

/// What somebody dirtied in a time: bytes of distinct pages.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Count {
    /// Milliseconds.
    pub ms: f64,
    /// Bytes of distinct pages dirtied in them.
    pub bytes: f64,
}

/// How somebody writes: a few pages all the time, and beside them a stream, over all of memory or over a working set. In a time `t` it
/// dirties `H (1 - e^(-h t / H))` and `W (1 - e^(-r t / W))`, or `r t` where no working set is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Writer {
    /// The stream, in bytes of pages a second, each write counting its whole page, those that were dirty already too.
    pub bytes_per_s: f64,
    /// What the stream goes over again and again; `None` where nothing tells.
    pub working_set_bytes: Option<u64>,
    /// Bytes of pages that are written all the time.
    pub hot_bytes: f64,
    /// Writes to these, in bytes of pages a second.
    pub hot_bytes_per_s: f64,
}

impl Writer {
    /// From counts of different lengths, ascending, at one pace. One length tells only a rate: who goes over the same memory dirties less in a
    /// longer time than that rate says. Two tell that; it is taken for a few hot pages beside a stream, since what is left of that for a longer
    /// time is rather too much than too little. With a third one, a working set is taken where that fits better.
    #[must_use]
    pub fn of_counts(counts: &[Count]) -> Self {
        let clean = |c: &Count| Count { ms: clean(c.ms), bytes: clean(c.bytes) };
        let mut usable = counts.iter().rev().map(clean).filter(|c| c.ms > 0.0);
        let Some(long) = usable.next() else { return Self::default() };
        let stream = |c: Count| Self { bytes_per_s: super::math::clean(c.bytes / c.ms * 1e3), ..Self::default() };
        let Some(short) = usable.find(|c| c.bytes > 0.0 && c.ms * 1.5 <= long.ms) else { return stream(long) };
        if long.bytes >= UNSATURATED * long.ms / short.ms * short.bytes {
            return stream(short);
        }
        let first = usable.find(|c| c.bytes > 0.0 && c.ms * 1.5 <= short.ms);
        let hot = Self::hot(short, long, first.unwrap_or(short).ms);
        let Some(first) = first else { return hot };
        let set = Self::over_set(short, long);
        let off = |writer: &Self| {
            let found = writer.dirtied(first.ms, 1.0).max(1.0);
            (found / first.bytes).max(first.bytes / found)
        };
        if off(&set) <= off(&hot) { set } else { hot }
    }

    /// Hot pages, dirty within `within_ms`, and a stream: both counts are met.
    fn hot(short: Count, long: Count, within_ms: f64) -> Self {
        let per_ms = (long.bytes - short.bytes).max(0.0) / (long.ms - short.ms);
        let hot_bytes = clean(short.bytes - per_ms * short.ms);
        let hot_bytes_per_s = clean(ALL_DIRTY * hot_bytes / within_ms * 1e3);
        Self { bytes_per_s: clean(per_ms * 1e3), working_set_bytes: None, hot_bytes, hot_bytes_per_s }
    }

    /// A working set: both counts are met, where they can be.
    fn over_set(short: Count, long: Count) -> Self {
        // With y writes a page in the short time: long / short = (1 - e^-(times y)) / (1 - e^-y), which falls from `times` to 1.
        let times = long.ms / short.ms;
        let ratio = |y: f64| one_minus_exp_neg(times * y) / one_minus_exp_neg(y);
        let (mut low, mut high) = (1e-6, ALL_DIRTY);
        if long.bytes <= short.bytes * ratio(high) {
            low = high;
        }
        for _ in 0..STEPS {
            let middle = 0.5 * (low + high);
            if ratio(middle) * short.bytes > long.bytes {
                low = middle;
            } else {
                high = middle;
            }
        }
        let set = (short.bytes / one_minus_exp_neg(high)).max(long.bytes);
        let bytes_per_s = clean(high * set / short.ms * 1e3);
        Self { bytes_per_s, working_set_bytes: Some(set as u64), ..Self::default() }
    }

    /// Bytes that it dirties in `ms` at `share` of its pace.
    pub(super) fn dirtied(&self, ms: f64, share: f64) -> f64 {
        let s = share * ms / 1e3;
        let again = |rate: f64, set: f64| if set > 0.0 { set * one_minus_exp_neg(rate * s / set) } else { 0.0 };
        let stream = match self.working_set_bytes {
            Some(set) => again(self.bytes_per_s, set as f64),
            None => self.bytes_per_s * s,
        };
        stream + again(self.hot_bytes_per_s, self.hot_bytes)
    }

    /// The same writer at the pace at which it dirties what was counted: the memory that it goes over stays.
    #[must_use]
    pub fn at_pace_of(&self, count: Count) -> Self {
        let (ms, bytes) = (clean(count.ms), clean(count.bytes));
        if ms <= 0.0 {
            return *self;
        }
        let (mut low, mut high) = (0.0, 64.0);
        if self.dirtied(ms, high) <= bytes {
            // It is not the writer that it was.
            return Self { bytes_per_s: clean(bytes / ms * 1e3), ..*self };
        }
        for _ in 0..STEPS {
            let middle = 0.5 * (low + high);
            if self.dirtied(ms, middle) < bytes {
                low = middle;
            } else {
                high = middle;
            }
        }
        self.at_share(high)
    }

    /// The same writer at another pace.
    #[must_use]
    pub fn at_share(&self, share: f64) -> Self {
        let share = clean(share);
        let (bytes_per_s, hot_bytes_per_s) = (clean(self.bytes_per_s * share), clean(self.hot_bytes_per_s * share));
        Self { bytes_per_s, hot_bytes_per_s, ..*self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(writer: &Writer, times: &[f64]) -> alloc::vec::Vec<Count> {
        times.iter().map(|ms| Count { ms: *ms, bytes: writer.dirtied(*ms, 1.0) }).collect()
    }

    fn near(found: f64, expected: f64, off: f64) -> bool {
        (found - expected).abs() <= off * expected
    }

    #[test]
    fn finds_the_writer_that_made_the_counts() {
        let over = |bytes_per_s, set| Writer { bytes_per_s, working_set_bytes: Some(set), ..Writer::default() };
        for true_one in [over(1e8, 16_000_000), over(1e7, 3_000_000), over(2e8, 64_000_000)] {
            let found = Writer::of_counts(&counts(&true_one, &[12.5, 50.0, 3000.0]));
            assert!(near(found.bytes_per_s, true_one.bytes_per_s, 0.05), "{found:?} for {true_one:?}");
            for ms in [20.0, 200.0, 1000.0, 5000.0] {
                let (found, expected) = (found.dirtied(ms, 0.3), true_one.dirtied(ms, 0.3));
                assert!(near(found, expected, 0.05), "{found} instead of {expected} in {ms} ms");
            }
        }
        let hot = Writer { bytes_per_s: 1e6, hot_bytes: 8e4, hot_bytes_per_s: 1e8, ..Writer::default() };
        for times in [&[12.5, 50.0, 3000.0][..], &[12.5, 50.0]] {
            let found = Writer::of_counts(&counts(&hot, times));
            assert!(near(found.bytes_per_s, 1e6, 0.05) && near(found.hot_bytes, 8e4, 0.05), "{found:?}");
            assert!(near(found.dirtied(2000.0, 1.0), hot.dirtied(2000.0, 1.0), 0.05));
        }
    }

    #[test]
    fn a_longer_time_is_never_taken_for_less_than_it_is() {
        // Two counts show no more than that it gets less: the guess is above what a working set would have.
        let set = Writer { bytes_per_s: 1e8, working_set_bytes: Some(16_000_000), ..Writer::default() };
        let found = Writer::of_counts(&counts(&set, &[100.0, 400.0]));
        for ms in [500.0, 1000.0, 10_000.0] {
            assert!(found.dirtied(ms, 1.0) >= set.dirtied(ms, 1.0), "{ms}");
        }
    }

    #[test]
    fn another_pace_over_the_same_memory() {
        let writer =
            Writer { bytes_per_s: 1e8, working_set_bytes: Some(16_000_000), hot_bytes: 1e5, hot_bytes_per_s: 1e8 };
        for share in [0.01, 0.3, 1.0, 3.0] {
            let count = Count { ms: 50.0, bytes: writer.dirtied(50.0, share) };
            let found = writer.at_pace_of(count);
            assert!(
                near(found.bytes_per_s, 1e8 * share, 0.001) && found.working_set_bytes == Some(16_000_000),
                "{found:?}"
            );
        }
        assert_eq!(writer.at_pace_of(Count { ms: 50.0, bytes: 0.0 }).bytes_per_s.round(), 0.0);
        assert_eq!(writer.at_pace_of(Count::default()), writer, "nothing was counted");
        let idle = Writer::default().at_pace_of(Count { ms: 10.0, bytes: 1e6 });
        assert_eq!(idle.bytes_per_s, 1e8, "who did nothing has begun");
    }

    #[test]
    fn says_nothing_that_the_counts_do_not_show() {
        let stream = |bytes_per_s| Writer { bytes_per_s, ..Writer::default() };
        let count = |ms, bytes| Count { ms, bytes };
        assert_eq!(Writer::of_counts(&[count(10.0, 1e6), count(100.0, 9.5e6)]), stream(1e8));
        assert_eq!(Writer::of_counts(&[count(100.0, 1e6)]), stream(1e7));
        assert_eq!(Writer::of_counts(&[count(10.0, 0.0), count(100.0, 1e6)]), stream(1e7));
        assert_eq!(Writer::of_counts(&[]), Writer::default());
        for bad in [f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300] {
            for n in 0..6 {
                let mut c = [1.0, 1e5, 10.0, 1e6, 100.0, 5e6];
                c[n] = bad;
                let found = Writer::of_counts(&[count(c[0], c[1]), count(c[2], c[3]), count(c[4], c[5])]);
                let numbers = [found.bytes_per_s, found.hot_bytes, found.hot_bytes_per_s, found.dirtied(1e6, 1.0)];
                assert!(numbers.iter().all(|n| n.is_finite() && *n >= 0.0), "{found:?} for {c:?}");
            }
        }
    }
}
