//! [`DirtyBitmap`]: pages by number.

use super::levels::{CORRECT, Levels, WORD_BITS};
use super::page_map::MAX_PAGES;

/// A bit for each of `pages` pages, with two levels of summary above, so that a harvest costs what is dirty and not what
/// there is.
///
/// Any number of threads may mark and harvest at the same time. A mark that returned before a harvest began is handed
/// out by it, or by another harvest that was under way; a mark that happens meanwhile is handed out by this harvest or
/// by a later one. Pages that do not exist are ignored.
pub struct DirtyBitmap {
    levels: Levels<CORRECT>,
}

impl DirtyBitmap {
    /// A clean bitmap for `pages` pages, at most [`MAX_PAGES`] (more are not tracked, and never dirty). Takes a bit a page
    /// and 1/63 more; untouched parts cost nothing where the allocator maps zero pages lazily.
    #[must_use]
    pub fn new(pages: u64) -> Self {
        Self { levels: Levels::new(pages.min(MAX_PAGES)) }
    }

    /// How many pages are tracked.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.levels.pages()
    }

    /// Marks one page. Write the page before.
    pub fn mark(&self, page: u64) {
        if page < self.levels.pages() {
            self.levels.set(page / WORD_BITS, 1 << (page % WORD_BITS));
        }
    }

    /// Marks `count` pages from `first`, a word at a time. The part behind the last page is ignored.
    pub fn mark_range(&self, first: u64, count: u64) {
        let end = first.saturating_add(count).min(self.levels.pages());
        let mut page = first;
        while page < end {
            let in_word = page % WORD_BITS;
            let take = (WORD_BITS - in_word).min(end - page);
            let ones = if take == WORD_BITS { u64::MAX } else { (1 << take) - 1 };
            self.levels.set(page / WORD_BITS, ones << in_word);
            page += take;
        }
    }

    /// Marks page `first + n` for every bit `n` (word `n / 64`, bit `n % 64`) that is set. `first` need not be a multiple of
    /// 64. Bits behind the last page are ignored.
    pub fn or_words(&self, first: u64, words: &[u64]) {
        let bits = (words.len() as u64).saturating_mul(WORD_BITS);
        self.or_with(first, bits, |at, count| {
            let (index, shift) = ((at / WORD_BITS) as usize, at % WORD_BITS);
            let low = words.get(index).copied().unwrap_or(0) >> shift;
            let high = if shift == 0 { 0 } else { words.get(index + 1).copied().unwrap_or(0) << (WORD_BITS - shift) };
            (low | high) & ones(count)
        });
    }

    /// Marks pages `first .. first + bits`; `read(at, count)` gives `count` (at most 64) bits from bit `at`, low bit first.
    pub(super) fn or_with(&self, first: u64, bits: u64, mut read: impl FnMut(u64, u64) -> u64) {
        let end = first.saturating_add(bits).min(self.levels.pages());
        let mut page = first;
        while page < end {
            let in_word = page % WORD_BITS;
            let take = (WORD_BITS - in_word).min(end - page);
            self.levels.set(page / WORD_BITS, (read(page - first, take) & ones(take)) << in_word);
            page += take;
        }
    }

    /// Clears everything and calls `f(first, count)` for each maximal run of it, ascending. What is marked meanwhile is
    /// found by this call or stays for a later one. `f` must not unwind: the rest would be forgotten.
    pub fn harvest_runs(&self, f: &mut dyn FnMut(u64, u64)) {
        self.take_runs(0, u64::MAX, u64::MAX, f);
    }

    /// As [`DirtyBitmap::harvest_runs`], for at most `max_pages` pages of `first .. end`. Returns how many pages it cleared.
    /// While it runs, pages that it will leave behind may be invisible to other threads.
    pub fn take_runs(&self, first: u64, end: u64, max_pages: u64, f: &mut dyn FnMut(u64, u64)) -> u64 {
        let mut runs = Runs::new(f);
        let taken = self.levels.take(first, end, max_pages, &mut |index, bits| runs.word(index, bits));
        runs.finish();
        taken
    }

    /// Calls `f(first, count)` for each run and clears nothing.
    pub fn peek_runs(&self, f: &mut dyn FnMut(u64, u64)) {
        let mut runs = Runs::new(f);
        self.levels.peek(&mut |index, bits| runs.word(index, bits));
        runs.finish();
    }

    /// How many pages are marked now. Exact when nobody harvests or marks meanwhile.
    #[must_use]
    pub fn count(&self) -> u64 {
        let mut count = 0;
        self.levels.peek(&mut |_, bits| count += u64::from(bits.count_ones()));
        count
    }

    /// Whether no page is marked. Exact when nobody harvests or marks meanwhile.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }
}

impl core::fmt::Debug for DirtyBitmap {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("DirtyBitmap").field("pages", &self.pages()).field("dirty", &self.count()).finish()
    }
}

fn ones(count: u64) -> u64 {
    if count >= WORD_BITS { u64::MAX } else { (1 << count) - 1 }
}

/// Joins words into runs.
struct Runs<'a> {
    f: &'a mut dyn FnMut(u64, u64),
    first: u64,
    count: u64,
}

impl<'a> Runs<'a> {
    fn new(f: &'a mut dyn FnMut(u64, u64)) -> Self {
        Self { f, first: 0, count: 0 }
    }

    fn word(&mut self, index: u64, bits: u64) {
        let base = index * WORD_BITS;
        let mut rest = bits;
        while rest != 0 {
            let start = rest.trailing_zeros();
            let length = (rest >> start).trailing_ones();
            self.run(base + u64::from(start), u64::from(length));
            if start + length == 64 {
                break;
            }
            rest &= u64::MAX << (start + length);
        }
    }

    fn run(&mut self, first: u64, count: u64) {
        if self.count != 0 && self.first + self.count == first {
            self.count += count;
            return;
        }
        self.finish();
        (self.first, self.count) = (first, count);
    }

    fn finish(&mut self) {
        if self.count != 0 {
            (self.f)(self.first, self.count);
            self.count = 0;
        }
    }
}
