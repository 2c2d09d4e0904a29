//! Policies as people write them.

use alloc::string::String;
use alloc::vec::Vec;

use super::compile;
use super::error::PolicyError;
use super::filter::Filter;

/// Which accesses a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reads only.
    Read,
    /// Writes only.
    Write,
    /// Reads and writes.
    Both,
}

impl Access {
    pub(super) const fn reads(self) -> bool {
        matches!(self, Self::Read | Self::Both)
    }

    pub(super) const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Both)
    }
}

/// What a denied read gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fill {
    /// Every bit one, as a read that nobody answers on PCI.
    Ones,
    /// Every bit zero, as a reserved register.
    Zeros,
}

impl Fill {
    pub(super) const fn byte(self) -> u8 {
        match self {
            Self::Ones => 0xff,
            Self::Zeros => 0,
        }
    }
}

/// A little-endian value of 1, 2, 4 or 8 bytes that repeats over a rule's range, starting at the rule's first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pattern {
    bytes: [u8; 8],
    len: u8,
}

impl Pattern {
    /// One byte, repeated.
    #[must_use]
    pub const fn u8(value: u8) -> Self {
        Self { bytes: [value, 0, 0, 0, 0, 0, 0, 0], len: 1 }
    }

    /// Two bytes, repeated.
    #[must_use]
    pub const fn u16(value: u16) -> Self {
        let b = value.to_le_bytes();
        Self { bytes: [b[0], b[1], 0, 0, 0, 0, 0, 0], len: 2 }
    }

    /// Four bytes, repeated.
    #[must_use]
    pub const fn u32(value: u32) -> Self {
        let b = value.to_le_bytes();
        Self { bytes: [b[0], b[1], b[2], b[3], 0, 0, 0, 0], len: 4 }
    }

    /// Eight bytes, repeated.
    #[must_use]
    pub const fn u64(value: u64) -> Self {
        Self { bytes: value.to_le_bytes(), len: 8 }
    }

    /// The period in bytes: 1, 2, 4 or 8.
    #[must_use]
    pub const fn period(&self) -> u64 {
        self.len as u64
    }

    /// Byte `index` of the repeated value.
    #[must_use]
    pub const fn byte(&self, index: u64) -> u8 {
        // `len` is one of 1, 2, 4 and 8 by construction, so this is `index % len` and below 8.
        self.bytes[(index & (self.len as u64 - 1) & 7) as usize]
    }
}

/// What becomes of an access. See the constructors of [`Rule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// To the target as it is.
    Pass,
    /// Reads give `Fill`; writes are dropped. The target sees nothing.
    Deny(Fill),
    /// To the [`super::TrapHandler`].
    Trap,
    /// To the target, the value being `(value & and) | or`. On a write the value is what the guest wrote.
    Bits {
        /// Bits that stay.
        and: Pattern,
        /// Bits that are then set.
        or: Pattern,
    },
    /// A register of the filter's own: reads give the shadow, a one that is written clears its bit. The target sees nothing.
    WriteOneToClear {
        /// What the shadow holds at first.
        initial: Pattern,
    },
    /// The range does not exist for the guest: reads as zero, as a reserved register, and writes are dropped. No other
    /// rule may touch it, for whatever access.
    Hide,
    /// The BAR ends at the rule's offset. What lies beyond reads as all ones and drops writes.
    Truncate,
}

/// What happens to bytes that no rule is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DefaultAction {
    /// To the target.
    #[default]
    Pass,
    /// Reads give `Fill`; writes are dropped.
    Deny(Fill),
    /// To the trap handler, with no rule.
    Trap,
}

/// One rule. Its name is for people: errors and explanations show it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// For people.
    pub name: String,
    /// First byte, from the start of the BAR. No alignment is asked.
    pub offset: u64,
    /// Bytes, at least one. Not looked at for [`Action::Truncate`], which reaches to the end of the BAR.
    pub len: u64,
    /// Which accesses.
    pub access: Access,
    /// What becomes of them.
    pub action: Action,
}

impl Rule {
    /// Any action, on reads and writes.
    pub fn new(name: impl Into<String>, offset: u64, len: u64, action: Action) -> Self {
        Self { name: name.into(), offset, len, access: Access::Both, action }
    }

    /// [`Action::Pass`].
    pub fn pass(name: impl Into<String>, offset: u64, len: u64) -> Self {
        Self::new(name, offset, len, Action::Pass)
    }

    /// [`Action::Deny`].
    pub fn deny(name: impl Into<String>, offset: u64, len: u64, fill: Fill) -> Self {
        Self::new(name, offset, len, Action::Deny(fill))
    }

    /// [`Action::Trap`].
    pub fn trap(name: impl Into<String>, offset: u64, len: u64) -> Self {
        Self::new(name, offset, len, Action::Trap)
    }

    /// [`Action::Bits`] that keeps only the ones of `mask`.
    pub fn mask(name: impl Into<String>, offset: u64, len: u64, mask: Pattern) -> Self {
        Self::new(name, offset, len, Action::Bits { and: mask, or: Pattern::u8(0) })
    }

    /// [`Action::Bits`] that sets the ones of `bits`.
    pub fn set_bits(name: impl Into<String>, offset: u64, len: u64, bits: Pattern) -> Self {
        Self::new(name, offset, len, Action::Bits { and: Pattern::u8(0xff), or: bits })
    }

    /// [`Action::WriteOneToClear`].
    pub fn write_one_to_clear(name: impl Into<String>, offset: u64, len: u64, initial: Pattern) -> Self {
        Self::new(name, offset, len, Action::WriteOneToClear { initial })
    }

    /// [`Action::Hide`].
    pub fn hide(name: impl Into<String>, offset: u64, len: u64) -> Self {
        Self::new(name, offset, len, Action::Hide)
    }

    /// [`Action::Truncate`]: `visible_bytes` are left.
    pub fn truncate(name: impl Into<String>, visible_bytes: u64) -> Self {
        Self::new(name, visible_bytes, 0, Action::Truncate)
    }

    /// The same rule for `access` only.
    #[must_use]
    pub fn on(mut self, access: Access) -> Self {
        self.access = access;
        self
    }
}

/// Rules for one BAR. Their order does not matter: overlapping ones are refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Size of the BAR in bytes.
    pub bar_bytes: u64,
    /// What happens elsewhere on reads.
    pub default_read: DefaultAction,
    /// What happens elsewhere on writes. A [`Fill`] means nothing here.
    pub default_write: DefaultAction,
    /// The rules. Their position is the index that traps and errors tell.
    pub rules: Vec<Rule>,
}

impl Policy {
    /// Everything passes.
    #[must_use]
    pub const fn new(bar_bytes: u64) -> Self {
        Self { bar_bytes, default_read: DefaultAction::Pass, default_write: DefaultAction::Pass, rules: Vec::new() }
    }

    /// The same policy with `action` for bytes that no rule is about.
    #[must_use]
    pub const fn otherwise(mut self, action: DefaultAction) -> Self {
        self.default_read = action;
        self.default_write = action;
        self
    }

    /// Adds a rule.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Checks and compiles.
    ///
    /// # Errors
    /// The first thing that is wrong, with the rules that it is about and what would mend it.
    pub fn compile(&self) -> Result<Filter, PolicyError> {
        compile::compile(self)
    }
}
