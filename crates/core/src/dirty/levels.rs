//! The three levels of a dirty bitmap and the protocol between markers and harvesters.
//!
//! Level 0 ("leaf") has a bit a page, level 1 a bit for each leaf word, level 2 a bit for each level 1 word. The
//! invariant, whenever no marker and no harvester is between two steps: a word that is not zero has its summary bit
//! set, and so has that bit's word.
//!
//! * A marker sets the leaf bit, then **tests both summary bits, even where the leaf word was not zero**: another
//!   marker may have set the leaf and not yet its summary, and a mark that has returned must be findable.
//! * A harvester clears **downwards, a summary bit before what it stands for**. A marker whose bit it misses in the leaf
//!   comes after it in the order of that word, so it sees the cleared summaries and sets them again. The other way
//!   round a mark that falls between the two steps stays in the leaf with no summary above it: lost.
//!
//! Every step on a word is a read-modify-write with acquire and release, so whoever comes later in a word's order
//! sees everything that the earlier one did before.

use alloc::boxed::Box;

use super::sync::{AtomicU64, Ordering, zeroed_words};

/// Bits in a word, and the ratio between two levels.
pub(super) const WORD_BITS: u64 = 64;

/// The protocol as it must be.
pub(super) const CORRECT: u8 = 0;
/// Broken on purpose, so that tests can show that they notice: the leaf is cleared before its summaries.
#[allow(dead_code)]
pub(super) const LEAF_FIRST: u8 = 1;
/// Broken on purpose: a marker returns early where the leaf word was not zero.
#[allow(dead_code)]
pub(super) const SKIP_SUMMARY: u8 = 2;

/// `FAULT` is [`CORRECT`] everywhere but in tests.
pub(super) struct Levels<const FAULT: u8> {
    leaf: Box<[AtomicU64]>,
    mid: Box<[AtomicU64]>,
    top: Box<[AtomicU64]>,
    pages: u64,
}

/// The bits of word `index` that lie in `first .. end`, both counted in bits of that level.
fn mask_of(index: u64, first: u64, end: u64) -> u64 {
    let base = index * WORD_BITS;
    let low = first.saturating_sub(base);
    let high = end.saturating_sub(base);
    if low >= WORD_BITS || high == 0 || low >= high {
        return 0;
    }
    let below_high = if high >= WORD_BITS { u64::MAX } else { (1 << high) - 1 };
    below_high & (u64::MAX << low)
}

/// The lowest `count` set bits of `word`.
fn lowest(word: u64, count: u64) -> u64 {
    if u64::from(word.count_ones()) <= count {
        return word;
    }
    let mut rest = word;
    for _ in 0..count {
        rest &= rest.wrapping_sub(1);
    }
    word & !rest
}

/// Calls `f` with every set bit, lowest first, for as long as it returns `true`; returns the bits for which it did not.
fn each_bit(mut word: u64, mut f: impl FnMut(u32) -> bool) -> u64 {
    while word != 0 {
        if !f(word.trailing_zeros()) {
            return word;
        }
        word &= word - 1;
    }
    0
}

impl<const FAULT: u8> Levels<FAULT> {
    /// `pages` fits the address space as bits: the caller has capped it.
    pub(super) fn new(pages: u64) -> Self {
        let words = |bits: u64| bits.div_ceil(WORD_BITS);
        let (leaf, mid) = (words(pages), words(words(pages)));
        Self {
            leaf: zeroed_words(leaf as usize),
            mid: zeroed_words(mid as usize),
            top: zeroed_words(words(mid) as usize),
            pages,
        }
    }

    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Sets `bits` in leaf word `index`. Nothing happens where there is no such word; the caller keeps bits past the last
    /// page out of the last one.
    pub(super) fn set(&self, index: u64, bits: u64) {
        let Some(leaf) = usize::try_from(index).ok().and_then(|i| self.leaf.get(i)) else { return };
        if bits == 0 {
            return;
        }
        let before = leaf.fetch_or(bits, Ordering::AcqRel);
        if FAULT == SKIP_SUMMARY && before != 0 {
            return;
        }
        self.announce(index);
    }

    /// Makes leaf word `index` findable.
    fn announce(&self, index: u64) {
        self.raise(&self.mid, index);
        self.raise(&self.top, index / WORD_BITS);
    }

    /// Sets one summary bit. The load first: most marks hit a word that is already summarised, and a load does not take
    /// its cache line away from other markers.
    fn raise(&self, level: &[AtomicU64], bit: u64) {
        let Some(word) = level.get((bit / WORD_BITS) as usize) else { return };
        let mask = 1 << (bit % WORD_BITS);
        if word.load(Ordering::Acquire) & mask == 0 {
            word.fetch_or(mask, Ordering::AcqRel);
        }
    }

    /// Clears up to `max` pages of `first .. end` and gives them to `found` as (leaf word, bits), ascending. Returns how
    /// many. What stays behind stays findable, though not while this runs.
    pub(super) fn take(&self, first: u64, end: u64, max: u64, found: &mut dyn FnMut(u64, u64)) -> u64 {
        let end = end.min(self.pages);
        if first >= end || max == 0 {
            return 0;
        }
        let mut left = max;
        // The range in leaf words, in level 1 words, in level 2 words.
        let (leaf_first, leaf_end) = (first / WORD_BITS, end.div_ceil(WORD_BITS));
        let (mid_first, mid_end) = (leaf_first / WORD_BITS, leaf_end.div_ceil(WORD_BITS));
        for top in mid_first / WORD_BITS..mid_end.div_ceil(WORD_BITS) {
            let Some(top_word) = self.top.get(top as usize) else { break };
            let in_range = mask_of(top, mid_first, mid_end);
            if top_word.load(Ordering::Acquire) & in_range == 0 {
                continue;
            }
            let summarised = if FAULT == LEAF_FIRST {
                top_word.load(Ordering::Acquire) & in_range
            } else {
                top_word.fetch_and(!in_range, Ordering::AcqRel) & in_range
            };
            let mut again = 0;
            let unvisited = each_bit(summarised, |bit| {
                if left == 0 {
                    return false;
                }
                let mid = top * WORD_BITS + u64::from(bit);
                if self.take_mid(mid, (leaf_first, leaf_end), (first, end), &mut left, found) {
                    again |= 1 << bit;
                }
                true
            });
            if FAULT == LEAF_FIRST {
                top_word.fetch_and(!(summarised & !(unvisited | again)), Ordering::AcqRel);
            } else if unvisited | again != 0 {
                top_word.fetch_or(unvisited | again, Ordering::AcqRel);
            }
            if left == 0 {
                break;
            }
        }
        max - left
    }

    /// One level 1 word. Returns whether anything may be left below it, so that its summary bit has to come back.
    fn take_mid(
        &self,
        mid: u64,
        (leaf_first, leaf_end): (u64, u64),
        (first, end): (u64, u64),
        left: &mut u64,
        found: &mut dyn FnMut(u64, u64),
    ) -> bool {
        let Some(mid_word) = self.mid.get(mid as usize) else { return false };
        let in_range = mask_of(mid, leaf_first, leaf_end);
        let before = if FAULT == LEAF_FIRST {
            mid_word.load(Ordering::Acquire)
        } else {
            mid_word.fetch_and(!in_range, Ordering::AcqRel)
        };
        let mut again = 0;
        let unvisited = each_bit(before & in_range, |bit| {
            if *left == 0 {
                return false;
            }
            let index = mid * WORD_BITS + u64::from(bit);
            if self.take_leaf(index, mask_of(index, first, end), left, found) {
                again |= 1 << bit;
            }
            true
        });
        let back = unvisited | again;
        if FAULT == LEAF_FIRST {
            mid_word.fetch_and(!(before & in_range & !back), Ordering::AcqRel);
        } else if back != 0 {
            mid_word.fetch_or(back, Ordering::AcqRel);
        }
        back != 0 || before & !in_range != 0
    }

    /// One leaf word. Returns whether bits are left in it.
    fn take_leaf(&self, index: u64, in_range: u64, left: &mut u64, found: &mut dyn FnMut(u64, u64)) -> bool {
        let Some(word) = self.leaf.get(index as usize) else { return false };
        let seen = word.load(Ordering::Acquire);
        let wanted = if u64::from((seen & in_range).count_ones()) > *left {
            lowest(seen & in_range, *left)
        } else if *left >= WORD_BITS {
            in_range
        } else {
            seen & in_range
        };
        // The summaries above are clear by now. This step has to happen even for `wanted == 0`: only by it does a later
        // marker of this word come to see them clear.
        let before = word.fetch_and(!wanted, Ordering::AcqRel);
        let taken = before & wanted;
        if taken != 0 {
            *left = left.saturating_sub(u64::from(taken.count_ones()));
            found(index, taken);
        }
        before & !wanted != 0
    }

    /// Calls `found` with every leaf word that is not zero, as (leaf word, bits), and clears nothing.
    pub(super) fn peek(&self, found: &mut dyn FnMut(u64, u64)) {
        for (t, top) in self.top.iter().enumerate() {
            each_bit(top.load(Ordering::Acquire), |bit| {
                let m = t as u64 * WORD_BITS + u64::from(bit);
                let mid = self.mid.get(m as usize).map_or(0, |w| w.load(Ordering::Acquire));
                each_bit(mid, |bit| {
                    let index = m * WORD_BITS + u64::from(bit);
                    let leaf = self.leaf.get(index as usize).map_or(0, |w| w.load(Ordering::Acquire));
                    if leaf != 0 {
                        found(index, leaf);
                    }
                    true
                });
                true
            });
        }
    }

    /// Whether nothing is marked. Exact when no harvester is at work.
    pub(super) fn is_empty(&self) -> bool {
        // A summary bit may stand over an empty word (a marker raised it late), so look below.
        let mut empty = true;
        self.peek(&mut |_, _| empty = false);
        empty
    }
}
