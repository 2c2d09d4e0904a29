//! The flat bytes: an evaluator that knows only their documentation, and bytes that somebody damaged.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod bar_support;

use bar_support::{Memory, Traps};
use proptest::prelude::*;
use towline_core::bar::{Access, DefaultAction, Fill, Filter, FilterState, LayoutError, Pattern, Policy, Rule};

fn policy() -> Policy {
    Policy::new(0x6100)
        .rule(Rule::mask("mask", 0x3, 9, Pattern::u16(0x0ff0)))
        .rule(Rule::trap("reset", 0x14, 4).on(Access::Write))
        .rule(Rule::write_one_to_clear("causes", 0x40, 7, Pattern::u32(0x8000_0001)))
        .rule(Rule::write_one_to_clear("more", 0x1040, 8, Pattern::u64(7)))
        .rule(Rule::hide("hidden", 0x1ffd, 0x1009))
        .rule(Rule::deny("page", 0x4000, 0x1000, Fill::Ones))
        .rule(Rule::truncate("cut", 0x6003))
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Treats one byte as the documentation of the layout says, with numbers written out: what an evaluator in another
/// language does. On reads `value` is the target's and the result what the guest gets, on writes the other way round,
/// `Some(None)` being a write that is dropped. `None` for traps and the shadow.
fn foreign(filter: &[u8], offset: u64, value: u8, read: bool) -> Option<Option<u8>> {
    assert_eq!(&filter[..8], b"TWLBARF\0");
    assert_eq!((word(filter, 8), word(filter, 12), long(filter, 16)), (1, 144, filter.len() as u64));
    if offset >= long(filter, 32) {
        return Some(read.then_some(0xff));
    }
    let (pages, mixed, classes) = (long(filter, 48) as usize, long(filter, 64) as usize, long(filter, 80) as usize);
    let entry = word(filter, pages + 4 * (offset >> 12) as usize);
    let class = if entry >> 31 == 0 {
        entry
    } else {
        let record = mixed + (entry & 0x7fff_ffff) * 1032;
        word(filter, record) + usize::from(filter[record + 8 + (offset as usize >> 2 & 1023)])
    };
    let class = &filter[classes + 24 * class..][..24];
    let lane = (offset & 3) as usize;
    let (op, and, or) = if read { (0, 8, 12) } else { (4, 16, 20) };
    match class[op + lane] {
        0 => Some(Some(value & class[and + lane] | class[or + lane])),
        1 => Some(read.then_some(class[or + lane])),
        _ => None,
    }
}

/// Bytes that were compared, in both directions, and the offsets of those on which `bytes` and `filter` do not agree.
fn disagreements(filter: &Filter, bytes: &[u8]) -> (u64, Vec<u64>) {
    let memory = Memory::new(filter.bar_bytes() as usize);
    let (state, traps) = (FilterState::new(filter), Traps::default());
    let (mut compared, mut different) = (0, Vec::new());
    for offset in 0..filter.bar_bytes() + 8 {
        let before = memory.byte(offset);
        let mut ours = [0];
        filter.read(&state, &memory, &traps, offset, &mut ours);
        if let Some(theirs) = foreign(bytes, offset, before.unwrap_or(0), true) {
            compared += 1;
            if theirs != Some(ours[0]) {
                different.push(offset);
            }
        }
        let data = (offset as u8).wrapping_mul(91) ^ 0x3c;
        filter.write(&state, &memory, &traps, offset, &[data]);
        if let Some(theirs) = foreign(bytes, offset, data, false) {
            compared += 1;
            if theirs.or(before) != memory.byte(offset) {
                different.push(offset);
            }
        }
    }
    (compared, different)
}

#[test]
fn the_documentation_is_enough_to_evaluate() {
    for policy in [policy(), policy().otherwise(DefaultAction::Deny(Fill::Zeros)), Policy::new(5), Policy::new(1 << 14)]
    {
        let filter = policy.compile().unwrap();
        let (compared, different) = disagreements(&filter, filter.as_bytes());
        // 15 bytes of shadow in both directions, and 4 of a write trap.
        let left_out = if policy.rules.is_empty() { 0 } else { 2 * 15 + 4 };
        assert_eq!((compared, different), (2 * (policy.bar_bytes + 8) - left_out, vec![]));
    }
}

#[test]
fn an_evaluator_of_other_bytes_is_found_out() {
    let filter = policy().compile().unwrap();
    let mut other = policy();
    other.rules[0] = Rule::mask("mask", 0x3, 9, Pattern::u16(0x0ff1));
    let (_, different) = disagreements(&filter, other.compile().unwrap().as_bytes());
    assert!(!different.is_empty() && different.iter().all(|at| (3..12).contains(at)), "{different:x?}");
}

/// Uses a filter that was accepted in every way there is.
fn exercise(filter: &Filter, probes: &[u64]) {
    let bar = filter.bar_bytes().min(1 << 20) as usize;
    let (memory, traps, state) = (Memory::new(bar), Traps::default(), FilterState::new(filter));
    for at in probes.iter().copied().chain([0, filter.visible_bytes().saturating_sub(4)]) {
        if at.saturating_add(8) <= bar as u64 || at >= filter.visible_bytes() {
            let mut out = [0; 8];
            filter.read(&state, &memory, &traps, at, &mut out);
            filter.write(&state, &memory, &traps, at, &out);
            let _ = state.raise(filter, at, &out);
        }
        let _ = (filter.read_verdict(at, 8), filter.write_verdict(at, 8));
    }
    filter.mmap_plan(4096).unwrap();
    assert_eq!(Filter::from_bytes(filter.as_bytes()).unwrap(), *filter);
}

const PROBES: [u64; 9] = [0, 3, 0x12, 0x3e, 0x1040, 0x1ffa, 0x3004, 0x3ffc, 0x6000];

#[test]
fn every_truncation_is_refused() {
    let filter = policy().compile().unwrap();
    let bytes = filter.as_bytes();
    for len in 0..bytes.len() {
        assert_eq!(Filter::from_bytes(&bytes[..len]), Err(LayoutError::Length), "{len} bytes");
    }
    let mut longer = bytes.to_vec();
    longer.push(0);
    assert_eq!(Filter::from_bytes(&longer), Err(LayoutError::Length));
    assert_eq!(Filter::from_bytes(bytes).unwrap(), filter);
}

#[test]
fn no_single_bit_makes_it_panic() {
    let bytes = policy().compile().unwrap().as_bytes().to_vec();
    let (mut refused, mut accepted) = (0, 0);
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        match Filter::from_bytes(&damaged) {
            Ok(filter) => {
                exercise(&filter, &PROBES);
                accepted += 1;
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    }
    // A flipped mask bit is another valid filter: digests are the carrier's business. Structure is never accepted damaged.
    assert!(refused > 144 * 4 && accepted > 0, "{refused} refused, {accepted} accepted");
}

#[test]
fn each_damage_is_named() {
    let bytes = policy().compile().unwrap().as_bytes().to_vec();
    let with = |at: usize, value: &[u8]| {
        let mut damaged = bytes.clone();
        damaged[at..at + value.len()].copy_from_slice(value);
        Filter::from_bytes(&damaged).map(|_| ()).unwrap_err()
    };
    let (pages, mixed, classes) = (long(&bytes, 48) as usize, long(&bytes, 64) as usize, long(&bytes, 80) as usize);
    let (reads, writes) = (long(&bytes, 96) as usize, long(&bytes, 112) as usize);
    assert_eq!(with(0, b"X"), LayoutError::Magic);
    assert_eq!(with(8, &[2]), LayoutError::Version(2));
    assert_eq!(with(12, &[0]), LayoutError::Header(12));
    assert_eq!(with(16, &[0xff; 8]), LayoutError::Cap(16));
    assert_eq!(with(24, &[0xff; 8]), LayoutError::Cap(24));
    assert_eq!(with(24, &[0; 8]), LayoutError::Cap(24));
    assert_eq!(with(32, &[0xff; 8]), LayoutError::Header(32));
    assert_eq!(with(56, &[0xff; 8]), LayoutError::Cap(56));
    assert_eq!(with(88, &[0; 8]), LayoutError::Cap(88));
    assert_eq!(with(104, &[0xff; 8]), LayoutError::Cap(104));
    assert_eq!(with(128, &[0xff; 4]), LayoutError::Cap(128));
    assert_eq!(with(132, &[0xff; 4]), LayoutError::Cap(132));
    assert_eq!(with(136, &[1]), LayoutError::Header(136));
    assert_eq!(with(pages, &[0xff; 4]), LayoutError::PageEntry(0));
    assert_eq!(with(pages + 4, &[0xff, 0xff, 0xff, 0x7f]), LayoutError::PageEntry(1));
    assert_eq!(with(mixed + 4, &[0; 4]), LayoutError::MixedPage(0));
    assert_eq!(with(mixed, &[0xff; 4]), LayoutError::MixedPage(0));
    assert_eq!(with(mixed + 100, &[0xff]), LayoutError::MixedPage(0));
    assert_eq!(with(classes, &[1]), LayoutError::Class(0));
    assert_eq!(with(classes + 24, &[9]), LayoutError::Class(1));
    assert_eq!(with(reads, &[0xff; 8]), LayoutError::Rule(0));
    assert_eq!(with(reads + 8, &[0; 8]), LayoutError::Rule(0));
    assert_eq!(with(writes + 20, &[9]), LayoutError::Rule(0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn no_damage_makes_it_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        header in any::<bool>(),
        probes in prop::collection::vec(0u64..0x6200, 8),
    ) {
        let mut bytes = policy().compile().unwrap().as_bytes().to_vec();
        for (index, value) in &edits {
            let len = if header { 144 } else { bytes.len() };
            let at = index.index(len);
            bytes[at] = *value;
        }
        if let Ok(filter) = Filter::from_bytes(&bytes) {
            exercise(&filter, &probes);
        }
    }

    #[test]
    fn no_bytes_at_all_make_it_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..2000), dressed in any::<bool>()) {
        if dressed {
            let real = policy().compile().unwrap();
            let n = bytes.len().min(48);
            bytes[..n].copy_from_slice(&real.as_bytes()[..n]);
            let total = bytes.len() as u64;
            if let Some(field) = bytes.get_mut(16..24) {
                field.copy_from_slice(&total.to_le_bytes());
            }
        }
        if let Ok(filter) = Filter::from_bytes(&bytes) {
            exercise(&filter, &[]);
        }
    }
}
