//! Writers against harvesters, on threads: the last write of every page must be among what was handed out after it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

extern crate alloc;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use towline_core::channel::DirtySource;
use towline_core::dirty::{Ledger, MarkLog, PageRun};
use towline_core::memory::MemoryRange;

/// The protocol once more, for its broken variants.
#[path = "../src/dirty/levels.rs"]
#[allow(dead_code)]
mod levels;
#[allow(dead_code)]
#[path = "../src/dirty/sync.rs"]
mod sync;

use levels::{CORRECT, LEAF_FIRST, Levels};

const PAGE: u64 = 4096;
/// Three leaf words, the last one partly used; a hole lies in the middle of guest memory.
const PAGES: u64 = 150;
const RANGES: [MemoryRange; 2] =
    [MemoryRange { gpa: 0x10_0000, len: 90 * PAGE }, MemoryRange { gpa: 0x8000_0000, len: 60 * PAGE }];

fn gpa(page: u64) -> u64 {
    if page < 90 { RANGES[0].gpa + page * PAGE } else { RANGES[1].gpa + (page - 90) * PAGE }
}

fn page(gpa: u64) -> u64 {
    if gpa < RANGES[1].gpa { (gpa - RANGES[0].gpa) / PAGE } else { 90 + (gpa - RANGES[1].gpa) / PAGE }
}

/// What is under test: marks by writers, takes by one harvester.
trait Tracker: Sync {
    fn mark(&self, page: u64);
    /// Calls `sent` for some dirty pages and forgets them; returns whether there were any.
    fn take(&self, sent: &mut dyn FnMut(u64)) -> bool;
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Runs two writers against one harvester, then drains; returns for how many pages the last write was not handed out.
fn lost_pages(tracker: &dyn Tracker, seed: u64, marks: u64) -> usize {
    let versions: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
    let mut seen = vec![0; PAGES as usize];
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let writers: Vec<_> = (0..2u64)
            .map(|writer| {
                let versions = &versions;
                scope.spawn(move || {
                    let mut state = seed * 2 + writer + 1;
                    for _ in 0..marks {
                        let page = random(&mut state) % PAGES;
                        versions[page as usize].fetch_add(1, Ordering::Relaxed);
                        tracker.mark(page);
                    }
                })
            })
            .collect();
        let harvester = scope.spawn(|| {
            let mut send = |page: u64| seen[page as usize] = versions[page as usize].load(Ordering::Relaxed);
            while !done.load(Ordering::Acquire) {
                tracker.take(&mut send);
            }
            while tracker.take(&mut send) {}
        });
        for writer in writers {
            writer.join().unwrap();
        }
        done.store(true, Ordering::Release);
        harvester.join().unwrap();
    });
    versions.iter().zip(seen).filter(|(version, seen)| version.load(Ordering::Relaxed) != *seen).count()
}

/// Repeats until pages are lost, for a minute at most.
fn is_caught(marks: u64, make: impl Fn() -> Box<dyn Tracker>) -> bool {
    let end = Instant::now() + Duration::from_secs(60);
    let mut seed = 1;
    while Instant::now() < end {
        if lost_pages(&*make(), seed, marks) != 0 {
            return true;
        }
        seed += 1;
    }
    false
}

struct Merged(Ledger);

impl Merged {
    fn new() -> Self {
        Self(Ledger::new(&RANGES, PAGE).unwrap())
    }
}

fn each_page(runs: &[PageRun], sent: &mut dyn FnMut(u64)) {
    for run in runs {
        (0..run.len / PAGE).for_each(|n| sent(page(run.gpa) + n));
    }
}

impl Tracker for Merged {
    fn mark(&self, page: u64) {
        // A third of the marks comes as a bitmap.
        if page.is_multiple_of(3) {
            self.0.merge_bitmap(gpa(page) & !(8 * PAGE - 1), PAGE, &[1 << (gpa(page) / PAGE % 8)]);
        } else {
            self.0.mark(gpa(page) + 100, 7);
        }
    }

    fn take(&self, sent: &mut dyn FnMut(u64)) -> bool {
        let mut runs = Vec::new();
        self.0.next_runs(7, &mut runs);
        each_page(&runs, sent);
        !runs.is_empty()
    }
}

#[test]
fn the_ledger_loses_nothing() {
    let tracker = Merged::new();
    for seed in 1..40 {
        assert_eq!(lost_pages(&tracker, seed, 10_000), 0, "seed {seed}");
    }
}

/// Marks go to a log, its source is harvested into a ledger, and that is drained: the whole way of a dirty page.
struct Pipeline {
    log: Arc<MarkLog>,
    source: Mutex<towline_core::dirty::MarkSource>,
    ledger: Ledger,
}

impl Tracker for Pipeline {
    fn mark(&self, page: u64) {
        self.log.mark(gpa(page) + 8, 16);
    }

    fn take(&self, sent: &mut dyn FnMut(u64)) -> bool {
        self.ledger.harvest(&mut *self.source.lock().unwrap()).unwrap();
        let mut runs = Vec::new();
        self.ledger.next_runs(50, &mut runs);
        each_page(&runs, sent);
        !runs.is_empty()
    }
}

#[test]
fn the_whole_way_from_a_mark_log_loses_nothing() {
    for seed in 1..10 {
        let log = Arc::new(MarkLog::new());
        let mut source = log.source();
        source.start(&RANGES, PAGE).unwrap();
        let ledger = Ledger::new(&RANGES, PAGE).unwrap();
        let tracker = Pipeline { log, source: source.into(), ledger };
        assert_eq!(lost_pages(&tracker, seed, 20_000), 0, "seed {seed}");
    }
}

/// Ranges that come and go do not disturb those that stay.
#[test]
fn changing_ranges_loses_nothing_of_those_that_stay() {
    struct Changing(Ledger, AtomicU64);
    impl Tracker for Changing {
        fn mark(&self, page: u64) {
            self.0.mark(gpa(page), 1);
        }
        fn take(&self, sent: &mut dyn FnMut(u64)) -> bool {
            let extra = MemoryRange { gpa: 0x4000_0000, len: 70 * PAGE };
            match self.1.fetch_add(1, Ordering::Relaxed) % 8 {
                2 => self.0.add_range(extra).unwrap(),
                6 => self.0.remove_range(extra).unwrap(),
                _ => {}
            }
            let mut runs = Vec::new();
            self.0.next_runs(20, &mut runs);
            let any = !runs.is_empty();
            runs.retain(|run| run.gpa < extra.gpa || run.gpa >= extra.gpa + extra.len);
            each_page(&runs, sent);
            any
        }
    }
    // The extra range is there at first, and the count begins so that it is removed before it is added.
    let tracker = Changing(Ledger::new(&RANGES, PAGE).unwrap(), AtomicU64::new(3));
    tracker.0.add_range(MemoryRange { gpa: 0x4000_0000, len: 70 * PAGE }).unwrap();
    assert_eq!(lost_pages(&tracker, 5, 30_000), 0);
}

/// The broken protocols. Between the leaf and what follows the harvester waits for a mark, and a mark waits for that: so the fault is
/// likely on however few processors. A right protocol does not mind.
struct Broken<const FAULT: u8> {
    levels: Levels<FAULT>,
    between: Mutex<bool>,
    changed: Condvar,
}

impl<const FAULT: u8> Broken<FAULT> {
    /// The other side may be done with.
    const PATIENCE: Duration = Duration::from_millis(2);

    fn new() -> Self {
        Self { levels: Levels::new(PAGES), between: Mutex::new(false), changed: Condvar::new() }
    }
}

impl<const FAULT: u8> Tracker for Broken<FAULT> {
    fn mark(&self, page: u64) {
        let between = self.between.lock().unwrap();
        let (mut between, _) = self.changed.wait_timeout_while(between, Self::PATIENCE, |between| !*between).unwrap();
        self.levels.set(page / 64, 1 << (page % 64));
        *between = false;
        self.changed.notify_all();
    }

    fn take(&self, sent: &mut dyn FnMut(u64)) -> bool {
        let taken = self.levels.take(0, u64::MAX, u64::MAX, &mut |index, bits| {
            (0..64).filter(|bit| bits >> bit & 1 == 1).for_each(|bit| sent(index * 64 + bit));
            let mut between = self.between.lock().unwrap();
            *between = true;
            self.changed.notify_all();
            let (mut between, _) =
                self.changed.wait_timeout_while(between, Self::PATIENCE, |between| *between).unwrap();
            *between = false;
        });
        taken != 0
    }
}

#[test]
fn clearing_the_leaf_first_is_caught() {
    assert!(is_caught(20, || Box::new(Broken::<LEAF_FIRST>::new())));
}

#[test]
fn the_same_harness_passes_the_right_order() {
    for seed in 1..20 {
        assert_eq!(lost_pages(&Broken::<CORRECT>::new(), seed, 20), 0);
        assert_eq!(lost_pages(&Broken::<CORRECT>::new(), seed, 1000), 0);
    }
}

/// A ledger that forgets one run in fifty.
struct Forgetful(Merged, AtomicU64);

impl Tracker for Forgetful {
    fn mark(&self, page: u64) {
        self.0.mark(page);
    }

    fn take(&self, sent: &mut dyn FnMut(u64)) -> bool {
        self.0.take(&mut |page| {
            if !self.1.fetch_add(1, Ordering::Relaxed).is_multiple_of(50) {
                sent(page);
            }
        })
    }
}

#[test]
fn a_ledger_that_drops_pages_is_caught() {
    assert!(is_caught(300, || Box::new(Forgetful(Merged::new(), AtomicU64::new(1)))));
}
