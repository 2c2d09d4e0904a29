//! [`Ledger`]: the merge of every dirty source over guest memory.

use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use super::bitmap::DirtyBitmap;
use super::foreign;
use super::lock::SpinRw;
use super::page_map::{PageMap, PageMapError, PageMapErrorKind};
use crate::channel::{ChannelError, DirtySink, DirtySource};
use crate::memory::MemoryRange;

/// Pages to send, next to each other and in one range of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRun {
    /// Guest-physical address of the first byte, aligned to the page size.
    pub gpa: u64,
    /// Bytes, a multiple of the page size, never 0.
    pub len: u64,
}

/// What is dirty in guest memory, by whatever source, and what of it to send next.
///
/// Shared by reference: sources mark from any thread (`&Ledger` is a [`DirtySink`]) while senders take runs. **A page is
/// handed out at least once after the last mark of it.** A sender reads a page after [`Ledger::next_runs`] gave it out;
/// what fails to be sent is given back with [`Ledger::mark`].
///
/// Nothing is dirty at first: a migration starts with [`Ledger::mark_all`], a source that failed ends in it too.
pub struct Ledger {
    state: SpinRw<State>,
    /// Where the next run is looked for, so that a page that is written all the time does not starve those behind it.
    /// The lock also keeps takers apart: one that finds nothing can rely on there being nothing.
    cursor: SpinRw<u64>,
    handed_out: AtomicU64,
}

struct State {
    map: PageMap,
    pages: DirtyBitmap,
}

impl State {
    fn new(ranges: &[MemoryRange], page_size_bytes: u64) -> Result<Self, PageMapError> {
        let map = PageMap::new(ranges, page_size_bytes)?;
        let pages = DirtyBitmap::new(map.pages());
        Ok(Self { map, pages })
    }

    fn mark(&self, gpa: u64, len: u64) {
        self.map.pages_of(gpa, len, &mut |first, count| self.pages.mark_range(first, count));
    }

    /// Replaces the ranges and keeps what is dirty in those that stay.
    fn change(&mut self, ranges: &[MemoryRange]) -> Result<(), PageMapError> {
        let next = Self::new(ranges, self.map.page_size_bytes())?;
        self.pages.peek_runs(&mut |first, count| self.map.runs_of(first, count, &mut |gpa, len| next.mark(gpa, len)));
        *self = next;
        Ok(())
    }
}

impl Ledger {
    /// A clean ledger over `ranges`, each aligned to `page_size_bytes` (a power of two from 512 to 1 GiB). No ranges at
    /// all are fine: [`Ledger::add_range`] brings them.
    ///
    /// # Errors
    /// See [`PageMapErrorKind`].
    pub fn new(ranges: &[MemoryRange], page_size_bytes: u64) -> Result<Self, PageMapError> {
        Ok(Self {
            state: SpinRw::new(State::new(ranges, page_size_bytes)?),
            cursor: SpinRw::new(0),
            handed_out: AtomicU64::new(0),
        })
    }

    /// Bytes in a page.
    #[must_use]
    pub fn page_size_bytes(&self) -> u64 {
        self.state.read().map.page_size_bytes()
    }

    /// The ranges as they are now, ascending.
    #[must_use]
    pub fn ranges(&self) -> Vec<MemoryRange> {
        self.state.read().map.ranges()
    }

    /// Pages of guest memory.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.state.read().map.pages()
    }

    /// `len` bytes from `gpa` were written. Parts outside of guest memory are ignored.
    pub fn mark(&self, gpa: u64, len: u64) {
        self.state.read().mark(gpa, len);
    }

    /// See [`DirtySink::merge_bitmap`]. A page size that is not a power of two marks everything.
    pub fn merge_bitmap(&self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        let state = self.state.read();
        foreign::merge(&state.map, &state.pages, base, page_size_bytes, bitmap);
    }

    /// Marks every page.
    pub fn mark_all(&self) {
        let state = self.state.read();
        state.pages.mark_range(0, state.map.pages());
    }

    /// Takes up to `max_pages` dirty pages as runs in ascending order, puts them into `out` (whose former content goes)
    /// and returns how many pages they are: 0 only when nothing was dirty, or `max_pages` is 0. A call may give less than
    /// there is: it goes up to the end of memory, and the next one starts from the beginning.
    pub fn next_runs(&self, max_pages: u64, out: &mut Vec<PageRun>) -> u64 {
        out.clear();
        let mut cursor = self.cursor.write();
        let state = self.state.read();
        let mut end_of_last = *cursor;
        let mut take = |from: u64, to: u64| {
            state.pages.take_runs(from, to, max_pages, &mut |first, count| {
                end_of_last = first + count;
                state.map.runs_of(first, count, &mut |gpa, len| out.push(PageRun { gpa, len }));
            })
        };
        // Not both in one call: runs would not be ascending.
        let mut taken = take(*cursor, u64::MAX);
        if taken == 0 {
            taken = take(0, *cursor);
        }
        *cursor = end_of_last;
        self.handed_out.fetch_add(taken, Ordering::Relaxed);
        taken
    }

    /// Pages that are dirty now. Walks what is dirty.
    #[must_use]
    pub fn dirty_pages(&self) -> u64 {
        // While a taker is at work, what it will leave behind may be invisible.
        let _takers = self.cursor.write();
        self.state.read().pages.count()
    }

    /// Pages handed out since the ledger was made; a page counts each time.
    #[must_use]
    pub fn handed_out_pages(&self) -> u64 {
        self.handed_out.load(Ordering::Relaxed)
    }

    /// Adds a range of guest memory; all of it is dirty.
    ///
    /// # Errors
    /// See [`PageMapErrorKind`]; nothing has changed then.
    pub fn add_range(&self, range: MemoryRange) -> Result<(), PageMapError> {
        let mut cursor = self.cursor.write();
        let mut state = self.state.write();
        let mut ranges = state.map.ranges();
        ranges.push(range);
        state.change(&ranges)?;
        state.mark(range.gpa, range.len);
        *cursor = 0;
        Ok(())
    }

    /// Takes guest memory away and forgets what is dirty in it. `range` may be part of a range, or cover several.
    ///
    /// # Errors
    /// [`PageMapErrorKind::Unknown`] where not all of it is guest memory, [`PageMapErrorKind::Misaligned`] where it cuts a
    /// page; nothing has changed then.
    pub fn remove_range(&self, range: MemoryRange) -> Result<(), PageMapError> {
        let mut cursor = self.cursor.write();
        let mut state = self.state.write();
        let refuse = |kind| Err(PageMapError { range, kind });
        let Some(end) = range.end() else { return refuse(PageMapErrorKind::Overflow) };
        if !(range.gpa | range.len).is_multiple_of(state.map.page_size_bytes()) {
            return refuse(PageMapErrorKind::Misaligned);
        }
        let mut left = Vec::new();
        let mut removed = 0;
        for old in state.map.ranges() {
            // The map has checked that no range ends past the largest address.
            let old_end = old.gpa + old.len;
            let (cut_from, cut_to) = (old.gpa.max(range.gpa), old_end.min(end));
            if cut_from >= cut_to {
                left.push(old);
                continue;
            }
            removed += cut_to - cut_from;
            if old.gpa < cut_from {
                left.push(MemoryRange { gpa: old.gpa, len: cut_from - old.gpa });
            }
            if cut_to < old_end {
                left.push(MemoryRange { gpa: cut_to, len: old_end - cut_to });
            }
        }
        if removed != range.len || range.len == 0 {
            return refuse(PageMapErrorKind::Unknown);
        }
        state.change(&left)?;
        *cursor = 0;
        Ok(())
    }

    /// Harvests `source` into the ledger. Where it fails, what it knew is lost, so every page is marked.
    ///
    /// # Errors
    /// What the source said. The ledger is right all the same.
    pub fn harvest(&self, source: &mut dyn DirtySource) -> Result<(), ChannelError> {
        let mut sink = self;
        source.harvest(&mut sink).inspect_err(|_| self.mark_all())
    }

    /// Begins the final pass, once every writer has stopped: `sources` are to be harvested once more, then everything
    /// that is dirty is to be sent, and then [`FinalPass::finish`] says whether that is all.
    #[must_use]
    pub fn begin_final(&self, sources: usize) -> FinalPass<'_> {
        FinalPass { ledger: self, expected: sources, harvested: 0, failed: 0, before: self.handed_out_pages() }
    }
}

impl DirtySink for &Ledger {
    fn mark(&mut self, gpa: u64, len: u64) {
        Ledger::mark(self, gpa, len);
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        Ledger::merge_bitmap(self, base, page_size_bytes, bitmap);
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ledger").field("pages", &self.pages()).field("dirty", &self.dirty_pages()).finish()
    }
}

/// The last pass over a [`Ledger`]: complete, or it says why not.
#[derive(Debug)]
pub struct FinalPass<'a> {
    ledger: &'a Ledger,
    expected: usize,
    harvested: usize,
    failed: usize,
    before: u64,
}

/// A final pass that is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinalReport {
    /// Pages handed out in it.
    pub pages: u64,
    /// Sources whose last harvest failed. For each of them all of guest memory was sent, so nothing is missing.
    pub failed_sources: usize,
}

/// A final pass that is not complete: to commit now would lose writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FinalIncomplete {
    /// Sources that were not harvested.
    pub missing_sources: usize,
    /// Pages that were not handed out.
    pub dirty_pages: u64,
}

impl fmt::Display for FinalIncomplete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the final pass is not complete: {} dirty sources were not harvested, {} pages were not sent",
            self.missing_sources, self.dirty_pages
        )
    }
}

impl core::error::Error for FinalIncomplete {}

impl FinalPass<'_> {
    /// The last harvest of one source. Where it fails, every page is marked and so sent again.
    ///
    /// # Errors
    /// What the source said, to be reported; the pass goes on.
    pub fn harvest(&mut self, source: &mut dyn DirtySource) -> Result<(), ChannelError> {
        self.harvested += 1;
        self.ledger.harvest(source).inspect_err(|_| self.failed += 1)
    }

    /// The last harvest of a source that lives elsewhere: what it found is in the ledger already; `ok` says whether it
    /// succeeded.
    pub fn harvested(&mut self, ok: bool) {
        self.harvested += 1;
        if !ok {
            self.failed += 1;
            self.ledger.mark_all();
        }
    }

    /// Whether everything was harvested and handed out. May be asked again after more was sent.
    ///
    /// # Errors
    /// [`FinalIncomplete`] says what is missing.
    pub fn finish(&self) -> Result<FinalReport, FinalIncomplete> {
        let missing_sources = self.expected.saturating_sub(self.harvested);
        let dirty_pages = self.ledger.dirty_pages();
        if missing_sources != 0 || dirty_pages != 0 {
            return Err(FinalIncomplete { missing_sources, dirty_pages });
        }
        let pages = self.ledger.handed_out_pages().wrapping_sub(self.before);
        Ok(FinalReport { pages, failed_sources: self.failed })
    }
}
