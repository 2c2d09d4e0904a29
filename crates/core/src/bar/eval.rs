//! Carries out one access under a filter.
//!
//! An access of 1, 2, 4 or 8 bytes stays one where all of it goes to the target. Where its bytes go different ways, each
//! stretch that goes the same way is carried out by itself, in ascending order, and a stretch for the target in the
//! largest naturally aligned pieces: the target sees unaligned accesses only where the guest made one. Other lengths are
//! a sequence of such pieces.

use super::BarTarget;
use super::filter::{Filter, Quick};
use super::layout::{Class, OP_FIXED, OP_TARGET, OP_TRAP};
use super::state::FilterState;

/// An access, or a part of one, that a policy traps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trap {
    /// First byte in the BAR.
    pub offset: u64,
    /// Index of the rule in the policy; `None` where trapping is what the policy does by default.
    pub rule: Option<u32>,
}

/// Answers what a policy traps. Called from the thread that made the access, without any lock held: it may use the
/// target, raise shadow bits and replace the filter.
pub trait TrapHandler: Send + Sync {
    /// Fills `out`, of 1 to 8 bytes, which holds all ones. One rule at a time: an access over two trapping rules comes as two calls.
    fn read(&self, trap: Trap, target: &dyn BarTarget, out: &mut [u8]);
    /// Takes `data`, of 1 to 8 bytes.
    fn write(&self, trap: Trap, target: &dyn BarTarget, data: &[u8]);
}

/// For policies without traps: reads give all ones, writes are dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoTraps;

impl TrapHandler for NoTraps {
    fn read(&self, _: Trap, _: &dyn BarTarget, _: &mut [u8]) {}
    fn write(&self, _: Trap, _: &dyn BarTarget, _: &[u8]) {}
}

impl Filter {
    /// Reads `out.len()` bytes at `offset` under this filter. `state` is one that was made for this filter.
    pub fn read(
        &self,
        state: &FilterState,
        target: &dyn BarTarget,
        traps: &dyn TrapHandler,
        offset: u64,
        out: &mut [u8],
    ) {
        pieces(offset, out.len(), |at, from, to| {
            let Some(out) = out.get_mut(from..to) else { return };
            match self.quick_read(at.unwrap_or(u64::MAX), out.len()) {
                Some(answer) => answer.read(target, at.unwrap_or(u64::MAX), out),
                None => self.read_slow(state, target, traps, at, out),
            }
        });
    }

    /// Writes `data` at `offset` under this filter. `state` is one that was made for this filter.
    pub fn write(
        &self,
        state: &FilterState,
        target: &dyn BarTarget,
        traps: &dyn TrapHandler,
        offset: u64,
        data: &[u8],
    ) {
        pieces(offset, data.len(), |at, from, to| {
            let Some(data) = data.get(from..to) else { return };
            match self.quick_write(at.unwrap_or(u64::MAX), data.len()) {
                Some(answer) => answer.write(target, at.unwrap_or(u64::MAX), data),
                None => self.write_slow(state, target, traps, at, data),
            }
        });
    }

    /// An answer that needs neither traps nor shadow. `len` is 1 to 8.
    #[inline]
    pub(super) fn quick_read(&self, offset: u64, len: usize) -> Option<Answer> {
        match self.quick(offset, len) {
            Quick::Pass => Some(Answer::Pass),
            Quick::One(class) => Answer::of(class.read_ops, class),
            Quick::Slow => None,
        }
    }

    /// As [`Filter::quick_read`].
    #[inline]
    pub(super) fn quick_write(&self, offset: u64, len: usize) -> Option<Answer> {
        match self.quick(offset, len) {
            Quick::Pass => Some(Answer::Pass),
            Quick::One(class) => Answer::of(class.write_ops, class),
            Quick::Slow => None,
        }
    }

    pub(super) fn read_slow(
        &self,
        state: &FilterState,
        target: &dyn BarTarget,
        traps: &dyn TrapHandler,
        offset: Option<u64>,
        out: &mut [u8],
    ) {
        let len = out.len();
        self.stretches(offset, len, true, |at, op, rule, from, to| {
            let Some(out) = out.get_mut(from..to) else { return };
            let byte = |n: usize| at.checked_add(n as u64);
            match op {
                OP_TARGET => {
                    naturally(at, out.len(), len, |at, from, to| {
                        if let Some(out) = out.get_mut(from..to) {
                            target.read(at, out);
                        }
                    });
                    for (n, value) in out.iter_mut().enumerate() {
                        let (_, and, or) = self.lane(byte(n), true);
                        *value = *value & and | or;
                    }
                }
                OP_FIXED => {
                    for (n, value) in out.iter_mut().enumerate() {
                        *value = self.lane(byte(n), true).2;
                    }
                }
                OP_TRAP => {
                    out.fill(0xff);
                    traps.read(Trap { offset: at, rule }, target, out);
                }
                _ => {
                    for (n, value) in out.iter_mut().enumerate() {
                        *value = byte(n).map_or(0xff, |at| state.read(self, at));
                    }
                }
            }
        });
    }

    pub(super) fn write_slow(
        &self,
        state: &FilterState,
        target: &dyn BarTarget,
        traps: &dyn TrapHandler,
        offset: Option<u64>,
        data: &[u8],
    ) {
        let len = data.len();
        self.stretches(offset, len, false, |at, op, rule, from, to| {
            let Some(data) = data.get(from..to) else { return };
            let byte = |n: usize| at.checked_add(n as u64);
            match op {
                OP_TARGET => {
                    let mut changed = [0u8; 8];
                    for (n, (out, value)) in changed.iter_mut().zip(data).enumerate() {
                        let (_, and, or) = self.lane(byte(n), false);
                        *out = value & and | or;
                    }
                    naturally(at, data.len(), len, |at, from, to| {
                        if let Some(data) = changed.get(from..to) {
                            target.write(at, data);
                        }
                    });
                }
                OP_FIXED => {}
                OP_TRAP => traps.write(Trap { offset: at, rule }, target, data),
                _ => {
                    for (n, value) in data.iter().enumerate() {
                        if let Some(at) = byte(n) {
                            state.clear(self, at, *value);
                        }
                    }
                }
            }
        });
    }

    /// Calls `f` with (offset, operation, rule of a trap, first byte, one past the last byte) of every stretch of bytes
    /// that go the same way.
    fn stretches(
        &self,
        offset: Option<u64>,
        len: usize,
        read: bool,
        mut f: impl FnMut(u64, u8, Option<u32>, usize, usize),
    ) {
        let way = |n: usize| {
            let at = offset.and_then(|o| o.checked_add(n as u64));
            let op = self.lane(at, read).0;
            let rule = if op == OP_TRAP { at.and_then(|at| self.find_rule(at, read)).map(|r| r.rule) } else { None };
            (op, rule)
        };
        let mut from = 0;
        while from < len {
            let (op, rule) = way(from);
            let mut to = from + 1;
            while to < len && way(to) == (op, rule) {
                to += 1;
            }
            // Bytes without a representable offset are beyond every BAR: only OP_FIXED comes here with the stand-in.
            let at = offset.and_then(|o| o.checked_add(from as u64)).unwrap_or(u64::MAX);
            f(at, op, rule, from, to);
            from = to;
        }
    }
}

/// What to do with a whole access of 1 to 8 bytes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Answer {
    Pass,
    Bits(Class),
    Fixed(Class),
}

impl Answer {
    #[inline]
    fn of(ops: [u8; 4], class: Class) -> Option<Self> {
        match ops {
            [OP_TARGET, OP_TARGET, OP_TARGET, OP_TARGET] => Some(Self::Bits(class)),
            [OP_FIXED, OP_FIXED, OP_FIXED, OP_FIXED] => Some(Self::Fixed(class)),
            _ => None,
        }
    }

    #[inline]
    pub fn read(self, target: &dyn BarTarget, offset: u64, out: &mut [u8]) {
        match self {
            Self::Pass => target.read(offset, out),
            Self::Bits(class) => {
                target.read(offset, out);
                for (value, n) in out.iter_mut().zip(lanes(offset)) {
                    *value = *value & class.read_and[n] | class.read_or[n];
                }
            }
            Self::Fixed(class) => {
                for (value, n) in out.iter_mut().zip(lanes(offset)) {
                    *value = class.read_or[n];
                }
            }
        }
    }

    #[inline]
    pub fn write(self, target: &dyn BarTarget, offset: u64, data: &[u8]) {
        match self {
            Self::Pass => target.write(offset, data),
            Self::Bits(class) => {
                let mut changed = [0u8; 8];
                for ((out, value), n) in changed.iter_mut().zip(data).zip(lanes(offset)) {
                    *out = value & class.write_and[n] | class.write_or[n];
                }
                if let Some(changed) = changed.get(..data.len()) {
                    target.write(offset, changed);
                }
            }
            Self::Fixed(_) => {}
        }
    }
}

fn lanes(offset: u64) -> impl Iterator<Item = usize> {
    (0..8).map(move |n| (offset as usize).wrapping_add(n) & 3)
}

/// Calls `f` with (offset, first byte, one past the last) of the pieces of an access: one where the length is 1, 2, 4 or 8,
/// naturally aligned ones otherwise. `None` is an offset that cannot be represented.
#[inline]
fn pieces(offset: u64, len: usize, mut f: impl FnMut(Option<u64>, usize, usize)) {
    if matches!(len, 1 | 2 | 4 | 8) {
        return f(Some(offset), 0, len);
    }
    let mut done = 0;
    while done < len {
        let at = offset.checked_add(done as u64);
        let step = natural(at.unwrap_or(0), len - done);
        f(at, done, done + step);
        done += step;
    }
}

/// Calls `f` with the pieces of a stretch of `len` bytes for the target: one where it is the whole access of `whole` bytes
/// (which [`pieces`] has brought to 1, 2, 4 or 8), naturally aligned ones otherwise. The stretch lies inside of a BAR.
fn naturally(offset: u64, len: usize, whole: usize, mut f: impl FnMut(u64, usize, usize)) {
    if len == whole {
        return f(offset, 0, len);
    }
    let mut done = 0;
    while done < len {
        let at = offset.saturating_add(done as u64);
        let step = natural(at, len - done);
        f(at, done, done + step);
        done += step;
    }
}

/// The largest of 8, 4, 2 and 1 that divides `offset` and is at most `len`.
fn natural(offset: u64, len: usize) -> usize {
    [8, 4, 2].into_iter().find(|n| *n <= len && offset.is_multiple_of(*n as u64)).unwrap_or(1)
}
