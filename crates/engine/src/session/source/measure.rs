//! What a forecast is made from, measured before anything is copied.

use std::time::{Duration, Instant};

use towline_core::channel::DirtySink;
use towline_core::dirty::Ledger;

use super::{SourceSession, Step};
use crate::error::EngineError;
use crate::session::MemoryBy;

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
    /// Samples of what the link carries, in bytes per second; never above the limit of the passes.
    pub bandwidth_bytes_per_s: Vec<f64>,
    /// Device state that is sent after the stop, in bytes, as the functions estimate it; 0 where they can't.
    pub state_bytes: u64,
    /// One round trip of a message, in milliseconds.
    pub rtt_ms: f64,
    /// One sync of the fence, in milliseconds: that of opening this session.
    pub journal_sync_ms: f64,
}

/// Marks in two ledgers: the one that counts the sample, and the session's own, so that nothing is lost by looking.
struct Both<'a> {
    sample: &'a Ledger,
    session: &'a Ledger,
}

impl DirtySink for Both<'_> {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.sample.mark(gpa, len);
        self.session.mark(gpa, len);
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        self.sample.merge_bitmap(base, page_size_bytes, bitmap);
        self.session.merge_bitmap(base, page_size_bytes, bitmap);
    }
}

impl SourceSession {
    /// Measures the link, within the bandwidth limit of the passes, and, for `sample` (at most 10 s), the dirty rate. Once tracking runs, before the first pass.
    ///
    /// # Errors
    /// Those of the link and of the dirty sources; [`EngineError::Limit`].
    pub fn measure(&mut self, sample: Duration) -> Result<Measured, EngineError> {
        self.expect("measure", &[Step::Tracking])?;
        self.needs("measure", self.terms.duplex)?;
        let sample_ms = u64::try_from(sample.as_millis()).unwrap_or(u64::MAX);
        if sample_ms > 10_000 {
            return Err(EngineError::Limit { what: "milliseconds of a dirty sample", value: sample_ms, limit: 10_000 });
        }
        self.attempt(|s| {
            let start = Instant::now();
            let memory_bytes = s.ledger.dirty_pages().saturating_mul(s.config.page_size_bytes);
            let (ranges, page_size) = (s.ranges.clone(), s.config.page_size_bytes);
            let scratch = || Ledger::new(&ranges, page_size).map_err(|e| EngineError::Config { what: e.to_string() });
            // What was written before the sample begins is not part of it.
            s.sample_into(&scratch()?)?;
            let rtt_ms = s.round_trip()?;
            let limit = s.config.bandwidth_limit_bytes_per_s;
            // No sample takes more than about a quarter of a second of a limited link.
            let most = limit.map_or(PROBE_BYTES, |l| (l / 4).max(64 << 10));
            let probe_bytes = PROBE_BYTES.min(memory_bytes.max(1 << 20)).min(most);
            let (mut dirty_bytes_per_s, mut bandwidth_bytes_per_s) = (Vec::new(), Vec::new());
            for _ in 0..SAMPLES {
                let begun = Instant::now();
                let (pacer, cancel) = (&mut s.pacer, &s.config.cancel);
                s.sender.filler(s.link.as_mut(), probe_bytes, &mut |bytes| pacer.pace(bytes, cancel))?;
                s.round_trip()?;
                let carried = probe_bytes as f64 / begun.elapsed().as_secs_f64().max(1e-9);
                // What was saved up before lets a short sample exceed the limit; the passes won't.
                bandwidth_bytes_per_s.push(limit.map_or(carried, |l| carried.min(l as f64)));
                s.config.cancel.sleep((sample / SAMPLES).saturating_sub(begun.elapsed()))?;
                let ledger = scratch()?;
                s.sample_into(&ledger)?;
                let bytes = ledger.dirty_pages().saturating_mul(page_size);
                dirty_bytes_per_s.push(bytes as f64 / begun.elapsed().as_secs_f64().max(1e-9));
            }
            let state_bytes = s.state_estimate();
            let journal_sync_ms = s.timings.ms("journal-open");
            s.timings.add("measure", start);
            Ok(Measured {
                memory_bytes,
                dirty_bytes_per_s,
                bandwidth_bytes_per_s,
                state_bytes,
                rtt_ms,
                journal_sync_ms,
            })
        })
    }

    fn sample_into(&mut self, sample: &Ledger) -> Result<(), EngineError> {
        // What is passed is not tracked, and costs nothing.
        if self.terms.memory == MemoryBy::Passed {
            return Ok(());
        }
        let mut both = Both { sample, session: &self.ledger };
        for named in &mut self.config.dirty_sources {
            named.source.harvest(&mut both).map_err(|source| EngineError::DirtySource {
                name: named.name.clone(),
                attempted: "sample the dirty rate",
                source,
            })?;
        }
        Ok(())
    }

    /// A function that can't tell counts as nothing: an estimate is no reason to fail.
    fn state_estimate(&mut self) -> u64 {
        let pending = self.config.functions.iter_mut().filter_map(|f| f.channel.pending().ok());
        pending.fold(0u64, |sum, p| sum.saturating_add(p.stop_copy_bytes.unwrap_or(0)))
    }
}
