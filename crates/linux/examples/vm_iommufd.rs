//! Dirty pages by iommufd, on the kernel's mock IOMMU: what [`IommufdDirty`] harvests against what the kernel says was
//! dirtied, and address spaces against the kernel's own look at its page tables. Run by `test/kernel`.
//!
//! `vm_iommufd [SEED]` prints TAP; the exit code is 1 where anything failed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource};
use towline_core::memory::{GuestMemory, MemoryRange};
use towline_linux::address_space::{AddressSpace, Backing, GuestMapping};
use towline_linux::iommufd::{Hwpt, Ioas, Iommufd, IommufdDirty};
use towline_linux::memory::{MappedMemory, memfd};
use vm_support::mock::{self, MockDevice, dirty, is_mapped_to};
use vm_support::{Random, Test};

mod vm_support;

/// What the bits of an I/O page table are about here: mappings are made of 4 KiB pages, large ones being forbidden.
const PAGE: u64 = 4096;
/// What harvests are compared in, the mock IOMMU's smallest page.
const GRAIN: u64 = mock::PAGE;
const BASE: u64 = *mock::APERTURE.start();

/// Mappings with holes between them, two that touch, one of a single page and one of three: address, length, and where they
/// begin in guest memory.
const AREAS: [(u64, u64, u64); 6] = [
    (BASE, 0x40_0000, 0),
    (BASE + 0x80_0000, 0x1_3000, 0x40_0000),
    (BASE + 0x81_3000, 0x5000, 0x50_0000),
    (BASE + 0x200_0000, 0x80_0000, 0x60_0000),
    (BASE + 0x300_1000, 0x1000, 0xe0_0000),
    (BASE + 0x400_1000, 0x3000, 0xe1_0000),
];
const MEMORY: u64 = 0x100_0000;

/// Guest memory of one file.
fn memory() -> (MappedMemory, OwnedFd) {
    let (memory, fd) = (MappedMemory::new(), memfd("vm-iommufd", MEMORY).unwrap());
    memory.add_region(0, fd.as_fd(), 0, MEMORY).unwrap();
    (memory, fd)
}

/// An IOAS of small pages with [`AREAS`] mapped, and a page table that tracks. The device goes first.
struct Rig {
    iommu: Arc<Iommufd>,
    ioas: Arc<Ioas>,
    hwpt: Arc<Hwpt>,
    memory: MappedMemory,
}

impl Rig {
    fn new() -> Self {
        Self::with(false)
    }

    fn with(huge_pages: bool) -> Self {
        let iommu = Iommufd::open().unwrap();
        let ioas = Ioas::allocate(&iommu).unwrap();
        ioas.set_huge_pages(huge_pages).unwrap();
        let (memory, _) = memory();
        for (iova, len, at) in AREAS {
            ioas.map(iova, len, Backing::Memory(memory.hold(at, len).unwrap()), true).unwrap();
        }
        // Only to have the device's number; the page table stays when it goes.
        let hwpt = {
            let device = MockDevice::new(&iommu, ioas.id());
            Hwpt::allocate(&ioas, device.dev_id, true).unwrap()
        };
        Self { iommu, ioas, hwpt, memory }
    }

    /// Dirties these pages, asking the kernel how many it did.
    fn dirty(&self, pages: &BTreeSet<u64>) {
        for (iova, len, _) in AREAS {
            dirty_in(&self.iommu, &self.hwpt, iova, len, pages);
        }
    }

    fn source(&self) -> IommufdDirty {
        IommufdDirty::new(&self.hwpt)
    }
}

/// Dirties those of `pages` that lie in one mapping.
fn dirty_in(iommu: &Iommufd, hwpt: &Hwpt, iova: u64, len: u64, pages: &BTreeSet<u64>) {
    let mut bits = vec![0u64; (len / GRAIN).div_ceil(64) as usize];
    let mut count = 0;
    for page in pages.range(iova..iova + len) {
        let bit = ((page - iova) / GRAIN) as usize;
        bits[bit / 64] |= 1 << (bit % 64);
        count += 1;
    }
    assert_eq!(dirty(iommu, hwpt.id(), iova, len, GRAIN, &bits), Ok(count));
}

/// All pages of the mappings: what has a bit of its own in the page table.
fn all_pages() -> Vec<u64> {
    AREAS.iter().flat_map(|(iova, len, _)| (*iova..iova + len).step_by(PAGE as usize)).collect()
}

/// What a harvest in pages of `page_size` bytes has to find of these pages: counted out, in [`GRAIN`]s.
fn expected(pages: &BTreeSet<u64>, page_size: u64) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for page in pages {
        let (iova, len, _) = *AREAS.iter().find(|(iova, len, _)| (*iova..iova + len).contains(page)).unwrap();
        let mut size = page_size;
        while iova % size != 0 || len % size != 0 {
            size /= 2;
        }
        let (from, to) = (page / size * size, (page + PAGE).div_ceil(size) * size);
        found.extend((from..to).step_by(GRAIN as usize));
    }
    found
}

/// Every marked [`GRAIN`], and how many marks came twice in a harvest.
#[derive(Default)]
struct Found {
    grains: BTreeSet<u64>,
    twice: usize,
}

impl DirtySink for Found {
    fn mark(&mut self, gpa: u64, len: u64) {
        for grain in (gpa..gpa + len).step_by(GRAIN as usize) {
            self.twice += usize::from(!self.grains.insert(grain));
        }
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        for bit in (0..bitmap.len() * 8).filter(|bit| bitmap[bit / 8] & 1 << (bit % 8) != 0) {
            self.mark(base + bit as u64 * page_size_bytes, page_size_bytes);
        }
    }
}

fn harvest(source: &mut dyn DirtySource) -> BTreeSet<u64> {
    let mut found = Found::default();
    source.harvest(&mut found).unwrap();
    assert_eq!(found.twice, 0);
    found.grains
}

const EVERYTHING: [MemoryRange; 1] = [MemoryRange { gpa: 0, len: 1 << 40 }];

/// Some of the pages: single ones, runs, all of a mapping, nothing.
fn pattern(random: &mut Random) -> BTreeSet<u64> {
    let all = all_pages();
    match random.below(8) {
        0 => BTreeSet::new(),
        1 => all.into_iter().collect(),
        2 => {
            let (iova, len, _) = AREAS[random.below(AREAS.len() as u64) as usize];
            all.into_iter().filter(|page| (iova..iova + len).contains(page)).collect()
        }
        3 | 4 => {
            let mut run = 0;
            let mut in_run = |random: &mut Random| {
                run = if run > 0 { run - 1 } else { random.below(40).saturating_sub(20) * 3 };
                run > 0
            };
            all.into_iter().filter(|_| in_run(random)).collect()
        }
        5 => {
            // First and last pages of mappings, where off-by-one errors live.
            let edge = |page: &u64| AREAS.iter().any(|(i, l, _)| *page == *i || page / PAGE == (i + l - 1) / PAGE);
            all.into_iter().filter(edge).collect()
        }
        n => {
            let one_in = if n == 6 { 3 } else { 100 };
            all.into_iter().filter(|_| random.below(one_in) == 0).collect()
        }
    }
}

/// Rounds of patterns harvested by a source: the first difference, if there is one. `None` shows that it found all.
fn first_difference(
    rig: &Rig,
    source: &mut dyn DirtySource,
    page_size: u64,
    rounds: usize,
    random: &mut Random,
) -> Option<String> {
    let page_size = source.start(&EVERYTHING, page_size).unwrap();
    let (mut union, mut wanted) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..rounds {
        let pages = pattern(random);
        rig.dirty(&pages);
        let found = harvest(source);
        let want = expected(&pages, page_size);
        if found != want {
            let lost = want.difference(&found).count();
            let extra = found.difference(&want).count();
            return Some(format!("round {round}, pages of {page_size}: {lost} lost, {extra} that were not written"));
        }
        union.extend(found);
        wanted.extend(want);
    }
    assert_eq!(union, wanted);
    // Nothing is told twice.
    assert!(harvest(source).is_empty());
    source.stop().unwrap();
    None
}

fn random_patterns(random: &Mutex<Random>) {
    let rig = Rig::new();
    for page_size in [2048, 4096, 8192, 65536, 1 << 20, 1 << 21, 1 << 30] {
        let random = &mut *random.lock().unwrap();
        assert_eq!(first_difference(&rig, &mut rig.source(), page_size, 12, random), None);
    }
}

/// Where the kernel may choose large pages, more is told than was written, and nothing less.
fn large_pages(random: &Mutex<Random>) {
    let rig = Rig::with(true);
    // Half a page at either end, which is possible only here.
    let (iova, len, at) = (BASE + 0x500_0800, 0x2800, 0xe2_0800);
    rig.ioas.map(iova, len, Backing::Memory(rig.memory.hold(at, len).unwrap()), true).unwrap();
    let mut source = rig.source();
    assert_eq!(source.start(&EVERYTHING, GRAIN), Ok(GRAIN));
    for _ in 0..12 {
        let pages = pattern(&mut random.lock().unwrap());
        rig.dirty(&pages);
        let edges: BTreeSet<u64> = [iova, iova + len - GRAIN].into();
        dirty_in(&rig.iommu, &rig.hwpt, iova, len, &edges);
        let found = harvest(&mut source);
        let wanted: BTreeSet<u64> = expected(&pages, GRAIN).union(&edges).copied().collect();
        assert!(wanted.is_subset(&found), "{:?} lost", wanted.difference(&found).next());
    }
    source.harvest(&mut Found::default()).unwrap();
    assert!(harvest(&mut source).is_empty());
}

fn nothing_is_lost_meanwhile(random: &Mutex<Random>) {
    let rig = Rig::new();
    let mut pages = all_pages();
    random.lock().unwrap().shuffle(&mut pages);
    let mut source = rig.source();
    source.start(&EVERYTHING, 2048).unwrap();
    let (mut found, mut rounds) = (BTreeSet::new(), 0);
    std::thread::scope(|scope| {
        // Each page once: the mock's own setting of a bit may lose against a harvest of the same bit, and its result is
        // thrown away (`iommufd_test_dirty`).
        let writer = scope.spawn(|| {
            for some in pages.chunks(7) {
                let some: BTreeSet<u64> = some.iter().copied().collect();
                rig.dirty(&some);
            }
        });
        while !writer.is_finished() {
            for grain in harvest(&mut source) {
                assert!(found.insert(grain), "{grain:#x} twice, though it was written once");
            }
            rounds += 1;
        }
    });
    found.extend(harvest(&mut source));
    println!("# {} pages in {rounds} rounds", pages.len());
    assert!(rounds > 1);
    assert_eq!(found, expected(&pages.into_iter().collect(), 2048));
}

fn looking_does_not_clear() {
    let rig = Rig::new();
    rig.hwpt.set_dirty_tracking(true).unwrap();
    let (iova, len, _) = AREAS[0];
    let pages: BTreeSet<u64> = [iova, iova + 5 * PAGE, iova + len - PAGE].into();
    rig.dirty(&pages);
    let look = |keep| {
        let mut bits = vec![0u64; (len / PAGE).div_ceil(64) as usize];
        rig.hwpt.get_dirty(iova, len, PAGE, &mut bits, keep).unwrap();
        let set = (0..len / PAGE).filter(|n| bits[*n as usize / 64] & 1 << (n % 64) != 0);
        set.map(|n| iova + n * PAGE).collect::<BTreeSet<u64>>()
    };
    assert_eq!(look(true), pages);
    assert_eq!(look(true), pages);
    assert_eq!(look(false), pages);
    assert!(look(false).is_empty());
    // Switching it on again forgets.
    rig.dirty(&pages);
    rig.hwpt.set_dirty_tracking(true).unwrap();
    assert!(look(false).is_empty());
}

fn mappings_come_and_go() {
    let rig = Rig::new();
    let mut source = rig.source();
    source.start(&EVERYTHING, PAGE).unwrap();
    let (gone, len, _) = AREAS[1];
    assert_eq!(rig.ioas.unmap(gone, len), Ok(len));
    let new = BASE + 0x500_0000;
    let held = rig.memory.hold(0xf0_0000, 0x1_0000).unwrap();
    rig.ioas.map(new, 0x1_0000, Backing::Memory(held), true).unwrap();
    let read_only = rig.memory.hold(0xf1_0000, PAGE).unwrap();
    rig.ioas.map(new + 0x10_0000, PAGE, Backing::Memory(read_only), false).unwrap();
    dirty_in(&rig.iommu, &rig.hwpt, new, 0x1_0000, &[new + 3 * PAGE].into());
    let found = harvest(&mut source);
    let mut want: BTreeSet<u64> = (gone..gone + len).step_by(GRAIN as usize).collect();
    want.extend([new + 3 * PAGE, new + 3 * PAGE + GRAIN]);
    // Which of its pages were written nobody knows, so all of what went counts; and what came is tracked.
    assert_eq!(found, want);
    assert!(harvest(&mut source).is_empty());
}

/// A source with one bug.
struct Broken {
    hwpt: Arc<Hwpt>,
    iommu: Arc<Iommufd>,
    bug: Bug,
    rounds: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// None: the way itself is right.
    None,
    /// One query from the first mapping to the last.
    AcrossHoles,
    /// A bitmap that the kernel can't pin.
    NotThere,
    /// Every third harvest is thrown away: a single one may have nothing in it.
    ForgetsARound,
}

impl DirtySource for Broken {
    fn start(&mut self, _: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        self.hwpt.set_dirty_tracking(true)?;
        Ok(page_size_bytes)
    }

    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        self.rounds += 1;
        let queries: Vec<(u64, u64)> = match self.bug {
            Bug::AcrossHoles => vec![(AREAS[0].0, AREAS[5].0 + AREAS[5].1 - AREAS[0].0)],
            _ => AREAS.iter().map(|(iova, len, _)| (*iova, *len)).collect(),
        };
        for (iova, len) in queries {
            let mut bits = vec![0u64; (len / GRAIN).div_ceil(64) as usize];
            if self.bug == Bug::NotThere && iova == AREAS[3].0 {
                // SAFETY: nothing is mapped at address 4096 (`vm.mmap_min_addr` is above), so the kernel can't write there.
                unsafe { mock::raw_get_dirty(&self.iommu, self.hwpt.id(), iova, len, GRAIN, 4096) }.unwrap();
                continue;
            }
            self.hwpt.get_dirty(iova, len, GRAIN, &mut bits, false)?;
            let bytes: Vec<u8> = bits.iter().flat_map(|word| word.to_le_bytes()).collect();
            if self.bug != Bug::ForgetsARound || !self.rounds.is_multiple_of(3) {
                sink.merge_bitmap(iova, GRAIN, &bytes);
            }
        }
        Ok(())
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        self.hwpt.set_dirty_tracking(false)
    }
}

fn the_oracle_trips(random: &Mutex<Random>) {
    let rig = Rig::new();
    for bug in [Bug::None, Bug::AcrossHoles, Bug::NotThere, Bug::ForgetsARound] {
        let (hwpt, iommu) = (Arc::clone(&rig.hwpt), Arc::clone(&rig.iommu));
        let mut source = Broken { hwpt, iommu, bug, rounds: 0 };
        // Enough rounds that one has a pattern which shows it; the kernel reports success in all of them.
        let difference = first_difference(&rig, &mut source, 2048, 40, &mut random.lock().unwrap());
        println!("# {bug:?}: {difference:?}");
        assert_eq!(difference.is_some(), bug != Bug::None, "{bug:?}");
        let _ = source.stop();
    }
}

fn address(memory: &MappedMemory, gpa: u64, len: u64) -> u64 {
    memory.hold(gpa, len).unwrap().slice().unwrap().ptr.as_ptr().expose_provenance() as u64
}

fn both_ways_map_the_same_pages() {
    let iommu = Iommufd::open().unwrap();
    let ioas = Ioas::allocate(&iommu).unwrap();
    let device = MockDevice::new(&iommu, ioas.id());
    let (memory, fd) = memory();
    let mapped = |iova, len, gpa| is_mapped_to(&iommu, device.hwpt_id, iova, len, address(&memory, gpa, len));
    let (len, by_memory, by_file) = (0x3_0000, BASE, BASE + 0x100_0000);
    assert!(!mapped(by_memory, len, 0x1_0000));
    ioas.map(by_memory, len, Backing::Memory(memory.hold(0x1_0000, len).unwrap()), true).unwrap();
    ioas.map(by_file, len, Backing::File { fd: fd.as_fd(), offset: 0x1_0000 }, true).unwrap();
    // The kernel compares physical pages.
    assert!(mapped(by_memory, len, 0x1_0000));
    assert!(mapped(by_file, len, 0x1_0000));
    assert!(!mapped(by_file, PAGE, 0x2_0000), "the comparison finds what differs");
    assert_eq!(ioas.mapped(), [(by_memory, len), (by_file, len)].map(|(gpa, len)| MemoryRange { gpa, len }));
    assert_eq!(ioas.unmap(by_memory, len), Ok(len));
    assert!(!mapped(by_memory, PAGE, 0x1_0000));
    assert!(mapped(by_file, len, 0x1_0000));
    assert_eq!(ioas.unmap(0, u64::MAX), Ok(len));
    assert!(!mapped(by_file, PAGE, 0x1_0000));
    assert_eq!(ioas.unmap(0, u64::MAX), Ok(0));
}

fn guest_memory_is_mapped_as_long_as_its_mapping_lives() {
    let iommu = Iommufd::open().unwrap();
    let ioas = Ioas::allocate(&iommu).unwrap();
    let device = MockDevice::new(&iommu, ioas.id());
    let (memory, fd) = (MappedMemory::new(), memfd("vm-iommufd", 0x20_0000).unwrap());
    memory.add_region(BASE, fd.as_fd(), 0, 0x10_0000).unwrap();
    memory.add_region(BASE + 0x80_0000, fd.as_fd(), 0x10_0000, 0x10_0000).unwrap();
    let space: Arc<dyn AddressSpace> = Arc::clone(&ioas) as _;
    let mapping = GuestMapping::new(Arc::clone(&space), &memory).unwrap();
    assert_eq!(ioas.mapped(), memory.ranges());
    for range in memory.ranges() {
        assert!(is_mapped_to(&iommu, device.hwpt_id, range.gpa, range.len, address(&memory, range.gpa, range.len)));
    }
    let [first, second] = memory.ranges().try_into().unwrap();
    assert_eq!(mapping.remove(first), Ok(first.len));
    memory.remove_region(first.gpa, first.len).unwrap();
    drop(mapping);
    assert!(ioas.mapped().is_empty());
    memory.remove_region(second.gpa, second.len).unwrap();

    // A region that can't be mapped, as it lies outside of what the IOMMU reaches: nothing stays.
    memory.add_region(BASE, fd.as_fd(), 0, 0x10_0000).unwrap();
    memory.add_region(0x8000_0000, fd.as_fd(), 0, 0x10_0000).unwrap();
    let error = GuestMapping::new(space, &memory).unwrap_err();
    assert!(error.errno.is_some(), "{error}");
    println!("# {error}");
    assert!(ioas.mapped().is_empty());
}

fn what_the_kernel_refuses_is_told() {
    let iommu = Iommufd::open().unwrap();
    let ioas = Ioas::allocate(&iommu).unwrap();
    let (memory, fd) = memory();
    let map = |iova, len, at| ioas.map(iova, len, Backing::Memory(memory.hold(at, len).unwrap()), true);
    // Before a device is there, everything can be mapped.
    assert_eq!(ioas.iova_ranges().unwrap().ranges, [MemoryRange { gpa: 0, len: u64::MAX }]);
    let device = MockDevice::new(&iommu, ioas.id());
    let ranges = ioas.iova_ranges().unwrap();
    let aperture = MemoryRange { gpa: BASE, len: mock::APERTURE.end() - BASE + 1 };
    assert_eq!((ranges.ranges, ranges.alignment), (vec![aperture], mock::PAGE));
    assert_eq!(ioas.usable().unwrap(), [aperture]);

    let told = |error: ChannelError, kind, errno: Option<Errno>, words: &str| {
        println!("# {error}");
        assert_eq!((error.kind, error.errno), (kind, errno.map(Errno::raw_os_error)), "{error}");
        assert!(error.message.contains(words), "{error}");
    };
    map(BASE, 0x2000, 0).unwrap();
    let overlap = map(BASE + 0x1000, 0x1000, 0).unwrap_err();
    told(overlap, ChannelErrorKind::State, None, "is mapped already");
    let cut = ioas.unmap(BASE + 0x1000, 0x1000).unwrap_err();
    told(cut, ChannelErrorKind::State, None, "in two");
    let outside = map(BASE - 0x1000, 0x1000, 0).unwrap_err();
    println!("# {outside}");
    assert!(outside.errno.is_some() && outside.message.contains("IOMMU_IOAS_MAP"), "{outside}");
    let null = std::fs::File::open("/dev/null").unwrap();
    let no_memfd = ioas.map(BASE + 0x10_0000, 0x1000, Backing::File { fd: null.as_fd(), offset: 0 }, true).unwrap_err();
    println!("# {no_memfd}");
    assert!(no_memfd.message.contains("IOMMU_IOAS_MAP_FILE"), "{no_memfd}");
    let beyond = Backing::File { fd: fd.as_fd(), offset: MEMORY - 0x1000 };
    assert!(ioas.map(BASE + 0x10_0000, 0x2000, beyond, true).is_err());
    assert_eq!(ioas.mapped().len(), 1);

    // A page table that the kernel would make: no tracking, and nothing that a size would fix.
    let plain = Hwpt::allocate(&ioas, device.dev_id, false).unwrap();
    let error = plain.set_dirty_tracking(true).unwrap_err();
    told(error, ChannelErrorKind::Unsupported, Some(Errno::OPNOTSUPP), "made without dirty tracking");
    let error = IommufdDirty::new(&plain).start(&EVERYTHING, 4096).unwrap_err();
    assert_eq!(error.kind, ChannelErrorKind::Unsupported);
    let hwpt = Hwpt::allocate(&ioas, device.dev_id, true).unwrap();
    hwpt.set_dirty_tracking(true).unwrap();
    let mut bits = [0; 1];
    for (iova, len, page) in
        [(BASE, 0x2000, 0), (BASE, 0x2000, 3000), (BASE + 1, 0x2000, 4096), (BASE, 0x100_0000, 4096)]
    {
        let error = hwpt.get_dirty(iova, len, page, &mut bits, false).unwrap_err();
        assert_eq!(error.errno, Some(Errno::INVAL.raw_os_error()), "{error}");
    }
    let error = Hwpt::allocate(&ioas, 0x7777, true).unwrap_err();
    told(error, ChannelErrorKind::Device, Some(Errno::NOENT), "no such device");
    drop(device);
}

fn an_iommu_without_tracking_is_refused() {
    let iommu = Iommufd::open().unwrap();
    let ioas = Ioas::allocate(&iommu).unwrap();
    let with = MockDevice::new(&iommu, ioas.id());
    assert!(iommu.hw_info(with.dev_id).unwrap().can_track_dirty());
    let without = MockDevice::try_new(&iommu, ioas.id(), false).unwrap();
    assert!(!iommu.hw_info(without.dev_id).unwrap().can_track_dirty());
    let error = Hwpt::allocate(&ioas, without.dev_id, true).unwrap_err();
    println!("# {error}");
    assert_eq!((error.kind, error.errno), (ChannelErrorKind::Unsupported, Some(Errno::OPNOTSUPP.raw_os_error())));
    assert!(Hwpt::allocate(&ioas, without.dev_id, false).is_ok());
    assert_eq!(iommu.hw_info(0x7777).unwrap_err().errno, Some(Errno::NOENT.raw_os_error()));
}

fn objects_are_closed_once() {
    let iommu = Iommufd::open().unwrap();
    iommu.set_accounts_by_process(true).unwrap();
    assert!(iommu.accounts_by_process().unwrap());
    let ioas = Ioas::allocate(&iommu).unwrap();
    assert!(iommu.set_accounts_by_process(false).is_err(), "only before there is any object");
    assert!(ioas.huge_pages().unwrap());
    ioas.set_huge_pages(false).unwrap();
    assert!(!ioas.huge_pages().unwrap());
    let device = MockDevice::new(&iommu, ioas.id());
    let hwpt = Hwpt::allocate(&ioas, device.dev_id, true).unwrap();
    let (memory, _) = memory();
    ioas.map(BASE, 0x1000, Backing::Memory(memory.hold(0, 0x1000).unwrap()), true).unwrap();
    let error = ioas.close().unwrap_err();
    assert_eq!((error.kind, error.errno), (ChannelErrorKind::State, Some(Errno::BUSY.raw_os_error())), "{error}");
    drop(device);
    for _ in 0..3 {
        hwpt.close().unwrap();
    }
    assert_eq!(hwpt.id(), 0);
    assert_eq!(hwpt.set_dirty_tracking(true).unwrap_err().errno, Some(Errno::NOENT.raw_os_error()));
    for _ in 0..3 {
        ioas.close().unwrap();
    }
    assert_eq!(ioas.id(), 0);
    let late = ioas.map(BASE, 0x1000, Backing::Memory(memory.hold(0, 0x1000).unwrap()), true).unwrap_err();
    assert!(late.message.contains("closed"), "{late}");
    // The memory is no longer held.
    memory.remove_region(0, MEMORY).unwrap();
}

/// The bitmap spans several pages of the process, which the kernel pins one by one.
fn many_pages(random: &Mutex<Random>) {
    let iommu = Iommufd::open().unwrap();
    let ioas = Ioas::allocate(&iommu).unwrap();
    ioas.set_huge_pages(false).unwrap();
    let device = MockDevice::new(&iommu, ioas.id());
    let len = 0x800_0000;
    let (memory, fd) = (MappedMemory::new(), memfd("vm-iommufd", len).unwrap());
    memory.add_region(0, fd.as_fd(), 0, len).unwrap();
    ioas.map(BASE, len, Backing::Memory(memory.hold(0, len).unwrap()), true).unwrap();
    let hwpt = Hwpt::allocate(&ioas, device.dev_id, true).unwrap();
    let mut source = IommufdDirty::new(&hwpt);
    source.start(&EVERYTHING, 2048).unwrap();
    let pages: BTreeSet<u64> = {
        let random = &mut *random.lock().unwrap();
        (0..3000).map(|_| BASE + random.below(len / PAGE) * PAGE).chain([BASE, BASE + len - PAGE]).collect()
    };
    dirty_in(&iommu, &hwpt, BASE, len, &pages);
    let want: BTreeSet<u64> = pages.iter().flat_map(|page| [*page, page + GRAIN]).collect();
    assert_eq!(harvest(&mut source), want);
}

fn main() -> ExitCode {
    let random = Mutex::new(Random::seeded(1));
    let tests: [Test<'_>; 12] = [
        ("objects are closed once, and their memory is let go of", Box::new(objects_are_closed_once)),
        (
            "by memory and by file the same pages are mapped, as the kernel sees it",
            Box::new(both_ways_map_the_same_pages),
        ),
        (
            "guest memory is mapped as long as its mapping lives",
            Box::new(guest_memory_is_mapped_as_long_as_its_mapping_lives),
        ),
        ("what the kernel refuses is told", Box::new(what_the_kernel_refuses_is_told)),
        ("an IOMMU without dirty tracking is refused", Box::new(an_iommu_without_tracking_is_refused)),
        ("looking with NO_CLEAR doesn't clear", Box::new(looking_does_not_clear)),
        (
            "random patterns, holes and page sizes: all that was dirtied and no more",
            Box::new(|| random_patterns(&random)),
        ),
        ("with large pages more is told, and nothing less", Box::new(|| large_pages(&random))),
        (
            "dirtied meanwhile by another thread: nothing lost, nothing twice",
            Box::new(|| nothing_is_lost_meanwhile(&random)),
        ),
        ("mappings come and go while pages are tracked", Box::new(mappings_come_and_go)),
        ("sources with a bug are found out, though the kernel reports success", Box::new(|| the_oracle_trips(&random))),
        ("3000 pages of 128 MiB are found", Box::new(|| many_pages(&random))),
    ];
    vm_support::run(&tests)
}
