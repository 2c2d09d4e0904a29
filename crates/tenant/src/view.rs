//! What a guest reaches of a function: its registers and its doorbells.

use std::sync::Arc;

use towline_core::bar::{BarTarget, DefaultAction, Fill, FilteredBar, NoTraps, Policy, Rule};
use towline_nvme::model::{Controller, DOORBELLS, Subsystem};

use crate::error::TenantError;

/// The bytes of the doorbell page that a SIOV-like function has in its parent's BAR.
const DOORBELL_PAGE_BYTES: u64 = 4096;

/// The register space of one function, as its guest sees it.
#[derive(Clone)]
pub struct DeviceView {
    /// CAP at 0.
    pub registers: Arc<dyn BarTarget>,
    /// Where the doorbells are.
    pub doorbells: Arc<dyn BarTarget>,
    /// Offset of the first doorbell there.
    pub doorbell_base: u64,
}

impl DeviceView {
    /// The view of an embedded controller.
    ///
    /// A PF and a VF have a BAR of their own. A SIOV-like function has one page of its parent's BAR: a BAR policy lets through
    /// that page and nothing else, so that its guest rings no other function's doorbells; its registers are synthesised.
    ///
    /// # Errors
    /// [`TenantError::Spec`] where the policy can't be: the page does not lie in the parent's BAR.
    pub fn of_embedded(subsystem: &Subsystem, controller: &Arc<Controller>) -> Result<Self, TenantError> {
        let Some(page) = controller.siov_doorbell_offset() else {
            let bar: Arc<dyn BarTarget> = controller.clone();
            return Ok(Self { registers: bar.clone(), doorbells: bar, doorbell_base: DOORBELLS });
        };
        let filter = Policy::new(subsystem.parent_bar_bytes())
            .otherwise(DefaultAction::Deny(Fill::Ones))
            .rule(Rule::pass("own doorbells", page, DOORBELL_PAGE_BYTES))
            .compile()
            .map_err(|e| TenantError::Spec(e.to_string()))?;
        let doorbells = FilteredBar::new(Arc::new(filter), subsystem.parent_bar(), Arc::new(NoTraps));
        Ok(Self { registers: controller.synthesised_registers(), doorbells: Arc::new(doorbells), doorbell_base: page })
    }
}
