//! What is judged: whoever copies the pages that are told, after they are told, has all of memory in the end.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use towline_core::channel::{ChannelError, DirtySink, DirtySource};

use crate::guest::{PAGE, Slot};

/// Pages, by their guest-physical address.
#[derive(Default)]
pub struct Pages(pub BTreeSet<u64>);

impl DirtySink for Pages {
    fn mark(&mut self, gpa: u64, len: u64) {
        let first = gpa / PAGE * PAGE;
        self.0.extend((first..gpa + len).step_by(PAGE as usize));
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        for (index, byte) in bitmap.iter().enumerate() {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                self.mark(base + (index as u64 * 8 + bit) * page_size_bytes, page_size_bytes);
            }
        }
    }
}

/// A copy of the first word of every page of some slots, kept as a migration would keep it. Made while nobody writes, once tracking is on.
pub struct Copy {
    slots: Vec<Slot>,
    words: Vec<Vec<u64>>,
    /// As they were when the copy was made.
    before: Vec<Vec<u64>>,
    pub told: BTreeSet<u64>,
}

/// What the oracle found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Pages whose copy is not what memory has.
    pub stale: usize,
    /// Pages that were written and never told.
    pub missed: usize,
    /// Pages that were told and never written, without those of the guest's tables.
    pub invented: usize,
    /// Pages that were written.
    pub written: usize,
}

impl Copy {
    pub fn new(slots: &[Slot]) -> Self {
        let counter = |slot: &Slot, page| slot.memory.counter(page).load(Ordering::SeqCst);
        let words_of = |slot: &Slot| (0..slot.memory.len / PAGE).map(|page| counter(slot, page)).collect();
        let words: Vec<Vec<u64>> = slots.iter().map(words_of).collect();
        Self { slots: slots.to_vec(), before: words.clone(), words, told: BTreeSet::new() }
    }

    /// One round: harvests, then copies. Returns how many pages were told.
    pub fn round(&mut self, source: &mut dyn DirtySource) -> Result<usize, ChannelError> {
        let mut pages = Pages::default();
        source.harvest(&mut pages)?;
        for (slot, words) in self.slots.iter().zip(&mut self.words) {
            for gpa in pages.0.range(slot.gpa..slot.gpa + slot.memory.len) {
                let page = (gpa - slot.gpa) / PAGE;
                words[page as usize] = slot.memory.counter(page).load(Ordering::SeqCst);
            }
        }
        let told = pages.0.len();
        self.told.append(&mut pages.0);
        Ok(told)
    }

    /// Once nobody writes any more.
    pub fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::default();
        for ((slot, words), before) in self.slots.iter().zip(&self.words).zip(&self.before) {
            for (page, (copy, before)) in words.iter().zip(before).enumerate() {
                let now = slot.memory.counter(page as u64).load(Ordering::SeqCst);
                let told = self.told.contains(&(slot.gpa + page as u64 * PAGE));
                verdict.stale += usize::from(now != *copy);
                verdict.written += usize::from(now != *before);
                verdict.missed += usize::from(now != *before && !told);
                verdict.invented += usize::from(now == *before && told);
            }
        }
        verdict
    }
}
