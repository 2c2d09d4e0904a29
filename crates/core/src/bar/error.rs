//! Why a policy or the bytes of a filter are refused.

use alloc::string::String;
use core::fmt;

use super::{MAX_BAR_BYTES, MAX_FILTER_BYTES, MAX_RULES, MAX_SHADOW_BYTES};

/// A rule of a policy, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleRef {
    /// Position in [`super::Policy::rules`].
    pub index: usize,
    /// Its name.
    pub name: String,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rule {} ({:?})", self.index, self.name)
    }
}

/// Why a policy was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyError {
    /// What is wrong.
    pub kind: PolicyErrorKind,
    /// The rule that it is about; none where it is the policy as a whole.
    pub rule: Option<RuleRef>,
    /// The other rule, where there are two.
    pub other: Option<RuleRef>,
}

/// See [`PolicyError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyErrorKind {
    /// The BAR has no bytes or more than [`MAX_BAR_BYTES`].
    BarSize,
    /// There are more than [`MAX_RULES`] rules.
    TooManyRules,
    /// The rule has no bytes.
    ZeroLength,
    /// The rule begins or ends outside of the BAR.
    OutOfBar,
    /// Two rules are about the same byte and the same kind of access.
    Overlap,
    /// The rule touches a range that another one hides.
    OnHidden,
    /// The rule reaches beyond the end that another one sets.
    BeyondTruncation,
    /// Two rules truncate.
    TwoTruncations,
    /// A truncation leaves nothing, or cuts nothing off.
    UselessTruncation,
    /// The action is about reads and writes at once, and the rule about one of them.
    NeedsBoth,
    /// The write-one-to-clear rules have more than [`MAX_SHADOW_BYTES`].
    TooMuchShadow,
    /// One 4 KiB page would hold more than 256 different treatments of a 4-byte granule.
    TooManyPatterns {
        /// First byte of that page.
        page_offset: u64,
    },
    /// The flat filter would exceed [`MAX_FILTER_BYTES`].
    FilterTooLarge,
}

impl PolicyErrorKind {
    /// What to do about it.
    #[must_use]
    pub const fn mend(self) -> &'static str {
        match self {
            Self::BarSize => "give the BAR's size in bytes as its device reports it",
            Self::TooManyRules => "merge neighbouring rules that do the same",
            Self::ZeroLength => "give the rule the length of its registers, or leave it out",
            Self::OutOfBar => "check the offset and the length against the size of the BAR",
            Self::Overlap => {
                "cut one of them so that each byte has one rule for reads and one for writes; a mask and set bits go into one rule"
            }
            Self::OnHidden => "leave the rule out, or hide less",
            Self::BeyondTruncation => "leave out what lies beyond the cut, or truncate further up",
            Self::TwoTruncations => "keep the lower one",
            Self::UselessTruncation => "truncate between the first byte and the end of the BAR, or leave the rule out",
            Self::NeedsBoth => "make the rule one for reads and writes",
            Self::TooMuchShadow => "shadow the registers only, not what lies between them",
            Self::TooManyPatterns { .. } => "trap that page, or use the same masks more often",
            Self::FilterTooLarge => "spread the rules over fewer pages",
        }
    }
}

impl fmt::Display for PolicyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Some(rule) => write!(f, "{rule}")?,
            None => f.write_str("the policy")?,
        }
        match self.kind {
            PolicyErrorKind::BarSize => write!(f, " is for a BAR of no bytes or more than {MAX_BAR_BYTES}")?,
            PolicyErrorKind::TooManyRules => write!(f, " has more than {MAX_RULES} rules")?,
            PolicyErrorKind::ZeroLength => f.write_str(" has no bytes")?,
            PolicyErrorKind::OutOfBar => f.write_str(" lies at least partly outside of the BAR")?,
            PolicyErrorKind::Overlap => f.write_str(" overlaps")?,
            PolicyErrorKind::OnHidden => f.write_str(" is on a range hidden by")?,
            PolicyErrorKind::BeyondTruncation => f.write_str(" reaches beyond the end set by")?,
            PolicyErrorKind::TwoTruncations => f.write_str(" truncates once more after")?,
            PolicyErrorKind::UselessTruncation => f.write_str(" leaves nothing of the BAR, or all of it")?,
            PolicyErrorKind::NeedsBoth => {
                f.write_str(" is for reads only or writes only, which its action cannot be")?
            }
            PolicyErrorKind::TooMuchShadow => {
                write!(f, " brings the write-one-to-clear shadow above {MAX_SHADOW_BYTES} bytes")?;
            }
            PolicyErrorKind::TooManyPatterns { page_offset } => {
                write!(f, " needs more than 256 granule classes in the page at {page_offset:#x}")?;
            }
            PolicyErrorKind::FilterTooLarge => write!(f, " compiles to more than {MAX_FILTER_BYTES} bytes")?,
        }
        if let Some(other) = &self.other {
            write!(f, " {other}")?;
        }
        write!(f, ": {}", self.kind.mend())
    }
}

impl core::error::Error for PolicyError {}

/// Why bytes are no filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LayoutError {
    /// Fewer bytes than a header, or another number than the header says.
    Length,
    /// The first eight bytes are not [`super::layout::MAGIC`].
    Magic,
    /// A version that this code does not read.
    Version(u32),
    /// A header field is not what the layout demands; its byte offset.
    Header(usize),
    /// A size or a count exceeds its cap; the byte offset of its field.
    Cap(usize),
    /// A page table entry points nowhere; its page.
    PageEntry(u64),
    /// A mixed page points at classes that do not exist; its index.
    MixedPage(u64),
    /// A class holds an operation that does not exist; its index.
    Class(u64),
    /// A rule record is out of order, out of the BAR, or inconsistent; its index in its table.
    Rule(u64),
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length => f.write_str("the filter is cut or has bytes behind it"),
            Self::Magic => f.write_str("these bytes are no BAR filter"),
            Self::Version(v) => write!(f, "BAR filter layout version {v} is not known"),
            Self::Header(at) => write!(f, "the filter's header is wrong at byte {at}"),
            Self::Cap(at) => write!(f, "the filter's header exceeds a limit at byte {at}"),
            Self::PageEntry(n) => write!(f, "page entry {n} of the filter points nowhere"),
            Self::MixedPage(n) => write!(f, "mixed page {n} of the filter names a class that does not exist"),
            Self::Class(n) => write!(f, "class {n} of the filter holds an unknown operation"),
            Self::Rule(n) => write!(f, "rule record {n} of the filter is not consistent"),
        }
    }
}

impl core::error::Error for LayoutError {}
