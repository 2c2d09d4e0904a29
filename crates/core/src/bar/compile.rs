//! From a policy to the flat filter.
//!
//! Reads and writes are each cut into segments that cover the visible BAR. A page inside one segment of each gets an
//! entry at once; only pages with an edge are looked at by granule, and only granules with an edge by byte, so the cost
//! grows with the page table and the number of edges, not with the bytes of the BAR.

use alloc::vec::Vec;

use super::error::{PolicyError, PolicyErrorKind, RuleRef};
use super::filter::Filter;
use super::layout::{
    Class, GRANULES, Kind, MAX_PALETTE, NO_SHADOW, OP_FIXED, OP_SHADOW, OP_TARGET, OP_TRAP, PAGE_BYTES, RuleRecord,
};
use super::policy::{Access, Action, DefaultAction, Fill, Pattern, Policy, Rule};
use super::{MAX_BAR_BYTES, MAX_RULES, MAX_SHADOW_BYTES};

mod emit;

use emit::Emitter;

/// A rule with its position, its range being inside of the visible BAR.
#[derive(Clone, Copy)]
struct Placed<'a> {
    rule: &'a Rule,
    index: usize,
    start: u64,
    end: u64,
    shadow: u32,
}

/// A stretch of the BAR that is treated alike in one direction.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Segment {
    start: u64,
    end: u64,
    treat: Treatment,
}

/// What happens to the bytes of a segment; both patterns start at its first byte.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Treatment {
    op: u8,
    and: Pattern,
    or: Pattern,
}

impl Treatment {
    const fn plain(op: u8, and: u8, or: u8) -> Self {
        Self { op, and: Pattern::u8(and), or: Pattern::u8(or) }
    }

    const fn of_default(action: DefaultAction, read: bool) -> Self {
        match action {
            DefaultAction::Pass => Self::plain(OP_TARGET, 0xff, 0),
            DefaultAction::Deny(fill) => Self::deny(fill, read),
            DefaultAction::Trap => Self::plain(OP_TRAP, 0xff, 0),
        }
    }

    /// Writes that are dropped are all alike, so that pages which differ by their fill on reads only share classes.
    const fn deny(fill: Fill, read: bool) -> Self {
        Self::plain(OP_FIXED, 0, if read { fill.byte() } else { 0 })
    }

    const fn of_rule(action: &Action, read: bool) -> Self {
        match action {
            Action::Pass => Self::plain(OP_TARGET, 0xff, 0),
            Action::Deny(fill) => Self::deny(*fill, read),
            Action::Trap => Self::plain(OP_TRAP, 0xff, 0),
            Action::Bits { and, or } => Self { op: OP_TARGET, and: *and, or: *or },
            Action::WriteOneToClear { .. } => Self::plain(OP_SHADOW, 0xff, 0),
            Action::Hide | Action::Truncate => Self::deny(Fill::Zeros, read),
        }
    }

    /// Whether every aligned granule of a segment is treated alike.
    const fn granule_uniform(&self) -> bool {
        self.and.period() <= 4 && self.or.period() <= 4
    }

    const fn lane(&self, index: u64) -> (u8, u8, u8) {
        (self.op, self.and.byte(index), self.or.byte(index))
    }
}

pub(super) fn compile(policy: &Policy) -> Result<Filter, PolicyError> {
    if policy.bar_bytes == 0 || policy.bar_bytes > MAX_BAR_BYTES {
        return Err(whole(PolicyErrorKind::BarSize));
    }
    if policy.rules.len() > MAX_RULES {
        return Err(whole(PolicyErrorKind::TooManyRules));
    }
    let (placed, visible) = place(policy)?;
    let (reads, writes) = directions(&placed)?;
    let (read_records, write_records) = (records(&reads), records(&writes));
    let read_segments = segments(&reads, policy.default_read, visible, true);
    let write_segments = segments(&writes, policy.default_write, visible, false);
    let mut emitter = Emitter::new(visible);
    let (mut r, mut w) = (0, 0);
    let mut page_start = 0;
    while page_start < visible {
        let page_end = (page_start + PAGE_BYTES).min(visible);
        advance(&read_segments, &mut r, page_start);
        advance(&write_segments, &mut w, page_start);
        let (Some(read), Some(write)) = (read_segments.get(r), write_segments.get(w)) else { break };
        let uniform_to = read.end.min(write.end);
        // Whole pages up to the next edge are alike, as every period divides a page; the last page of the BAR counts as whole.
        let pages = if uniform_to < page_end {
            1
        } else if uniform_to == visible {
            (visible - page_start).div_ceil(PAGE_BYTES)
        } else {
            (uniform_to - page_start) / PAGE_BYTES
        };
        if uniform_to >= page_end && read.treat.granule_uniform() && write.treat.granule_uniform() {
            emitter.uniform(granule(read, write, page_start), pages);
        } else {
            mixed_pages(&mut emitter, &read_segments, &write_segments, (r, w), page_start, pages)?;
        }
        page_start += pages * PAGE_BYTES;
    }
    let shadow: u64 = placed.iter().filter(|p| p.shadow != NO_SHADOW).map(|p| p.end - p.start).sum();
    let bytes = emitter
        .finish(policy.bar_bytes, visible, &read_records, &write_records, shadow, policy.rules.len())
        .ok_or_else(|| whole(PolicyErrorKind::FilterTooLarge))?;
    Filter::from_vec(bytes).map_err(|_| whole(PolicyErrorKind::FilterTooLarge))
}

fn whole(kind: PolicyErrorKind) -> PolicyError {
    PolicyError { kind, rule: None, other: None }
}

fn name(index: usize, rule: &Rule) -> RuleRef {
    RuleRef { index, name: rule.name.clone() }
}

fn about(kind: PolicyErrorKind, index: usize, rule: &Rule) -> PolicyError {
    PolicyError { kind, rule: Some(name(index, rule)), other: None }
}

fn between(kind: PolicyErrorKind, a: (usize, &Rule), b: (usize, &Rule)) -> PolicyError {
    PolicyError { kind, rule: Some(name(a.0, a.1)), other: Some(name(b.0, b.1)) }
}

/// Checks every rule by itself and against the truncation, and gives each its place in the shadow.
fn place(policy: &Policy) -> Result<(Vec<Placed<'_>>, u64), PolicyError> {
    let mut cut: Option<(usize, &Rule)> = None;
    for (index, rule) in policy.rules.iter().enumerate() {
        if matches!(rule.action, Action::Truncate) {
            if let Some(first) = cut {
                return Err(between(PolicyErrorKind::TwoTruncations, (index, rule), first));
            }
            if rule.access != Access::Both {
                return Err(about(PolicyErrorKind::NeedsBoth, index, rule));
            }
            if rule.offset == 0 || rule.offset >= policy.bar_bytes {
                return Err(about(PolicyErrorKind::UselessTruncation, index, rule));
            }
            cut = Some((index, rule));
        }
    }
    let visible = cut.map_or(policy.bar_bytes, |(_, rule)| rule.offset);
    let mut shadow_bytes = 0u64;
    let mut placed = Vec::with_capacity(policy.rules.len());
    for (index, rule) in policy.rules.iter().enumerate() {
        if matches!(rule.action, Action::Truncate) {
            continue;
        }
        if rule.len == 0 {
            return Err(about(PolicyErrorKind::ZeroLength, index, rule));
        }
        let end = rule.offset.checked_add(rule.len).filter(|&end| end <= policy.bar_bytes);
        let Some(end) = end else { return Err(about(PolicyErrorKind::OutOfBar, index, rule)) };
        if let Some(cut) = cut.filter(|_| end > visible) {
            return Err(between(PolicyErrorKind::BeyondTruncation, (index, rule), cut));
        }
        let shared = matches!(rule.action, Action::WriteOneToClear { .. } | Action::Hide);
        if shared && rule.access != Access::Both {
            return Err(about(PolicyErrorKind::NeedsBoth, index, rule));
        }
        let mut shadow = NO_SHADOW;
        if matches!(rule.action, Action::WriteOneToClear { .. }) {
            shadow = shadow_bytes as u32; // at most MAX_SHADOW_BYTES
            shadow_bytes += rule.len;
            if shadow_bytes > MAX_SHADOW_BYTES {
                return Err(about(PolicyErrorKind::TooMuchShadow, index, rule));
            }
        }
        placed.push(Placed { rule, index, start: rule.offset, end, shadow });
    }
    placed.sort_by_key(|p| (p.start, p.index));
    Ok((placed, visible))
}

type Directions<'a> = (Vec<Placed<'a>>, Vec<Placed<'a>>);

/// Parts the rules by direction and refuses overlaps within each. Hidden ranges are in both, so they meet everything.
fn directions<'a>(placed: &[Placed<'a>]) -> Result<Directions<'a>, PolicyError> {
    let reads: Vec<_> = placed.iter().copied().filter(|p| p.rule.access.reads()).collect();
    let writes: Vec<_> = placed.iter().copied().filter(|p| p.rule.access.writes()).collect();
    for list in [&reads, &writes] {
        // Sorted and so far without overlap: only the neighbour before can reach into a rule.
        for pair in list.windows(2) {
            let [a, b] = pair else { continue };
            if b.start >= a.end {
                continue;
            }
            let hidden = |p: &Placed<'_>| matches!(p.rule.action, Action::Hide);
            return Err(match (hidden(a), hidden(b)) {
                (true, false) => between(PolicyErrorKind::OnHidden, (b.index, b.rule), (a.index, a.rule)),
                (false, true) => between(PolicyErrorKind::OnHidden, (a.index, a.rule), (b.index, b.rule)),
                _ => between(PolicyErrorKind::Overlap, (b.index, b.rule), (a.index, a.rule)),
            });
        }
    }
    Ok((reads, writes))
}

fn records(list: &[Placed<'_>]) -> Vec<RuleRecord> {
    let mut out = Vec::with_capacity(list.len());
    for p in list {
        let Some(kind) = Kind::of(&p.rule.action) else { continue };
        let (mut period, mut initial) = (0, 0);
        if let Action::WriteOneToClear { initial: pattern } = p.rule.action {
            period = pattern.period() as u32;
            for n in 0..pattern.period() {
                initial |= u64::from(pattern.byte(n)) << (8 * n);
            }
        }
        out.push(RuleRecord {
            offset: p.start,
            len: p.end - p.start,
            rule: p.index as u32, // at most MAX_RULES
            kind: kind as u32,
            shadow: p.shadow,
            period,
            initial,
        });
    }
    out
}

fn segments(list: &[Placed<'_>], default: DefaultAction, visible: u64, read: bool) -> Vec<Segment> {
    let gap = Treatment::of_default(default, read);
    let mut out: Vec<Segment> = Vec::with_capacity(list.len() * 2 + 1);
    let mut push = |start: u64, end: u64, treat: Treatment| {
        if start >= end {
            return;
        }
        // Neighbours that are treated alike become one, so that their pages stay uniform.
        match out.last_mut() {
            Some(last) if last.treat == treat && last.treat.and.period() == 1 && last.treat.or.period() == 1 => {
                last.end = end;
            }
            _ => out.push(Segment { start, end, treat }),
        }
    };
    let mut at = 0;
    for p in list {
        push(at, p.start, gap);
        push(p.start, p.end, Treatment::of_rule(&p.rule.action, read));
        at = p.end;
    }
    push(at, visible, gap);
    out
}

fn advance(list: &[Segment], index: &mut usize, at: u64) {
    while list.get(*index).is_some_and(|s| s.end <= at) {
        *index += 1;
    }
}

/// The class of the granule at `at`, which lies wholly in both segments.
fn granule(read: &Segment, write: &Segment, at: u64) -> Class {
    let mut class = Class::PASS;
    for n in 0..4usize {
        let byte = at + n as u64;
        set_read(&mut class, n, read.treat.lane(byte - read.start));
        set_write(&mut class, n, write.treat.lane(byte - write.start));
    }
    class
}

fn set_read(class: &mut Class, n: usize, (op, and, or): (u8, u8, u8)) {
    (class.read_ops[n & 3], class.read_and[n & 3], class.read_or[n & 3]) = (op, and, or);
}

fn set_write(class: &mut Class, n: usize, (op, and, or): (u8, u8, u8)) {
    (class.write_ops[n & 3], class.write_and[n & 3], class.write_or[n & 3]) = (op, and, or);
}

/// One page with at least one edge in it, or several alike with an eight-byte pattern.
fn mixed_pages(
    emitter: &mut Emitter,
    reads: &[Segment],
    writes: &[Segment],
    (mut r, mut w): (usize, usize),
    page_start: u64,
    pages: u64,
) -> Result<(), PolicyError> {
    let mut palette: Vec<Class> = Vec::with_capacity(8);
    let mut codes = [0u8; GRANULES];
    let mut code = |class: Class| match palette.iter().position(|c| *c == class) {
        Some(index) => Ok(index as u8),
        None if palette.len() < MAX_PALETTE => {
            palette.push(class);
            Ok((palette.len() - 1) as u8)
        }
        None => Err(whole(PolicyErrorKind::TooManyPatterns { page_offset: page_start })),
    };
    let mut n = 0;
    while n < GRANULES {
        let start = page_start + 4 * n as u64;
        advance(reads, &mut r, start);
        advance(writes, &mut w, start);
        // Beyond the end of the BAR nothing has a meaning: the codes stay 0.
        let (Some(read), Some(write)) = (reads.get(r), writes.get(w)) else { break };
        let whole_granules = ((read.end.min(write.end) - start) / 4).min((GRANULES - n) as u64) as usize;
        if whole_granules == 0 {
            let (reads, writes) = (reads.get(r..).unwrap_or(&[]), writes.get(w..).unwrap_or(&[]));
            let class = by_byte(reads, writes, start);
            if let Some(place) = codes.get_mut(n) {
                *place = code(class)?;
            }
            n += 1;
            continue;
        }
        // No period is longer than two granules.
        let even = code(granule(read, write, start))?;
        let odd = if whole_granules == 1 || (read.treat.granule_uniform() && write.treat.granule_uniform()) {
            even
        } else {
            code(granule(read, write, start + 4))?
        };
        let stretch = codes.get_mut(n..n + whole_granules).unwrap_or(&mut []);
        stretch.fill(even);
        if odd != even {
            stretch.iter_mut().skip(1).step_by(2).for_each(|place| *place = odd);
        }
        n += whole_granules;
    }
    emitter.mixed(&palette, &codes, pages);
    Ok(())
}

/// The class of a granule that holds an edge. `reads` and `writes` begin with the segments that hold `start`.
fn by_byte(reads: &[Segment], writes: &[Segment], start: u64) -> Class {
    let mut class = Class::PASS;
    let find = |list: &[Segment], byte: u64| list.iter().take(5).find(|s| byte < s.end).copied();
    for n in 0..4usize {
        let byte = start + n as u64;
        if let Some(s) = find(reads, byte) {
            set_read(&mut class, n, s.treat.lane(byte - s.start));
        }
        if let Some(s) = find(writes, byte) {
            set_write(&mut class, n, s.treat.lane(byte - s.start));
        }
    }
    class
}
