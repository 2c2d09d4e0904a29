//! [`MarkLog`]: the dirty source "marked by the caller".

use alloc::format;
use alloc::sync::Arc;
use core::fmt;
use core::sync::atomic::{AtomicBool, Ordering, fence};

use super::bitmap::DirtyBitmap;
use super::lock::SpinRw;
use super::page_map::{PageMap, page_size_is_valid};
use crate::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource, normalise_ranges};
use crate::memory::MemoryRange;

/// Where a writer inside of this process (a device model, a virtio back end) says what it wrote.
///
/// **Write first, then mark.** Marking is cheap enough to be always there: one fence and one load while nobody tracks.
/// Marks made while nobody tracks are forgotten. One [`MarkSource`] tracks at a time.
#[derive(Default)]
pub struct MarkLog {
    /// Whether `tracked` is there, so that a mark need not look.
    active: AtomicBool,
    tracked: SpinRw<Option<Arc<Tracked>>>,
}

struct Tracked {
    map: PageMap,
    pages: DirtyBitmap,
}

impl MarkLog {
    /// A log that nobody tracks yet. Put it into an `Arc`.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// `len` bytes from `gpa` were written. Call it after the write. Parts outside of what is tracked are ignored.
    pub fn mark(&self, gpa: u64, len: u64) {
        // Pairs with the fence in `start`. Either this thread sees `active`, or the write before this call is visible to
        // whoever reads memory after `start` returned, and needs no mark.
        fence(Ordering::SeqCst);
        if !self.active.load(Ordering::Relaxed) {
            return;
        }
        if let Some(tracked) = &*self.tracked.read() {
            tracked.map.pages_of(gpa, len, &mut |first, count| tracked.pages.mark_range(first, count));
        }
    }

    /// A source that harvests this log.
    #[must_use]
    pub fn source(self: &Arc<Self>) -> MarkSource {
        MarkSource { log: Arc::clone(self), tracked: None }
    }
}

impl fmt::Debug for MarkLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MarkLog").field("active", &self.active.load(Ordering::Relaxed)).finish()
    }
}

/// The [`DirtySource`] of a [`MarkLog`]. Stops tracking when dropped.
#[derive(Debug)]
pub struct MarkSource {
    log: Arc<MarkLog>,
    tracked: Option<Arc<Tracked>>,
}

impl fmt::Debug for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pages.fmt(f)
    }
}

impl MarkSource {
    fn release(&mut self) {
        if self.tracked.take().is_some() {
            let mut tracked = self.log.tracked.write();
            self.log.active.store(false, Ordering::Relaxed);
            *tracked = None;
        }
    }
}

impl DirtySource for MarkSource {
    /// Ranges are widened to whole pages; the granularity is what was asked. `page_size_bytes` is a power of two from 512
    /// to 1 GiB.
    ///
    /// # Errors
    /// [`ChannelErrorKind::State`] while this or another source of the log tracks, [`ChannelErrorKind::Limit`] for ranges or
    /// a page size that cannot be tracked.
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        let limit = |message| Err(ChannelError::new(ChannelErrorKind::Limit, message));
        if !page_size_is_valid(page_size_bytes) {
            return limit(format!("cannot track in pages of {page_size_bytes} bytes"));
        }
        let mut whole = alloc::vec::Vec::with_capacity(ranges.len());
        for range in ranges {
            let gpa = range.gpa & !(page_size_bytes - 1);
            match range.end().and_then(|end| end.checked_next_multiple_of(page_size_bytes)) {
                Some(end) if range.len != 0 => whole.push(MemoryRange { gpa, len: end - gpa }),
                _ => return limit(format!("cannot track {:#x} (+{:#x} bytes)", range.gpa, range.len)),
            }
        }
        let map = PageMap::new(&normalise_ranges(&whole), page_size_bytes)
            .map_err(|e| ChannelError::new(ChannelErrorKind::Limit, format!("{e}")))?;
        let pages = DirtyBitmap::new(map.pages());
        let next = Arc::new(Tracked { map, pages });

        let mut tracked = self.log.tracked.write();
        if tracked.is_some() {
            return Err(ChannelError::new(ChannelErrorKind::State, "the mark log is tracked already"));
        }
        *tracked = Some(Arc::clone(&next));
        self.log.active.store(true, Ordering::Relaxed);
        drop(tracked);
        fence(Ordering::SeqCst);
        self.tracked = Some(next);
        Ok(page_size_bytes)
    }

    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let Some(tracked) = &self.tracked else {
            return Err(ChannelError::new(ChannelErrorKind::State, "the mark log is not tracked"));
        };
        // No lock is held: the sink is foreign code, and may mark.
        tracked.pages.harvest_runs(&mut |first, count| {
            tracked.map.runs_of(first, count, &mut |gpa, len| sink.mark(gpa, len));
        });
        Ok(())
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        self.release();
        Ok(())
    }
}

impl Drop for MarkSource {
    fn drop(&mut self) {
        self.release();
    }
}
