//! Random policies and accesses against the byte-by-byte model, and flawed models that have to be told apart.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bar_support;

use std::sync::Arc;

use bar_support::{Flaw, Memory, Model, Traps};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use towline_core::bar::{
    Access, Action, BarTarget, DefaultAction, Fill, Filter, FilterState, FilteredBar, Pattern, Policy, Rule,
};

fn pattern() -> impl Strategy<Value = Pattern> {
    prop_oneof![
        any::<u8>().prop_map(Pattern::u8),
        any::<u16>().prop_map(Pattern::u16),
        any::<u32>().prop_map(Pattern::u32),
        any::<u64>().prop_map(Pattern::u64),
    ]
}

fn fill() -> impl Strategy<Value = Fill> {
    prop_oneof![Just(Fill::Ones), Just(Fill::Zeros)]
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Pass),
        fill().prop_map(Action::Deny),
        Just(Action::Trap),
        (pattern(), pattern()).prop_map(|(and, or)| Action::Bits { and, or }),
        pattern().prop_map(|initial| Action::WriteOneToClear { initial }),
        Just(Action::Hide),
    ]
}

fn default_action() -> impl Strategy<Value = DefaultAction> {
    prop_oneof![
        3 => Just(DefaultAction::Pass),
        1 => fill().prop_map(DefaultAction::Deny),
        1 => Just(DefaultAction::Trap),
    ]
}

/// Lengths from single bytes to several pages.
fn length() -> impl Strategy<Value = u64> {
    prop_oneof![4 => 1u64..24, 1 => 24u64..600, 1 => 600u64..9000, 1 => Just(4096u64)]
}

fn place(bar: u64) -> impl Strategy<Value = u64> {
    prop_oneof![3 => 0u64..64, 2 => 4060u64..4130, 2 => 0..bar, 1 => Just(4096u64), 1 => Just(8192u64)]
        .prop_map(move |at| at % bar)
}

/// A policy whose rules do not overlap, told by marking bytes.
fn policy() -> impl Strategy<Value = Policy> {
    let bar = prop_oneof![2 => 1u64..64, 2 => 4000u64..4200, 4 => 8192u64..20000, 1 => Just(16384u64)];
    bar.prop_flat_map(|bar| {
        let access = prop_oneof![Just(Access::Both), Just(Access::Read), Just(Access::Write)];
        let rules = prop::collection::vec((place(bar), length(), access, action()), 0..24);
        let cut = prop::option::weighted(0.3, 1..=bar);
        (Just(bar), rules, cut, default_action(), default_action())
    })
    .prop_map(|(bar, candidates, cut, default_read, default_write)| {
        let mut policy = Policy { bar_bytes: bar, default_read, default_write, rules: Vec::new() };
        let end = cut.filter(|cut| *cut < bar).unwrap_or(bar);
        if end < bar {
            policy = policy.rule(Rule::truncate("cut", end));
        }
        let (mut read, mut written) = (vec![false; bar as usize], vec![false; bar as usize]);
        for (n, (offset, len, access, action)) in candidates.into_iter().enumerate() {
            if offset >= end {
                continue;
            }
            let len = len.min(end - offset);
            let both = matches!(action, Action::WriteOneToClear { .. } | Action::Hide);
            let access = if both { Access::Both } else { access };
            let range = offset as usize..(offset + len) as usize;
            let taken = |marks: &[bool]| marks[range.clone()].iter().any(|m| *m);
            let (reads, writes) = (access != Access::Write, access != Access::Read);
            let rule = Rule::new(format!("rule {n}"), offset, len, action).on(access);
            if (reads && taken(&read)) || (writes && taken(&written)) {
                assert!(policy.clone().rule(rule).compile().is_err(), "an overlap was accepted");
                continue;
            }
            if reads {
                read[range.clone()].fill(true);
            }
            if writes {
                written[range].fill(true);
            }
            policy = policy.rule(rule);
        }
        policy
    })
}

#[derive(Clone, Debug)]
struct Step {
    offset: u64,
    data: Vec<u8>,
    write: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![8 => prop::sample::select(vec![1usize, 2, 4, 8]), 1 => 1usize..20];
    let offset = prop_oneof![5 => 0u64..64, 5 => 4050u64..4140, 5 => 0u64..20010, 1 => (u64::MAX - 12)..=u64::MAX];
    let step = (offset, len, any::<bool>()).prop_flat_map(|(offset, len, write)| {
        prop::collection::vec(any::<u8>(), len).prop_map(move |data| Step { offset, data, write })
    });
    prop::collection::vec(step, 1..80)
}

/// Runs `steps` on the filter and on a model, and tells the first difference.
fn differs(policy: &Policy, steps: &[Step], flaw: Flaw) -> Option<String> {
    let filter = Arc::new(policy.compile().unwrap_or_else(|e| panic!("{e}: {policy:?}")));
    let (memory, traps) = (Arc::new(Memory::new(policy.bar_bytes as usize)), Arc::new(Traps::default()));
    let mut model = Model::new(policy.clone(), memory.contents(), flaw);
    let bar = FilteredBar::new(Arc::clone(&filter), memory.clone(), traps.clone());
    // The same by way of the flat bytes alone.
    let (memory2, traps2) = (Memory::new(policy.bar_bytes as usize), Traps::default());
    let copy = Filter::from_bytes(filter.as_bytes()).unwrap();
    let state2 = FilterState::new(&copy);
    for step in steps {
        if step.write {
            bar.write(step.offset, &step.data);
            copy.write(&state2, &memory2, &traps2, step.offset, &step.data);
            model.write(step.offset, &step.data);
        } else {
            let (mut ours, mut flat, mut expected) = (step.data.clone(), step.data.clone(), step.data.clone());
            bar.read(step.offset, &mut ours);
            copy.read(&state2, &memory2, &traps2, step.offset, &mut flat);
            model.read(step.offset, &mut expected);
            if ours != expected || flat != expected {
                return Some(format!("{:#x}: {ours:x?}, {flat:x?} instead of {expected:x?}", step.offset));
            }
        }
        if *traps.0.lock().unwrap() != model.traps || *traps2.0.lock().unwrap() != model.traps {
            return Some(format!("other traps at {:#x}", step.offset));
        }
        if memory.contents() != model.memory || memory2.contents() != model.memory {
            return Some(format!("other contents after {:#x}", step.offset));
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn a_filter_does_what_the_model_does(policy in policy(), steps in steps()) {
        let difference = differs(&policy, &steps, Flaw::None);
        prop_assert!(difference.is_none(), "{:?}", difference);
    }

    #[test]
    fn the_mmap_plan_is_exactly_what_passes(policy in policy(), shift in 12u32..15) {
        let page = 1u64 << shift;
        let model = Model::new(policy.clone(), Vec::new(), Flaw::None);
        let filter = policy.compile().unwrap();
        let plan = filter.mmap_plan(page).unwrap();
        let mut mapped = vec![false; policy.bar_bytes.div_ceil(page) as usize];
        for run in &plan {
            prop_assert!(run.len > 0 && run.offset % page == 0 && run.len % page == 0);
            for n in run.offset / page..(run.offset + run.len) / page {
                prop_assert!(!mapped[n as usize], "mapped twice");
                mapped[n as usize] = true;
            }
        }
        for pair in plan.windows(2) {
            prop_assert!(pair[0].offset + pair[0].len < pair[1].offset, "runs are maximal and ascending");
        }
        for (n, mapped) in mapped.into_iter().enumerate() {
            prop_assert_eq!(mapped, model.passes(n as u64 * page, page), "page {}", n);
        }
    }
}

/// The comparison above is worth something only if it tells each of these models from the filter.
#[test]
fn a_flawed_model_is_found_out() {
    let flaws = [
        Flaw::RuleEndsLate,
        Flaw::PatternFromGranule,
        Flaw::DropsOr,
        Flaw::ClearSetsBits,
        Flaw::TruncationReadsZero,
        Flaw::ReadRuleForWrites,
    ];
    let mut runner = TestRunner::new_with_rng(
        Config::default(),
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let cases = (policy(), steps());
    let mut found = [0; 6];
    for _ in 0..150 {
        let (policy, steps) = cases.new_tree(&mut runner).unwrap().current();
        for (flaw, found) in flaws.into_iter().zip(&mut found) {
            *found += u32::from(differs(&policy, &steps, flaw).is_some());
        }
    }
    for (flaw, found) in flaws.into_iter().zip(found) {
        assert!(found > 0, "{flaw:?} was never found");
    }
}
