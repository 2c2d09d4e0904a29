//! [`PageMap`]: guest addresses to dense page numbers and back.

use alloc::vec::Vec;
use core::fmt;

use crate::memory::MemoryRange;

/// The largest number of pages that is tracked: 256 TiB in pages of 4 KiB, a bitmap of 8 GiB.
pub const MAX_PAGES: u64 = 1 << 36;

/// Ranges of guest memory with the holes between them taken out: the pages of the first range are `0 .. n`, those of the
/// second follow, and so on by ascending address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageMap {
    ranges: Vec<Placed>,
    page_size_bytes: u64,
    pages: u64,
}

/// One range and where it lies in the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) gpa: u64,
    pub(super) len: u64,
    /// Number of its first page.
    pub(super) first: u64,
}

/// Why ranges are not a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageMapError {
    /// The range that does not fit.
    pub range: MemoryRange,
    /// What is wrong with it.
    pub kind: PageMapErrorKind,
}

/// See [`PageMapError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageMapErrorKind {
    /// The page size is not a power of two, or is less than 512 bytes or more than 1 GiB.
    PageSize(u64),
    /// It is empty.
    Empty,
    /// Its end is past the largest address.
    Overflow,
    /// It does not begin and end at a page boundary.
    Misaligned,
    /// It overlaps another one.
    Overlap,
    /// More than [`MAX_PAGES`] in all.
    TooLarge,
    /// It is not, or not wholly, part of guest memory.
    Unknown,
}

impl fmt::Display for PageMapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guest memory range {:#x} (+{:#x} bytes) ", self.range.gpa, self.range.len)?;
        match self.kind {
            PageMapErrorKind::PageSize(size) => {
                write!(f, "cannot be tracked in pages of {size} bytes: not a power of two from 512 to 1 GiB")
            }
            PageMapErrorKind::Empty => f.write_str("is empty"),
            PageMapErrorKind::Overflow => f.write_str("ends past the largest address"),
            PageMapErrorKind::Misaligned => f.write_str("does not begin and end at a page boundary"),
            PageMapErrorKind::Overlap => f.write_str("overlaps another range"),
            PageMapErrorKind::TooLarge => f.write_str("makes more pages than can be tracked"),
            PageMapErrorKind::Unknown => f.write_str("is not part of guest memory"),
        }
    }
}

impl core::error::Error for PageMapError {}

/// Whether `size` is a page size that is accepted anywhere in this crate: a power of two from 512 bytes to 1 GiB.
pub(crate) fn page_size_is_valid(size: u64) -> bool {
    size.is_power_of_two() && (512..=1 << 30).contains(&size)
}

impl PageMap {
    /// `ranges` in any order, each aligned to `page_size_bytes` (a power of two from 512 to 1 GiB). Ranges that touch stay
    /// two, since different memory may be behind them.
    ///
    /// # Errors
    /// See [`PageMapErrorKind`].
    pub fn new(ranges: &[MemoryRange], page_size_bytes: u64) -> Result<Self, PageMapError> {
        let mut sorted: Vec<MemoryRange> = ranges.to_vec();
        sorted.sort_unstable();
        let mut map = Self { ranges: Vec::with_capacity(sorted.len()), page_size_bytes, pages: 0 };
        if !page_size_is_valid(page_size_bytes) {
            let range = sorted.first().copied().unwrap_or(MemoryRange { gpa: 0, len: 0 });
            return Err(PageMapError { range, kind: PageMapErrorKind::PageSize(page_size_bytes) });
        }
        let mut previous_end = 0;
        for range in sorted {
            let refuse = |kind| Err(PageMapError { range, kind });
            if range.len == 0 {
                return refuse(PageMapErrorKind::Empty);
            }
            let Some(end) = range.end() else { return refuse(PageMapErrorKind::Overflow) };
            if !(range.gpa | range.len).is_multiple_of(page_size_bytes) {
                return refuse(PageMapErrorKind::Misaligned);
            }
            if range.gpa < previous_end {
                return refuse(PageMapErrorKind::Overlap);
            }
            previous_end = end;
            map.ranges.push(Placed { gpa: range.gpa, len: range.len, first: map.pages });
            // Both are below 2^55: no overflow.
            map.pages += range.len / page_size_bytes;
            if map.pages > MAX_PAGES {
                return refuse(PageMapErrorKind::TooLarge);
            }
        }
        Ok(map)
    }

    /// Bytes in a page.
    #[must_use]
    pub fn page_size_bytes(&self) -> u64 {
        self.page_size_bytes
    }

    /// Pages in all ranges.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.pages
    }

    /// The ranges, ascending.
    #[must_use]
    pub fn ranges(&self) -> Vec<MemoryRange> {
        self.ranges.iter().map(|r| MemoryRange { gpa: r.gpa, len: r.len }).collect()
    }

    pub(super) fn placed(&self) -> &[Placed] {
        &self.ranges
    }

    /// The number of the page that `gpa` lies in; `None` in a hole.
    #[must_use]
    pub fn page_of(&self, gpa: u64) -> Option<u64> {
        let after = self.ranges.partition_point(|r| r.gpa <= gpa);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let offset = gpa - range.gpa;
        (offset < range.len).then(|| range.first + offset / self.page_size_bytes)
    }

    /// The address of the first byte of `page`; `None` where there is no such page.
    #[must_use]
    pub fn gpa_of(&self, page: u64) -> Option<u64> {
        let range = self.ranges.get(self.index_of(page)?)?;
        Some(range.gpa + (page - range.first) * self.page_size_bytes)
    }

    fn index_of(&self, page: u64) -> Option<usize> {
        if page >= self.pages {
            return None;
        }
        self.ranges.partition_point(|r| r.first <= page).checked_sub(1)
    }

    /// Calls `f(first_page, count)` for the pages that `gpa .. gpa + len` touches, once for each range. What lies in a hole or
    /// past the largest address is left out.
    pub fn pages_of(&self, gpa: u64, len: u64, f: &mut dyn FnMut(u64, u64)) {
        if len == 0 {
            return;
        }
        let last = gpa.saturating_add(len - 1);
        let from = self.ranges.partition_point(|r| r.gpa + (r.len - 1) < gpa);
        for range in self.ranges.iter().skip(from).take_while(|r| r.gpa <= last) {
            let start = gpa.max(range.gpa) - range.gpa;
            let stop = last.min(range.gpa + (range.len - 1)) - range.gpa;
            let first = start / self.page_size_bytes;
            f(range.first + first, stop / self.page_size_bytes - first + 1);
        }
    }

    /// Calls `f(gpa, len)` for the addresses of `first .. first + count`, in bytes, once for each range: what it is given
    /// never crosses from one range into the next, even where they touch.
    pub fn runs_of(&self, first: u64, count: u64, f: &mut dyn FnMut(u64, u64)) {
        let end = first.saturating_add(count).min(self.pages);
        let mut page = first;
        while page < end {
            let Some(range) = self.index_of(page).and_then(|i| self.ranges.get(i)) else { return };
            let range_end = range.first + range.len / self.page_size_bytes;
            let stop = end.min(range_end);
            f(range.gpa + (page - range.first) * self.page_size_bytes, (stop - page) * self.page_size_bytes);
            page = stop;
        }
    }
}
