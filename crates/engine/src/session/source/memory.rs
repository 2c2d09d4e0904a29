//! What is dirty, and getting it over: by passes of the session, or by the caller with what the ledger hands out.

use std::sync::Arc;
use std::time::Instant;

use super::{SourceSession, Step, unexpected};
use crate::dialogue::Message;
use crate::error::EngineError;
use crate::session::MemoryBy;
use crate::session::pages_out::{PassContext, RoundStats};

/// What a harvest for a caller that moves memory gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HarvestStats {
    /// Pages to be taken from the ledger, former ones included.
    pub dirty_pages: u64,
    /// The functions had stopped before: once these pages are moved, and nobody else writes, memory is complete.
    pub is_last: bool,
    /// Dirty sources that failed after the stop. For each of them all of guest memory is dirty, so nothing is missing.
    pub failed_sources: usize,
}

impl SourceSession {
    /// Harvests every dirty source and sends what is dirty, at most as many pages as were dirty when it began. Returns when
    /// the destination has them in memory (over a one-way link: when they are sent). `progress` is called after every batch.
    ///
    /// # Errors
    /// [`EngineError::Link`], [`EngineError::PeerAborted`], [`EngineError::DirtySource`], [`EngineError::Memory`],
    /// [`EngineError::Cancelled`].
    pub fn memory_pass(&mut self, progress: &mut dyn FnMut(&RoundStats)) -> Result<RoundStats, EngineError> {
        self.expect("memory_pass", &[Step::Tracking])?;
        self.needs("memory_pass", self.terms.memory == MemoryBy::Engine)?;
        self.attempt(|s| {
            let start = Instant::now();
            s.harvest_all()?;
            s.round = s.round.saturating_add(1);
            let pages = s.ledger.dirty_pages();
            let mut stats = s.send_pages(pages, false, progress)?;
            stats.skipped_hole_pages = std::mem::take(&mut s.hole_pages);
            let wire_round = s.sender.round_end(s.link.as_mut(), false)?;
            if s.terms.duplex {
                match s.hear("waiting for the end of a memory pass")? {
                    Message::RoundDone { round } if round == wire_round => {}
                    other => return Err(unexpected("waiting for the end of a memory pass", &other)),
                }
            }
            stats.ms = start.elapsed().as_secs_f64() * 1000.0;
            s.harvest_all()?;
            stats.dirty_pages_after = s.ledger.dirty_pages();
            s.timings.add("memory-passes", start);
            s.config.points.hit("source:memory-pass")?;
            Ok(stats)
        })
    }

    /// Harvests every dirty source into the ledger, for a caller that moves memory: [`towline_core::dirty::Ledger::next_runs`] of
    /// [`SourceSession::ledger`] hands the pages out. As often as wished, and at least once after the stop.
    ///
    /// # Errors
    /// [`EngineError::DirtySource`] while the functions run; after the stop such a source costs a move of all memory instead.
    pub fn harvest(&mut self) -> Result<HarvestStats, EngineError> {
        self.expect("harvest", &[Step::Tracking, Step::Quiesced, Step::Stopped, Step::Final])?;
        self.needs("harvest", self.terms.memory == MemoryBy::Caller)?;
        self.attempt(|s| {
            let start = Instant::now();
            let mut stats = HarvestStats { is_last: s.step >= Step::Stopped, ..HarvestStats::default() };
            if stats.is_last {
                stats.failed_sources = s.harvest_stopped();
                s.harvested_last = true;
                s.timings.add("final-harvest", start);
            } else {
                s.harvest_all()?;
                s.timings.add("harvest", start);
            }
            stats.dirty_pages = s.ledger.dirty_pages();
            Ok(stats)
        })
    }

    /// The last harvest of every source; returns how many failed. All of memory is marked for those.
    pub(super) fn harvest_stopped(&mut self) -> usize {
        let ledger = Arc::clone(&self.ledger);
        let mut last = ledger.begin_final(self.config.dirty_sources.len());
        let mut failed = 0;
        for index in 0..self.config.dirty_sources.len() {
            if self.is_deaf_to(index) {
                self.config.points.note_fired();
                last.harvested(true);
                continue;
            }
            // What it fails by is told by the count; a closure that books pages has no other way to say so.
            let ok = self.counting(index, |_, named| Ok(last.harvest(named.source.as_mut()).is_ok()));
            failed += usize::from(!ok.unwrap_or(false));
        }
        failed
    }

    /// Guest memory has the ranges that were offered and tracked: a range that came later would be left behind in silence.
    pub(super) fn check_ranges(&self) -> Result<(), EngineError> {
        let (mut now, mut then) = (self.config.memory.ranges(), self.ranges.clone());
        now.sort_unstable();
        then.sort_unstable();
        if now == then {
            return Ok(());
        }
        let what = format!(
            "the ranges of guest memory have changed since the session began ({} then, {} now): leave them alone until it is over",
            then.len(),
            now.len()
        );
        Err(EngineError::Config { what })
    }

    /// Whether a caller's memory can be complete at the destination, before anything says so.
    pub(super) fn check_caller_memory(&self) -> Result<(), EngineError> {
        if self.terms.memory == MemoryBy::Engine {
            return Ok(());
        }
        self.check_ranges()?;
        if self.terms.memory == MemoryBy::Passed {
            return Ok(());
        }
        if !self.harvested_last {
            return Err(EngineError::Config {
                what:
                    "the dirty sources were not harvested since the functions stopped; harvest, then move what is dirty"
                        .into(),
            });
        }
        match self.ledger.dirty_pages() {
            0 => Ok(()),
            pages => Err(EngineError::Config {
                what: format!("{pages} dirty pages were not taken from the ledger: take and move them before prepare"),
            }),
        }
    }

    fn harvest_all(&mut self) -> Result<(), EngineError> {
        for index in 0..self.config.dirty_sources.len() {
            if self.is_deaf_to(index) {
                continue;
            }
            self.counting(index, |ledger, named| {
                ledger.harvest(named.source.as_mut()).map_err(|source| EngineError::DirtySource {
                    name: named.name.clone(),
                    attempted: "harvest",
                    source,
                })
            })?;
        }
        Ok(())
    }

    /// A rehearsal forgets this source.
    fn is_deaf_to(&self, index: usize) -> bool {
        let named = self.config.dirty_sources.get(index);
        named.is_some_and(|named| self.config.points.deaf_to_source.as_deref() == Some(named.name.as_str()))
    }

    pub(super) fn send_pages(
        &mut self,
        max_pages: u64,
        is_final: bool,
        progress: &mut dyn FnMut(&RoundStats),
    ) -> Result<RoundStats, EngineError> {
        let mut ctx = PassContext {
            memory: self.config.memory.as_ref(),
            ledger: &self.ledger,
            link: self.link.as_mut(),
            sender: &mut self.sender,
            cancel: &self.config.cancel,
            points: &self.config.points,
        };
        let pacer = if is_final { None } else { Some(&mut self.pacer) };
        let round = self.round;
        let mut stats = self.pages.pass(&mut ctx, max_pages, pacer, is_final, &mut |s| {
            progress(&RoundStats { round, ..s.clone() });
        })?;
        stats.round = round;
        Ok(stats)
    }
}
