//! What policies are refused, how accesses are cut, and what a real quirk looks like.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::sync::{Arc, Mutex};

use towline_core::bar::{
    Access, Action, BarTarget, DefaultAction, Fill, FilterState, FilteredBar, MAX_BAR_BYTES, MAX_RULES, MmapRun,
    NoTraps, Pattern, Policy, PolicyErrorKind, Rule, ShadowError, Trap, TrapHandler, Verdict,
};

/// Logs what reaches it; reads give the low byte of each address.
#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl BarTarget for Log {
    fn read(&self, offset: u64, out: &mut [u8]) {
        self.0.lock().unwrap().push(format!("r {offset:x}+{}", out.len()));
        for (at, byte) in (offset..).zip(out) {
            *byte = at as u8;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.0.lock().unwrap().push(format!("w {offset:x} {data:02x?}"));
    }
}

impl TrapHandler for Log {
    fn read(&self, trap: Trap, _: &dyn BarTarget, out: &mut [u8]) {
        self.0.lock().unwrap().push(format!("trap r {:x}+{} {:?}", trap.offset, out.len(), trap.rule));
        out.fill(0x77);
    }

    fn write(&self, trap: Trap, target: &dyn BarTarget, data: &[u8]) {
        self.0.lock().unwrap().push(format!("trap w {:x}+{} {:?}", trap.offset, data.len(), trap.rule));
        target.write(trap.offset, data);
    }
}

fn filtered(policy: Policy) -> (FilteredBar, Arc<Log>) {
    let log = Arc::new(Log::default());
    (FilteredBar::new(Arc::new(policy.compile().unwrap()), log.clone(), log.clone()), log)
}

fn read<const N: usize>(bar: &dyn BarTarget, offset: u64) -> [u8; N] {
    let mut out = [0xcc; N];
    bar.read(offset, &mut out);
    out
}

#[test]
fn impossible_policies_are_refused_by_name() {
    use PolicyErrorKind as Kind;
    let zeros = Pattern::u8(0);
    let base = || Policy::new(0x3000);
    let w1c = |offset| Rule::write_one_to_clear("causes", offset, 4, zeros);
    let cases: Vec<(Policy, Kind, Option<usize>, Option<usize>)> = vec![
        (Policy::new(0), Kind::BarSize, None, None),
        (Policy::new(MAX_BAR_BYTES + 1), Kind::BarSize, None, None),
        (base().rule(Rule::pass("a", 4, 0)), Kind::ZeroLength, Some(0), None),
        (base().rule(Rule::pass("a", 0x2fff, 2)), Kind::OutOfBar, Some(0), None),
        (base().rule(Rule::pass("a", u64::MAX, 2)), Kind::OutOfBar, Some(0), None),
        (base().rule(Rule::pass("a", 0x3000, 1)), Kind::OutOfBar, Some(0), None),
        (base().rule(Rule::trap("b", 8, 4)).rule(Rule::pass("a", 11, 1)), Kind::Overlap, Some(1), Some(0)),
        (base().rule(Rule::pass("a", 11, 1)).rule(Rule::trap("b", 0, 0x1000)), Kind::Overlap, Some(0), Some(1)),
        (base().rule(Rule::hide("h", 0, 8)).rule(w1c(4)), Kind::OnHidden, Some(1), Some(0)),
        (base().rule(w1c(4)).rule(Rule::hide("h", 6, 8)), Kind::OnHidden, Some(0), Some(1)),
        (
            base().rule(Rule::hide("h", 6, 8)).rule(Rule::pass("a", 13, 1).on(Access::Write)),
            Kind::OnHidden,
            Some(1),
            Some(0),
        ),
        (base().rule(Rule::hide("h", 6, 8)).rule(Rule::hide("i", 13, 8)), Kind::Overlap, Some(1), Some(0)),
        (base().rule(w1c(0).on(Access::Write)), Kind::NeedsBoth, Some(0), None),
        (base().rule(Rule::hide("h", 0, 4).on(Access::Read)), Kind::NeedsBoth, Some(0), None),
        (base().rule(Rule::truncate("t", 0x1000).on(Access::Read)), Kind::NeedsBoth, Some(0), None),
        (base().rule(Rule::truncate("t", 0)), Kind::UselessTruncation, Some(0), None),
        (base().rule(Rule::truncate("t", 0x3000)), Kind::UselessTruncation, Some(0), None),
        (base().rule(Rule::truncate("t", 1)).rule(Rule::truncate("u", 2)), Kind::TwoTruncations, Some(1), Some(0)),
        (
            base().rule(Rule::trap("a", 0xfff, 2)).rule(Rule::truncate("t", 0x1000)),
            Kind::BeyondTruncation,
            Some(0),
            Some(1),
        ),
        (
            Policy::new(1 << 22).rule(Rule::write_one_to_clear("a", 0, 1 << 20, zeros)).rule(w1c(1 << 20)),
            Kind::TooMuchShadow,
            Some(1),
            None,
        ),
        (Policy { rules: vec![Rule::pass("a", 0, 1); MAX_RULES + 1], ..base() }, Kind::TooManyRules, None, None),
        (
            (0..257u64).fold(base(), |p, n| p.rule(Rule::mask("m", 0x1000 + 4 * n, 4, Pattern::u32(n as u32)))),
            Kind::TooManyPatterns { page_offset: 0x1000 },
            None,
            None,
        ),
    ];
    for (policy, kind, rule, other) in cases {
        let names: Vec<_> = policy.rules.iter().take(2).map(|r| r.name.clone()).collect();
        let error = policy.compile().expect_err("accepted");
        assert_eq!(
            (error.kind, error.rule.as_ref().map(|r| r.index), error.other.as_ref().map(|r| r.index)),
            (kind, rule, other)
        );
        let text = error.to_string();
        for r in error.rule.iter().chain(&error.other) {
            assert_eq!(r.name, names[r.index]);
            assert!(text.contains(&format!("rule {} ({:?})", r.index, r.name)), "{text}");
        }
        assert!(text.ends_with(kind.mend()), "{text}");
    }
}

#[test]
fn reads_and_writes_have_rules_of_their_own() {
    let policy = Policy::new(0x1000)
        .rule(Rule::mask("version", 0, 8, Pattern::u64(0x00ff_0000_0000_ff00)).on(Access::Read))
        .rule(Rule::deny("version is constant", 0, 8, Fill::Ones).on(Access::Write));
    let (bar, log) = filtered(policy);
    assert_eq!(read::<8>(&bar, 0), [0, 1, 0, 0, 0, 0, 6, 0]);
    bar.write(0, &[0xff; 8]);
    assert_eq!(log.take(), ["r 0+8"], "an eight-byte access stays one; the write never arrives");
}

#[test]
fn an_access_is_cut_only_where_its_bytes_part() {
    let policy = Policy::new(0x2000)
        .rule(Rule::hide("one byte", 0x12, 1))
        .rule(Rule::trap("first", 0x20, 2))
        .rule(Rule::trap("second", 0x22, 2))
        .rule(Rule::set_bits("bits", 0x30, 4, Pattern::u8(0x80)))
        .rule(Rule::truncate("end", 0x1ffc));
    let (bar, log) = filtered(policy);
    assert_eq!(read::<4>(&bar, 0x10), [0x10, 0x11, 0, 0x13]);
    assert_eq!(log.take(), ["r 10+2", "r 13+1"]);
    assert_eq!(read::<8>(&bar, 0x1c), [0x1c, 0x1d, 0x1e, 0x1f, 0x77, 0x77, 0x77, 0x77]);
    assert_eq!(log.take(), ["r 1c+4", "trap r 20+2 Some(1)", "trap r 22+2 Some(2)"]);
    assert_eq!(read::<8>(&bar, 0x2e), [0x2e, 0x2f, 0xb0, 0xb1, 0xb2, 0xb3, 0x34, 0x35]);
    assert_eq!(log.take(), ["r 2e+8"], "bits that change on the way do not cut an access");
    bar.write(0x11, &[1, 2, 3, 4]);
    assert_eq!(log.take(), ["w 11 [01]", "w 13 [03]", "w 14 [04]"]);
    bar.write(0x32, &[1, 2]);
    assert_eq!(log.take(), ["w 32 [81, 82]"]);
    bar.write(0x20, &[9]);
    assert_eq!(log.take(), ["trap w 20+1 Some(1)", "w 20 [09]"]);
    assert_eq!(read::<8>(&bar, 0x1ff8), [0xf8, 0xf9, 0xfa, 0xfb, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(read::<4>(&bar, u64::MAX - 1), [0xff; 4]);
    bar.write(0x1ffc, &[1; 4]);
    bar.write(u64::MAX, &[1; 8]);
    assert_eq!(log.take(), ["r 1ff8+4"]);
    assert_eq!(read::<11>(&bar, 0x41), std::array::from_fn(|n| 0x41 + n as u8));
    assert_eq!(log.take(), ["r 41+1", "r 42+2", "r 44+4", "r 48+4"], "another length is a sequence");
    assert_eq!(read::<0>(&bar, 0), [0u8; 0]);
    assert_eq!(read::<8>(&bar, 0xffc), [0xfc, 0xfd, 0xfe, 0xff, 0, 1, 2, 3]);
    assert_eq!(log.take(), ["r ffc+8"], "a page edge does not cut an access");
}

#[test]
fn verdicts() {
    let filter = Policy::new(0x4000)
        .rule(Rule::trap("reset", 0x14, 4).on(Access::Write))
        .rule(Rule::mask("caps", 0x20, 4, Pattern::u32(0xff)).on(Access::Read))
        .rule(Rule::deny("admin", 0x1000, 0x1000, Fill::Ones))
        .rule(Rule::write_one_to_clear("causes", 0x40, 4, Pattern::u8(0)))
        .compile()
        .unwrap();
    assert_eq!(filter.read_verdict(0x14, 4), Verdict::Pass);
    assert_eq!(filter.write_verdict(0x14, 4), Verdict::Trap);
    assert_eq!(filter.write_verdict(0x10, 8), Verdict::Mixed);
    assert_eq!(filter.read_verdict(0x20, 4), Verdict::Bits);
    assert_eq!(filter.read_verdict(0x1c, 8), Verdict::Bits);
    assert_eq!(filter.read_verdict(0x1000, 8), Verdict::Fixed);
    assert_eq!(filter.read_verdict(0x40, 1), Verdict::Mixed);
    assert_eq!(filter.read_verdict(0x4000, 4), Verdict::Fixed);
    assert_eq!(filter.read_verdict(0xffe, 4), Verdict::Mixed);
}

#[test]
fn write_one_to_clear() {
    let policy = Policy::new(0x1000).rule(Rule::write_one_to_clear("causes", 0x41, 6, Pattern::u16(0x8001)));
    let (bar, log) = filtered(policy);
    assert_eq!(read::<8>(&bar, 0x40), [0x40, 0x01, 0x80, 0x01, 0x80, 0x01, 0x80, 0x47]);
    assert_eq!(log.take(), ["r 40+1", "r 47+1"], "the target never sees the register");
    bar.raise(0x42, &[0x0f, 0xf0]).unwrap();
    assert_eq!(read::<2>(&bar, 0x42), [0x8f, 0xf1]);
    bar.write(0x42, &[0x03, 0x01]);
    assert_eq!(read::<2>(&bar, 0x42), [0x8c, 0xf0]);
    assert_eq!(bar.raise(0x46, &[1, 1]), Err(ShadowError::NoShadow { offset: 0x47 }));
    assert_eq!(read::<1>(&bar, 0x46), [0x80], "refused as a whole");
    let saved = bar.state().save();
    let fresh = FilterState::new(&bar.filter());
    assert_ne!(fresh.save(), saved);
    fresh.restore(&saved).unwrap();
    assert_eq!(fresh.save(), saved);
    assert_eq!(fresh.restore(&saved[1..]), Err(ShadowError::Size { expected: 6, found: 5 }));
    let other = Arc::new(Policy::new(0x1000).compile().unwrap());
    assert!(bar.replace_with_state(other, Arc::new(fresh)).is_err());
    assert_eq!(read::<2>(&bar, 0x42), [0x8c, 0xf0], "the old filter stays");
}

#[test]
fn a_doorbell_page_is_all_that_is_left_of_a_parents_bar() {
    let doorbells = 0x7000;
    let policy = Policy::new(1 << 20).otherwise(DefaultAction::Deny(Fill::Ones)).rule(Rule::pass(
        "own doorbells",
        doorbells,
        0x1000,
    ));
    let filter = policy.compile().unwrap();
    assert_eq!(filter.mmap_plan(4096).unwrap(), [MmapRun { offset: doorbells, len: 0x1000 }]);
    assert_eq!(filter.mmap_plan(65536).unwrap(), [], "a host with larger pages must not map its neighbours");
    for wrong in [0, 1, 2048, 4097, 1 << 31] {
        assert!(filter.mmap_plan(wrong).is_err());
    }
    let (bar, log) = filtered(policy);
    bar.write(doorbells + 8, &[1, 0, 0, 0]);
    bar.write(0, &[1, 0, 0, 0]);
    assert_eq!(read::<4>(&bar, doorbells - 4), [0xff; 4]);
    assert_eq!(log.take(), ["w 7008 [01, 00, 00, 00]"]);
}

#[test]
fn a_part_of_a_page_at_the_end_is_not_mapped() {
    let filter = Policy::new(0x2800).compile().unwrap();
    assert_eq!(filter.mmap_plan(4096).unwrap(), [MmapRun { offset: 0, len: 0x2000 }]);
}

#[test]
fn large_bars_cost_their_page_table_only() {
    let filter = Policy::new(1 << 34)
        .rule(Rule::mask("everywhere", 1 << 20, 1 << 33, Pattern::u64(0x1234_5678_9abc_def0)))
        .rule(Rule::trap("edge", (1 << 20) - 3, 3))
        .compile()
        .unwrap();
    let table = 4 << (34 - 12);
    assert!(filter.as_bytes().len() < table + 8192, "{}", filter.as_bytes().len() - table);
    let target = Log::default();
    let mut out = [0; 8];
    filter.read(&FilterState::new(&filter), &target, &NoTraps, (1 << 20) + (1 << 30) + 4, &mut out);
    assert_eq!(out, [4 & 0x78, 5 & 0x56, 6 & 0x34, 7 & 0x12, 8 & 0xf0, 9 & 0xde, 10 & 0xbc, 11 & 0x9a]);
}

#[test]
fn thousands_of_rules() {
    let policy = (0..20_000u64).fold(Policy::new(64 << 20), |p, n| {
        p.rule(Rule::new(
            format!("r{n}"),
            n * 3001 + n % 5,
            1 + n % 9,
            if n % 2 == 0 { Action::Trap } else { Action::Hide },
        ))
    });
    let (bar, log) = filtered(policy);
    for n in [0u64, 2, 9_998, 19_998] {
        read::<1>(&bar, n * 3001 + n % 5);
        assert_eq!(log.take(), [format!("trap r {:x}+1 Some({n})", n * 3001 + n % 5)]);
    }
}
