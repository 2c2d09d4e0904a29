//! Memory tracking: which pages of its guest a controller wrote (Base 2.1, Track Send with SEL 1 and Track Receive).

use std::collections::VecDeque;
use std::sync::Mutex;

use towline_core::channel::normalise_ranges;
use towline_core::dirty::{DirtyBitmap, PageMap};
use towline_core::memory::MemoryRange;

use super::signal::lock;
use crate::track::{ChangedRange, GRANULARITY_UNIT_BYTES};

/// Finest granularity as a power of two of 4 KiB (Identify MINMRTG).
pub(crate) const MIN_GRANULARITY: u8 = 0;
/// Coarsest granularity (Identify MAXMRTG): 2 MiB.
pub(crate) const MAX_GRANULARITY: u8 = 9;
/// Most range descriptors of one controller (Identify CMMRTD).
pub(crate) const MAX_DESCRIPTORS: u16 = 1024;
/// Most pages that one controller tracks: 1 TiB in pages of 4 KiB, a bitmap of 32 MiB.
pub(crate) const MAX_TRACKED_PAGES: u64 = 1 << 28;

/// The tracked memory of one controller.
pub(crate) struct Tracking {
    map: PageMap,
    bitmap: DirtyBitmap,
    /// What a harvest found and no Track Receive has taken yet.
    harvested: Mutex<VecDeque<ChangedRange>>,
}

impl Tracking {
    /// `None` where the ranges, widened to whole pages, are more than is tracked.
    pub(crate) fn new(ranges: &[MemoryRange], page_size_bytes: u64) -> Option<Self> {
        let mask = page_size_bytes.checked_sub(1)?;
        let widened: Option<Vec<MemoryRange>> = ranges
            .iter()
            .map(|range| {
                let end = range.end()?.checked_add(mask)? & !mask;
                let gpa = range.gpa & !mask;
                Some(MemoryRange { gpa, len: end - gpa })
            })
            .collect();
        let map = PageMap::new(&normalise_ranges(&widened?), page_size_bytes).ok()?;
        if map.pages() == 0 || map.pages() > MAX_TRACKED_PAGES {
            return None;
        }
        Some(Self { bitmap: DirtyBitmap::new(map.pages()), map, harvested: Mutex::new(VecDeque::new()) })
    }

    /// As a power of two of 4 KiB.
    pub(crate) fn granularity(&self) -> u16 {
        (self.map.page_size_bytes() / GRANULARITY_UNIT_BYTES).checked_ilog2().map_or(0, |power| power as u16)
    }

    pub(crate) fn mark(&self, gpa: u64, len: u64) {
        self.map.pages_of(gpa, len, &mut |first, count| self.bitmap.mark_range(first, count));
    }

    /// Hands out at most `most` ranges and forgets them, and tells whether there are more.
    pub(crate) fn receive(&self, most: usize) -> (Vec<ChangedRange>, bool) {
        let mut harvested = lock(&self.harvested);
        if harvested.len() < most {
            // The longest length that a descriptor can say, in whole pages.
            let longest = u64::from(u32::MAX) & !(self.map.page_size_bytes() - 1);
            self.bitmap.harvest_runs(&mut |first, count| {
                self.map.runs_of(first, count, &mut |gpa, len| {
                    let (mut address, mut left) = (gpa, len);
                    while left > 0 {
                        let now = left.min(longest);
                        harvested.push_back(ChangedRange { address, len: now as u32 });
                        (address, left) = (address.saturating_add(now), left - now);
                    }
                });
            });
        }
        let take = most.min(harvested.len());
        let out = harvested.drain(..take).collect();
        (out, !harvested.is_empty() || !self.bitmap.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destructive_and_in_parts() {
        let tracking = Tracking::new(&[MemoryRange { gpa: 0x1000, len: 0x10000 }], 4096).unwrap();
        for gpa in [0x1000, 0x3010, 0x5fff] {
            tracking.mark(gpa, 2);
        }
        tracking.mark(0x0, 0x800);
        let (first, more) = tracking.receive(2);
        assert_eq!(first.iter().map(|r| (r.address, r.len)).collect::<Vec<_>>(), [(0x1000, 4096), (0x3000, 4096)]);
        assert!(more);
        tracking.mark(0x1000, 1);
        let (second, more) = tracking.receive(8);
        assert_eq!(second.iter().map(|r| (r.address, r.len)).collect::<Vec<_>>(), [(0x5000, 8192), (0x1000, 4096)]);
        assert!(!more);
        assert_eq!(tracking.receive(8), (vec![], false));
    }

    #[test]
    fn coarse_pages_and_absurd_ranges() {
        let tracking = Tracking::new(&[MemoryRange { gpa: 0x1000, len: 0x1000 }], 2 << 20).unwrap();
        tracking.mark(0x1800, 1);
        assert_eq!(tracking.receive(8).0, [ChangedRange { address: 0, len: 2 << 20 }]);
        assert!(Tracking::new(&[MemoryRange { gpa: u64::MAX - 4096, len: 4096 }], 4096).is_none());
        assert!(Tracking::new(&[MemoryRange { gpa: 0, len: 1 << 50 }], 4096).is_none());
        assert!(Tracking::new(&[], 4096).is_none());
    }
}
