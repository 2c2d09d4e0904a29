//! The dirty source of mappings of this process, with real mappings. Where the kernel can't do it everything is ignored, with the reason.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../harness/mod.rs"]
mod harness;

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};
use towline_core::channel::{ChannelErrorKind, DirtySink, DirtySource};
use towline_core::memory::{GuestMemory, MemoryRange};

use towline_linux::TrackError;
use towline_linux::memory::{MappedMemory, memfd};
use towline_linux::write_watch::{WatchedRange, WriteWatch};

use crate::harness::Case;

const PAGE: u64 = 4096;
const HUGE: u64 = 2 << 20;

#[derive(Default)]
struct Told(BTreeSet<u64>);

impl DirtySink for Told {
    fn mark(&mut self, gpa: u64, len: u64) {
        assert!(gpa.is_multiple_of(PAGE) && len.is_multiple_of(PAGE) && len != 0, "{gpa:#x} {len:#x}");
        self.0.extend((gpa..gpa + len).step_by(PAGE as usize).map(|gpa| gpa / PAGE));
    }

    fn merge_bitmap(&mut self, _: u64, _: u64, _: &[u8]) {
        panic!("runs are expected");
    }
}

/// A mapping for a test.
struct Mapping {
    base: *mut u8,
    len: u64,
}

// SAFETY: accessed by atomics only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn of(fd: Option<BorrowedFd<'_>>, len: u64) -> Self {
        let (prot, null) = (ProtFlags::READ | ProtFlags::WRITE, std::ptr::null_mut());
        // SAFETY: new mappings, at addresses of the kernel's choice.
        let base = unsafe {
            match fd {
                Some(fd) => mmap(null, len as usize, prot, MapFlags::SHARED, fd, 0),
                None => mmap_anonymous(null, len as usize, prot, MapFlags::PRIVATE),
            }
        };
        Self { base: base.unwrap().cast(), len }
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset + 8 <= self.len);
        // SAFETY: inside of the mapping, aligned, accessed by atomics.
        unsafe { AtomicU64::from_ptr(self.base.add(offset as usize).cast()) }
    }

    fn write(&self, page: u64) {
        self.word(page * PAGE + 8).fetch_add(1, Ordering::SeqCst);
    }

    fn range(&self, gpa: u64) -> WatchedRange {
        WatchedRange { address: self.base as u64, len: self.len, gpa }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of`, or what is left of it.
        let _ = unsafe { munmap(self.base.cast(), self.len as usize) };
    }
}

/// Everything there may be.
const ALL: MemoryRange = MemoryRange { gpa: 0, len: 1 << 40 };

fn harvest(source: &mut WriteWatch) -> BTreeSet<u64> {
    let mut told = Told::default();
    source.harvest(&mut told).unwrap();
    told.0
}

/// Why this machine can't have a case; `None` where it can.
fn reason(case: &str) -> Option<String> {
    let mapping = Mapping::of(None, PAGE);
    let mut source = WriteWatch::of_ranges(&[mapping.range(0)]).unwrap();
    if let Err(error) = source.start(&[ALL], 4096) {
        assert_eq!(error.kind, ChannelErrorKind::Unsupported, "{error}");
        return (case != REFUSALS).then(|| error.to_string());
    }
    (case == HUGE_PAGES && huge_pages().is_none()).then(|| "no two huge pages are free (vm.nr_hugepages)".into())
}

const REFUSALS: &str = "what_cannot_be_watched_is_refused";
const HUGE_PAGES: &str = "pages_of_hugetlbfs_are_told_whole_also_where_a_part_is_asked_for";

const CASES: &[Case] = &[
    ("each_write_is_told_once_and_reads_never", each_write_is_told_once_and_reads_never),
    ("writes_through_another_mapping_are_not_seen", writes_through_another_mapping_are_not_seen),
    ("more_writes_than_one_scan_tells_are_all_told", more_writes_than_one_scan_tells_are_all_told),
    ("a_writer_that_goes_on_loses_nothing", a_writer_that_goes_on_loses_nothing),
    (
        "a_part_of_a_mapping_is_told_in_whole_pages_and_nothing_beside_it",
        a_part_of_a_mapping_is_told_in_whole_pages_and_nothing_beside_it,
    ),
    ("what_is_unmapped_is_told_before_or_is_an_error", what_is_unmapped_is_told_before_or_is_an_error),
    (REFUSALS, what_cannot_be_watched_is_refused),
    ("transparent_huge_pages_are_told_in_small_ones", transparent_huge_pages_are_told_in_small_ones),
    (HUGE_PAGES, pages_of_hugetlbfs_are_told_whole_also_where_a_part_is_asked_for),
    (
        "guest_memory_has_its_own_mapping_watched_and_its_regions_come_and_go",
        guest_memory_has_its_own_mapping_watched_and_its_regions_come_and_go,
    ),
];

fn main() -> std::process::ExitCode {
    harness::run(CASES, reason)
}

/// Two huge pages, where the machine has them: without, they can't even be mapped.
fn huge_pages() -> Option<Mapping> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let fd = memfd_create("huge", flags).ok().filter(|fd| ftruncate(fd, 2 * HUGE).is_ok())?;
    let (prot, null) = (ProtFlags::READ | ProtFlags::WRITE, std::ptr::null_mut());
    // SAFETY: a new mapping, at an address of the kernel's choice.
    let base = unsafe { mmap(null, 2 * HUGE as usize, prot, MapFlags::SHARED, fd.as_fd(), 0) }.ok()?;
    Some(Mapping { base: base.cast(), len: 2 * HUGE })
}

fn started(ranges: &[WatchedRange]) -> WriteWatch {
    let mut source = WriteWatch::of_ranges(ranges).unwrap();
    assert_eq!(source.start(&[ALL], 4096), Ok(4096));
    source
}

fn files() -> Vec<(&'static str, Option<OwnedFd>)> {
    vec![("memfd", Some(memfd("watched", 512 * PAGE).unwrap())), ("anonymous", None)]
}

fn each_write_is_told_once_and_reads_never() {
    for (what, fd) in files() {
        let mapping = Mapping::of(fd.as_ref().map(AsFd::as_fd), 512 * PAGE);
        // Some pages are there already, and some were written just before.
        (0..20).for_each(|page| mapping.write(page * 3));
        let mut source = started(&[mapping.range(1 << 30)]);
        assert!(source.start(&[ALL], 4096).is_err(), "{what}");
        assert!(harvest(&mut source).is_empty(), "{what}: nobody wrote");
        let first = (1 << 30) / PAGE;
        for page in 0..512 {
            mapping.word(page * PAGE).load(Ordering::SeqCst);
        }
        assert!(harvest(&mut source).is_empty(), "{what}: reads are no writes");
        for round in 0..3 {
            [0, 1, 7, 300, 511].iter().for_each(|page| mapping.write(page + u64::from(round == 1 && *page < 511)));
            let want: BTreeSet<u64> = match round {
                1 => [1, 2, 8, 301, 511].map(|p| first + p).into(),
                _ => [0, 1, 7, 300, 511].map(|p| first + p).into(),
            };
            assert_eq!(harvest(&mut source), want, "{what}");
            assert!(harvest(&mut source).is_empty(), "{what}");
        }
        // Read by the kernel into memory.
        let zero = std::fs::File::open("/dev/zero").unwrap();
        // SAFETY: inside of the mapping; nobody else touches these bytes meanwhile.
        let bytes = unsafe { std::slice::from_raw_parts_mut(mapping.base.add(100 * PAGE as usize), 5000) };
        rustix::io::read(&zero, bytes).unwrap();
        assert_eq!(harvest(&mut source), [100, 101].map(|p| first + p).into(), "{what}");
        source.stop().unwrap();
        source.stop().unwrap();
        mapping.write(1);
        assert!(source.harvest(&mut Told::default()).is_err());
        source.start(&[ALL], 4096).unwrap();
        assert!(harvest(&mut source).is_empty(), "{what}: what was written untracked is not told");
    }
}

fn writes_through_another_mapping_are_not_seen() {
    let fd = memfd("watched", 64 * PAGE).unwrap();
    let (one, other) = (Mapping::of(Some(fd.as_fd()), 64 * PAGE), Mapping::of(Some(fd.as_fd()), 64 * PAGE));
    let mut source = started(&[one.range(0)]);
    other.write(3);
    one.write(4);
    assert_eq!(harvest(&mut source), [4].into());
    // Whoever has both watched sees both.
    source.handle().add_range(other.range(0)).unwrap();
    assert_eq!(harvest(&mut source).len(), 64, "a range that has just come counts as written");
    other.write(3);
    one.write(4);
    assert_eq!(harvest(&mut source), [3, 4].into());
}

fn more_writes_than_one_scan_tells_are_all_told() {
    // Several times what one scan tells (`watcher.rs`, `SCAN_REGIONS`).
    let pages = 4096 * 5;
    let mapping = Mapping::of(None, pages * PAGE);
    let mut source = started(&[mapping.range(0)]);
    // Every second page: each is a region of its own.
    let want: BTreeSet<u64> = (0..pages).step_by(2).collect();
    want.iter().for_each(|page| mapping.write(*page));
    assert_eq!(harvest(&mut source), want);
    assert!(harvest(&mut source).is_empty());
}

fn a_writer_that_goes_on_loses_nothing() {
    const PAGES: u64 = 2048;
    let fd = memfd("watched", PAGES * PAGE).unwrap();
    let mapping = Arc::new(Mapping::of(Some(fd.as_fd()), PAGES * PAGE));
    let mut source = started(&[mapping.range(0)]);
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..2_u64)
        .map(|seed| {
            let (mapping, stop) = (Arc::clone(&mapping), Arc::clone(&stop));
            std::thread::spawn(move || {
                let mut x = 0x9e37_79b9_7f4a_7c15 ^ seed;
                while !stop.load(Ordering::SeqCst) {
                    x ^= x << 13;
                    x ^= x >> 7;
                    x ^= x << 17;
                    mapping.write((x >> 8) % PAGES);
                }
            })
        })
        .collect();
    let mut copy = vec![0; PAGES as usize];
    let mut copied = |told: BTreeSet<u64>| {
        told.iter().for_each(|page| copy[*page as usize] = mapping.word(page * PAGE + 8).load(Ordering::SeqCst));
        told.len()
    };
    for _ in 0..50 {
        copied(harvest(&mut source));
    }
    stop.store(true, Ordering::SeqCst);
    writers.into_iter().for_each(|writer| writer.join().unwrap());
    // The oracle sees it where the last harvest is left out.
    let stale = |copy: &[u64]| {
        (0..PAGES).filter(|page| copy[*page as usize] != mapping.word(page * PAGE + 8).load(Ordering::SeqCst)).count()
    };
    mapping.write(5);
    let last = harvest(&mut source);
    assert!(last.contains(&5));
    let mut without = last.clone();
    without.remove(&5);
    copied(without);
    let before = stale(&copy);
    for page in last {
        copy[page as usize] = mapping.word(page * PAGE + 8).load(Ordering::SeqCst);
    }
    assert_eq!((before, stale(&copy)), (1, 0));
}

fn a_part_of_a_mapping_is_told_in_whole_pages_and_nothing_beside_it() {
    let mapping = Mapping::of(None, 64 * PAGE);
    // From the middle of page 10 to the middle of page 13.
    let part = WatchedRange { address: mapping.base as u64 + 10 * PAGE + 100, len: 3 * PAGE, gpa: 100 };
    let mut source = started(&[part]);
    (0..64).for_each(|page| mapping.write(page));
    assert_eq!(harvest(&mut source), (0..4).collect());
    source.stop().unwrap();
    // Of that, what is asked for.
    source.start(&[MemoryRange { gpa: PAGE + 1, len: PAGE }], 4096).unwrap();
    (0..64).for_each(|page| mapping.write(page));
    assert_eq!(harvest(&mut source), [1, 2].into());
    source.stop().unwrap();
    source.start(&[MemoryRange { gpa: 100 * PAGE, len: PAGE }], 4096).unwrap();
    (0..64).for_each(|page| mapping.write(page));
    assert!(harvest(&mut source).is_empty());
}

fn what_is_unmapped_is_told_before_or_is_an_error() {
    let (one, two) = (Mapping::of(None, 64 * PAGE), Mapping::of(None, 64 * PAGE));
    let mut source = started(&[one.range(0), two.range(64 * PAGE)]);
    let handle = source.handle();
    one.write(1);
    two.write(2);
    handle.remove_range(&one.range(0)).unwrap();
    assert!(matches!(handle.remove_range(&one.range(0)), Err(TrackError::NotFound(_))));
    drop(one);
    assert_eq!(harvest(&mut source), [1, 66].into());
    assert!(harvest(&mut source).is_empty());
    // The other one goes in silence, or a part of it is mapped anew.
    for anew in [false, true] {
        source.stop().unwrap();
        source.start(&[MemoryRange { gpa: 64 * PAGE, len: 64 * PAGE }], 4096).unwrap();
        two.write(3);
        let part = two.base.wrapping_add(8 * PAGE as usize).cast();
        // SAFETY: a part of this test's own mapping, which nobody uses meanwhile.
        unsafe {
            if anew {
                let flags = MapFlags::PRIVATE | MapFlags::FIXED;
                mmap_anonymous(part, PAGE as usize, ProtFlags::READ | ProtFlags::WRITE, flags).unwrap();
            } else {
                munmap(part, PAGE as usize).unwrap();
                mmap_anonymous(part, PAGE as usize, ProtFlags::empty(), MapFlags::PRIVATE | MapFlags::FIXED).unwrap();
                munmap(part, PAGE as usize).unwrap();
            }
        }
        let mut told = Told::default();
        let error = source.harvest(&mut told).unwrap_err();
        assert_eq!(error.kind, ChannelErrorKind::Gone, "{error}");
        assert_eq!(told.0, (64..128).collect(), "everything counts as written");
        if !anew {
            // SAFETY: the hole that was made above.
            unsafe {
                let flags = MapFlags::PRIVATE | MapFlags::FIXED;
                mmap_anonymous(part, PAGE as usize, ProtFlags::READ | ProtFlags::WRITE, flags).unwrap();
            }
        }
    }
}

fn what_cannot_be_watched_is_refused() {
    let mapping = Mapping::of(None, 4 * PAGE);
    let good = mapping.range(0);
    for bad in [
        WatchedRange { len: 0, ..good },
        WatchedRange { gpa: 1, ..good },
        WatchedRange { address: 4096, ..good },
        WatchedRange { len: u64::MAX - 8, ..good },
        WatchedRange { gpa: u64::MAX - 4095, ..good },
        WatchedRange { address: what_cannot_be_watched_is_refused as *const () as u64 / PAGE * PAGE, ..good },
    ] {
        assert!(matches!(WriteWatch::of_ranges(&[bad]), Err(TrackError::Argument(_))), "{bad:x?}");
    }
    let mut source = WriteWatch::of_ranges(&[good]).unwrap();
    assert!(matches!(source.handle().add_range(good), Err(TrackError::Exists(_))));
    assert!(source.start(&[MemoryRange { gpa: u64::MAX, len: 2 }], 4096).is_err());
    assert!(source.start(&[ALL], 8193).is_err());
    // Another userfaultfd has it.
    let mut other = started(&[good]);
    let error = source.start(&[ALL], 4096).unwrap_err();
    assert_eq!(error.kind, ChannelErrorKind::State, "{error}");
    other.stop().unwrap();
    source.start(&[ALL], 4096).unwrap();
    mapping.write(2);
    assert_eq!(harvest(&mut source), [2].into());
}

fn transparent_huge_pages_are_told_in_small_ones() {
    let mapping = Mapping::of(None, 4 * HUGE);
    // SAFETY: advice about this test's own mapping.
    unsafe { madvise(mapping.base.cast(), mapping.len as usize, Advice::LinuxHugepage) }.unwrap();
    (0..4 * 512).for_each(|page| mapping.write(page));
    let mut source = started(&[mapping.range(0)]);
    assert!(harvest(&mut source).is_empty());
    [0, 511, 512, 1500].iter().for_each(|page| mapping.write(*page));
    let told = harvest(&mut source);
    assert!([0, 511, 512, 1500].iter().all(|page| told.contains(page)), "{told:?}");
    assert!(harvest(&mut source).is_empty());
}

fn pages_of_hugetlbfs_are_told_whole_also_where_a_part_is_asked_for() {
    let mapping = huge_pages().unwrap();
    let mut source = started(&[mapping.range(0)]);
    mapping.write(700);
    assert_eq!(harvest(&mut source), (512..1024).collect());
    assert!(harvest(&mut source).is_empty());
    source.stop().unwrap();
    // A part of each huge page, and two parts of the same one: each is told, clipped.
    let part = |page: u64, pages: u64, gpa: u64| WatchedRange {
        address: mapping.base as u64 + page * PAGE,
        len: pages * PAGE,
        gpa: gpa * PAGE,
    };
    let mut source = started(&[part(10, 20, 0), part(100, 5, 1000), part(600, 1, 2000)]);
    mapping.write(400);
    let want: BTreeSet<u64> = (0..20).chain(1000..1005).collect();
    assert_eq!(harvest(&mut source), want);
    assert!(harvest(&mut source).is_empty());
    source.handle().remove_range(&part(100, 5, 1000)).unwrap();
    mapping.write(400);
    assert_eq!(harvest(&mut source), (0..20).collect());
}

fn guest_memory_has_its_own_mapping_watched_and_its_regions_come_and_go() {
    let memory = Arc::new(MappedMemory::new());
    let (low, high) = (memfd("low", 16 * PAGE).unwrap(), memfd("high", 16 * PAGE).unwrap());
    memory.add_region(0, low.as_fd(), 0, 16 * PAGE).unwrap();
    memory.add_region(100 * PAGE, high.as_fd(), 0, 16 * PAGE).unwrap();
    let mut source = WriteWatch::of_memory(&memory).unwrap();
    source.start(&[ALL], 4096).unwrap();
    memory.write(PAGE - 1, b"ab").unwrap();
    memory.store_u32(110 * PAGE, 7).unwrap();
    let mut out = [0; 64];
    memory.read(5 * PAGE, &mut out).unwrap();
    assert_eq!(harvest(&mut source), [0, 1, 110].into());
    assert!(matches!(
        source.handle().add_range(WatchedRange { address: 0, len: 1, gpa: 0 }),
        Err(TrackError::Argument(_))
    ));
    // One goes, and comes back: all of it is told each time, as the last pages of a mapping go with it.
    memory.write(101 * PAGE, b"x").unwrap();
    memory.remove_region(100 * PAGE, 16 * PAGE).unwrap();
    assert_eq!(harvest(&mut source), (100..116).collect());
    memory.add_region(100 * PAGE, high.as_fd(), 0, 16 * PAGE).unwrap();
    assert_eq!(harvest(&mut source), (100..116).collect());
    memory.write(101 * PAGE, b"x").unwrap();
    assert_eq!(harvest(&mut source), [101].into());
    // Gone and back between two harvests, most likely at the same address.
    memory.remove_region(100 * PAGE, 16 * PAGE).unwrap();
    memory.add_region(100 * PAGE, high.as_fd(), 0, 16 * PAGE).unwrap();
    assert_eq!(harvest(&mut source), (100..116).collect());
    memory.write(102 * PAGE, b"x").unwrap();
    assert_eq!(harvest(&mut source), [102].into());
    // The region can go while it is tracked: nothing holds it.
    memory.remove_region(0, 16 * PAGE).unwrap();
}
