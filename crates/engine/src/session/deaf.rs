//! Rehearsal: a hole in what devices report as written.

use std::sync::Arc;

use towline_core::channel::{ChannelError, DirtySink, DirtySource};
use towline_core::memory::MemoryRange;

use super::NamedSource;
use crate::faultpoints::FaultPoints;

/// Prefix of the names of sources which are no device's.
const EXTRA: &str = "extra#";

/// Loses what the devices among `sources` report about [`FaultPoints::deaf_to_range`].
pub(super) fn deafen(sources: Vec<NamedSource>, points: &Arc<FaultPoints>) -> Vec<NamedSource> {
    let Some(range) = points.deaf_to_range else { return sources };
    let deaf = |named: NamedSource| {
        if named.name.starts_with(EXTRA) {
            return named;
        }
        let source = Deaf { inner: named.source, range, points: Arc::clone(points) };
        NamedSource { name: named.name, source: Box::new(source) }
    };
    sources.into_iter().map(deaf).collect()
}

struct Deaf {
    inner: Box<dyn DirtySource>,
    range: MemoryRange,
    points: Arc<FaultPoints>,
}

struct Sink<'a> {
    sink: &'a mut dyn DirtySink,
    range: MemoryRange,
    lost: bool,
}

impl DirtySink for Sink<'_> {
    fn mark(&mut self, gpa: u64, len: u64) {
        let (start, end) = (self.range.gpa, self.range.gpa.saturating_add(self.range.len));
        let run_end = gpa.saturating_add(len);
        self.lost |= gpa < end && run_end > start;
        if gpa < start {
            self.sink.mark(gpa, run_end.min(start) - gpa);
        }
        if run_end > end {
            let from = gpa.max(end);
            self.sink.mark(from, run_end - from);
        }
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        for (i, byte) in bitmap.iter().enumerate() {
            for bit in (0..8u64).filter(|bit| byte >> bit & 1 == 1) {
                self.mark(base.saturating_add((i as u64 * 8 + bit).saturating_mul(page_size_bytes)), page_size_bytes);
            }
        }
    }
}

impl DirtySource for Deaf {
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        self.inner.start(ranges, page_size_bytes)
    }

    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let mut sink = Sink { sink, range: self.range, lost: false };
        let result = self.inner.harvest(&mut sink);
        if sink.lost {
            self.points.note_fired();
        }
        result
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        self.inner.stop()
    }
}
