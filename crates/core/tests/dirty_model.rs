//! Dirty bitmaps, page maps and the ledger against models that are too simple to be wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;
use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource};
use towline_core::dirty::{DirtyBitmap, FinalIncomplete, Ledger, MarkLog, PageMap, PageMapErrorKind, PageRun};
use towline_core::memory::MemoryRange;

fn range(gpa: u64, len: u64) -> MemoryRange {
    MemoryRange { gpa, len }
}

/// Pages (by address) of `ranges` that `from .. to` touches. 128 bits, so that nothing overflows.
fn touched(ranges: &[MemoryRange], page: u64, from: u128, to: u128) -> Vec<u64> {
    let mut out = Vec::new();
    for r in ranges {
        for gpa in (r.gpa..=r.gpa + (r.len - 1)).step_by(page as usize) {
            if u128::from(gpa) < to && u128::from(gpa) + u128::from(page) > from && from < to {
                out.push(gpa);
            }
        }
    }
    out
}

fn naive_merge(ranges: &[MemoryRange], page: u64, base: u64, size: u64, bitmap: &[u8]) -> BTreeSet<u64> {
    let mut out = BTreeSet::new();
    for n in 0..bitmap.len() * 8 {
        if bitmap[n / 8] >> (n % 8) & 1 == 1 {
            let from = u128::from(base) + n as u128 * u128::from(size);
            out.extend(touched(ranges, page, from, from + u128::from(size)));
        }
    }
    out
}

fn drain(ledger: &Ledger, max: u64) -> BTreeSet<u64> {
    let (mut out, mut runs) = (BTreeSet::new(), Vec::new());
    while ledger.next_runs(max, &mut runs) != 0 {
        for run in &runs {
            for gpa in (run.gpa..=run.gpa + (run.len - 1)).step_by(ledger.page_size_bytes() as usize) {
                assert!(out.insert(gpa), "{gpa:#x} was handed out twice");
            }
        }
    }
    out
}

/// Ranges by pages: holes, neighbours, one at the end of the address space.
fn layout() -> impl Strategy<Value = (u64, Vec<MemoryRange>)> {
    let page = prop::sample::select(vec![512u64, 4096, 65536]);
    (page, prop::collection::vec((0u64..4, 1u64..200), 1..4), any::<bool>()).prop_map(|(page, parts, top)| {
        let mut at = 16 * page;
        let mut ranges = Vec::new();
        for (hole, pages) in parts {
            at += hole * 37 * page;
            ranges.push(range(at, pages * page));
            at += pages * page;
        }
        if top {
            // The last page but one: `MemoryRange::end` has to be representable.
            ranges.push(range(0u64.wrapping_sub(9 * page), 8 * page));
        }
        (page, ranges)
    })
}

type Merge = fn(&Ledger, u64, u64, &[u8]);

fn merge_is_right(merge: Merge, page: u64, ranges: &[MemoryRange], base: u64, size: u64, bitmap: &[u8]) -> bool {
    let ledger = Ledger::new(ranges, page).unwrap();
    merge(&ledger, base, size, bitmap);
    drain(&ledger, 13) == naive_merge(ranges, page, base, size, bitmap)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn merging_any_bitmap(
        (page, ranges) in layout(),
        base_kind in 0..5,
        offset in 0u64..400,
        shift in 0u32..64,
        near in 0i32..5,
        bitmap in prop::collection::vec(prop_oneof![Just(0u8), any::<u8>(), Just(0xff)], 0..60),
    ) {
        // Page sizes near the ledger's own, and any other.
        let size = if near < 4 { page << 2 >> near } else { 1 << shift };
        let base = match base_kind {
            0 => ranges[0].gpa + offset * page,
            1 => ranges[0].gpa.wrapping_sub(offset.wrapping_mul(size)),
            2 => ranges[0].gpa + offset,
            3 => u64::MAX - offset * page,
            _ => u64::MAX - offset,
        };
        prop_assert!(merge_is_right(Ledger::merge_bitmap, page, &ranges, base, size, &bitmap));
    }

    #[test]
    fn a_bitmap_is_a_set(
        pages in 1u64..9000,
        steps in prop::collection::vec((0..5, 0u64..9100, 0u64..300, any::<[u64; 3]>()), 1..60),
    ) {
        let bitmap = DirtyBitmap::new(pages);
        let mut model = BTreeSet::new();
        for (step, first, count, words) in steps {
            match step {
                0 => {
                    bitmap.mark(first);
                    model.insert(first);
                }
                1 => {
                    bitmap.mark_range(first, count);
                    model.extend(first..first + count);
                }
                2 => {
                    bitmap.or_words(first, &words);
                    model.extend((0..192).filter(|n| words[n / 64] >> (n % 64) & 1 == 1).map(|n| first + n as u64));
                }
                3 => {
                    let end = first + 10 * count;
                    let mut found = Vec::new();
                    let taken = bitmap.take_runs(first, end, count, &mut |f, c| found.extend(f..f + c));
                    let expected: Vec<u64> = model.range(first..end).copied().take(count as usize).collect();
                    prop_assert_eq!(taken, expected.len() as u64);
                    prop_assert_eq!(&found, &expected);
                    found.iter().for_each(|page| { model.remove(page); });
                }
                _ => {
                    let (mut runs, mut last_end) = (Vec::new(), None);
                    bitmap.harvest_runs(&mut |f, c| {
                        assert!(c > 0 && last_end.is_none_or(|end| f > end), "runs are maximal and ascending");
                        last_end = Some(f + c);
                        runs.extend(f..f + c);
                    });
                    prop_assert_eq!(runs, model.iter().copied().collect::<Vec<_>>());
                    model.clear();
                }
            }
            model.retain(|page| *page < pages);
            prop_assert_eq!(bitmap.count(), model.len() as u64);
            prop_assert_eq!(bitmap.is_empty(), model.is_empty());
        }
    }

    #[test]
    fn a_page_map_has_an_inverse((page, ranges) in layout(), gpa: u64, len in 0u64..1 << 40) {
        let map = PageMap::new(&ranges, page).unwrap();
        let all = touched(&ranges, page, 0, u128::MAX);
        prop_assert_eq!(map.pages(), all.len() as u64);
        for (n, gpa) in all.iter().enumerate() {
            prop_assert_eq!(map.gpa_of(n as u64), Some(*gpa));
            prop_assert_eq!(map.page_of(gpa + page - 1), Some(n as u64));
        }
        prop_assert_eq!(map.gpa_of(map.pages()), None);
        for from in [gpa, gpa % (2000 * page), u64::MAX - gpa % (20 * page)] {
            let mut pages = Vec::new();
            map.pages_of(from, len, &mut |first, count| pages.extend((first..first + count).map(|p| map.gpa_of(p).unwrap())));
            prop_assert_eq!(pages, touched(&ranges, page, u128::from(from), u128::from(from) + u128::from(len)));
        }
    }

    #[test]
    fn a_ledger_is_a_set_over_ranges_that_change(
        steps in prop::collection::vec((0..6, 0u64..64, 1u64..40), 1..80),
    ) {
        const PAGE: u64 = 4096;
        let ledger = Ledger::new(&[range(0, 20 * PAGE), range(30 * PAGE, 8 * PAGE)], PAGE).unwrap();
        let mut memory: BTreeSet<u64> = (0..20).chain(30..38).collect();
        let mut dirty = BTreeSet::new();
        let mut runs = Vec::new();
        for (step, first, count) in steps {
            let part = range(first * PAGE, count * PAGE);
            let pages: BTreeSet<u64> = (first..first + count).collect();
            match step {
                0 | 1 => {
                    ledger.mark(part.gpa + 1, part.len - 1);
                    dirty.extend(pages.intersection(&memory));
                }
                2 => {
                    let taken = ledger.next_runs(count, &mut runs);
                    prop_assert_eq!(taken == 0, dirty.is_empty());
                    prop_assert!(taken <= count);
                    prop_assert!(runs.windows(2).all(|w| w[0].gpa + w[0].len <= w[1].gpa));
                    prop_assert_eq!(runs.iter().map(|r| r.len / PAGE).sum::<u64>(), taken);
                    let ranges = ledger.ranges();
                    for PageRun { gpa, len } in &runs {
                        prop_assert!(ranges.iter().any(|r| r.gpa <= *gpa && gpa + len <= r.gpa + r.len));
                        for page in gpa / PAGE..(gpa + len) / PAGE {
                            prop_assert!(dirty.remove(&page));
                        }
                    }
                }
                3 => {
                    let added = ledger.add_range(part);
                    prop_assert_eq!(added.is_ok(), pages.is_disjoint(&memory));
                    if added.is_ok() {
                        memory.extend(&pages);
                        dirty.extend(&pages);
                    }
                }
                4 => {
                    let removed = ledger.remove_range(part);
                    prop_assert_eq!(removed.is_ok(), pages.is_subset(&memory));
                    if removed.is_ok() {
                        memory.retain(|p| !pages.contains(p));
                        dirty.retain(|p| !pages.contains(p));
                    }
                }
                _ => {
                    if count == 7 {
                        ledger.mark_all();
                        dirty.clone_from(&memory);
                    }
                }
            }
            prop_assert_eq!(ledger.dirty_pages(), dirty.len() as u64);
            prop_assert_eq!(ledger.pages(), memory.len() as u64);
        }
    }
}

/// Two faults that exist in the field: a bit index of 8 bits, and pages of another size taken as one's own.
#[test]
fn broken_merges_are_caught() {
    let narrow: Merge = |ledger, base, size, bitmap| {
        for n in 0..bitmap.len() * 8 {
            if bitmap[n / 8] >> (n % 8) & 1 == 1 {
                ledger.mark(base + u64::from(n as u8) * size, size);
            }
        }
    };
    let same_size: Merge = |ledger, base, _, bitmap| ledger.merge_bitmap(base, ledger.page_size_bytes(), bitmap);
    let ranges = [range(0, 600 * 4096)];
    let bitmap = [0x81; 64];
    assert!(merge_is_right(Ledger::merge_bitmap, 4096, &ranges, 0, 4096, &bitmap));
    assert!(!merge_is_right(narrow, 4096, &ranges, 0, 4096, &bitmap));
    assert!(merge_is_right(Ledger::merge_bitmap, 4096, &ranges, 0, 8192, &bitmap));
    assert!(!merge_is_right(same_size, 4096, &ranges, 0, 8192, &bitmap));
}

#[test]
fn a_page_size_that_means_nothing_marks_everything() {
    for size in [0, 3, 4095, u64::MAX] {
        let ledger = Ledger::new(&[range(0, 40960)], 4096).unwrap();
        ledger.merge_bitmap(0, size, &[0]);
        assert_eq!(ledger.dirty_pages(), 10);
    }
}

#[test]
fn a_page_that_is_written_all_the_time_starves_nobody() {
    let ledger = Ledger::new(&[range(0, 100 * 4096)], 4096).unwrap();
    ledger.mark_all();
    let (mut runs, mut seen) = (Vec::new(), BTreeSet::new());
    for _ in 0..110 {
        ledger.mark(0, 1);
        ledger.next_runs(1, &mut runs);
        seen.insert(runs[0].gpa);
    }
    assert_eq!(seen.len(), 100);
}

#[test]
fn ranges_that_cannot_be() {
    let kind = |ranges: &[MemoryRange], page| PageMap::new(ranges, page).unwrap_err().kind;
    assert_eq!(kind(&[range(0, 0)], 4096), PageMapErrorKind::Empty);
    assert_eq!(kind(&[range(u64::MAX - 4095, 8192)], 4096), PageMapErrorKind::Overflow);
    assert_eq!(kind(&[range(0, 4097)], 4096), PageMapErrorKind::Misaligned);
    assert_eq!(kind(&[range(512, 4096)], 4096), PageMapErrorKind::Misaligned);
    assert_eq!(kind(&[range(4096, 8192), range(8192, 4096)], 4096), PageMapErrorKind::Overlap);
    assert_eq!(kind(&[range(0, 1 << 63)], 512), PageMapErrorKind::TooLarge);
    for page in [0, 1, 256, 4095, 1 << 31] {
        assert_eq!(kind(&[range(0, 1 << 32)], page), PageMapErrorKind::PageSize(page));
    }
}

/// Reports `marks` once, or fails.
struct Fake(Option<Vec<(u64, u64)>>);

impl DirtySource for Fake {
    fn start(&mut self, _: &[MemoryRange], page: u64) -> Result<u64, ChannelError> {
        Ok(page)
    }
    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let marks = self.0.take().ok_or_else(|| ChannelError::new(ChannelErrorKind::Device, "gone"))?;
        marks.into_iter().for_each(|(gpa, len)| sink.mark(gpa, len));
        Ok(())
    }
    fn stop(&mut self) -> Result<(), ChannelError> {
        Ok(())
    }
}

#[test]
fn a_final_pass_is_complete_or_says_that_it_is_not() {
    let ledger = Ledger::new(&[range(0, 100 * 4096)], 4096).unwrap();
    let mut pass = ledger.begin_final(2);
    pass.harvest(&mut Fake(Some(vec![(0, 8192)]))).unwrap();
    assert_eq!(pass.finish(), Err(FinalIncomplete { missing_sources: 1, dirty_pages: 2 }));
    drain(&ledger, 9);
    assert_eq!(pass.finish(), Err(FinalIncomplete { missing_sources: 1, dirty_pages: 0 }));
    // A source that fails knew something that is lost: everything is to be sent.
    assert_eq!(pass.harvest(&mut Fake(None)).unwrap_err().kind, ChannelErrorKind::Device);
    assert_eq!(pass.finish(), Err(FinalIncomplete { missing_sources: 0, dirty_pages: 100 }));
    drain(&ledger, 9);
    let report = pass.finish().unwrap();
    assert_eq!((report.pages, report.failed_sources), (102, 1));
    // A writer that had not stopped after all.
    ledger.mark(0, 1);
    assert!(pass.finish().is_err());
}

#[test]
fn a_mark_log_has_one_source_at_a_time() {
    let log = Arc::new(MarkLog::new());
    let ranges = [range(0x1000, 0x3000), range(0x10_0800, 0x100)];
    log.mark(0x1000, 1);
    let mut source = log.source();
    assert_eq!(source.start(&ranges, 4096), Ok(4096));
    let mut second = log.source();
    assert_eq!(second.start(&ranges, 4096).unwrap_err().kind, ChannelErrorKind::State);
    assert_eq!(source.start(&ranges, 4096).unwrap_err().kind, ChannelErrorKind::State);
    second.stop().unwrap();
    drop(second);

    log.mark(0x2fff, 2);
    log.mark(0x10_0900, 1);
    log.mark(u64::MAX, u64::MAX);
    log.mark(0, 0x1000);
    let mut found = Vec::new();
    struct Collect<'a>(&'a mut Vec<(u64, u64)>);
    impl DirtySink for Collect<'_> {
        fn mark(&mut self, gpa: u64, len: u64) {
            self.0.push((gpa, len));
        }
        fn merge_bitmap(&mut self, _: u64, _: u64, _: &[u8]) {
            panic!("a mark log reports runs");
        }
    }
    source.harvest(&mut Collect(&mut found)).unwrap();
    assert_eq!(found, [(0x2000, 0x2000), (0x10_0000, 0x1000)]);
    found.clear();
    source.harvest(&mut Collect(&mut found)).unwrap();
    assert_eq!(found, []);

    drop(source);
    log.mark(0x1000, 1);
    let mut third = log.source();
    assert_eq!(third.harvest(&mut Collect(&mut found)).unwrap_err().kind, ChannelErrorKind::State);
    third.start(&ranges, 4096).unwrap();
    third.harvest(&mut Collect(&mut found)).unwrap();
    assert_eq!(found, []);
    assert_eq!(log.source().start(&ranges, 1000).unwrap_err().kind, ChannelErrorKind::Limit);
    assert_eq!(log.source().start(&[range(u64::MAX, 1)], 4096).unwrap_err().kind, ChannelErrorKind::Limit);
}
