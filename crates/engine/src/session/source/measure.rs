//! What a forecast is made from, measured before anything is copied.

use std::time::{Duration, Instant};

use super::sample::{DirtySample, Sampler, check_sample};
use super::{SourceSession, Step};
use crate::error::EngineError;

/// Bytes of filler in one sample of the link: long enough to fill its buffers, short enough not to matter.
const PROBE_BYTES: u64 = 8 << 20;
/// Samples: so that the forecast knows how much the figures vary.
const SAMPLES: u32 = 4;

/// Measured figures of one session.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Guest memory that the first pass has to send, in bytes.
    pub memory_bytes: u64,
    /// Samples of pages written anew, in bytes per second.
    pub dirty_bytes_per_s: Vec<f64>,
    /// The same by source, over the same time.
    pub dirty: DirtySample,
    /// Samples of what the link carries, in bytes per second; never above the limit of the passes.
    pub bandwidth_bytes_per_s: Vec<f64>,
    /// Device state that is sent after the stop, in bytes, as the functions estimate it; 0 where they can't.
    pub state_bytes: u64,
    /// One round trip of a message, in milliseconds.
    pub rtt_ms: f64,
    /// One sync of the fence, in milliseconds: that of opening this session.
    pub journal_sync_ms: f64,
}

/// Bytes a second of what was sent and, a round trip later, acknowledged. That round trip is none of the link's capacity; but a sample that is hardly
/// longer than one tells nothing without it.
fn carried(bytes: u64, elapsed: Duration, rtt_ms: f64, limit: Option<u64>) -> f64 {
    let elapsed = elapsed.as_secs_f64();
    let carried = bytes as f64 / (elapsed - rtt_ms / 1e3).max(elapsed / 2.0).max(1e-9);
    // What was saved up before lets a short sample exceed the limit; the passes won't.
    limit.map_or(carried, |limit| carried.min(limit as f64))
}

impl SourceSession {
    /// Measures the link, within the bandwidth limit of the passes, and, for `sample` (at most 10 s), the dirty rate. Once tracking runs, before the first pass.
    ///
    /// # Errors
    /// Those of the link and of the dirty sources; [`EngineError::Limit`].
    pub fn measure(&mut self, sample: Duration) -> Result<Measured, EngineError> {
        self.expect("measure", &[Step::Tracking])?;
        self.needs("measure", self.terms.duplex)?;
        check_sample(sample)?;
        self.attempt(|s| {
            let start = Instant::now();
            let memory_bytes = s.ledger.dirty_pages().saturating_mul(s.config.page_size_bytes);
            let rtt_ms = s.round_trip()?;
            let limit = s.config.bandwidth_limit_bytes_per_s;
            // No sample takes more than about a quarter of a second of a limited link.
            let most = limit.map_or(PROBE_BYTES, |l| (l / 4).max(64 << 10));
            let probe_bytes = PROBE_BYTES.min(memory_bytes.max(1 << 20)).min(most);
            let (mut dirty_bytes_per_s, mut bandwidth_bytes_per_s) = (Vec::new(), Vec::new());
            let mut sampler = Sampler::begin(s)?;
            for _ in 0..SAMPLES {
                let begun = Instant::now();
                let (pacer, cancel) = (&mut s.pacer, &s.config.cancel);
                s.sender.filler(s.link.as_mut(), probe_bytes, &mut |bytes| pacer.pace(bytes, cancel))?;
                s.round_trip()?;
                bandwidth_bytes_per_s.push(carried(probe_bytes, begun.elapsed(), rtt_ms, limit));
                s.config.cancel.sleep((sample / SAMPLES).saturating_sub(begun.elapsed()))?;
                let bytes = sampler.window(s)?;
                dirty_bytes_per_s.push(bytes as f64 / begun.elapsed().as_secs_f64().max(1e-9));
            }
            let dirty = sampler.end(s);
            let state_bytes = s.state_estimate();
            let journal_sync_ms = s.timings.ms("journal-open");
            s.timings.add("measure", start);
            Ok(Measured {
                memory_bytes,
                dirty_bytes_per_s,
                dirty,
                bandwidth_bytes_per_s,
                state_bytes,
                rtt_ms,
                journal_sync_ms,
            })
        })
    }

    /// A function that can't tell counts as nothing: an estimate is no reason to fail.
    fn state_estimate(&mut self) -> u64 {
        let pending = self.config.functions.iter_mut().filter_map(|f| f.channel.pending().ok());
        pending.fold(0u64, |sum, p| sum.saturating_add(p.stop_copy_bytes.unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_round_trip_of_the_answer_is_not_the_links() {
        let ms = Duration::from_millis;
        assert_eq!(carried(1_000_000, ms(110), 10.0, None), 1e7);
        // Nearly all of it was waiting: half of it counts at least.
        assert_eq!(carried(1_000_000, ms(110), 109.0, None), 1_000_000.0 / 0.055);
        assert_eq!(carried(1_000_000, ms(110), 500.0, None), 1_000_000.0 / 0.055);
        assert_eq!(carried(1_000_000, ms(110), 10.0, Some(5_000_000)), 5e6);
        assert!(carried(1_000_000, Duration::ZERO, 0.0, None).is_finite());
    }
}
