use std::collections::BTreeSet;
use std::sync::Mutex;

use super::*;
use crate::address_space::areas::Unmapped;

/// A container that behaves as the kernel's: it writes whole words, refuses ranges that cut a mapping in two, and another
/// page size than its own.
#[derive(Debug)]
struct Fake {
    info: Option<MigrationInfo>,
    tracking: bool,
    tracks_in: u64,
    dirty: BTreeSet<u64>,
    fails: Option<Errno>,
    gets: usize,
}

#[derive(Clone, Debug)]
struct Container(Arc<Mutex<Fake>>, Arc<Areas>);

impl Log for Container {
    fn migration(&self) -> Result<Option<MigrationInfo>, ChannelError> {
        Ok(self.0.lock().unwrap().info)
    }

    fn set_tracking(&self, on: bool) -> Result<(), Errno> {
        self.0.lock().unwrap().tracking = on;
        Ok(())
    }

    fn get(&self, area: MemoryRange, page_size: u64, bits: &mut [u64]) -> Result<(), Errno> {
        let mut fake = self.0.lock().unwrap();
        fake.gets += 1;
        if let Some(errno) = fake.fails {
            return Err(errno);
        }
        assert!(bits.iter().all(|word| *word == 0), "zeroed first");
        assert_eq!(bits.len() as u64, (area.len / page_size).div_ceil(64));
        assert!(bits.len() as u64 * 8 <= fake.info.unwrap().max_bitmap_bytes);
        let whole = self.1.all().contains(&area);
        if !fake.tracking || !whole || page_size != fake.info.unwrap().page_size {
            return Err(Errno::INVAL);
        }
        for page in (0..area.len / page_size).filter(|n| fake.dirty.contains(&(area.gpa + n * page_size))) {
            bits[page as usize / 64] |= 1 << (page % 64);
        }
        fake.dirty.retain(|at| !(area.gpa..area.gpa + area.len).contains(at));
        Ok(())
    }

    fn tracks_in(&self, page_size: u64) {
        self.0.lock().unwrap().tracks_in = page_size;
    }

    fn areas(&self) -> &Arc<Areas> {
        &self.1
    }
}

#[derive(Debug, Default)]
struct Found(BTreeSet<u64>);

impl DirtySink for Found {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.extend((gpa..gpa + len).step_by(4096));
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
const INFO: MigrationInfo = MigrationInfo { page_size: 4096, max_bitmap_bytes: 32 };

fn container(areas: &[(u64, u64)]) -> Container {
    let known = Areas::default();
    for &(gpa, len) in areas {
        known.map((gpa, len), true, None, u64::MAX, &mut |_, _, _| Ok(()), &mut |_, _, _| panic!()).unwrap();
    }
    let fake = Fake { info: Some(INFO), tracking: false, tracks_in: 0, dirty: BTreeSet::new(), fails: None, gets: 0 };
    Container(Arc::new(Mutex::new(fake)), Arc::new(known))
}

fn all() -> [MemoryRange; 1] {
    [MemoryRange { gpa: 0, len: 1 << 40 }]
}

#[test]
fn finds_what_was_written_mapping_by_mapping() {
    let container = container(&[(0, M), (M, 4096), (8 * M, M)]);
    let mut source = Type1Dirty::over(Box::new(container.clone()));
    assert_eq!(source.start(&all(), 65536), Ok(4096));
    assert_eq!(container.0.lock().unwrap().tracks_in, 4096);
    let written = [0, M - 4096, M, 8 * M + 8192];
    container.0.lock().unwrap().dirty.extend(written);
    let mut found = Found::default();
    source.harvest(&mut found).unwrap();
    assert_eq!(found.0.into_iter().collect::<Vec<_>>(), written);
    assert_eq!(container.0.lock().unwrap().gets, 3);
    // What is unmapped with its bitmap is told from there.
    let bitmap = vec![0b10];
    let unmap = &mut |_: u64, bytes: u64, _: bool| Ok(Unmapped { bytes, dirty: Some((4096, bitmap.clone())) });
    container.1.unmap(8 * M, M, unmap).unwrap();
    let mut found = Found::default();
    source.harvest(&mut found).unwrap();
    assert_eq!(found.0.into_iter().collect::<Vec<_>>(), [8 * M + 4096]);
    source.stop().unwrap();
    source.stop().unwrap();
    let fake = container.0.lock().unwrap();
    assert_eq!((fake.tracking, fake.tracks_in), (false, 0));
}

#[test]
fn one_source_tracks_a_container() {
    let container = container(&[]);
    let mut source = Type1Dirty::over(Box::new(container.clone()));
    source.start(&all(), 4096).unwrap();
    let mut other = Type1Dirty::over(Box::new(container.clone()));
    assert_eq!(other.start(&all(), 4096).unwrap_err().kind, ChannelErrorKind::State);
    assert_eq!(source.start(&all(), 4096).unwrap_err().kind, ChannelErrorKind::State);
    drop(source);
    assert!(!container.0.lock().unwrap().tracking);
    other.start(&all(), 4096).unwrap();
}

#[test]
fn refuses_what_can_not_be_tracked_before_it_starts() {
    let container = container(&[(0, 2 * M)]);
    let mut source = Type1Dirty::over(Box::new(container.clone()));
    // 512 pages need 64 bytes, and the kernel fills 32.
    let error = source.start(&all(), 4096).unwrap_err();
    assert_eq!(error.kind, ChannelErrorKind::Limit);
    assert!(error.message.contains("too large for a bitmap of at most 32 bytes"), "{error}");
    container.0.lock().unwrap().info = None;
    assert_eq!(source.start(&all(), 4096).unwrap_err().kind, ChannelErrorKind::Unsupported);
    for page_size in [0, 3, 1 << 40] {
        assert_eq!(source.start(&all(), page_size).unwrap_err().kind, ChannelErrorKind::Limit);
    }
    assert_eq!(source.harvest(&mut Found::default()).unwrap_err().kind, ChannelErrorKind::State);
    assert!(!container.0.lock().unwrap().tracking);
    assert!(container.1.claim().is_some(), "a start that failed leaves no claim");
}

#[test]
fn after_an_error_everything_is_dirty() {
    let container = container(&[(0, M)]);
    let mut source = Type1Dirty::over(Box::new(container.clone()));
    source.start(&[MemoryRange { gpa: 0, len: M }], 4096).unwrap();
    container.0.lock().unwrap().fails = Some(Errno::FAULT);
    let mut found = Found::default();
    let error = source.harvest(&mut found).unwrap_err();
    assert!(error.message.contains("GET_BITMAP") && error.message.contains("EFAULT"), "{error}");
    assert_eq!(found.0.len(), 256);
}
