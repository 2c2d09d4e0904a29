//! The controlling PF's BAR as a parent's: with the doorbell pages of the SIOV-like functions in it.

use std::sync::{Arc, Weak};

use towline_core::bar::BarTarget;

use super::controller::Controller;
use super::front::DOORBELLS;
use super::subsystem::{CONTROLLING_CNTLID, Inner};

/// First doorbell page of a SIOV-like function in the controlling PF's BAR. The PF's own doorbells end before.
pub(crate) const SIOV_PAGES: u64 = 0x1_0000;
/// Bytes of one such page.
pub(crate) const SIOV_PAGE: u64 = 0x1000;

pub(crate) struct ParentBar(pub(crate) Weak<Inner>);

impl ParentBar {
    /// The function whose doorbell page `offset` is in, and the offset in it.
    fn page(inner: &Inner, offset: u64) -> Option<(Arc<Controller>, u64)> {
        let at = offset.checked_sub(SIOV_PAGES)?;
        let slot = u16::try_from(at / SIOV_PAGE).ok().filter(|slot| *slot < inner.config.max_siov)?;
        Some((inner.controller(inner.first_siov() + slot)?, at % SIOV_PAGE))
    }
}

impl BarTarget for ParentBar {
    fn read(&self, offset: u64, out: &mut [u8]) {
        match self.0.upgrade().and_then(|inner| inner.controller(CONTROLLING_CNTLID)) {
            Some(controlling) if offset < DOORBELLS => controlling.read(offset, out),
            // Doorbells read as zeroes.
            Some(_) => out.fill(0),
            None => out.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(inner) = self.0.upgrade() else { return };
        if offset < SIOV_PAGES {
            if let Some(controlling) = inner.controller(CONTROLLING_CNTLID) {
                controlling.write(offset, data);
            }
        } else if let Some((controller, at)) = Self::page(&inner, offset) {
            // A write never runs on into the page of another function.
            let room = usize::try_from(SIOV_PAGE - at).unwrap_or(usize::MAX).min(data.len());
            controller.ring(at, data.split_at(room).0);
        }
    }
}
