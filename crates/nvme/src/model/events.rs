//! Asynchronous events (Base 2.1, Asynchronous Event Request).

use std::collections::VecDeque;

/// Most events that wait for a request. Events of one kind are told once until the host has looked, so this is never reached.
const MAX_WAITING: usize = 64;

/// Namespace Attribute Notices, bit 8 of feature 0Bh and of OAES.
pub(crate) const NAMESPACE_NOTICES: u32 = 1 << 8;

/// Something that the host is told, once it asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    kind: u8,
    info: u8,
    log: u8,
}

impl Event {
    pub(crate) const INVALID_DOORBELL_REGISTER: Self = Self { kind: 0, info: 0, log: 1 };
    pub(crate) const INVALID_DOORBELL_VALUE: Self = Self { kind: 0, info: 1, log: 1 };
    pub(crate) const NAMESPACES_CHANGED: Self = Self { kind: 2, info: 0, log: 4 };

    /// DW0 of the completion.
    pub(crate) fn result(self) -> u64 {
        u64::from(self.kind) | u64::from(self.info) << 8 | u64::from(self.log) << 16
    }

    fn from_result(result: u64) -> Self {
        Self { kind: result as u8 & 7, info: (result >> 8) as u8, log: (result >> 16) as u8 }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Events {
    waiting: VecDeque<Event>,
    /// Bit n: events of type n are held back until the host has read the log page.
    masked: u32,
    /// Namespaces of the Changed Namespace List (log 04h).
    pub changed: Vec<u32>,
}

impl Events {
    pub(crate) fn add(&mut self, event: Event) {
        if self.waiting.len() < MAX_WAITING && !self.waiting.contains(&event) {
            self.waiting.push_back(event);
        }
    }

    /// The next event that may be told, and masks its type. `config` is feature 0Bh.
    pub(crate) fn take(&mut self, config: u32) -> Option<Event> {
        // What the host has not asked to hear about is not kept either.
        self.waiting.retain(|event| event.kind != 2 || config & NAMESPACE_NOTICES != 0);
        let at = self.waiting.iter().position(|event| self.masked & 1 << event.kind == 0)?;
        let event = self.waiting.remove(at)?;
        self.masked |= 1 << event.kind;
        Some(event)
    }

    /// The host has read log page `log` and wants to hear more.
    pub(crate) fn unmask(&mut self, log: u8) {
        match log {
            1 => self.masked &= !1,
            2 => self.masked &= !2,
            4 => {
                self.masked &= !4;
                self.changed.clear();
            }
            _ => {}
        }
    }

    pub(crate) fn export(&self) -> (Vec<u64>, u32) {
        (self.waiting.iter().map(|event| event.result()).collect(), self.masked)
    }

    pub(crate) fn import(waiting: &[u64], masked: u32) -> Self {
        let waiting = waiting.iter().take(MAX_WAITING).map(|result| Event::from_result(*result)).collect();
        Self { waiting, masked, changed: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_told_once_until_its_log_is_read() {
        let mut events = Events::default();
        events.add(Event::INVALID_DOORBELL_REGISTER);
        events.add(Event::INVALID_DOORBELL_REGISTER);
        events.add(Event::INVALID_DOORBELL_VALUE);
        assert_eq!(events.take(0), Some(Event::INVALID_DOORBELL_REGISTER));
        assert_eq!(events.take(0), None);
        let (waiting, masked) = events.export();
        let mut moved = Events::import(&waiting, masked);
        assert_eq!(moved.take(0), None);
        moved.unmask(1);
        assert_eq!(moved.take(0), Some(Event::INVALID_DOORBELL_VALUE));
    }

    #[test]
    fn notices_only_where_they_are_wanted() {
        let mut events = Events::default();
        events.add(Event::NAMESPACES_CHANGED);
        assert_eq!(events.clone().take(NAMESPACE_NOTICES), Some(Event::NAMESPACES_CHANGED));
        assert_eq!(events.take(0), None);
        assert_eq!(events.take(NAMESPACE_NOTICES), None, "it was dropped");
    }
}
