//! The ranges of a BAR that a guest may reach without anybody looking.

use alloc::vec::Vec;
use core::fmt;

use super::filter::Filter;
use super::layout::{Class, MIXED, PAGE_BYTES};

/// A range that may be mapped into a guest for reads and writes; both numbers are multiples of the page size asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MmapRun {
    /// First byte in the BAR.
    pub offset: u64,
    /// Length in bytes.
    pub len: u64,
}

/// A page size that is no power of two of at least 4096 and at most 1 GiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSizeError(pub u64);

impl fmt::Display for PageSizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is no page size: a power of two from 4096 to 1 GiB is needed", self.0)
    }
}

impl core::error::Error for PageSizeError {}

impl Filter {
    /// The largest ranges of whole pages in which every byte passes in both directions, ascending. `page_size_bytes` is
    /// the host's: a power of two, 4096 bytes to 1 GiB.
    ///
    /// # Errors
    /// [`PageSizeError`].
    pub fn mmap_plan(&self, page_size_bytes: u64) -> Result<Vec<MmapRun>, PageSizeError> {
        if !page_size_bytes.is_power_of_two() || !(PAGE_BYTES..=1 << 30).contains(&page_size_bytes) {
            return Err(PageSizeError(page_size_bytes));
        }
        let mut out = Vec::new();
        let mut run_start = None;
        // A last page that the BAR fills only in part is not whole: what would be mapped behind it is not this BAR.
        let whole = self.visible_bytes() / PAGE_BYTES;
        for page in 0..=whole {
            let passes = page < whole && self.page_entry(page).is_some_and(|entry| self.entry_passes(entry));
            match (passes, run_start) {
                (true, None) => run_start = Some(page),
                (false, Some(start)) => {
                    let start = (start * PAGE_BYTES).next_multiple_of(page_size_bytes);
                    let end = page * PAGE_BYTES / page_size_bytes * page_size_bytes;
                    if start < end {
                        out.push(MmapRun { offset: start, len: end - start });
                    }
                    run_start = None;
                }
                _ => {}
            }
        }
        Ok(out)
    }

    fn entry_passes(&self, entry: u32) -> bool {
        entry == 0 || (entry & MIXED == 0 && self.class(entry as usize) == Some(Class::PASS))
    }
}
