//! The page receiver: link → verified batch → guest memory.

use towline_core::dirty::{DirtyBitmap, PageMap};
use towline_core::memory::{GuestMemory, MemoryRange};
use towline_core::stream::{Pages, PagesRun};

use crate::error::EngineError;

/// Writes pages into guest memory.
pub(crate) struct PageReceiver {
    map: PageMap,
    /// Pages that hold something, where memory was fresh: a page of zeros needs no write elsewhere, so that holes stay holes.
    filled: Option<DirtyBitmap>,
    zeros: Vec<u8>,
    pub pages: u64,
    pub zero_pages: u64,
    pub bytes: u64,
}

/// Bytes of zeros written at once.
const ZEROS_BYTES: usize = 64 << 10;

impl PageReceiver {
    pub fn new(ranges: &[MemoryRange], page_size_bytes: u64, is_fresh: bool) -> Result<Self, EngineError> {
        let map = PageMap::new(ranges, page_size_bytes).map_err(|e| EngineError::Config { what: e.to_string() })?;
        let filled = is_fresh.then(|| DirtyBitmap::new(map.pages()));
        Ok(Self { map, filled, zeros: vec![0; ZEROS_BYTES], pages: 0, zero_pages: 0, bytes: 0 })
    }

    /// The number of the first page of a run that lies in one range of memory.
    fn check(&self, run: &PagesRun) -> Result<u64, EngineError> {
        let outside = || EngineError::Protocol {
            during: "receiving pages",
            what: format!("it sent {:#x} bytes at {:#x}, which is not in the offered guest memory", run.len, run.gpa),
        };
        // Alignment, order and overflow are checked by the decoder, for the page size that the frame names.
        let page = self.map.page_size_bytes();
        let len = u64::from(run.len);
        let last = len.checked_sub(page).and_then(|l| run.gpa.checked_add(l)).ok_or_else(outside)?;
        let first = self.map.page_of(run.gpa).ok_or_else(outside)?;
        let last = self.map.page_of(last).ok_or_else(outside)?;
        // Dense numbers of one range are consecutive; across a gap they would be fewer than the addresses say.
        if last.checked_sub(first) != Some(len / page - 1) {
            return Err(outside());
        }
        Ok(first)
    }

    /// Whether one batch fits into guest memory.
    pub fn check_batch(&self, pages: &Pages<'_>) -> Result<(), EngineError> {
        if u64::from(pages.summary.page_size_bytes) != self.map.page_size_bytes() {
            return Err(EngineError::Protocol {
                during: "receiving pages",
                what: format!("it sent pages of {} bytes, not as offered", pages.summary.page_size_bytes),
            });
        }
        pages.runs.iter().try_for_each(|run| self.check(run).map(drop))
    }

    /// Writes one batch. Every run is checked before the first is written.
    pub fn write(&mut self, memory: &dyn GuestMemory, pages: &Pages<'_>) -> Result<(), EngineError> {
        self.check_batch(pages)?;
        let mut result = Ok(());
        pages.each(|run, data| {
            if result.is_ok() {
                result = self.write_run(memory, run, data);
            }
        });
        result?;
        self.pages = self.pages.saturating_add(pages.summary.pages);
        let data_pages = pages.summary.data_bytes / self.map.page_size_bytes();
        self.zero_pages = self.zero_pages.saturating_add(pages.summary.pages.saturating_sub(data_pages));
        self.bytes = self.bytes.saturating_add(pages.summary.data_bytes);
        Ok(())
    }

    fn write_run(&self, memory: &dyn GuestMemory, run: &PagesRun, data: Option<&[u8]>) -> Result<(), EngineError> {
        let first = self.check(run)?;
        let count = u64::from(run.len) / self.map.page_size_bytes();
        let Some(data) = data else { return self.write_zeros(memory, run, first, count) };
        memory.write(run.gpa, data).map_err(write_error)?;
        if let Some(filled) = &self.filled {
            filled.mark_range(first, count);
        }
        Ok(())
    }

    fn write_zeros(&self, memory: &dyn GuestMemory, run: &PagesRun, first: u64, pages: u64) -> Result<(), EngineError> {
        let mut result = Ok(());
        let page = self.map.page_size_bytes();
        let mut clear = |from: u64, count: u64| {
            let (mut gpa, mut left) = (run.gpa + (from - first) * page, count * page);
            while left > 0 && result.is_ok() {
                let n = left.min(self.zeros.len() as u64);
                result = memory.write(gpa, self.zeros.get(..n as usize).unwrap_or_default()).map_err(write_error);
                gpa += n;
                left -= n;
            }
        };
        match &self.filled {
            None => clear(first, pages),
            // What was filled is zero again, and is written at most once until it is filled the next time.
            Some(filled) => {
                filled.take_runs(first, first + pages, u64::MAX, &mut |from, count| clear(from, count));
            }
        }
        result
    }
}

fn write_error(source: towline_core::memory::MemoryError) -> EngineError {
    EngineError::Memory { during: "writing received pages", source }
}
