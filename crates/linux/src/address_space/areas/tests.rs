use std::cell::RefCell;
use std::os::fd::AsFd;

use proptest::prelude::*;
use towline_core::channel::ChannelErrorKind;

use super::*;
use crate::memory::{MappedMemory, memfd};

/// Remembers what it was told.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    marks: Vec<(u64, u64)>,
    bitmaps: Vec<(u64, u64, Vec<u8>)>,
}

impl DirtySink for Told {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.marks.push((gpa, len));
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        self.bitmaps.push((base, page_size_bytes, bitmap.to_vec()));
    }
}

/// What a kernel would have mapped.
#[derive(Default)]
struct Kernel {
    mapped: RefCell<BTreeMap<u64, u64>>,
    /// Calls that succeed before one fails.
    good: std::cell::Cell<usize>,
}

impl Kernel {
    fn new() -> Self {
        Self { good: usize::MAX.into(), ..Self::default() }
    }

    fn step(&self) -> Result<(), ChannelError> {
        match self.good.get().checked_sub(1) {
            Some(left) => self.good.set(left),
            None => return Err(limit("injected")),
        }
        Ok(())
    }

    fn map(&self, at: u64, len: u64) -> Result<(), ChannelError> {
        self.step()?;
        assert!(self.mapped.borrow_mut().insert(at, len).is_none());
        Ok(())
    }

    fn unmap(&self, at: u64, len: u64) -> Result<Unmapped, ChannelError> {
        self.step()?;
        assert_eq!(self.mapped.borrow_mut().remove(&at), Some(len), "never a part of a mapping");
        Ok(Unmapped { bytes: len, dirty: None })
    }

    fn all(&self) -> Vec<MemoryRange> {
        self.mapped.borrow().iter().map(|(&gpa, &len)| MemoryRange { gpa, len }).collect()
    }
}

fn map(areas: &Areas, kernel: &Kernel, iova: u64, len: u64, piece: u64) -> Result<(), ChannelError> {
    areas.map(
        (iova, len),
        true,
        None,
        piece,
        &mut |offset, at, len| {
            assert_eq!(at, iova + offset);
            kernel.map(at, len)
        },
        &mut |at, len, _| kernel.unmap(at, len),
    )
}

fn unmap(areas: &Areas, kernel: &Kernel, iova: u64, len: u64) -> Result<u64, ChannelError> {
    areas.unmap(iova, len, &mut |at, len, _| kernel.unmap(at, len))
}

#[test]
fn maps_in_pieces_and_all_or_nothing() {
    let (areas, kernel) = (Areas::default(), Kernel::new());
    map(&areas, &kernel, 0x1000, 0x2800, 0x1000).unwrap();
    assert_eq!(
        areas.all(),
        [(0x1000, 0x1000), (0x2000, 0x1000), (0x3000, 0x800)].map(|(gpa, len)| MemoryRange { gpa, len })
    );
    assert_eq!(areas.all(), kernel.all());
    assert_eq!(unmap(&areas, &kernel, 0, 0x10000).unwrap(), 0x2800);
    for good in 0..3 {
        let kernel = Kernel::new();
        // The pieces that were mapped are unmapped again.
        let calls = RefCell::new(0);
        let error = areas.map(
            (0, 0x3000),
            true,
            None,
            0x1000,
            &mut |_, at, len| {
                *calls.borrow_mut() += 1;
                if *calls.borrow() > good { Err(limit("injected")) } else { kernel.map(at, len) }
            },
            &mut |at, len, _| kernel.unmap(at, len),
        );
        assert_eq!(error.unwrap_err().message, "injected");
        assert_eq!((areas.all(), kernel.all()), (vec![], vec![]));
    }
}

#[test]
fn what_can_not_be_unwound_stays_known() {
    let (areas, kernel) = (Areas::default(), Kernel::new());
    kernel.good.set(2);
    assert!(map(&areas, &kernel, 0, 0x3000, 0x1000).is_err());
    assert_eq!(areas.all(), kernel.all());
    assert_eq!(areas.all().len(), 2);
}

#[test]
fn refuses_what_can_not_be() {
    let (areas, kernel) = (Areas::default(), Kernel::new());
    let memory = MappedMemory::new();
    memory.add_region(0, memfd("areas", 0x1000).unwrap().as_fd(), 0, 0x1000).unwrap();
    for (iova, len) in [(0, 0), (u64::MAX, 2), (0x1000, u64::MAX)] {
        assert_eq!(map(&areas, &kernel, iova, len, 0x1000).unwrap_err().kind, ChannelErrorKind::Limit);
        assert_eq!(unmap(&areas, &kernel, iova, len).unwrap_err().kind, ChannelErrorKind::Limit);
    }
    let held = memory.hold(0, 0x1000).unwrap();
    let error = areas.map((0, 0x2000), true, Some(held), 1 << 30, &mut |_, _, _| panic!(), &mut |_, _, _| panic!());
    assert_eq!(error.unwrap_err().kind, ChannelErrorKind::Limit);
    let too_many = map(&areas, &kernel, 0, (MAX_AREAS as u64 + 1) * 0x1000, 0x1000);
    assert_eq!(too_many.unwrap_err().kind, ChannelErrorKind::Limit);
    assert!(areas.all().is_empty() && kernel.all().is_empty());
}

#[test]
fn memory_is_held_until_it_is_unmapped_and_for_ever_where_that_fails() {
    let memory = MappedMemory::new();
    memory.add_region(0, memfd("areas", 0x2000).unwrap().as_fd(), 0, 0x1000).unwrap();
    let areas = Areas::default();
    let held = memory.hold(0, 0x1000).unwrap();
    let address = held.slice().unwrap().ptr.as_ptr().expose_provenance();
    let mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains(&format!("{address:08x}-"));
    let no_unmap: UnmapOne<'_> = &mut |_, _, _| Err(limit("injected"));
    areas.map((0, 0x1000), true, Some(held), 1 << 30, &mut |_, _, _| Ok(()), no_unmap).unwrap();
    drop(memory);
    assert!(mapped());
    assert!(areas.unmap(0, 0x1000, &mut |_, _, _| Err(limit("injected"))).is_err());
    assert_eq!(areas.all().len(), 1);
    areas.unmap_all(&mut |_, _, _| Err(limit("injected")));
    assert_eq!(areas.all().len(), 1);
    areas.leak();
    assert!(areas.all().is_empty());
    drop(areas);
    assert!(mapped(), "a device may still write it");
}

#[test]
fn a_watch_is_told_of_what_goes_and_only_once() {
    let (areas, kernel) = (Areas::default(), Kernel::new());
    for at in [0, 0x1000, 0x2000] {
        map(&areas, &kernel, at, 0x1000, 1 << 30).unwrap();
    }
    unmap(&areas, &kernel, 0, 0x1000).unwrap();
    let watch = areas.watch();
    let bitmap = vec![0b101];
    areas
        .unmap(0x1000, 0x1000, &mut |at, len, watched| {
            assert!(watched);
            kernel.unmap(at, len).map(|u| Unmapped { dirty: Some((512, bitmap.clone())), ..u })
        })
        .unwrap();
    unmap(&areas, &kernel, 0x2000, 0x1000).unwrap();
    let mut told = Told::default();
    watch.tell(&mut told);
    assert_eq!(told, Told { marks: vec![(0x2000, 0x1000)], bitmaps: vec![(0x1000, 512, vec![0b101])] });
    watch.tell(&mut told);
    assert_eq!(told.marks.len() + told.bitmaps.len(), 2);
    drop(watch);
    map(&areas, &kernel, 0, 0x1000, 1 << 30).unwrap();
    areas
        .unmap(0, 0x1000, &mut |at, len, watched| {
            assert!(!watched, "nobody looks any more");
            kernel.unmap(at, len)
        })
        .unwrap();
}

#[test]
fn a_watch_that_overflows_takes_everything_for_dirty() {
    let watch = Watch::default();
    for n in 0..=MAX_LOST as u64 {
        watch.push(MemoryRange { gpa: n, len: 1 }, None);
    }
    let mut told = Told::default();
    watch.tell(&mut told);
    assert_eq!(told.marks, [(0, u64::MAX), (MAX_LOST as u64, 1)]);
    watch.push(MemoryRange { gpa: 7, len: 1 }, Some((1, &vec![0; MAX_LOST_BYTES + 1])));
    let mut told = Told::default();
    watch.tell(&mut told);
    assert_eq!((told.marks, told.bitmaps.len()), (vec![(7, 1)], 0));
}

#[test]
fn one_source_claims_it() {
    let areas = Arc::new(Areas::default());
    let claim = areas.claim().unwrap();
    assert!(areas.claim().is_none());
    drop(claim);
    assert!(areas.claim().is_some());
}

#[derive(Clone, Debug)]
enum Op {
    Map(u64, u64, u64),
    Unmap(u64, u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        (0u64..64, 1u64..16, 1u64..6).prop_map(|(at, len, piece)| Op::Map(at, len, piece)),
        (0u64..64, 1u64..32).prop_map(|(at, len)| Op::Unmap(at, len)),
    ];
    prop::collection::vec(op, 0..60)
}

proptest! {
    /// Against one flag for each page.
    #[test]
    fn agrees_with_a_page_by_page_model(ops in ops()) {
        let (areas, kernel) = (Areas::default(), Kernel::new());
        // The number of the mapping that each page belongs to.
        let mut model = [None::<usize>; 128];
        let mut number = 0;
        for op in ops {
            match op {
                Op::Map(at, len, piece) => {
                    let range = at as usize..(at + len) as usize;
                    let free = model[range.clone()].iter().all(Option::is_none);
                    prop_assert_eq!(map(&areas, &kernel, at, len, piece).is_ok(), free);
                    if free {
                        for (n, page) in model[range].iter_mut().enumerate() {
                            *page = Some(number + n / piece as usize);
                        }
                        number += 16;
                    }
                }
                Op::Unmap(at, len) => {
                    let (from, to) = (at as usize, (at + len) as usize);
                    let cuts = |edge: usize| edge > 0 && model[edge].is_some() && model[edge] == model[edge - 1];
                    let whole = !cuts(from) && !cuts(to);
                    let bytes = model[from..to].iter().flatten().count() as u64;
                    match unmap(&areas, &kernel, at, len) {
                        Ok(n) => {
                            prop_assert!(whole);
                            prop_assert_eq!(n, bytes);
                            model[from..to].fill(None);
                        }
                        Err(error) => {
                            prop_assert!(!whole);
                            prop_assert_eq!(error.kind, ChannelErrorKind::State);
                        }
                    }
                }
            }
            prop_assert_eq!(areas.all(), kernel.all());
            let pages: u64 = areas.all().iter().map(|r| r.len).sum();
            prop_assert_eq!(pages, model.iter().flatten().count() as u64);
        }
    }
}
