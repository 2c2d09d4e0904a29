//! The flat bytes of a [`super::Filter`]: everything that is needed to answer an access, for code in any language.
//!
//! All numbers are little-endian. Sections follow each other without gaps, in this order; where each begins is in the
//! header all the same. Every section begins at a multiple of 8 bytes from the start (padding is zero).
//!
//! # Header, [`HEADER_BYTES`] long
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 × 8 | [`MAGIC`] |
//! | 8 | u32 | layout version, [`VERSION`] |
//! | 12 | u32 | [`HEADER_BYTES`] |
//! | 16 | u64 | bytes of the whole filter |
//! | 24 | u64 | bytes of the BAR, 1 to [`super::MAX_BAR_BYTES`] |
//! | 32 | u64 | visible bytes: where a truncation ends the BAR, else the whole BAR |
//! | 40 | u32 | [`PAGE_SHIFT`] |
//! | 44 | u32 | [`GRANULE_SHIFT`] |
//! | 48, 56 | u64, u64 | page table: offset, entries; entries = visible bytes / 4096, rounded up |
//! | 64, 72 | u64, u64 | mixed pages: offset, count |
//! | 80, 88 | u64, u64 | classes: offset, count (at least 1) |
//! | 96, 104 | u64, u64 | rules that are about reads: offset, count |
//! | 112, 120 | u64, u64 | rules that are about writes: offset, count |
//! | 128 | u32 | bytes of the write-one-to-clear shadow, to [`super::MAX_SHADOW_BYTES`] |
//! | 132 | u32 | rules of the policy, to [`super::MAX_RULES`] |
//! | 136 | u64 | 0 |
//!
//! # Page table: u32 each
//! One entry a 4 KiB page. Bit 31 ([`MIXED`]) clear: every granule of the page has the class of this index. Set: bits 0
//! to 30 are the index of a mixed page. Entry 0 is always "reads and writes pass", so a page that passes is found by
//! one comparison. What the last page says about bytes at and beyond the visible bytes has no meaning: compare first.
//!
//! # Mixed pages: [`MIXED_BYTES`] each
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u32 | index of the class that code 0 stands for |
//! | 4 | u32 | number of codes in use, 1 to 256 |
//! | 8 | u8 × 1024 | code of each 4-byte granule; its class is (index for code 0) + code |
//!
//! Equal mixed pages are stored once.
//!
//! # Classes: [`CLASS_BYTES`] each
//! What happens to the four bytes of a granule; byte or bits 8n to 8n+7 are about the byte at granule address + n.
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u8 × 4 | operation on reads, one a byte |
//! | 4 | u8 × 4 | operation on writes, one a byte |
//! | 8 | u32 | `and` on reads |
//! | 12 | u32 | `or` on reads |
//! | 16 | u32 | `and` on writes |
//! | 20 | u32 | `or` on writes |
//!
//! | operation | on reads | on writes |
//! |---|---|---|
//! | 0 [`OP_TARGET`] | (target & and) \| or | (data & and) \| or goes to the target |
//! | 1 [`OP_FIXED`] | or | dropped |
//! | 2 [`OP_TRAP`] | asked from the trap handler | told to the trap handler |
//! | 3 [`OP_SHADOW`] | the shadow byte | shadow byte &= !data |
//!
//! # Rules: [`RULE_BYTES`] each
//! Ascending by offset, not overlapping. Only traps (which rule) and the shadow (which byte) have to look here.
//! | offset | type | field |
//! |---|---|---|
//! | 0 | u64 | first byte in the BAR |
//! | 8 | u64 | length in bytes |
//! | 16 | u32 | index of the rule in the policy |
//! | 20 | u32 | kind: 0 pass, 1 deny, 2 trap, 3 bits, 4 write-one-to-clear, 5 hide |
//! | 24 | u32 | kind 4: its first byte in the shadow; else [`NO_SHADOW`] |
//! | 28 | u32 | kind 4: period of the initial value in bytes (1, 2, 4 or 8); else 0 |
//! | 32 | u64 | kind 4: initial value, repeated over the rule; else 0 |

use alloc::vec::Vec;

use super::policy::{Action, Pattern};

/// First bytes of a filter.
pub const MAGIC: [u8; 8] = *b"TWLBARF\0";
/// The layout version written and read here.
pub const VERSION: u32 = 1;
/// Bytes of the header.
pub const HEADER_BYTES: usize = 144;
/// log2 of the bytes of a filter page.
pub const PAGE_SHIFT: u32 = 12;
/// log2 of the bytes of a granule.
pub const GRANULE_SHIFT: u32 = 2;
/// Bytes of a filter page. The page size of the host is something else.
pub const PAGE_BYTES: u64 = 1 << PAGE_SHIFT;
/// Granules of a page.
pub const GRANULES: usize = 1 << (PAGE_SHIFT - GRANULE_SHIFT);
/// Bit of a page entry.
pub const MIXED: u32 = 1 << 31;
/// Bytes of a mixed page.
pub const MIXED_BYTES: usize = 8 + GRANULES;
/// Bytes of a class.
pub const CLASS_BYTES: usize = 24;
/// Bytes of a rule record.
pub const RULE_BYTES: usize = 40;
/// Most classes of a mixed page.
pub const MAX_PALETTE: usize = 256;
/// To or from the target.
pub const OP_TARGET: u8 = 0;
/// Reads give a constant, writes are dropped.
pub const OP_FIXED: u8 = 1;
/// For the trap handler.
pub const OP_TRAP: u8 = 2;
/// Write-one-to-clear shadow.
pub const OP_SHADOW: u8 = 3;
/// A rule record without shadow.
pub const NO_SHADOW: u32 = u32::MAX;

/// Header fields by byte offset, for writing and checking them alike.
pub(super) mod at {
    pub const VERSION: usize = 8;
    pub const HEADER: usize = 12;
    pub const TOTAL: usize = 16;
    pub const BAR: usize = 24;
    pub const VISIBLE: usize = 32;
    pub const PAGE_SHIFT: usize = 40;
    pub const GRANULE_SHIFT: usize = 44;
    pub const PAGES: usize = 48;
    pub const MIXED: usize = 64;
    pub const CLASSES: usize = 80;
    pub const READ_RULES: usize = 96;
    pub const WRITE_RULES: usize = 112;
    pub const SHADOW: usize = 128;
    pub const RULES: usize = 132;
    pub const ZERO: usize = 136;
}

/// A class, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    pub read_ops: [u8; 4],
    pub write_ops: [u8; 4],
    pub read_and: [u8; 4],
    pub read_or: [u8; 4],
    pub write_and: [u8; 4],
    pub write_or: [u8; 4],
}

impl Class {
    pub const PASS: Self = Self {
        read_ops: [OP_TARGET; 4],
        write_ops: [OP_TARGET; 4],
        read_and: [0xff; 4],
        read_or: [0; 4],
        write_and: [0xff; 4],
        write_or: [0; 4],
    };

    pub fn put(&self, out: &mut Vec<u8>) {
        for field in [self.read_ops, self.write_ops, self.read_and, self.read_or, self.write_and, self.write_or] {
            out.extend_from_slice(&field);
        }
    }

    #[inline]
    pub fn get(bytes: &[u8]) -> Option<Self> {
        let b: &[u8; CLASS_BYTES] = bytes.first_chunk()?;
        let four = |n: usize| [b[n], b[n + 1], b[n + 2], b[n + 3]];
        Some(Self {
            read_ops: four(0),
            write_ops: four(4),
            read_and: four(8),
            read_or: four(12),
            write_and: four(16),
            write_or: four(20),
        })
    }
}

/// The kind of a rule record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Kind {
    Pass = 0,
    Deny = 1,
    Trap = 2,
    Bits = 3,
    WriteOneToClear = 4,
    Hide = 5,
}

impl Kind {
    pub const fn of(action: &Action) -> Option<Self> {
        Some(match action {
            Action::Pass => Self::Pass,
            Action::Deny(_) => Self::Deny,
            Action::Trap => Self::Trap,
            Action::Bits { .. } => Self::Bits,
            Action::WriteOneToClear { .. } => Self::WriteOneToClear,
            Action::Hide => Self::Hide,
            Action::Truncate => return None,
        })
    }

    pub const fn from_number(n: u32) -> Option<Self> {
        Some(match n {
            0 => Self::Pass,
            1 => Self::Deny,
            2 => Self::Trap,
            3 => Self::Bits,
            4 => Self::WriteOneToClear,
            5 => Self::Hide,
            _ => return None,
        })
    }
}

/// A rule record, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RuleRecord {
    pub offset: u64,
    pub len: u64,
    pub rule: u32,
    pub kind: u32,
    pub shadow: u32,
    pub period: u32,
    pub initial: u64,
}

impl RuleRecord {
    pub fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&self.len.to_le_bytes());
        for word in [self.rule, self.kind, self.shadow, self.period] {
            out.extend_from_slice(&word.to_le_bytes());
        }
        out.extend_from_slice(&self.initial.to_le_bytes());
    }

    pub fn get(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            offset: get_u64(bytes, 0)?,
            len: get_u64(bytes, 8)?,
            rule: get_u32(bytes, 16)?,
            kind: get_u32(bytes, 20)?,
            shadow: get_u32(bytes, 24)?,
            period: get_u32(bytes, 28)?,
            initial: get_u64(bytes, 32)?,
        })
    }

    /// What the shadow holds at first.
    pub const fn initial(&self) -> Pattern {
        match self.period {
            1 => Pattern::u8(self.initial as u8),
            2 => Pattern::u16(self.initial as u16),
            4 => Pattern::u32(self.initial as u32),
            _ => Pattern::u64(self.initial),
        }
    }
}

#[inline]
pub(super) fn get_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[inline]
pub(super) fn get_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
