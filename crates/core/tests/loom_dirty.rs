//! The protocol of the dirty bitmap under every interleaving that loom can make of it.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p towline-core --test loom_dirty --release`
//!
//! `levels.rs` is compiled a second time here, with loom's atomics in the place of the real ones.
#![allow(unexpected_cfgs)]
#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, dead_code)]

extern crate alloc;

mod sync {
    pub use loom::sync::atomic::{AtomicU64, Ordering};

    pub fn zeroed_words(count: usize) -> Box<[AtomicU64]> {
        (0..count).map(|_| AtomicU64::new(0)).collect()
    }
}

#[path = "../src/dirty/levels.rs"]
mod levels;

use levels::{CORRECT, LEAF_FIRST, Levels, SKIP_SUMMARY};
use loom::sync::Arc;
use loom::sync::atomic::{AtomicU64, Ordering};
use loom::thread;

fn harvest<const FAULT: u8>(levels: &Levels<FAULT>, max: u64, versions: &[AtomicU64], seen: &mut [u64]) {
    levels.take(0, u64::MAX, max, &mut |index, bits| {
        for bit in 0..64 {
            if bits >> bit & 1 == 1 {
                let page = (index * 64 + bit) as usize;
                // What a sender does: it reads the page after it took it.
                seen[page] = versions[page].load(Ordering::Relaxed);
            }
        }
    });
}

/// Two writers write page 0 (and page 1) and mark; a harvester takes `rounds` times, `max` pages each, meanwhile. When
/// everybody is done a last harvest must leave the last version of each page with the harvester.
fn model<const FAULT: u8>(second_page: u64, rounds: usize, max: u64) {
    loom::model(move || {
        let levels = Arc::new(Levels::<FAULT>::new(65));
        let versions: Arc<[AtomicU64; 65]> = Arc::new(core::array::from_fn(|_| AtomicU64::new(0)));
        let writers: Vec<_> = [0, second_page]
            .into_iter()
            .map(|page| {
                let (levels, versions) = (Arc::clone(&levels), Arc::clone(&versions));
                thread::spawn(move || {
                    versions[page as usize].fetch_add(1, Ordering::Relaxed);
                    levels.set(page / 64, 1 << (page % 64));
                })
            })
            .collect();
        let mut seen = [0; 65];
        for _ in 0..rounds {
            harvest(&levels, max, &versions[..], &mut seen);
        }
        for writer in writers {
            writer.join().unwrap();
        }
        harvest(&levels, u64::MAX, &versions[..], &mut seen);
        for (page, seen) in seen.iter().enumerate() {
            assert_eq!(*seen, versions[page].load(Ordering::Relaxed), "page {page}: the last write was not handed out");
        }
    });
}

/// A mark that has returned is found by a harvest that begins then, whatever another marker is in the middle of.
fn returned_mark_is_found<const FAULT: u8>(other_page: u64) {
    loom::model(move || {
        let levels = Arc::new(Levels::<FAULT>::new(65));
        let other = {
            let levels = Arc::clone(&levels);
            thread::spawn(move || levels.set(other_page / 64, 1 << (other_page % 64)))
        };
        levels.set(0, 1);
        let mut found = false;
        levels.take(0, u64::MAX, u64::MAX, &mut |index, bits| found |= index == 0 && bits & 1 == 1);
        assert!(found, "a mark that had returned was not found");
        other.join().unwrap();
    });
}

/// One page is marked already; a writer marks it again while a harvester is at work.
fn marked_again<const FAULT: u8>() {
    loom::model(move || {
        let levels = Arc::new(Levels::<FAULT>::new(65));
        let version = Arc::new(AtomicU64::new(1));
        levels.set(0, 1);
        let writer = {
            let (levels, version) = (Arc::clone(&levels), Arc::clone(&version));
            thread::spawn(move || {
                version.store(2, Ordering::Relaxed);
                levels.set(0, 1);
            })
        };
        let mut seen = 0;
        levels.take(0, u64::MAX, u64::MAX, &mut |_, _| seen = version.load(Ordering::Relaxed));
        writer.join().unwrap();
        levels.take(0, u64::MAX, u64::MAX, &mut |_, _| seen = version.load(Ordering::Relaxed));
        assert_eq!(seen, 2, "the last write was not handed out");
    });
}

fn fails(f: impl FnOnce() + std::panic::UnwindSafe) -> bool {
    std::panic::catch_unwind(f).is_err()
}

#[test]
fn two_writers_of_one_page() {
    model::<CORRECT>(0, 1, u64::MAX);
}

#[test]
fn two_writers_of_one_word() {
    model::<CORRECT>(1, 1, u64::MAX);
}

#[test]
fn two_writers_of_two_words() {
    model::<CORRECT>(64, 1, u64::MAX);
}

#[test]
fn a_harvest_that_stops_early_leaves_the_rest_findable() {
    model::<CORRECT>(1, 1, 1);
    model::<CORRECT>(64, 1, 1);
}

#[test]
fn a_mark_that_returned_is_found() {
    returned_mark_is_found::<CORRECT>(1);
    returned_mark_is_found::<CORRECT>(64);
}

#[test]
fn a_page_that_is_marked_again() {
    marked_again::<CORRECT>();
}

#[test]
fn clearing_the_leaf_first_is_caught() {
    assert!(fails(marked_again::<LEAF_FIRST>));
}

#[test]
fn skipping_the_summary_is_caught() {
    assert!(fails(|| returned_mark_is_found::<SKIP_SUMMARY>(1)));
}
