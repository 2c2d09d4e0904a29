//! A compiled BAR filter, evaluated from its flat bytes. Written from their documentation (towline's `crates/core/src/bar/layout.rs`) alone, as
//! a VMM in any language would.
//!
//! Nobody is asked about traps here: reads give ones, writes are dropped.

use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"TWLBARF\0";
const HEADER: usize = 144;
const PAGE_SHIFT: u32 = 12;
const MIXED: u32 = 1 << 31;
const MIXED_BYTES: usize = 8 + 1024;
const CLASS_BYTES: usize = 24;
const RULE_BYTES: usize = 40;
const MAX_BYTES: usize = 1 << 30;
const MAX_BAR: u64 = 1 << 37;
const MAX_SHADOW: u32 = 1 << 20;
const MAX_RULES: u64 = 131_072;

const OP_TARGET: u8 = 0;
const OP_FIXED: u8 = 1;
const OP_SHADOW: u8 = 3;
const KIND_SHADOW: u32 = 4;

/// What is behind the filter.
pub trait Target {
    fn read(&self, offset: u64, out: &mut [u8]);
    fn write(&self, offset: u64, data: &[u8]);
}

/// What came of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It went to the target as it was.
    Passed,
    /// Some of it was changed, or did not go to the target.
    Changed,
    /// Nothing of it went to the target.
    Denied,
}

#[derive(Clone, Copy)]
struct Section {
    at: usize,
    count: usize,
}

/// See the module.
pub struct Filter {
    bytes: Box<[u8]>,
    visible: u64,
    pages: Section,
    mixed: Section,
    classes: Section,
    reads: Section,
    writes: Section,
    shadow: Mutex<Vec<u8>>,
}

/// What happens to one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Lane {
    op: u8,
    and: u8,
    or: u8,
}

const OUTSIDE: Lane = Lane { op: OP_FIXED, and: 0, or: 0xff };

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn section(bytes: &[u8], at: usize, size: usize, most: u64) -> Option<Section> {
    let start = usize::try_from(u64_at(bytes, at)?).ok()?;
    let count = u64_at(bytes, at + 8).filter(|c| *c <= most)?;
    let count = usize::try_from(count).ok()?;
    let end = start.checked_add(count.checked_mul(size)?)?;
    (start >= HEADER && start.is_multiple_of(8) && end <= bytes.len()).then_some(Section { at: start, count })
}

impl Filter {
    /// Takes a filter's bytes. Everything that a later look-up relies on is checked.
    ///
    /// # Errors
    /// [`Error::Filter`].
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let bad = |what: &'static str| move || Error::Filter(what);
        if bytes.len() < HEADER || bytes.len() > MAX_BYTES || !bytes.starts_with(MAGIC) {
            return Err(Error::Filter("not a compiled filter"));
        }
        if (u32_at(bytes, 8), u32_at(bytes, 12)) != (Some(1), Some(HEADER as u32)) {
            return Err(Error::Filter("another version of the layout"));
        }
        if (u32_at(bytes, 40), u32_at(bytes, 44)) != (Some(PAGE_SHIFT), Some(2)) {
            return Err(Error::Filter("another page or granule size"));
        }
        if u64_at(bytes, 16) != Some(bytes.len() as u64) {
            return Err(Error::Filter("the length does not match"));
        }
        let bar = u64_at(bytes, 24).filter(|b| (1..=MAX_BAR).contains(b)).ok_or_else(bad("the size of the BAR"))?;
        let visible =
            u64_at(bytes, 32).filter(|v| (1..=bar).contains(v)).ok_or_else(bad("the size of the visible part"))?;
        let page_count = visible.div_ceil(1 << PAGE_SHIFT);
        let any = bytes.len() as u64;
        let filter = Self {
            visible,
            pages: section(bytes, 48, 4, page_count).ok_or_else(bad("the pages"))?,
            mixed: section(bytes, 64, MIXED_BYTES, page_count).ok_or_else(bad("the mixed pages"))?,
            classes: section(bytes, 80, CLASS_BYTES, any).ok_or_else(bad("the classes"))?,
            reads: section(bytes, 96, RULE_BYTES, MAX_RULES).ok_or_else(bad("the rules about reads"))?,
            writes: section(bytes, 112, RULE_BYTES, MAX_RULES).ok_or_else(bad("the rules about writes"))?,
            shadow: Mutex::default(),
            bytes: bytes.into(),
        };
        if filter.pages.count as u64 != page_count || filter.classes.count == 0 {
            return Err(Error::Filter("pages or classes are missing"));
        }
        filter.check_pages().ok_or_else(bad("an index is out of range"))?;
        let shadow_bytes = u32_at(bytes, 128).filter(|s| *s <= MAX_SHADOW).ok_or_else(bad("the size of the shadow"))?;
        let rules = u32_at(bytes, 132).ok_or_else(bad("the number of rules"))?;
        let mut shadow = vec![0; shadow_bytes as usize];
        filter.check_rules(filter.reads, rules, &mut shadow).ok_or_else(bad("a rule about reads"))?;
        filter.check_rules(filter.writes, rules, &mut shadow).ok_or_else(bad("a rule about writes"))?;
        *filter.shadow.lock().unwrap_or_else(PoisonError::into_inner) = shadow;
        Ok(filter)
    }

    fn check_pages(&self) -> Option<()> {
        for n in 0..self.pages.count {
            let entry = u32_at(&self.bytes, self.pages.at + 4 * n)?;
            let limit = if entry & MIXED == 0 { self.classes.count } else { self.mixed.count };
            if (entry & !MIXED) as usize >= limit {
                return None;
            }
        }
        for n in 0..self.mixed.count {
            let at = self.mixed.at + n * MIXED_BYTES;
            let (base, codes) = (u32_at(&self.bytes, at)? as usize, u32_at(&self.bytes, at + 4)? as usize);
            if !(1..=256).contains(&codes) || base.checked_add(codes)? > self.classes.count {
                return None;
            }
            if self.bytes.get(at + 8..at + MIXED_BYTES)?.iter().any(|code| usize::from(*code) >= codes) {
                return None;
            }
        }
        for n in 0..self.classes.count {
            let at = self.classes.at + n * CLASS_BYTES;
            if self.bytes.get(at..at + 8)?.iter().any(|op| *op > OP_SHADOW) {
                return None;
            }
        }
        Some(())
    }

    /// Checks rule records and puts what their shadows begin with into `shadow`.
    fn check_rules(&self, section: Section, rules: u32, shadow: &mut [u8]) -> Option<()> {
        let mut end = 0;
        for n in 0..section.count {
            let at = section.at + n * RULE_BYTES;
            let (offset, len) = (u64_at(&self.bytes, at)?, u64_at(&self.bytes, at + 8)?);
            let next = offset.checked_add(len)?;
            if len == 0 || offset < end || next > self.visible || u32_at(&self.bytes, at + 16)? >= rules {
                return None;
            }
            end = next;
            if u32_at(&self.bytes, at + 20)? != KIND_SHADOW {
                continue;
            }
            let period = u32_at(&self.bytes, at + 28)? as usize;
            let first = u32_at(&self.bytes, at + 24)? as usize;
            let initial = self.bytes.get(at + 32..at + 40)?;
            if !matches!(period, 1 | 2 | 4 | 8) {
                return None;
            }
            let place = shadow.get_mut(first..first.checked_add(usize::try_from(len).ok()?)?)?;
            for (n, byte) in place.iter_mut().enumerate() {
                *byte = *initial.get(n % period)?;
            }
        }
        Some(())
    }

    fn class_at(&self, offset: u64) -> Option<&[u8]> {
        let page = usize::try_from(offset >> PAGE_SHIFT).ok()?;
        let entry = u32_at(&self.bytes, self.pages.at + 4 * page)?;
        let class = if entry & MIXED == 0 {
            entry as usize
        } else {
            let at = self.mixed.at + (entry & !MIXED) as usize * MIXED_BYTES;
            let granule = (offset >> 2) as usize % 1024;
            u32_at(&self.bytes, at)? as usize + usize::from(*self.bytes.get(at + 8 + granule)?)
        };
        let at = self.classes.at + class * CLASS_BYTES;
        self.bytes.get(at..at + CLASS_BYTES)
    }

    fn lane(&self, offset: u64, read: bool) -> Lane {
        if offset >= self.visible {
            return OUTSIDE;
        }
        let side = usize::from(!read);
        let byte = (offset & 3) as usize;
        let field = |class: &[u8], at: usize| class.get(at + byte).copied();
        self.class_at(offset)
            .and_then(|class| {
                Some(Lane {
                    op: field(class, 4 * side)?,
                    and: field(class, 8 + 8 * side)?,
                    or: field(class, 12 + 8 * side)?,
                })
            })
            .unwrap_or(OUTSIDE)
    }

    /// Where in the shadow the byte at `offset` is.
    fn shadow_index(&self, offset: u64, section: Section) -> Option<usize> {
        let (mut low, mut high) = (0, section.count);
        while low < high {
            let middle = low + (high - low) / 2;
            if u64_at(&self.bytes, section.at + middle * RULE_BYTES)? <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let at = section.at + low.checked_sub(1)? * RULE_BYTES;
        let within = offset - u64_at(&self.bytes, at)?;
        if within >= u64_at(&self.bytes, at + 8)? || u32_at(&self.bytes, at + 20)? != KIND_SHADOW {
            return None;
        }
        (u32_at(&self.bytes, at + 24)? as usize).checked_add(usize::try_from(within).ok()?)
    }

    fn lanes(&self, offset: u64, len: usize, read: bool) -> [Lane; 8] {
        let mut lanes = [OUTSIDE; 8];
        for (n, lane) in lanes.iter_mut().enumerate().take(len) {
            *lane = offset.checked_add(n as u64).map_or(OUTSIDE, |at| self.lane(at, read));
        }
        lanes
    }

    /// Whether a write of 32 bits at `offset` goes to the target as it is.
    pub fn passes_write32(&self, offset: u64) -> bool {
        self.lanes(offset, 4, false).iter().take(4).all(|l| *l == Lane { op: OP_TARGET, and: 0xff, or: 0 })
    }

    /// Reads at most 8 bytes; longer accesses give ones.
    pub fn read(&self, target: &dyn Target, offset: u64, out: &mut [u8]) -> Outcome {
        out.fill(0xff);
        if out.len() > 8 {
            return Outcome::Denied;
        }
        let lanes = self.lanes(offset, out.len(), true);
        let len = out.len();
        for (from, to) in stretches(&lanes, len) {
            let Some(part) = out.get_mut(from..to) else { continue };
            let at = offset.saturating_add(from as u64);
            let op = lanes.get(from).map_or(OP_FIXED, |l| l.op);
            if op == OP_TARGET {
                for (a, b) in pieces(at, part.len(), len) {
                    if let Some(piece) = part.get_mut(a..b) {
                        target.read(at + a as u64, piece);
                    }
                }
            }
            for (n, byte) in part.iter_mut().enumerate() {
                let Some(lane) = lanes.get(from + n) else { continue };
                *byte = match op {
                    OP_TARGET => *byte & lane.and | lane.or,
                    OP_FIXED => lane.or,
                    OP_SHADOW => self.shadow_byte(at + n as u64),
                    _ => 0xff,
                };
            }
        }
        outcome(&lanes, len)
    }

    /// Writes at most 8 bytes; longer accesses are dropped.
    pub fn write(&self, target: &dyn Target, offset: u64, data: &[u8]) -> Outcome {
        if data.len() > 8 {
            return Outcome::Denied;
        }
        let lanes = self.lanes(offset, data.len(), false);
        for (from, to) in stretches(&lanes, data.len()) {
            let Some(part) = data.get(from..to) else { continue };
            let at = offset.saturating_add(from as u64);
            match lanes.get(from).map_or(OP_FIXED, |l| l.op) {
                OP_TARGET => {
                    let mut changed = [0u8; 8];
                    for (n, (to, value)) in changed.iter_mut().zip(part).enumerate() {
                        let lane = lanes.get(from + n).copied().unwrap_or(OUTSIDE);
                        *to = value & lane.and | lane.or;
                    }
                    for (a, b) in pieces(at, part.len(), data.len()) {
                        if let Some(piece) = changed.get(a..b) {
                            target.write(at + a as u64, piece);
                        }
                    }
                }
                OP_SHADOW => part.iter().enumerate().for_each(|(n, value)| self.clear_shadow(at + n as u64, *value)),
                _ => {}
            }
        }
        outcome(&lanes, data.len())
    }

    fn shadow_byte(&self, offset: u64) -> u8 {
        let shadow = self.shadow.lock().unwrap_or_else(PoisonError::into_inner);
        self.shadow_index(offset, self.reads).and_then(|at| shadow.get(at).copied()).unwrap_or(0xff)
    }

    fn clear_shadow(&self, offset: u64, ones: u8) {
        let mut shadow = self.shadow.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(byte) = self.shadow_index(offset, self.writes).and_then(|at| shadow.get_mut(at)) {
            *byte &= !ones;
        }
    }
}

/// Stretches of bytes with the same operation.
fn stretches(lanes: &[Lane; 8], len: usize) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = Vec::with_capacity(1);
    for (n, lane) in lanes.iter().enumerate().take(len) {
        match out.last_mut() {
            Some((from, to)) if lanes.get(*from).is_some_and(|first| first.op == lane.op) => *to = n + 1,
            _ => out.push((n, n + 1)),
        }
    }
    out
}

/// The accesses by which a stretch reaches the target: one where it is the whole access, naturally aligned ones else.
fn pieces(offset: u64, len: usize, whole: usize) -> Vec<(usize, usize)> {
    if len == whole && matches!(len, 1 | 2 | 4 | 8) {
        return vec![(0, len)];
    }
    let mut out = Vec::new();
    let mut done = 0;
    while done < len {
        let at = offset + done as u64;
        let step = [8, 4, 2].into_iter().find(|n| *n <= len - done && at.is_multiple_of(*n as u64)).unwrap_or(1);
        out.push((done, done + step));
        done += step;
    }
    out
}

fn outcome(lanes: &[Lane; 8], len: usize) -> Outcome {
    let mut lanes = lanes.iter().take(len);
    if lanes.clone().all(|l| l.op == OP_TARGET && l.and == 0xff && l.or == 0) {
        Outcome::Passed
    } else if lanes.any(|l| l.op == OP_TARGET) {
        Outcome::Changed
    } else {
        Outcome::Denied
    }
}

#[cfg(test)]
mod tests;
