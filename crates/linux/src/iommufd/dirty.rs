//! [`IommufdDirty`]: the pages that a device wrote, as its IOMMU recorded them.

use std::sync::Arc;

use towline_core::channel::{ChannelError, DirtySink, DirtySource, normalise_ranges};
use towline_core::memory::MemoryRange;

use super::hwpt::Hwpt;
use crate::address_space::areas::{Areas, Watch};
use crate::address_space::locked::LockedBits;
use crate::iommu_error::{limit, state};

/// Words of the bitmap of one query: 64 KiB, which is 2 GiB of memory in pages of 4 KiB. The kernel pins it for the query.
const QUERY_WORDS: usize = 8192;

/// The calls of a page table, so that tests have one that loses bits as the kernel does.
pub(super) trait PageTable: std::fmt::Debug + Send {
    fn set_tracking(&self, on: bool) -> Result<(), ChannelError>;
    fn get_dirty(&self, area: MemoryRange, page_size: u64, bits: &mut [u64]) -> Result<(), ChannelError>;
    /// What addresses are multiples of.
    fn alignment(&self) -> Result<u64, ChannelError>;
}

impl PageTable for Arc<Hwpt> {
    fn set_tracking(&self, on: bool) -> Result<(), ChannelError> {
        self.set_dirty_tracking(on)
    }

    fn get_dirty(&self, area: MemoryRange, page_size: u64, bits: &mut [u64]) -> Result<(), ChannelError> {
        Hwpt::get_dirty(self, area.gpa, area.len, page_size, bits, false)
    }

    fn alignment(&self) -> Result<u64, ChannelError> {
        self.ioas().iova_ranges().map(|ranges| ranges.alignment)
    }
}

/// The dirty source of a page table that was made with dirty tracking. One at a time for a page table: each harvest clears
/// what it found. Devices of several page tables have a source each.
///
/// Every query is of one mapping or a part of it, never across a hole, where the kernel stops and reports success
/// (`drivers/iommu/iommufd/io_pagetable.c`, `iommu_read_and_clear_dirty`). What is unmapped while it tracks counts as dirty.
/// Pages of 4 KiB need [`super::Ioas::set_huge_pages`] off; otherwise a write dirties all of a large page, which is more
/// than necessary, but never less.
#[derive(Debug)]
pub struct IommufdDirty {
    table: Box<dyn PageTable>,
    areas: Arc<Areas>,
    tracked: Option<Tracked>,
}

#[derive(Debug)]
struct Tracked {
    ranges: Vec<MemoryRange>,
    page_size: u64,
    bits: LockedBits,
    watch: Arc<Watch>,
}

impl IommufdDirty {
    /// Nothing is tracked before [`DirtySource::start`].
    #[must_use]
    pub fn new(hwpt: &Arc<Hwpt>) -> Self {
        Self::over(Box::new(Arc::clone(hwpt)), hwpt.ioas().areas())
    }

    pub(super) fn over(table: Box<dyn PageTable>, areas: &Arc<Areas>) -> Self {
        Self { table, areas: Arc::clone(areas), tracked: None }
    }
}

/// The page size for one mapping: what was asked, or the largest below it that its beginning and its length are multiples of.
fn page_size_of(area: MemoryRange, asked: u64) -> u64 {
    // At most 2^63: `asked` is a power of two, so this is one.
    asked.min(1 << (area.gpa | area.len | asked).trailing_zeros())
}

/// A mapping in pieces whose bitmaps fit, each of them a multiple of `page_size`.
fn pieces(area: MemoryRange, page_size: u64) -> impl Iterator<Item = MemoryRange> {
    let most = page_size.saturating_mul(QUERY_WORDS as u64 * 64);
    (0..area.len.div_ceil(most)).map(move |n| {
        let offset = n * most;
        MemoryRange { gpa: area.gpa + offset, len: most.min(area.len - offset) }
    })
}

impl Tracked {
    fn harvest(&mut self, table: &dyn PageTable, areas: &Areas, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let Self { ranges, page_size, bits, watch } = self;
        areas.each_writable(ranges, &mut |area| {
            let page_size = page_size_of(area, *page_size);
            for piece in pieces(area, page_size) {
                let words = usize::try_from((piece.len / page_size).div_ceil(64)).unwrap_or(QUERY_WORDS);
                let words = bits.zeroed(words);
                table.get_dirty(piece, page_size, words)?;
                if words.iter().any(|word| *word != 0) {
                    tell(piece, page_size, words, sink);
                }
            }
            Ok(())
        })?;
        watch.tell(sink);
        Ok(())
    }
}

/// Hands a bitmap of words to a sink that takes bytes.
fn tell(piece: MemoryRange, page_size: u64, words: &[u64], sink: &mut dyn DirtySink) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    sink.merge_bitmap(piece.gpa, page_size, &bytes);
}

/// All of it is dirty.
pub(crate) fn tell_all(ranges: &[MemoryRange], sink: &mut dyn DirtySink) {
    ranges.iter().for_each(|range| sink.mark(range.gpa, range.len));
}

/// What `start` of both sources of this kind checks.
pub(crate) fn checked(ranges: &[MemoryRange], page_size: u64) -> Result<Vec<MemoryRange>, ChannelError> {
    if !page_size.is_power_of_two() || !(512..=1 << 30).contains(&page_size) {
        return Err(limit(format!("cannot track in pages of {page_size} bytes: not a power of two from 512 to 1 GiB")));
    }
    if let Some(bad) = ranges.iter().find(|r| r.len == 0 || r.end().is_none()) {
        return Err(limit(format!("cannot track {:#x} (+{:#x} bytes)", bad.gpa, bad.len)));
    }
    Ok(normalise_ranges(ranges))
}

impl DirtySource for IommufdDirty {
    /// `page_size_bytes` is a power of two from 512 to 1 GiB. Mappings that are not aligned to it are told in smaller pages.
    ///
    /// # Errors
    /// `State` while it tracks already, `Unsupported` where the page table was made without dirty tracking, `Limit` for
    /// what can't be tracked and where the bitmap can't be locked (`RLIMIT_MEMLOCK`).
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        if self.tracked.is_some() {
            return Err(state("this page table is tracked already"));
        }
        let ranges = checked(ranges, page_size_bytes)?;
        let page_size = page_size_bytes.max(self.table.alignment()?);
        if !page_size.is_power_of_two() {
            return Err(limit(format!("the IOMMU aligns to {page_size} bytes, which is no power of two")));
        }
        let bits = LockedBits::new(QUERY_WORDS)?;
        // Before tracking is on, so that nothing is unmapped in between unnoticed.
        let watch = self.areas.watch();
        self.table.set_tracking(true)?;
        self.tracked = Some(Tracked { ranges, page_size, bits, watch });
        Ok(page_size)
    }

    /// # Errors
    /// What the kernel said; then everything has been told to `sink` as dirty, as bits may have been cleared that nobody saw.
    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let Some(tracked) = &mut self.tracked else { return Err(state("this page table is not tracked")) };
        tracked.harvest(&*self.table, &self.areas, sink).inspect_err(|_| tell_all(&tracked.ranges, sink))
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        match self.tracked.take() {
            Some(_) => self.table.set_tracking(false),
            None => Ok(()),
        }
    }
}

impl Drop for IommufdDirty {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.stop();
    }
}

#[cfg(test)]
mod tests;
