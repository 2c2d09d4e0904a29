//! BAR policies: what a guest's accesses to a BAR may reach, as data.
//!
//! A [`Policy`] is a list of [`Rule`]s over byte ranges of a BAR. It is compiled once to an immutable [`Filter`], whose
//! flat bytes ([`layout`]) any other code can evaluate, and which also yields the ranges that may be mapped straight
//! through ([`Filter::mmap_plan`]). A [`FilteredBar`] puts a filter before a [`BarTarget`] and is one itself.
//!
//! The few bits that do change, the write-one-to-clear shadow, are a [`FilterState`] next to the filter.
//!
//! ```
//! use towline_core::bar::{Access, Fill, Pattern, Policy, Rule};
//!
//! // The lower half of a BAR, as hisi_acc shows it, with a doorbell that a guest may not ring.
//! let filter = Policy::new(0x8000)
//!     .rule(Rule::truncate("upper half", 0x4000))
//!     .rule(Rule::deny("doorbell", 0x1000, 4, Fill::Zeros).on(Access::Write))
//!     .rule(Rule::mask("capability", 0x20, 4, Pattern::u32(0x0000_ffff)).on(Access::Read))
//!     .compile()?;
//! assert_eq!(filter.visible_bytes(), 0x4000);
//! assert_eq!(filter.mmap_plan(4096)?.len(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod compile;
mod error;
mod eval;
mod filter;
mod filtered;
pub mod layout;
mod mmap;
mod policy;
mod published;
mod state;
mod sync;
mod validate;

pub use error::{LayoutError, PolicyError, PolicyErrorKind, RuleRef};
pub use eval::{NoTraps, Trap, TrapHandler};
pub use filter::{Filter, Verdict};
pub use filtered::FilteredBar;
pub use mmap::{MmapRun, PageSizeError};
pub use policy::{Access, Action, DefaultAction, Fill, Pattern, Policy, Rule};
pub use state::{FilterState, ShadowError};

/// The largest BAR that a policy covers, in bytes (128 GiB). Its page table then takes 128 MiB.
pub const MAX_BAR_BYTES: u64 = 1 << 37;
/// The most rules of a policy.
pub const MAX_RULES: usize = 131_072;
/// The most bytes of write-one-to-clear shadow of one filter, over all rules.
pub const MAX_SHADOW_BYTES: u64 = 1 << 20;
/// The largest flat filter in bytes (1 GiB).
pub const MAX_FILTER_BYTES: u64 = 1 << 30;

/// A little-endian register space: a BAR of a device model, of a VFIO device, of a peer.
///
/// `offset` is in bytes from the start of the BAR and need not be aligned. A target is never asked for more than eight
/// bytes at once by a [`FilteredBar`]; lengths other than 1, 2, 4 and 8 are allowed and mean a sequence. What lies
/// outside of the target reads as all ones, and writes there are dropped, as on PCI: neither call fails.
pub trait BarTarget: Send + Sync {
    /// Reads `out.len()` bytes at `offset`.
    fn read(&self, offset: u64, out: &mut [u8]);
    /// Writes `data` at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}
