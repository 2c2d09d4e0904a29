//! Who dirties how much: by source, in every harvest, and in a sample taken for the purpose.

use std::time::{Duration, Instant};

use towline_core::channel::DirtySink;
use towline_core::dirty::Ledger;

use super::{SourceSession, Step};
use crate::error::EngineError;
use crate::session::{MemoryBy, NamedSource};

/// Windows of a sample.
const WINDOWS: u32 = 4;

/// Pages that one source dirtied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourcePages {
    /// Name of the source.
    pub source: String,
    /// Pages that were not dirty before it told of them. What several sources tell of counts for the first.
    pub pages: u64,
}

/// What one source dirtied in a sample. Bytes of distinct pages, whoever else dirtied them too.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceSample {
    /// Name of the source.
    pub source: String,
    /// In all windows together, each counted by itself.
    pub window_bytes: u64,
    /// In the whole sample: a page that was dirtied in several windows counts once.
    pub whole_bytes: u64,
}

/// A sample of the dirty rate.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DirtySample {
    /// How many windows there were.
    pub windows: u32,
    /// Milliseconds from its beginning to its end.
    pub ms: f64,
    /// By source, in the order in which the session has them.
    pub sources: Vec<SourceSample>,
}

/// Marks in every ledger that counts, and in the session's own, so that nothing is lost by looking.
struct Every<'a>(&'a [&'a Ledger]);

impl DirtySink for Every<'_> {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.iter().for_each(|ledger| ledger.mark(gpa, len));
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        self.0.iter().for_each(|ledger| ledger.merge_bitmap(base, page_size_bytes, bitmap));
    }
}

/// A sample under way.
pub(super) struct Sampler {
    start: Instant,
    windows: u32,
    /// What each source dirtied since the beginning, and the windows' bytes so far.
    sources: Vec<(Ledger, u64)>,
}

impl Sampler {
    /// Begins: what was dirtied before is no part of it.
    pub fn begin(session: &mut SourceSession) -> Result<Self, EngineError> {
        let count = session.config.dirty_sources.len();
        let sources = (0..count).map(|_| Ok((scratch(session)?, 0))).collect::<Result<Vec<_>, EngineError>>()?;
        session.harvest_into(&[])?;
        Ok(Self { start: Instant::now(), windows: 0, sources })
    }

    /// Ends one window. Returns the bytes of distinct pages that all sources together dirtied in it.
    pub fn window(&mut self, session: &mut SourceSession) -> Result<u64, EngineError> {
        let all = scratch(session)?;
        let own = self.sources.iter().map(|_| scratch(session)).collect::<Result<Vec<_>, EngineError>>()?;
        let sinks: Vec<[&Ledger; 3]> =
            self.sources.iter().zip(&own).map(|((whole, _), own)| [&all, whole, own]).collect();
        let sinks: Vec<&[&Ledger]> = sinks.iter().map(<[&Ledger; 3]>::as_slice).collect();
        session.harvest_into(&sinks)?;
        for ((_, bytes), own) in self.sources.iter_mut().zip(&own) {
            *bytes = bytes.saturating_add(dirty_bytes(own));
        }
        self.windows += 1;
        Ok(dirty_bytes(&all))
    }

    pub fn end(self, session: &SourceSession) -> DirtySample {
        let named = session.config.dirty_sources.iter().zip(self.sources);
        let sources = named.map(|(named, (whole, window_bytes))| SourceSample {
            source: named.name.clone(),
            window_bytes,
            whole_bytes: dirty_bytes(&whole),
        });
        let ms = self.start.elapsed().as_secs_f64() * 1000.0;
        DirtySample { windows: self.windows, ms, sources: sources.collect() }
    }
}

fn scratch(session: &SourceSession) -> Result<Ledger, EngineError> {
    Ledger::new(&session.ranges, session.config.page_size_bytes)
        .map_err(|e| EngineError::Config { what: e.to_string() })
}

fn dirty_bytes(ledger: &Ledger) -> u64 {
    ledger.dirty_pages().saturating_mul(ledger.page_size_bytes())
}

impl SourceSession {
    /// Samples, for `duration` (at most 10 s), who dirties how much, without sending anything. While tracking runs.
    ///
    /// # Errors
    /// Those of the dirty sources; [`EngineError::Limit`]; [`EngineError::Cancelled`].
    pub fn sample_dirty(&mut self, duration: Duration) -> Result<DirtySample, EngineError> {
        self.expect("sample_dirty", &[Step::Tracking])?;
        check_sample(duration)?;
        self.attempt(|s| {
            let start = Instant::now();
            let mut sampler = Sampler::begin(s)?;
            for _ in 0..WINDOWS {
                s.config.cancel.sleep(duration / WINDOWS)?;
                sampler.window(s)?;
            }
            s.timings.add("sample-dirty", start);
            Ok(sampler.end(s))
        })
    }

    /// What each source dirtied since this was last asked, or since tracking began: pages that were not dirty before.
    pub fn take_dirtied(&mut self) -> Vec<SourcePages> {
        self.dirtied.resize(self.config.dirty_sources.len(), 0);
        let counts = self.dirtied.iter_mut().map(std::mem::take);
        let named = self.config.dirty_sources.iter().zip(counts);
        named.map(|(named, pages)| SourcePages { source: named.name.clone(), pages }).collect()
    }

    /// Harvests every source into the session's ledger, and each into the ledgers beside it in `sinks` as well.
    fn harvest_into(&mut self, sinks: &[&[&Ledger]]) -> Result<(), EngineError> {
        // What is passed is not tracked, and costs nothing.
        if self.terms.memory == MemoryBy::Passed {
            return Ok(());
        }
        for index in 0..self.config.dirty_sources.len() {
            let more = sinks.get(index).copied().unwrap_or_default();
            self.counting(index, |ledger, named| {
                let mut every = more.to_vec();
                every.push(ledger);
                named.source.harvest(&mut Every(&every)).map_err(|source| EngineError::DirtySource {
                    name: named.name.clone(),
                    attempted: "sample the dirty rate",
                    source,
                })
            })?;
        }
        Ok(())
    }

    /// Runs one harvest of source `index` and books the pages that it made dirty.
    pub(super) fn counting<T: Default>(
        &mut self,
        index: usize,
        harvest: impl FnOnce(&Ledger, &mut NamedSource) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        self.dirtied.resize(self.config.dirty_sources.len(), 0);
        let Some(named) = self.config.dirty_sources.get_mut(index) else { return Ok(T::default()) };
        let before = self.ledger.dirty_pages();
        let result = harvest(&self.ledger, named);
        let more = self.ledger.dirty_pages().saturating_sub(before);
        if let Some(count) = self.dirtied.get_mut(index) {
            *count = count.saturating_add(more);
        }
        result
    }
}

/// Nobody samples for longer than 10 s.
pub(super) fn check_sample(duration: Duration) -> Result<(), EngineError> {
    let sample_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    if sample_ms > 10_000 {
        return Err(EngineError::Limit { what: "milliseconds of a dirty sample", value: sample_ms, limit: 10_000 });
    }
    Ok(())
}
