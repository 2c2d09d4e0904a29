//! BAR0 of each kind of controller.

use std::sync::Arc;

use towline_core::bar::{BarTarget, DefaultAction, Fill, FilteredBar, NoTraps, Policy, PolicyError, Rule};
use towline_nvme::model::{Controller, ControllerKind, DOORBELLS, Subsystem};

/// Bytes of the BAR of a function that has one of its own, and of the one that is made for a SIOV-like function: a page of registers, a page
/// of doorbells.
pub(super) const OWN_BAR_BYTES: u64 = 0x2000;
/// Bytes of the doorbell page that a SIOV-like function has in its parent's BAR.
const DOORBELL_PAGE_BYTES: u64 = 0x1000;

/// BAR0 as the guest is to see it, before any filter.
pub(super) fn bar0(subsystem: &Subsystem, controller: &Arc<Controller>) -> Result<Arc<dyn BarTarget>, PolicyError> {
    let Some(page) = controller.siov_doorbell_offset() else {
        return Ok(match controller.kind() {
            ControllerKind::ControllingPf => subsystem.parent_bar(),
            _ => Arc::clone(controller) as Arc<dyn BarTarget>,
        });
    };
    // Of the parent's BAR the function's own page, and nothing else.
    let filter = Policy::new(subsystem.parent_bar_bytes())
        .otherwise(DefaultAction::Deny(Fill::Ones))
        .rule(Rule::pass("own doorbells", page, DOORBELL_PAGE_BYTES))
        .compile()?;
    let doorbells = FilteredBar::new(Arc::new(filter), subsystem.parent_bar(), Arc::new(NoTraps));
    Ok(Arc::new(SiovBar { registers: controller.synthesised_registers(), doorbells: Arc::new(doorbells), page }))
}

/// A BAR of two pages for a function that has none: made-up registers, and its page of the parent's BAR.
struct SiovBar {
    registers: Arc<dyn BarTarget>,
    doorbells: Arc<dyn BarTarget>,
    /// Where its doorbells are in the parent's BAR.
    page: u64,
}

impl SiovBar {
    /// How many of `len` bytes at `offset` are registers.
    fn registers_in(offset: u64, len: usize) -> usize {
        usize::try_from(DOORBELLS.saturating_sub(offset)).unwrap_or(usize::MAX).min(len)
    }

    /// Where `offset` of this BAR is in the parent's.
    fn in_parent(&self, offset: u64) -> u64 {
        self.page.saturating_add(offset.max(DOORBELLS) - DOORBELLS)
    }
}

impl BarTarget for SiovBar {
    fn read(&self, offset: u64, out: &mut [u8]) {
        let (low, high) = out.split_at_mut(Self::registers_in(offset, out.len()));
        if !low.is_empty() {
            self.registers.read(offset, low);
        }
        if !high.is_empty() {
            self.doorbells.read(self.in_parent(offset), high);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (low, high) = data.split_at(Self::registers_in(offset, data.len()));
        if !low.is_empty() {
            self.registers.write(offset, low);
        }
        if !high.is_empty() {
            self.doorbells.write(self.in_parent(offset), high);
        }
    }
}
