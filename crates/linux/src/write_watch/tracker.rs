//! [`Tracker`]: which addresses are watched, and which guest memory they are.

use std::sync::Arc;

use rustix::param::page_size;
use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource};
use towline_core::dirty::{MarkLog, MarkSource};
use towline_core::memory::{GuestMemory, MemoryRange};

use super::watcher::{Span, Watcher};
use crate::memory::{HeldMemory, MAX_REGIONS, MappedMemory};
use crate::self_maps::is_mapped;
use crate::track_error::TrackError;

/// Where a piece of guest memory is mapped in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WatchedRange {
    /// First address of it in this process.
    pub address: u64,
    /// Length in bytes, more than 0.
    pub len: u64,
    /// First guest-physical address; as far into a page as `address` is.
    pub gpa: u64,
}

/// Whose mappings are watched.
#[derive(Debug)]
pub(super) enum Mappings {
    /// Those that the caller names.
    Named(Vec<WatchedRange>),
    /// Those of guest memory, as they come and go.
    Memory(Arc<MappedMemory>),
}

/// Addresses that are watched for one piece of guest memory.
#[derive(Clone, Debug)]
struct Piece {
    /// The part that counts, in whole pages.
    span: Span,
    /// Guest-physical address of its beginning.
    gpa: u64,
    /// What is registered for it, which may be more.
    watched: Span,
    /// The range that it is a part of.
    of: WatchedRange,
}

impl Piece {
    /// Tells what of `written` is in this piece.
    fn tell(&self, written: &Span, sink: &mut dyn DirtySink) {
        let (start, end) = (written.start.max(self.span.start), written.end.min(self.span.end));
        if start < end {
            // Inside of the piece, whose end in guest memory was checked.
            sink.mark(self.gpa + (start - self.span.start), end - start);
        }
    }

    fn tell_all(&self, sink: &mut dyn DirtySink) {
        self.tell(&self.span, sink);
    }
}

#[derive(Debug)]
struct Active {
    watcher: Watcher,
    ranges: Vec<MemoryRange>,
    pieces: Vec<Piece>,
}

/// Everything behind the lock of a source.
#[derive(Debug)]
pub(super) struct Tracker {
    mappings: Mappings,
    /// What was found outside of a harvest; its source tracks while `active`.
    marks: Arc<MarkLog>,
    found: MarkSource,
    active: Option<Active>,
}

fn overlap(a: &Span, b: &Span) -> bool {
    a.start < b.end && b.start < a.end
}

impl WatchedRange {
    fn check(&self) -> Result<(), TrackError> {
        let page = page_size() as u64;
        let Self { address, len, gpa } = *self;
        let bad = |what: String| Err(TrackError::Argument(format!("{address:#x} (+{len:#x} bytes): {what}")));
        if len == 0 || address % page != gpa % page {
            return bad(format!("empty, or not as far into a page as guest address {gpa:#x}"));
        }
        let whole_end = |start: u64| start.checked_add(len).and_then(|end| end.checked_next_multiple_of(page));
        let (Some(end), Some(_)) = (whole_end(address), whole_end(gpa)) else {
            return bad("ends beyond the address space".into());
        };
        match is_mapped(address / page * page..end, true) {
            Ok(true) => Ok(()),
            Ok(false) => bad("not wholly mapped and writable in this process".into()),
            Err(error) => bad(format!("/proc/self/maps can't be read: {error}")),
        }
    }

    /// The parts of it that lie in `ranges`, in whole pages, with their guest-physical addresses.
    fn parts<'a>(&'a self, ranges: &'a [MemoryRange]) -> impl Iterator<Item = (Span, u64)> + 'a {
        let page = page_size() as u64;
        ranges.iter().filter_map(move |range| {
            let end = range.end()?.min(self.gpa.checked_add(self.len)?);
            let gpa = range.gpa.max(self.gpa);
            if gpa >= end {
                return None;
            }
            let (gpa, end) = (gpa / page * page, end.checked_next_multiple_of(page)?);
            // As far into a page as each other, so both become whole pages together.
            let address = (self.address / page * page).checked_add(gpa - self.gpa / page * page)?;
            Some((address..address.checked_add(end - gpa)?, gpa))
        })
    }
}

/// The regions of guest memory that this process may write, each held so that it stays mapped.
fn held(memory: &MappedMemory) -> Vec<(WatchedRange, HeldMemory)> {
    let ranges = memory.ranges().into_iter();
    ranges
        .filter_map(|MemoryRange { gpa, len }| {
            // It may have gone a moment ago.
            let held = memory.hold(gpa, len).ok().filter(HeldMemory::is_writable)?;
            let address = held.slice()?.ptr.as_ptr() as u64;
            Some((WatchedRange { address, len, gpa }, held))
        })
        .collect()
}

impl Active {
    fn watch(&mut self, of: WatchedRange) -> Result<(), ChannelError> {
        let parts: Vec<(Span, u64)> = of.parts(&self.ranges).collect();
        for (span, gpa) in parts {
            let watched = self.watcher.watch(span.clone())?;
            self.pieces.push(Piece { span, gpa, watched, of });
        }
        Ok(())
    }

    /// Lets go of a range; addresses that another one needs as well stay watched.
    fn unwatch(&mut self, of: &WatchedRange) {
        let (gone, stay): (Vec<Piece>, Vec<Piece>) = self.pieces.drain(..).partition(|piece| piece.of == *of);
        for piece in &gone {
            if !stay.iter().any(|other| overlap(&other.watched, &piece.watched)) {
                self.watcher.unwatch(&piece.watched);
            }
        }
        self.pieces = stay;
    }

    /// What is watched for some pieces, each address once.
    fn spans(pieces: &[Piece]) -> Vec<Span> {
        let mut all: Vec<Span> = pieces.iter().map(|piece| piece.watched.clone()).collect();
        all.sort_unstable_by_key(|span| span.start);
        let mut spans: Vec<Span> = Vec::with_capacity(all.len());
        for span in all {
            match spans.last_mut() {
                // Those that only touch stay apart: each is told by itself where it fails.
                Some(last) if span.start < last.end => last.end = last.end.max(span.end),
                _ => spans.push(span),
            }
        }
        spans
    }

    /// Tells what was written in `span`, for every piece that has a part of it.
    fn scan(&mut self, span: &Span, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let pieces: Vec<&Piece> = self.pieces.iter().filter(|piece| overlap(&piece.watched, span)).collect();
        self.watcher.scan(span, &mut |written| pieces.iter().for_each(|piece| piece.tell(&written, sink)))
    }

    fn scan_named(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        Self::spans(&self.pieces).iter().try_for_each(|span| self.scan(span, sink))
    }

    /// Regions that went count as written, as nobody knows any more what was; those that came do too.
    fn scan_memory(&mut self, memory: &MappedMemory, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let now = held(memory);
        let known: Vec<WatchedRange> = self.pieces.iter().map(|piece| piece.of).collect();
        for of in known.iter().filter(|of| !now.iter().any(|(range, _)| range == *of)) {
            self.pieces.iter().filter(|piece| piece.of == *of).for_each(|piece| piece.tell_all(sink));
            self.unwatch(of);
        }
        for (of, _held) in &now {
            let spans = Self::spans(&self.pieces.iter().filter(|p| p.of == *of).cloned().collect::<Vec<_>>());
            let mut result = Ok(());
            for span in &spans {
                result = result.and(self.scan(span, sink));
            }
            match result {
                Ok(()) if known.contains(of) => continue,
                Err(error) if error.kind != ChannelErrorKind::Gone => return Err(error),
                // New, or another mapping at the same place.
                _ => {}
            }
            self.unwatch(of);
            self.watch(*of)?;
            self.pieces.iter().filter(|piece| piece.of == *of).for_each(|piece| piece.tell_all(sink));
        }
        Ok(())
    }
}

impl Tracker {
    pub(super) fn new(mappings: Mappings) -> Result<Self, TrackError> {
        if let Mappings::Named(ranges) = &mappings {
            if ranges.len() > MAX_REGIONS {
                return Err(TrackError::Argument(format!("more than {MAX_REGIONS} ranges")));
            }
            ranges.iter().try_for_each(WatchedRange::check)?;
        }
        let marks = Arc::new(MarkLog::new());
        let found = marks.source();
        Ok(Self { mappings, marks, found, active: None })
    }

    pub(super) fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        if self.active.is_some() {
            return Err(ChannelError::new(ChannelErrorKind::State, "this memory is tracked already"));
        }
        let page_size_bytes = page_size_bytes.max(page_size() as u64);
        let watcher = Watcher::new()?;
        // Also checks ranges and page size.
        self.found.start(ranges, page_size_bytes)?;
        let mut active = Active { watcher, ranges: ranges.to_vec(), pieces: Vec::new() };
        let started = match &self.mappings {
            Mappings::Named(named) => named.iter().try_for_each(|range| active.watch(*range)),
            Mappings::Memory(memory) => held(memory).iter().try_for_each(|(range, _held)| active.watch(*range)),
        };
        match started {
            Ok(()) => self.active = Some(active),
            Err(_) => self.found.stop()?,
        }
        started.map(|()| page_size_bytes)
    }

    pub(super) fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let Some(active) = &mut self.active else {
            return Err(ChannelError::new(ChannelErrorKind::State, "this memory is not tracked"));
        };
        let result = match &self.mappings {
            Mappings::Named(_) => active.scan_named(sink),
            Mappings::Memory(memory) => active.scan_memory(memory, sink),
        };
        if let Err(error) = result {
            // What was written may have been forgotten and not told.
            active.ranges.iter().for_each(|range| sink.mark(range.gpa, range.len));
            return Err(error);
        }
        self.found.harvest(sink)
    }

    pub(super) fn stop(&mut self) -> Result<(), ChannelError> {
        // With its userfaultfd everything that it watched goes.
        self.active = None;
        self.found.stop()
    }

    fn named(&mut self) -> Result<&mut Vec<WatchedRange>, TrackError> {
        match &mut self.mappings {
            Mappings::Named(ranges) => Ok(ranges),
            Mappings::Memory(_) => Err(TrackError::Argument("the ranges are those of the guest memory".into())),
        }
    }

    pub(super) fn add_range(&mut self, range: WatchedRange) -> Result<(), TrackError> {
        let named = self.named()?;
        if named.contains(&range) {
            return Err(TrackError::Exists(format!("{:#x} (+{:#x} bytes) is there already", range.address, range.len)));
        }
        if named.len() >= MAX_REGIONS {
            return Err(TrackError::Argument(format!("more than {MAX_REGIONS} ranges")));
        }
        range.check()?;
        if let Some(active) = &mut self.active {
            if let Err(error) = active.watch(range) {
                active.unwatch(&range);
                return Err(error.into());
            }
            // Whatever was written before it was watched.
            self.marks.mark(range.gpa, range.len);
        }
        self.named()?.push(range);
        Ok(())
    }

    pub(super) fn remove_range(&mut self, range: &WatchedRange) -> Result<(), TrackError> {
        let named = self.named()?;
        let at = named.iter().position(|r| r == range).ok_or_else(|| {
            TrackError::NotFound(format!("{:#x} (+{:#x} bytes) is not watched", range.address, range.len))
        })?;
        named.remove(at);
        let Some(active) = &mut self.active else { return Ok(()) };
        let own: Vec<Piece> = active.pieces.iter().filter(|piece| piece.of == *range).cloned().collect();
        let mut sink = ToMarks(&self.marks);
        let scanned = Active::spans(&own).iter().try_for_each(|span| active.scan(span, &mut sink));
        if scanned.is_err() {
            // Unmapped already: nobody knows.
            own.iter().for_each(|piece| piece.tell_all(&mut sink));
        }
        active.unwatch(range);
        Ok(())
    }
}

struct ToMarks<'a>(&'a MarkLog);

impl DirtySink for ToMarks<'_> {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.mark(gpa, len);
    }

    fn merge_bitmap(&mut self, _: u64, _: u64, _: &[u8]) {
        // Only runs are told here.
    }
}
