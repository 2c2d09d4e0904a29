//! What changes while a filter is in use: the write-one-to-clear shadow.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU8, Ordering};

use super::filter::Filter;
use super::layout::{Kind, NO_SHADOW};

/// The write-one-to-clear shadow of one filter.
///
/// Every byte is atomic by itself: bits that are raised and cleared at once are never lost, and a read of several bytes
/// may see one of them before and another after a change.
#[derive(Debug)]
pub struct FilterState {
    shadow: Box<[AtomicU8]>,
}

/// A range that is no write-one-to-clear shadow of the filter, or a state of another filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShadowError {
    /// The byte at this offset of the BAR has no shadow.
    NoShadow {
        /// Offset in the BAR.
        offset: u64,
    },
    /// The state has `found` bytes, the filter's shadow `expected`.
    Size {
        /// Bytes of the filter's shadow.
        expected: usize,
        /// Bytes given.
        found: usize,
    },
}

impl fmt::Display for ShadowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoShadow { offset } => write!(f, "the byte at {offset:#x} is not write-one-to-clear"),
            Self::Size { expected, found } => write!(f, "the shadow has {expected} bytes, {found} were given"),
        }
    }
}

impl core::error::Error for ShadowError {}

impl FilterState {
    /// A state that holds the initial values of `filter`.
    #[must_use]
    pub fn new(filter: &Filter) -> Self {
        let mut bytes = alloc::vec![0u8; filter.header.shadow_bytes];
        for record in filter.read_records().filter(|r| r.kind == Kind::WriteOneToClear as u32) {
            let pattern = record.initial();
            let start = record.shadow as usize;
            let end = start.saturating_add(record.len as usize);
            for (n, byte) in bytes.get_mut(start..end).unwrap_or(&mut []).iter_mut().enumerate() {
                *byte = pattern.byte(n as u64);
            }
        }
        Self { shadow: bytes.into_iter().map(AtomicU8::new).collect() }
    }

    /// Bytes of shadow.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shadow.len()
    }

    /// Whether the filter has no write-one-to-clear rule.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.shadow.is_empty()
    }

    /// Sets the ones of `bits` at `offset` of the BAR, as hardware does when something happens.
    ///
    /// # Errors
    /// [`ShadowError::NoShadow`]; then nothing was set.
    pub fn raise(&self, filter: &Filter, offset: u64, bits: &[u8]) -> Result<(), ShadowError> {
        let places: Result<Vec<usize>, ShadowError> = (0..bits.len() as u64)
            .map(|n| {
                let at = offset.checked_add(n);
                at.and_then(|at| index(filter, at).filter(|i| *i < self.shadow.len()))
                    .ok_or(ShadowError::NoShadow { offset: at.unwrap_or(u64::MAX) })
            })
            .collect();
        for (place, bits) in places?.into_iter().zip(bits) {
            if let Some(byte) = self.shadow.get(place) {
                byte.fetch_or(*bits, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// The whole shadow, in the order of the policy's write-one-to-clear rules, to be kept with the function's state.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        self.shadow.iter().map(|b| b.load(Ordering::Acquire)).collect()
    }

    /// Puts back what [`FilterState::save`] gave for the same filter.
    ///
    /// # Errors
    /// [`ShadowError::Size`]; then nothing was changed.
    pub fn restore(&self, saved: &[u8]) -> Result<(), ShadowError> {
        if saved.len() != self.shadow.len() {
            return Err(ShadowError::Size { expected: self.shadow.len(), found: saved.len() });
        }
        for (byte, value) in self.shadow.iter().zip(saved) {
            byte.store(*value, Ordering::Release);
        }
        Ok(())
    }

    /// The shadow byte of the BAR's byte at `offset`; all ones where there is none.
    pub(super) fn read(&self, filter: &Filter, offset: u64) -> u8 {
        index(filter, offset).and_then(|i| self.shadow.get(i)).map_or(0xff, |b| b.load(Ordering::Acquire))
    }

    /// Clears the ones of `bits`.
    pub(super) fn clear(&self, filter: &Filter, offset: u64, bits: u8) {
        if let Some(byte) = index(filter, offset).and_then(|i| self.shadow.get(i)) {
            byte.fetch_and(!bits, Ordering::AcqRel);
        }
    }
}

fn index(filter: &Filter, offset: u64) -> Option<usize> {
    let record = filter.find_rule(offset, true).filter(|r| r.shadow != NO_SHADOW)?;
    usize::try_from(offset - record.offset).ok()?.checked_add(record.shadow as usize)
}
