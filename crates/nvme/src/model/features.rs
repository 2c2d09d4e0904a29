//! Get and Set Features.

use std::collections::BTreeMap;

use super::engine::Engine;
use super::events::NAMESPACE_NOTICES;
use super::queue::Outcome;
use crate::command::{SubmissionEntry, feature};
use crate::status::StatusCode;
use crate::vendor_state::FeatureValue;

/// Temperature threshold as it is after a reset: 343 K, for the composite sensor, over.
const THRESHOLD_DEFAULT: u32 = 343;
/// Under-temperature threshold after a reset.
const UNDER_DEFAULT: u32 = 0;

/// Values that differ from their defaults, by feature and selector (CDW11 bits that pick one of several values).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Features {
    set: BTreeMap<(u8, u32), u32>,
}

impl Features {
    pub(crate) fn get(&self, fid: u8, selector: u32) -> u32 {
        self.set.get(&(fid, selector)).copied().unwrap_or_else(|| default(fid, selector))
    }

    fn put(&mut self, fid: u8, selector: u32, value: u32) {
        if value == default(fid, selector) {
            self.set.remove(&(fid, selector));
        } else {
            self.set.insert((fid, selector), value);
        }
    }

    pub(crate) fn async_event_config(&self) -> u32 {
        self.get(feature::ASYNC_EVENT_CONFIGURATION, 0)
    }

    pub(crate) fn export(&self) -> Vec<FeatureValue> {
        let one = |(&(fid, selector), &value): (&(u8, u32), &u32)| FeatureValue {
            fid,
            selector,
            value,
            ..FeatureValue::default()
        };
        self.set.iter().map(one).collect()
    }

    /// `None` where a value is not one that Set Features would take.
    pub(crate) fn import(values: &[FeatureValue], vectors: u16) -> Option<Self> {
        let mut features = Self::default();
        for feature in values {
            let known = feature.nsid == 0 && feature.data.is_empty();
            let (selector, value) = check(feature.fid, feature.value, vectors).ok().filter(|_| known)?;
            if selector != feature.selector || features.set.contains_key(&(feature.fid, selector)) {
                return None;
            }
            features.put(feature.fid, selector, value);
        }
        Some(features)
    }
}

fn default(fid: u8, selector: u32) -> u32 {
    match fid {
        feature::TEMPERATURE_THRESHOLD if selector & 0x30_0000 == 0 => THRESHOLD_DEFAULT,
        feature::TEMPERATURE_THRESHOLD => UNDER_DEFAULT,
        feature::INTERRUPT_VECTOR_CONFIGURATION => selector,
        _ => 0,
    }
}

/// Whether the feature exists, and whether it can be changed.
fn known(fid: u8) -> Result<(), StatusCode> {
    match fid {
        feature::ARBITRATION
        | feature::POWER_MANAGEMENT
        | feature::TEMPERATURE_THRESHOLD
        | feature::ERROR_RECOVERY
        | feature::VOLATILE_WRITE_CACHE
        | feature::NUMBER_OF_QUEUES
        | feature::INTERRUPT_COALESCING
        | feature::INTERRUPT_VECTOR_CONFIGURATION
        | feature::WRITE_ATOMICITY
        | feature::ASYNC_EVENT_CONFIGURATION => Ok(()),
        _ => Err(StatusCode::InvalidField),
    }
}

/// The selector and the value that a Set Features of `cdw11` stores.
fn check(fid: u8, cdw11: u32, vectors: u16) -> Result<(u32, u32), StatusCode> {
    known(fid)?;
    let within = |mask: u32| if cdw11 & !mask == 0 { Ok((0, cdw11)) } else { Err(StatusCode::InvalidField) };
    match fid {
        feature::ARBITRATION => within(0xffff_ff07),
        // One power state.
        feature::POWER_MANAGEMENT => within(0),
        feature::TEMPERATURE_THRESHOLD => {
            // Only the composite sensor (0) or all of them (15), over (0) or under (1).
            let (sensor, kind) = (cdw11 >> 16 & 15, cdw11 >> 20 & 3);
            if !matches!(sensor, 0 | 15) || kind > 1 || cdw11 >> 22 != 0 {
                return Err(StatusCode::InvalidField);
            }
            Ok((kind << 20, cdw11 & 0xffff | kind << 20))
                .map(|(selector, value)| (selector, if kind == 0 { value & 0xffff } else { value }))
        }
        feature::ERROR_RECOVERY => within(0xffff),
        feature::VOLATILE_WRITE_CACHE => within(1),
        feature::INTERRUPT_COALESCING => within(0xffff),
        feature::INTERRUPT_VECTOR_CONFIGURATION => {
            if cdw11 & 0xffff >= u32::from(vectors) || cdw11 >> 17 != 0 {
                return Err(StatusCode::InvalidField);
            }
            Ok((cdw11 & 0xffff, cdw11))
        }
        feature::WRITE_ATOMICITY => within(1),
        feature::ASYNC_EVENT_CONFIGURATION => within(0xff | NAMESPACE_NOTICES),
        _ => Err(StatusCode::FeatureNotChangeable),
    }
}

impl Engine {
    fn queue_counts(&self) -> u64 {
        let io = u64::from(self.queues.saturating_sub(2));
        io << 16 | io
    }

    pub(crate) fn set_features(&mut self, entry: &SubmissionEntry) -> Outcome {
        let fid = entry.cdw10 as u8;
        let controls = fid == feature::RATE_LIMIT && self.subsystem.is_some();
        if !controls {
            known(fid)?;
        }
        if entry.cdw10 >> 31 != 0 {
            return Err(StatusCode::FeatureNotSaveable.into());
        }
        if !matches!(entry.nsid, 0 | u32::MAX) {
            return Err(StatusCode::FeatureNotNamespaceSpecific.into());
        }
        if controls {
            return self.set_rate_limit(entry);
        }
        if fid == feature::NUMBER_OF_QUEUES {
            if entry.cdw11 & 0xffff == 0xffff || entry.cdw11 >> 16 == 0xffff {
                return Err(StatusCode::InvalidField.into());
            }
            if self.sqs.len() > 1 || self.cqs.len() > 1 {
                return Err(StatusCode::CommandSequenceError.into());
            }
            // A function without room for an I/O queue cannot say "none": 0 means one.
            return if self.queues < 2 { Err(StatusCode::InvalidField.into()) } else { Ok(self.queue_counts()) };
        }
        let (selector, value) = check(fid, entry.cdw11, self.vectors_max)?;
        self.features.put(fid, selector, value);
        Ok(0)
    }

    pub(crate) fn get_features(&self, entry: &SubmissionEntry) -> Outcome {
        let fid = entry.cdw10 as u8;
        let controls = fid == feature::RATE_LIMIT && self.subsystem.is_some();
        if !controls {
            known(fid)?;
        }
        let selector = match fid {
            feature::TEMPERATURE_THRESHOLD => check(fid, entry.cdw11 & 0x3f_0000, self.vectors_max)?.0,
            feature::INTERRUPT_VECTOR_CONFIGURATION => check(fid, entry.cdw11 & 0xffff, self.vectors_max)?.0,
            _ => 0,
        };
        match entry.cdw10 >> 8 & 7 {
            0 if fid == feature::NUMBER_OF_QUEUES => Ok(self.queue_counts()),
            0 if controls => self.get_rate_limit(entry),
            1 | 2 if controls => Ok(0),
            0 => Ok(u64::from(self.features.get(fid, selector))),
            // Nothing is saved, so the saved value is the default (Base 2.1, Get Features).
            1 | 2 if fid == feature::NUMBER_OF_QUEUES => Ok(self.queue_counts()),
            1 | 2 => Ok(u64::from(default(fid, selector))),
            // Supported capabilities: bit 2 changeable, nothing saveable, nothing namespace specific.
            3 => Ok(4),
            _ => Err(StatusCode::InvalidField.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_set_survives_export_and_import() {
        let mut features = Features::default();
        for (fid, cdw11) in [
            (feature::TEMPERATURE_THRESHOLD, 320),
            (feature::TEMPERATURE_THRESHOLD, 0x10_0000 | 280),
            (feature::INTERRUPT_VECTOR_CONFIGURATION, 0x1_0002),
            (feature::ASYNC_EVENT_CONFIGURATION, NAMESPACE_NOTICES | 3),
        ] {
            let (selector, value) = check(fid, cdw11, 4).unwrap();
            features.put(fid, selector, value);
        }
        let exported = features.export();
        assert_eq!(exported.len(), 4);
        assert_eq!(Features::import(&exported, 4), Some(features));
        assert_eq!(Features::import(&exported, 2), None, "vector 2 does not exist there");
    }
}
