//! Filters replaced while other threads use them.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bar_support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread;

use bar_support::Memory;
use towline_core::bar::{BarTarget, Fill, FilteredBar, NoTraps, Pattern, Policy, Rule, Trap, TrapHandler};

fn policy(n: u64) -> Policy {
    // Both patterns over a page edge, so that an access under a mixture of two filters would show.
    match n % 2 {
        0 => Policy::new(0x3000).rule(Rule::deny("ones", 0xffc, 8, Fill::Ones)),
        _ => Policy::new(0x3000).rule(Rule::deny("zeros", 0xff0, 0x800, Fill::Zeros)),
    }
}

#[test]
fn every_access_sees_one_filter_whole() {
    let bar = Arc::new(FilteredBar::new(
        Arc::new(policy(0).compile().unwrap()),
        Arc::new(Memory::new(0x3000)),
        Arc::new(NoTraps),
    ));
    let (stop, accesses) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut handed_back: Vec<Weak<_>> = Vec::new();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let mut out = [0x55; 8];
                    bar.read(0xffc, &mut out);
                    assert!(out == [0; 8] || out == [0xff; 8], "{out:x?}");
                    let mut one = [0x55];
                    bar.read(0xffd, &mut one);
                    assert!(one == [0] || one == [0xff]);
                    accesses.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let compiled: Vec<_> = (0..2).map(|n| policy(n).compile().unwrap()).collect();
        for n in 0..3000usize {
            let old = bar.replace(Arc::new(compiled[n % 2].clone()));
            handed_back.push(Arc::downgrade(&old));
        }
        // On a busy machine the readers may not have begun yet.
        while accesses.load(Ordering::Relaxed) < 1000 {
            bar.replace(Arc::new(compiled[0].clone()));
            thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(handed_back.iter().all(|w| w.strong_count() == 0), "every replaced filter is freed, none leaks");
    let last = Arc::downgrade(&bar.filter());
    drop(bar);
    assert_eq!(last.strong_count(), 0);
}

/// Replaces the filter of the very BAR whose access it answers, as a trapped reset does.
struct Replacing(std::sync::OnceLock<Weak<FilteredBar>>);

impl TrapHandler for Replacing {
    fn read(&self, _: Trap, _: &dyn BarTarget, _: &mut [u8]) {}

    fn write(&self, _: Trap, _: &dyn BarTarget, _: &[u8]) {
        let bar = self.0.get().unwrap().upgrade().unwrap();
        bar.replace(Arc::new(Policy::new(0x1000).rule(Rule::mask("after", 0, 4, Pattern::u8(0))).compile().unwrap()));
    }
}

#[test]
fn a_trap_handler_may_replace_the_filter() {
    let handler = Arc::new(Replacing(std::sync::OnceLock::new()));
    let filter = Policy::new(0x1000).rule(Rule::trap("reset", 4, 4)).compile().unwrap();
    let memory = Arc::new(Memory::new(0x1000));
    let bar = Arc::new(FilteredBar::new(Arc::new(filter), memory.clone(), handler.clone()));
    handler.0.set(Arc::downgrade(&bar)).unwrap();
    bar.write(0, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(memory.contents()[..4], [1, 2, 3, 4], "the access itself ended under the old filter");
    let mut out = [0xff; 4];
    bar.read(0, &mut out);
    assert_eq!(out, [0; 4]);
    bar.write(4, &[9]);
    assert_eq!(memory.contents()[4], 9, "the new filter does not trap");
}

#[test]
fn filters_stack() {
    let memory = Arc::new(Memory::new(0x1000));
    let inner = Policy::new(0x1000).rule(Rule::set_bits("inner", 0, 4, Pattern::u8(0x0f))).compile().unwrap();
    let outer = Policy::new(0x1000).rule(Rule::mask("outer", 0, 4, Pattern::u8(0x3c))).compile().unwrap();
    let inner = Arc::new(FilteredBar::new(Arc::new(inner), memory, Arc::new(NoTraps)));
    let outer = FilteredBar::new(Arc::new(outer), inner, Arc::new(NoTraps));
    let mut out = [0];
    outer.write(0, &[0xff]);
    outer.read(0, &mut out);
    assert_eq!(out, [0x3c]);
}
