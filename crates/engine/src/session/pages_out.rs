//! The page sender: ledger → batches → link.
//!
//! A batch is copied into a private buffer first, since the guest goes on writing: what is hashed is what is sent. The buffer
//! is small enough for the second-level cache and used again for every batch.

use std::time::Instant;

use towline_core::dirty::{Ledger, PageRun};
use towline_core::memory::{GuestMemory, MemoryRange};
use towline_core::stream::{PagesRun, RunKind};

use crate::cancel::Cancel;
use crate::error::EngineError;
use crate::faultpoints::FaultPoints;
use crate::link::Link;
use crate::pacer::Pacer;
use crate::wire::Sender;

/// The largest page.
pub(crate) const BATCH_BYTES: u64 = 1 << 20;

/// Bytes of one batch, unless a page is larger: 64 pages of 4 KiB. What was copied is still in the second-level cache when it
/// is hashed and sent, and the destination begins early: with 1 MiB, passes over few pages took a third longer.
const USUAL_BATCH_BYTES: u64 = 256 << 10;

/// One pass over what was dirty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoundStats {
    /// Number of the pass, the full one is 1.
    pub round: u32,
    /// Pages handed out by the ledger, zero pages included.
    pub pages: u64,
    /// Of these, pages of zeros: only their address was sent.
    pub zero_pages: u64,
    /// Pages that were never written and not even looked at; full pass only.
    pub skipped_hole_pages: u64,
    /// Bytes of page content sent.
    pub bytes: u64,
    /// Bytes on the wire.
    pub wire_bytes: u64,
    /// Milliseconds, until the destination had it in memory (except in the final pass).
    pub ms: f64,
    /// Pages that became dirty meanwhile.
    pub dirty_pages_after: u64,
}

/// Sends pages. Holds the buffers that every pass uses again.
pub(crate) struct PageSender {
    buffer: Vec<u8>,
    runs: Vec<PageRun>,
    spans: Vec<PagesRun>,
    page_size: u64,
}

pub(crate) struct PassContext<'a> {
    pub memory: &'a dyn GuestMemory,
    pub ledger: &'a Ledger,
    pub link: &'a mut dyn Link,
    pub sender: &'a mut Sender,
    pub cancel: &'a Cancel,
    pub points: &'a FaultPoints,
}

impl PageSender {
    /// `page_size` is a power of two of at most [`BATCH_BYTES`].
    pub fn new(page_size: u64) -> Self {
        let buffer = vec![0; page_size.clamp(USUAL_BATCH_BYTES, BATCH_BYTES) as usize];
        Self { buffer, runs: Vec::new(), spans: Vec::new(), page_size }
    }

    /// Sends up to `max_pages` of what is dirty. `pacer` holds it back, where there is one.
    pub fn pass(
        &mut self,
        ctx: &mut PassContext<'_>,
        max_pages: u64,
        mut pacer: Option<&mut Pacer>,
        is_final: bool,
        progress: &mut dyn FnMut(&RoundStats),
    ) -> Result<RoundStats, EngineError> {
        let start = Instant::now();
        let wire_before = ctx.sender.wire_bytes();
        let mut stats = RoundStats::default();
        let batch_pages = (USUAL_BATCH_BYTES / self.page_size).max(1);
        while stats.pages < max_pages {
            let taken = ctx.ledger.next_runs(batch_pages.min(max_pages - stats.pages), &mut self.runs);
            if taken == 0 {
                break;
            }
            ctx.cancel.check()?;
            if is_final {
                self.skip_rehearsed(ctx.points);
            }
            let content = self.load(ctx.memory, &mut stats)?;
            if let Some(pacer) = &mut pacer {
                pacer.pace(content, ctx.cancel)?;
            }
            ctx.sender.pages(ctx.link, &self.spans, self.buffer.get(..content as usize).unwrap_or_default())?;
            stats.pages += taken;
            stats.bytes += content;
            stats.wire_bytes = ctx.sender.wire_bytes() - wire_before;
            stats.ms = start.elapsed().as_secs_f64() * 1000.0;
            progress(&stats);
        }
        stats.wire_bytes = ctx.sender.wire_bytes() - wire_before;
        stats.ms = start.elapsed().as_secs_f64() * 1000.0;
        Ok(stats)
    }

    /// Copies the runs of one batch into the buffer, leaving pages of zeros out. Returns the bytes of content.
    fn load(&mut self, memory: &dyn GuestMemory, stats: &mut RoundStats) -> Result<u64, EngineError> {
        self.spans.clear();
        let page = self.page_size as usize;
        let mut filled = 0_usize;
        for run in &self.runs {
            let run_start = filled;
            let len = usize::try_from(run.len).unwrap_or(usize::MAX);
            let target = filled.checked_add(len).and_then(|end| self.buffer.get_mut(filled..end));
            let Some(target) = target else {
                return Err(EngineError::Limit {
                    what: "bytes of one batch",
                    value: run.len,
                    limit: self.buffer.len() as u64,
                });
            };
            memory
                .read(run.gpa, target)
                .map_err(|source| EngineError::Memory { during: "reading pages to send", source })?;
            // Pages of zeros are cut out by moving what follows: rare inside of a run, and all within the cache.
            for index in 0..len / page {
                let from = run_start + index * page;
                let gpa = run.gpa + (index * page) as u64;
                let is_zero = self.buffer.get(from..from + page).is_some_and(is_zero);
                let kind = if is_zero { RunKind::Zero } else { RunKind::Data };
                push_span(&mut self.spans, PagesRun { gpa, len: self.page_size as u32, kind });
                if is_zero {
                    stats.zero_pages += 1;
                } else {
                    if filled != from {
                        self.buffer.copy_within(from..from + page, filled);
                    }
                    filled += page;
                }
            }
        }
        Ok(filled as u64)
    }

    /// Rehearsal: forgets the first page inside of the given range.
    fn skip_rehearsed(&mut self, points: &FaultPoints) {
        let Some(range) = points.skip_page_in.filter(|_| !points.fired()) else { return };
        let Some(end) = range.end() else { return };
        for i in 0..self.runs.len() {
            let Some(run) = self.runs.get(i).copied() else { return };
            let page = run.gpa.max(range.gpa) / self.page_size * self.page_size;
            if page < run.gpa || page < range.gpa || page >= end || page >= run.gpa + run.len {
                continue;
            }
            let mut parts = vec![PageRun { gpa: run.gpa, len: page - run.gpa }];
            let after = page + self.page_size;
            parts.push(PageRun { gpa: after, len: run.gpa + run.len - after });
            parts.retain(|r| r.len > 0);
            self.runs.splice(i..=i, parts);
            points.note_fired();
            return;
        }
    }
}

/// A span is at most one batch, so that its length fits.
fn push_span(spans: &mut Vec<PagesRun>, next: PagesRun) {
    match spans.last_mut() {
        Some(last) if last.kind == next.kind && last.gpa + u64::from(last.len) == next.gpa => last.len += next.len,
        _ => spans.push(next),
    }
}

/// Whether all bytes are zero. A page of data is usually told by its first line.
fn is_zero(page: &[u8]) -> bool {
    let (head, tail) = page.split_at(page.len().min(64));
    head.iter().all(|b| *b == 0) && tail.chunks(256).all(|c| c.iter().fold(0, |a, b| a | b) == 0)
}

/// Marks what has to be sent first: everything that was ever written, or all where the destination's memory is not fresh.
/// Returns the pages left out.
pub(crate) fn mark_first_pass(
    memory: &dyn GuestMemory,
    ledger: &Ledger,
    ranges: &[MemoryRange],
    skip_holes: bool,
) -> u64 {
    if !skip_holes {
        ledger.mark_all();
        return 0;
    }
    for range in ranges {
        for part in memory.populated(*range) {
            ledger.mark(part.gpa, part.len);
        }
    }
    ledger.pages().saturating_sub(ledger.dirty_pages())
}
