//! Collects pages and classes, stores equal ones once, and writes the layout.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use crate::bar::MAX_FILTER_BYTES;
use crate::bar::layout::{
    CLASS_BYTES, Class, GRANULE_SHIFT, GRANULES, HEADER_BYTES, MAGIC, MIXED, MIXED_BYTES, PAGE_BYTES, PAGE_SHIFT,
    RULE_BYTES, RuleRecord, VERSION,
};

pub(super) struct Emitter {
    pages: Vec<u32>,
    mixed: Vec<u8>,
    mixed_index: BTreeMap<Vec<u8>, u32>,
    classes: Vec<Class>,
    palettes: BTreeMap<Vec<Class>, u32>,
}

impl Emitter {
    pub fn new(visible: u64) -> Self {
        let mut out = Self {
            pages: Vec::with_capacity(visible.div_ceil(PAGE_BYTES) as usize),
            mixed: Vec::new(),
            mixed_index: BTreeMap::new(),
            classes: Vec::new(),
            palettes: BTreeMap::new(),
        };
        // Entry 0 is "everything passes", used or not.
        out.palette(&[Class::PASS]);
        out
    }

    pub fn uniform(&mut self, class: Class, pages: u64) {
        let entry = self.palette(&[class]);
        self.pages.resize(self.pages.len() + pages as usize, entry);
    }

    pub fn mixed(&mut self, palette: &[Class], codes: &[u8; GRANULES], pages: u64) {
        if let [class] = palette {
            return self.uniform(*class, pages);
        }
        let mut record = Vec::with_capacity(MIXED_BYTES);
        record.extend_from_slice(&self.palette(palette).to_le_bytes());
        record.extend_from_slice(&(palette.len() as u32).to_le_bytes());
        record.extend_from_slice(codes);
        let next = (self.mixed.len() / MIXED_BYTES) as u32;
        let index = match self.mixed_index.get(&record) {
            Some(index) => *index,
            None => {
                self.mixed.extend_from_slice(&record);
                self.mixed_index.insert(record, next);
                next
            }
        };
        self.pages.resize(self.pages.len() + pages as usize, index | MIXED);
    }

    /// Index of the first class of `palette`, which stands there in one piece.
    fn palette(&mut self, palette: &[Class]) -> u32 {
        if let Some(index) = self.palettes.get(palette) {
            return *index;
        }
        let index = self.classes.len() as u32;
        self.classes.extend_from_slice(palette);
        self.palettes.insert(palette.to_vec(), index);
        index
    }

    /// The whole filter, or `None` where it exceeds [`MAX_FILTER_BYTES`].
    pub fn finish(
        self,
        bar: u64,
        visible: u64,
        reads: &[RuleRecord],
        writes: &[RuleRecord],
        shadow: u64,
        rules: usize,
    ) -> Option<Vec<u8>> {
        let sections = [
            (self.pages.len(), 4),
            (self.mixed.len() / MIXED_BYTES, MIXED_BYTES),
            (self.classes.len(), CLASS_BYTES),
            (reads.len(), RULE_BYTES),
            (writes.len(), RULE_BYTES),
        ];
        let mut table = Vec::with_capacity(80);
        let mut at = HEADER_BYTES as u64;
        for (count, size) in sections {
            table.extend_from_slice(&at.to_le_bytes());
            table.extend_from_slice(&(count as u64).to_le_bytes());
            at = at.checked_add((count as u64).checked_mul(size as u64)?)?.checked_next_multiple_of(8)?;
        }
        if at > MAX_FILTER_BYTES {
            return None;
        }
        let mut out = Vec::with_capacity(at as usize);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(HEADER_BYTES as u32).to_le_bytes());
        out.extend_from_slice(&at.to_le_bytes());
        out.extend_from_slice(&bar.to_le_bytes());
        out.extend_from_slice(&visible.to_le_bytes());
        out.extend_from_slice(&PAGE_SHIFT.to_le_bytes());
        out.extend_from_slice(&GRANULE_SHIFT.to_le_bytes());
        out.extend_from_slice(&table);
        out.extend_from_slice(&(shadow as u32).to_le_bytes());
        out.extend_from_slice(&(rules as u32).to_le_bytes());
        out.extend_from_slice(&0u64.to_le_bytes());
        for page in &self.pages {
            out.extend_from_slice(&page.to_le_bytes());
        }
        pad(&mut out);
        out.extend_from_slice(&self.mixed);
        pad(&mut out);
        for class in &self.classes {
            class.put(&mut out);
        }
        for list in [reads, writes] {
            pad(&mut out);
            for record in list {
                record.put(&mut out);
            }
        }
        pad(&mut out);
        Some(out)
    }
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(8), 0);
}
