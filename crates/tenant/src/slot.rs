//! Commands in flight.

use crate::error::TenantError;
use crate::guest::Guest;
use crate::layout::{Layout, SLOTS};

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Write,
    Read,
    Flush,
}

impl Op {
    /// Opcodes of the NVM command set.
    pub(crate) fn opcode(self) -> u8 {
        match self {
            Op::Flush => 0x00,
            Op::Write => 0x01,
            Op::Read => 0x02,
        }
    }
}

/// One command in flight, or room for one. 64 bytes in memory, little-endian:
/// `{in flight u8, opcode u8, cid u16, qid u16, units u16, unit u64, sequence u64, epoch u64, rested u64, 0…}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// `None`: free.
    pub(crate) op: Option<Op>,
    pub(crate) cid: u16,
    pub(crate) qid: u16,
    pub(crate) units: u16,
    pub(crate) unit: u64,
    pub(crate) seq: u64,
    /// Epoch in which it was submitted, and which its blocks carry.
    pub(crate) epoch: u32,
    /// Sequence that was next when it became free: the one that has rested longest is used first, so that a device that
    /// executes a command twice mostly still finds its data.
    pub(crate) rested: u64,
}

const SLOT_BYTES: usize = 64;

impl Slot {
    const FREE: Self = Self { op: None, cid: 0, qid: 0, units: 0, unit: 0, seq: 0, epoch: 0, rested: 0 };

    fn overlaps(&self, unit: u64, units: u64) -> bool {
        matches!(self.op, Some(Op::Read | Op::Write))
            && self.unit < unit + units
            && unit < self.unit + u64::from(self.units)
    }

    fn encode(&self) -> [u8; SLOT_BYTES] {
        let mut out = [0; SLOT_BYTES];
        let head = u64::from(self.op.is_some())
            | u64::from(self.op.map_or(0, Op::opcode)) << 8
            | u64::from(self.cid) << 16
            | u64::from(self.qid) << 32
            | u64::from(self.units) << 48;
        let words = [head, self.unit, self.seq, self.epoch.into(), self.rested];
        for (to, word) in out.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// `None` where it is none.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut words = bytes.as_chunks::<8>().0.iter().map(|w| u64::from_le_bytes(*w));
        let (head, unit, seq, epoch, rested) =
            (words.next()?, words.next()?, words.next()?, words.next()?, words.next()?);
        let op = match (head & 0xff, head >> 8 & 0xff) {
            (0, _) => None,
            (1, 0) => Some(Op::Flush),
            (1, 1) => Some(Op::Write),
            (1, 2) => Some(Op::Read),
            _ => return None,
        };
        let (cid, qid, units) = ((head >> 16) as u16, (head >> 32) as u16, (head >> 48) as u16);
        let legal = units <= 16 && unit < 1 << 32;
        legal.then_some(Self { op, cid, qid, units, unit, seq, epoch: epoch.try_into().ok()?, rested })
    }
}

/// The table of slots: a write-through copy of the one in guest memory.
pub(crate) struct Slots(Vec<Slot>);

impl Slots {
    pub(crate) fn boot(guest: &Guest, layout: &Layout) -> Result<(), TenantError> {
        let mut slots = Self(vec![Slot::FREE; SLOTS as usize]);
        (0..SLOTS as usize).try_for_each(|i| slots.set(guest, layout, i, Slot::FREE))
    }

    pub(crate) fn load(guest: &Guest, layout: &Layout) -> Result<Self, TenantError> {
        let mut bytes = [0; SLOTS as usize * SLOT_BYTES];
        guest.read(layout.slots(), &mut bytes)?;
        let slots = bytes.chunks_exact(SLOT_BYTES).map(Slot::decode).collect::<Option<Vec<_>>>();
        let bad = || TenantError::NoState { gpa: layout.slots(), what: "the table of commands is damaged".into() };
        slots.map(Self).ok_or_else(bad)
    }

    pub(crate) fn set(&mut self, guest: &Guest, layout: &Layout, index: usize, slot: Slot) -> Result<(), TenantError> {
        if let Some(place) = self.0.get_mut(index) {
            *place = slot;
            guest.write(layout.slots() + (index * SLOT_BYTES) as u64, &slot.encode())?;
        }
        Ok(())
    }

    pub(crate) fn free(
        &mut self,
        guest: &Guest,
        layout: &Layout,
        index: usize,
        next_seq: u64,
    ) -> Result<(), TenantError> {
        self.set(guest, layout, index, Slot { rested: next_seq, ..Slot::FREE })
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.0.iter().filter(|s| s.op.is_some()).count()
    }

    /// The free slot that has rested longest.
    pub(crate) fn rested(&self) -> Option<usize> {
        let free = self.0.iter().enumerate().filter(|(_, s)| s.op.is_none());
        free.min_by_key(|(_, s)| s.rested).map(|(i, _)| i)
    }

    pub(crate) fn overlaps(&self, unit: u64, units: u64) -> bool {
        self.0.iter().any(|s| s.overlaps(unit, units))
    }

    pub(crate) fn find(&self, qid: u16, cid: u16) -> Option<(usize, Slot)> {
        let at = self.0.iter().position(|s| s.op.is_some() && s.cid == cid && s.qid == qid)?;
        self.0.get(at).map(|s| (at, *s))
    }

    pub(crate) fn uses_cid(&self, cid: u16) -> bool {
        self.0.iter().any(|s| s.op.is_some() && s.cid == cid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_survives_memory() {
        for op in [None, Some(Op::Read), Some(Op::Write), Some(Op::Flush)] {
            let slot = Slot { op, cid: 0xfffe, qid: 3, units: 16, unit: 77, seq: 1 << 40, epoch: 9, rested: 5 };
            assert_eq!(Slot::decode(&slot.encode()), Some(slot));
        }
        assert_eq!(Slot::decode(&[0xff; 64]), None);
    }

    #[test]
    fn overlaps_are_exact_at_both_ends() {
        let slot = Slot { op: Some(Op::Read), unit: 10, units: 4, ..Slot::FREE };
        assert!(!slot.overlaps(6, 4) && slot.overlaps(6, 5) && slot.overlaps(13, 1) && !slot.overlaps(14, 4));
        assert!(!Slot { op: Some(Op::Flush), ..slot }.overlaps(10, 4));
    }
}
