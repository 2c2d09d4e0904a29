//! A filter before a target.

use alloc::sync::Arc;
use core::fmt;

use super::BarTarget;
use super::eval::TrapHandler;
use super::filter::Filter;
use super::published::Published;
use super::state::{FilterState, ShadowError};

/// The filter in force and its shadow, which belong together.
#[derive(Debug)]
struct Active {
    filter: Arc<Filter>,
    state: Arc<FilterState>,
}

/// A BAR as a guest sees it: a target behind a filter. Itself a target, so filters can be stacked.
///
/// The filter can be replaced while it is in use. An access is carried out under one filter from its first byte to its
/// last, be it longer than eight bytes; what follows [`FilteredBar::replace`] in the same thread meets the new one.
pub struct FilteredBar {
    active: Published<Active>,
    target: Arc<dyn BarTarget>,
    traps: Arc<dyn TrapHandler>,
}

impl fmt::Debug for FilteredBar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FilteredBar").field("active", &self.active.load()).finish_non_exhaustive()
    }
}

impl FilteredBar {
    /// `filter` before `target`; `traps` answers what it traps.
    #[must_use]
    pub fn new(filter: Arc<Filter>, target: Arc<dyn BarTarget>, traps: Arc<dyn TrapHandler>) -> Self {
        let state = Arc::new(FilterState::new(&filter));
        Self { active: Published::new(Arc::new(Active { filter, state })), target, traps }
    }

    /// The filter in force.
    #[must_use]
    pub fn filter(&self) -> Arc<Filter> {
        Arc::clone(&self.active.load().filter)
    }

    /// The shadow in force.
    #[must_use]
    pub fn state(&self) -> Arc<FilterState> {
        Arc::clone(&self.active.load().state)
    }

    /// Sets the ones of `bits` in the write-one-to-clear shadow at `offset` of the BAR.
    ///
    /// # Errors
    /// [`ShadowError::NoShadow`]; then nothing was set.
    pub fn raise(&self, offset: u64, bits: &[u8]) -> Result<(), ShadowError> {
        let active = self.active.load();
        active.state.raise(&active.filter, offset, bits)
    }

    /// Puts another filter in force, with its shadow at its initial values, and returns the old one. Accesses under way
    /// end under the old filter. May be called from a trap handler.
    pub fn replace(&self, filter: Arc<Filter>) -> Arc<Filter> {
        let state = Arc::new(FilterState::new(&filter));
        Arc::clone(&self.active.replace(Arc::new(Active { filter, state })).filter)
    }

    /// As [`FilteredBar::replace`], with a shadow that exists already (one that is shared, or was restored).
    ///
    /// # Errors
    /// [`ShadowError::Size`] where `state` was made for another filter; then the old filter stays in force.
    pub fn replace_with_state(&self, filter: Arc<Filter>, state: Arc<FilterState>) -> Result<Arc<Filter>, ShadowError> {
        if state.len() != filter.header.shadow_bytes {
            return Err(ShadowError::Size { expected: filter.header.shadow_bytes, found: state.len() });
        }
        Ok(Arc::clone(&self.active.replace(Arc::new(Active { filter, state })).filter))
    }
}

impl BarTarget for FilteredBar {
    #[inline]
    fn read(&self, offset: u64, out: &mut [u8]) {
        if matches!(out.len(), 1 | 2 | 4 | 8)
            && let Some(answer) = self.active.with(|a| a.filter.quick_read(offset, out.len()))
        {
            return answer.read(&*self.target, offset, out);
        }
        let active = self.active.load();
        active.filter.read(&active.state, &*self.target, &*self.traps, offset, out);
    }

    #[inline]
    fn write(&self, offset: u64, data: &[u8]) {
        if matches!(data.len(), 1 | 2 | 4 | 8)
            && let Some(answer) = self.active.with(|a| a.filter.quick_write(offset, data.len()))
        {
            return answer.write(&*self.target, offset, data);
        }
        let active = self.active.load();
        active.filter.write(&active.state, &*self.target, &*self.traps, offset, data);
    }
}
