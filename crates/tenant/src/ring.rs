//! Positions in a pair of queues.

use crate::layout::IO_ENTRIES;

/// A submission and a completion queue of the same length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ring {
    /// Next submission entry to write.
    pub(crate) sq_tail: u32,
    /// First submission entry that the controller may not have fetched, as it last told.
    pub(crate) sq_head: u32,
    /// Next completion entry to look at.
    pub(crate) cq_head: u32,
    /// The phase that a new completion entry has.
    pub(crate) phase: bool,
}

impl Ring {
    pub(crate) fn new() -> Self {
        Self { phase: true, ..Self::default() }
    }

    pub(crate) fn words(&self) -> [u64; 4] {
        [self.sq_tail.into(), self.sq_head.into(), self.cq_head.into(), self.phase.into()]
    }

    /// Values that do not fit become invalid ones.
    pub(crate) fn from_words(words: [u64; 4]) -> Self {
        let [sq_tail, sq_head, cq_head, phase] = words.map(|w| u32::try_from(w).unwrap_or(u32::MAX));
        Self { sq_tail, sq_head, cq_head, phase: phase != 0 }
    }

    pub(crate) fn valid(&self) -> bool {
        [self.sq_tail, self.sq_head, self.cq_head].iter().all(|p| *p < IO_ENTRIES)
    }

    pub(crate) fn full(&self, entries: u32) -> bool {
        (self.sq_tail + 1) % entries == self.sq_head % entries
    }

    pub(crate) fn pushed(&mut self, entries: u32) {
        self.sq_tail = (self.sq_tail + 1) % entries;
    }

    pub(crate) fn popped(&mut self, entries: u32, sq_head: u16) {
        self.sq_head = u32::from(sq_head) % entries;
        self.cq_head = (self.cq_head + 1) % entries;
        if self.cq_head == 0 {
            self.phase = !self.phase;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ring;

    #[test]
    fn the_phase_turns_with_every_lap() {
        let mut ring = Ring::new();
        for i in 0..10 {
            assert_eq!(ring.phase, i / 4 % 2 == 0, "{i}");
            ring.pushed(4);
            ring.popped(4, ring.sq_tail as u16);
        }
        assert_eq!(Ring::from_words(ring.words()), ring);
    }

    #[test]
    fn one_entry_stays_empty() {
        let mut ring = Ring::new();
        for _ in 0..3 {
            assert!(!ring.full(4));
            ring.pushed(4);
        }
        assert!(ring.full(4));
        ring.popped(4, 1);
        assert!(!ring.full(4));
    }
}
