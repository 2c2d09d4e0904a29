//! The compiled, immutable filter.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use super::error::LayoutError;
use super::layout::{
    CLASS_BYTES, Class, MIXED, MIXED_BYTES, OP_FIXED, OP_TARGET, OP_TRAP, PAGE_SHIFT, RULE_BYTES, RuleRecord, get_u32,
};
use super::validate::{self, Header, Section};

/// A compiled policy: flat bytes in the layout of [`super::layout`], checked once, never changed.
#[derive(Clone, PartialEq, Eq)]
pub struct Filter {
    bytes: Box<[u8]>,
    pub(super) header: Header,
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Filter").field("bytes", &self.bytes.len()).field("header", &self.header).finish()
    }
}

/// Where an access goes as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// To the target as it is.
    Pass,
    /// To the target, with bits changed on the way.
    Bits,
    /// Answered or dropped by the filter.
    Fixed,
    /// To the trap handler.
    Trap,
    /// Its bytes go different ways, or to the shadow.
    Mixed,
}

/// What [`Filter::quick`] found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Quick {
    Pass,
    One(Class),
    Slow,
}

impl Filter {
    /// A filter from its bytes: a copy is kept. Everything is checked, so that no later access can go wrong on them.
    ///
    /// # Errors
    /// The first field that is not as [`super::layout`] says. Never panics, whatever the bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, LayoutError> {
        let header = validate::validate(bytes)?;
        Ok(Self { bytes: bytes.into(), header })
    }

    pub(super) fn from_vec(bytes: Vec<u8>) -> Result<Self, LayoutError> {
        let header = validate::validate(&bytes)?;
        Ok(Self { bytes: bytes.into_boxed_slice(), header })
    }

    /// The flat bytes, to be handed to other code or to [`Filter::from_bytes`].
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Size of the BAR in bytes.
    #[must_use]
    pub const fn bar_bytes(&self) -> u64 {
        self.header.bar_bytes
    }

    /// Bytes that a guest sees: fewer than the BAR's where it is truncated.
    #[must_use]
    pub const fn visible_bytes(&self) -> u64 {
        self.header.visible_bytes
    }

    /// Rules of the policy that this was compiled from.
    #[must_use]
    pub const fn rules(&self) -> u32 {
        self.header.rules
    }

    /// Where a read of `len` bytes at `offset` goes.
    #[must_use]
    pub fn read_verdict(&self, offset: u64, len: usize) -> Verdict {
        self.verdict(offset, len, true)
    }

    /// Where a write of `len` bytes at `offset` goes.
    #[must_use]
    pub fn write_verdict(&self, offset: u64, len: usize) -> Verdict {
        self.verdict(offset, len, false)
    }

    fn verdict(&self, offset: u64, len: usize, read: bool) -> Verdict {
        let mut all = None;
        for n in 0..len as u64 {
            let (op, and, or) = self.lane(offset.checked_add(n), read);
            let one = match op {
                OP_TARGET if and == 0xff && or == 0 => Verdict::Pass,
                OP_TARGET => Verdict::Bits,
                OP_FIXED => Verdict::Fixed,
                OP_TRAP => Verdict::Trap,
                _ => return Verdict::Mixed,
            };
            all = match all {
                None => Some(one),
                Some(same) if same == one => all,
                Some(Verdict::Pass | Verdict::Bits) if matches!(one, Verdict::Pass | Verdict::Bits) => {
                    Some(Verdict::Bits)
                }
                Some(_) => return Verdict::Mixed,
            };
        }
        all.unwrap_or(Verdict::Fixed)
    }

    /// The operation, `and` and `or` of one byte; `None` is an offset that cannot be represented.
    #[inline]
    pub(super) fn lane(&self, offset: Option<u64>, read: bool) -> (u8, u8, u8) {
        let inside = offset.filter(|at| *at < self.header.visible_bytes);
        let Some((at, class)) = inside.and_then(|at| Some((at, self.class_at(at)?))) else {
            return (OP_FIXED, 0, 0xff);
        };
        let n = (at & 3) as usize;
        if read {
            (class.read_ops[n], class.read_and[n], class.read_or[n])
        } else {
            (class.write_ops[n], class.write_and[n], class.write_or[n])
        }
    }

    /// The answer to most accesses: one look into the page table, and where that page is mixed one at a code.
    /// `len` is 1 to 8.
    #[inline]
    pub(super) fn quick(&self, offset: u64, len: usize) -> Quick {
        let Some(last) = offset.checked_add(len as u64 - 1).filter(|last| *last < self.header.visible_bytes) else {
            return Quick::Slow;
        };
        if offset >> PAGE_SHIFT != last >> PAGE_SHIFT {
            return Quick::Slow;
        }
        match self.page_entry(offset >> PAGE_SHIFT) {
            Some(0) => Quick::Pass,
            Some(entry) if entry & MIXED == 0 => self.class(entry as usize).map_or(Quick::Slow, Quick::One),
            Some(entry) if offset >> 2 == last >> 2 => self.mixed_class(entry, offset).map_or(Quick::Slow, Quick::One),
            _ => Quick::Slow,
        }
    }

    #[inline]
    pub(super) fn page_entry(&self, page: u64) -> Option<u32> {
        if page >= self.header.pages.count as u64 {
            return None;
        }
        get_u32(&self.bytes, self.header.pages.at + 4 * page as usize)
    }

    #[inline]
    fn class_at(&self, offset: u64) -> Option<Class> {
        let entry = self.page_entry(offset >> PAGE_SHIFT)?;
        if entry & MIXED == 0 { self.class(entry as usize) } else { self.mixed_class(entry, offset) }
    }

    #[inline]
    fn mixed_class(&self, entry: u32, offset: u64) -> Option<Class> {
        let record = self.header.mixed.at + (entry & !MIXED) as usize * MIXED_BYTES;
        let granule = (offset >> 2) as usize & (super::layout::GRANULES - 1);
        let code = *self.bytes.get(record + 8 + granule)?;
        self.class(get_u32(&self.bytes, record)? as usize + usize::from(code))
    }

    #[inline]
    pub(super) fn class(&self, index: usize) -> Option<Class> {
        Class::get(self.bytes.get(self.header.classes.at + index * CLASS_BYTES..)?)
    }

    /// The rule that holds `offset`, for reads or for writes.
    pub(super) fn find_rule(&self, offset: u64, read: bool) -> Option<RuleRecord> {
        let section = if read { self.header.read_rules } else { self.header.write_rules };
        // The first record that begins above `offset`; the one before it is the only candidate.
        let (mut low, mut high) = (0, section.count);
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.record(section, middle)?.offset <= offset {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        let record = self.record(section, low.checked_sub(1)?)?;
        (offset - record.offset < record.len).then_some(record)
    }

    fn record(&self, section: Section, index: usize) -> Option<RuleRecord> {
        RuleRecord::get(self.bytes.get(section.at + index * RULE_BYTES..)?)
    }

    /// The rules about reads, which hold every shadow.
    pub(super) fn read_records(&self) -> impl Iterator<Item = RuleRecord> + '_ {
        let section = self.header.read_rules;
        (0..section.count).filter_map(move |n| self.record(section, n))
    }
}
