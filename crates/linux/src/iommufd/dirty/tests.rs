use std::collections::BTreeSet;
use std::sync::Mutex;

use towline_core::channel::ChannelErrorKind;

use super::*;
use crate::address_space::areas::Unmapped;

/// A page table that behaves as the kernel's does, traps included.
#[derive(Debug, Default)]
struct Fake {
    /// Mapped (address, length); nothing else is walked.
    areas: Vec<MemoryRange>,
    /// Written addresses.
    dirty: BTreeSet<u64>,
    tracking: bool,
    alignment: u64,
    queries: Vec<MemoryRange>,
    fails: bool,
}

#[derive(Clone, Debug)]
struct Table(Arc<Mutex<Fake>>);

impl PageTable for Table {
    fn set_tracking(&self, on: bool) -> Result<(), ChannelError> {
        let mut fake = self.0.lock().unwrap();
        fake.tracking = on;
        fake.dirty.clear();
        Ok(())
    }

    fn get_dirty(&self, area: MemoryRange, page_size: u64, bits: &mut [u64]) -> Result<(), ChannelError> {
        let mut fake = self.0.lock().unwrap();
        assert!(fake.tracking && page_size.is_power_of_two());
        fake.queries.push(area);
        for edge in [area.gpa, area.gpa + area.len] {
            assert!(edge.is_multiple_of(page_size) && edge.is_multiple_of(fake.alignment), "{area:x?} {page_size:#x}");
        }
        assert!(bits.len() as u64 >= (area.len / page_size).div_ceil(64));
        if fake.fails {
            return Err(limit("injected"));
        }
        // As the kernel: a hole ends the walk, and nobody hears of it.
        let mut at = area.gpa;
        while at < area.gpa + area.len {
            let Some(mapped) = fake.areas.iter().find(|a| a.gpa <= at && at < a.gpa + a.len) else { return Ok(()) };
            let end = (mapped.gpa + mapped.len).min(area.gpa + area.len);
            for dirty in fake.dirty.clone().range(at..end) {
                let bit = ((dirty - area.gpa) / page_size) as usize;
                bits[bit / 64] |= 1 << (bit % 64);
                fake.dirty.remove(dirty);
            }
            at = end;
        }
        Ok(())
    }

    fn alignment(&self) -> Result<u64, ChannelError> {
        Ok(self.0.lock().unwrap().alignment)
    }
}

/// Every marked address in pages of 2 KiB.
#[derive(Debug, Default)]
struct Found(BTreeSet<u64>);

impl DirtySink for Found {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.extend((gpa..gpa + len).step_by(2048));
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        for bit in 0..bitmap.len() * 8 {
            if bitmap[bit / 8] & 1 << (bit % 8) != 0 {
                self.mark(base + bit as u64 * page_size_bytes, page_size_bytes);
            }
        }
    }
}

const M: u64 = 1 << 20;

/// A source over these mappings.
fn source(areas: &[(u64, u64)]) -> (IommufdDirty, Table, Arc<Areas>) {
    let known = Arc::new(Areas::default());
    let fake = Fake { alignment: 2048, ..Fake::default() };
    let table = Table(Arc::new(Mutex::new(fake)));
    for &(gpa, len) in areas {
        map(&known, &table, gpa, len);
    }
    (IommufdDirty::over(Box::new(table.clone()), &known), table, known)
}

fn map(known: &Areas, table: &Table, gpa: u64, len: u64) {
    known.map((gpa, len), true, None, u64::MAX, &mut |_, _, _| Ok(()), &mut |_, _, _| panic!()).unwrap();
    table.0.lock().unwrap().areas.push(MemoryRange { gpa, len });
}

fn all() -> [MemoryRange; 1] {
    [MemoryRange { gpa: 0, len: 1 << 40 }]
}

fn write(table: &Table, addresses: &[u64]) {
    table.0.lock().unwrap().dirty.extend(addresses);
}

fn harvest(source: &mut IommufdDirty) -> Vec<u64> {
    let mut found = Found::default();
    source.harvest(&mut found).unwrap();
    found.0.into_iter().collect()
}

#[test]
fn finds_what_was_written_beyond_holes_and_once() {
    let (mut source, table, _) = source(&[(M, M), (4 * M, 2 * M), (6 * M, M)]);
    assert_eq!(source.start(&all(), 2048), Ok(2048));
    let written = [M, 2 * M - 2048, 4 * M + 2048, 6 * M - 2048, 6 * M, 7 * M - 2048];
    write(&table, &written);
    assert_eq!(harvest(&mut source), written);
    assert!(harvest(&mut source).is_empty());
    let queries = &table.0.lock().unwrap().queries;
    assert_eq!(queries.len(), 6, "one for each mapping: {queries:x?}");
}

/// The oracle of the tests above trips where a query goes across a hole.
#[test]
fn one_query_across_a_hole_loses_what_lies_beyond() {
    let (mut source, table, _) = source(&[(M, M), (4 * M, M)]);
    // As if somebody had taken the two for one mapping.
    source.areas = Arc::new(Areas::default());
    source.areas.map((M, 4 * M), true, None, u64::MAX, &mut |_, _, _| Ok(()), &mut |_, _, _| panic!()).unwrap();
    source.start(&all(), 2048).unwrap();
    write(&table, &[M, 4 * M]);
    assert_eq!(harvest(&mut source), [M]);
}

#[test]
fn queries_are_aligned_whatever_the_mappings_are() {
    let (mut source, table, _) = source(&[(M + 2048, 6 * 2048), (4 * M, M), (8 * M, 3 * 4096)]);
    assert_eq!(source.start(&all(), 65536), Ok(65536));
    write(&table, &[M + 4096, 4 * M + 4096, 8 * M + 4096]);
    let found = harvest(&mut source);
    // By 2 KiB, by 64 KiB and by 4 KiB: the largest page that fits the mapping.
    assert_eq!(found.first(), Some(&(M + 4096)));
    assert_eq!(found.len(), 1 + 32 + 2);
}

#[test]
fn large_mappings_are_asked_in_pieces() {
    let len = 5 << 30;
    let (mut source, table, _) = source(&[(1 << 32, len)]);
    source.start(&all(), 4096).unwrap();
    let written = [1 << 32, (1 << 32) + (2 << 30), (1 << 32) + len - 4096];
    write(&table, &written);
    let found = harvest(&mut source);
    assert_eq!(found.iter().step_by(2).copied().collect::<Vec<_>>(), written);
    let queries = &table.0.lock().unwrap().queries;
    assert_eq!(queries.iter().map(|q| q.len).collect::<Vec<_>>(), [2 << 30, 2 << 30, 1 << 30]);
}

#[test]
fn only_what_was_asked_for_is_queried() {
    let (mut source, table, _) = source(&[(M, M), (4 * M, M)]);
    source.start(&[MemoryRange { gpa: 4 * M + 4096, len: 4096 }], 4096).unwrap();
    harvest(&mut source);
    assert_eq!(table.0.lock().unwrap().queries, [MemoryRange { gpa: 4 * M, len: M }]);
}

#[test]
fn what_comes_and_goes_meanwhile_is_told() {
    let (mut source, table, known) = source(&[(M, M), (4 * M, M)]);
    source.start(&all(), 2048).unwrap();
    map(&known, &table, 8 * M, M);
    write(&table, &[8 * M + 4096]);
    known
        .unmap(4 * M, M, &mut |at, bytes, _| {
            table.0.lock().unwrap().areas.retain(|a| a.gpa != at);
            Ok(Unmapped { bytes, dirty: None })
        })
        .unwrap();
    let found = harvest(&mut source);
    // All of what went, as nobody knows.
    assert_eq!(found.len(), 512 + 1);
    assert_eq!((found[0], found[512]), (4 * M, 8 * M + 4096));
    assert!(harvest(&mut source).is_empty());
}

#[test]
fn after_an_error_everything_is_dirty() {
    let (mut source, table, _) = source(&[(M, M)]);
    source.start(&[MemoryRange { gpa: M, len: M }], 2048).unwrap();
    table.0.lock().unwrap().fails = true;
    let mut found = Found::default();
    assert_eq!(source.harvest(&mut found).unwrap_err().message, "injected");
    assert_eq!(found.0.len(), 512);
}

#[test]
fn refuses_what_can_not_be_tracked() {
    let (mut source, table, _) = source(&[(M, M)]);
    for page_size in [0, 1, 256, 3 * 4096, 4097, 1 << 31, u64::MAX] {
        assert_eq!(source.start(&all(), page_size).unwrap_err().kind, ChannelErrorKind::Limit, "{page_size}");
    }
    for (gpa, len) in [(0, 0), (u64::MAX, 2)] {
        assert_eq!(source.start(&[MemoryRange { gpa, len }], 4096).unwrap_err().kind, ChannelErrorKind::Limit);
    }
    table.0.lock().unwrap().alignment = 3000;
    assert_eq!(source.start(&all(), 2048).unwrap_err().kind, ChannelErrorKind::Limit);
    table.0.lock().unwrap().alignment = 4096;
    assert_eq!(source.harvest(&mut Found::default()).unwrap_err().kind, ChannelErrorKind::State);
    assert!(!table.0.lock().unwrap().tracking);
    // Coarser than asked, as the IOMMU's pages are.
    assert_eq!(source.start(&all(), 2048), Ok(4096));
    assert_eq!(source.start(&all(), 4096).unwrap_err().kind, ChannelErrorKind::State);
    source.stop().unwrap();
    source.stop().unwrap();
    assert!(!table.0.lock().unwrap().tracking);
    source.start(&all(), 4096).unwrap();
    drop(source);
    assert!(!table.0.lock().unwrap().tracking, "stops when it is dropped");
}
