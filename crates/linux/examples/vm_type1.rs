//! Dirty pages by type1, whose answers are the kernel's rules: everything for a PCI device, nothing for a mediated device
//! that touches no memory. And the IOMMU of this machine, which tracks none by itself, through iommufd. Run by `test/kernel`.
//!
//! `vm_type1 PCI-ADDRESS MDEV-UUID` prints TAP; the exit code is 1 where anything failed. The PCI function is taken from its
//! driver and given back.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::ioctl::{Opcode, Updater, opcode};
use towline_core::channel::{ChannelErrorKind, DirtySink, DirtySource};
use towline_core::memory::{GuestMemory, MemoryRange};
use towline_linux::address_space::{AddressSpace, Backing, GuestMapping};
use towline_linux::iommufd::{Hwpt, Ioas, Iommufd, IommufdDirty};
use towline_linux::memory::{MappedMemory, memfd};
use towline_linux::type1::{Type1, Type1Dirty};
use towline_linux::vfio::{Container, Place, VfioDevice};
use vm_support::Test;
use vm_support::hosts::{Bound, by_group};

mod vm_support;

const PAGE: u64 = 4096;
const MEMORY: u64 = 0x40_0000;
/// Mappings with holes, in the order of their addresses: a large one, one of 65 pages (a bitmap of one word and a bit), one page.
const AREAS: [(u64, u64, u64); 3] =
    [(0x10_0000, 0x20_0000, 0), (0x40_0000, 0x4_1000, 0x20_0000), (0x1_0000_0000, 0x1000, 0x30_0000)];
const EVERYTHING: [MemoryRange; 1] = [MemoryRange { gpa: 0, len: 1 << 40 }];

#[derive(Default)]
struct Found(BTreeSet<u64>);

impl DirtySink for Found {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.extend((gpa..gpa + len).step_by(PAGE as usize));
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
    found.0
}

fn pages(areas: &[(u64, u64, u64)]) -> BTreeSet<u64> {
    areas.iter().flat_map(|(iova, len, _)| (*iova..iova + len).step_by(PAGE as usize)).collect()
}

fn memory() -> (MappedMemory, OwnedFd) {
    let (memory, fd) = (MappedMemory::new(), memfd("vm-type1", MEMORY).unwrap());
    memory.add_region(0, fd.as_fd(), 0, MEMORY).unwrap();
    (memory, fd)
}

/// Maps [`AREAS`], one of them by its file, and a page that a device may only read.
fn map(space: &Type1, memory: &MappedMemory, fd: BorrowedFd<'_>) {
    let held = |(_, len, at)| Backing::Memory(memory.hold(at, len).unwrap());
    let [first, second, third] = AREAS;
    space.map(first.0, first.1, held(first), true).unwrap();
    space.map(second.0, second.1, Backing::File { fd, offset: second.2 }, true).unwrap();
    space.map(third.0, third.1, held(third), true).unwrap();
    space.map(0x2_0000_0000, PAGE, held((0, PAGE, 0x31_0000)), false).unwrap();
}

fn a_mediated_device_is_clean(mdev: &str) {
    let container = Container::open().unwrap();
    let space = Type1::new(Arc::clone(&container));
    let error = space.info().unwrap_err();
    assert!(error.message.contains("no device is open"), "{error}");
    let device = by_group(&container, mdev);
    let info = space.info().unwrap();
    println!("# {info:x?}");
    let migration = info.migration.unwrap();
    assert_eq!((migration.page_size, migration.max_bitmap_bytes), (PAGE, 256 << 20));
    let (memory, fd) = memory();
    map(&space, &memory, fd.as_fd());
    let mut source = Type1Dirty::new(&space);
    // The kernel's page, whatever is asked.
    for asked in [512, PAGE, 1 << 21] {
        assert_eq!(source.start(&EVERYTHING, asked), Ok(PAGE));
        assert_eq!(Type1Dirty::new(&space).start(&EVERYTHING, PAGE).unwrap_err().kind, ChannelErrorKind::State);
        assert!(harvest(&mut source).is_empty());
        source.stop().unwrap();
    }
    let ranges = [MemoryRange { gpa: 0, len: 0x80_0000 }];
    source.start(&ranges, PAGE).unwrap();
    // Unmapped with its bitmap: clean as well.
    assert_eq!(space.unmap(AREAS[0].0, AREAS[0].1), Ok(AREAS[0].1));
    assert!(harvest(&mut source).is_empty());
    // The container loses its model with its last device, and the source can only say so.
    drop(device);
    let mut found = Found::default();
    let error = source.harvest(&mut found).unwrap_err();
    println!("# {error}");
    assert!(error.message.contains("GET_BITMAP") && error.message.contains("EINVAL"), "{error}");
    assert_eq!(found.0, pages(&[(0, ranges[0].len, 0)]), "all of it is dirty then");
    let _ = source.stop();
}

fn a_pci_device_dirties_all(address: &str, mdev: &str) {
    let _bound = Bound::to(address, "vfio-pci");
    let container = Container::open().unwrap();
    let space = Type1::new(Arc::clone(&container));
    let device = by_group(&container, address);
    let info = space.info().unwrap();
    println!("# {info:x?}");
    assert!(info.ranges.iter().all(|r| !(r.gpa..r.gpa + r.len).contains(&0xfee0_0000)), "interrupts are not memory");
    let (memory, fd) = memory();
    map(&space, &memory, fd.as_fd());
    let mut source = Type1Dirty::new(&space);
    source.start(&EVERYTHING, PAGE).unwrap();
    let all = pages(&AREAS);
    for _ in 0..3 {
        assert_eq!(harvest(&mut source), all, "every mapped page, every time, and none of the holes");
    }
    // Together with a mediated device it stays so.
    let mediated = by_group(&container, mdev);
    assert_eq!(harvest(&mut source), all);
    drop(mediated);
    // What goes is told from the bitmap that unmapping gave, once.
    assert_eq!(space.unmap(AREAS[1].0, AREAS[1].1), Ok(AREAS[1].1));
    assert_eq!(harvest(&mut source), all);
    assert_eq!(harvest(&mut source), pages(&[AREAS[0], AREAS[2]]));
    source.stop().unwrap();

    // Where a range is tracked, only the mappings that it touches.
    source.start(&[MemoryRange { gpa: AREAS[2].0, len: PAGE }], PAGE).unwrap();
    assert_eq!(harvest(&mut source), pages(&[AREAS[2]]));
    source.stop().unwrap();

    let error = space.unmap(AREAS[0].0, PAGE).unwrap_err();
    assert_eq!(error.kind, ChannelErrorKind::State, "{error}");
    let error = space.map(0xfee0_0000, PAGE, Backing::Memory(memory.hold(0, PAGE).unwrap()), true).unwrap_err();
    println!("# {error}");
    assert_eq!(error.errno, Some(Errno::INVAL.raw_os_error()));
    assert_eq!(space.unmap(0, u64::MAX), Ok(AREAS[0].1 + AREAS[2].1 + PAGE));
    assert!(space.mapped().is_empty());
    drop(device);
    // Nothing of it is held any more.
    memory.remove_region(0, MEMORY).unwrap();
}

/// `VFIO_IOMMU_DIRTY_PAGES` as the library never calls it.
fn raw_get(container: &Container, iova: u64, size: u64, bits: &mut [u64]) -> Result<(), Errno> {
    const DIRTY_PAGES: Opcode = opcode::none(b';', 117);
    assert!(size / PAGE <= bits.len() as u64 * 64);
    // argsz and flags (GET_BITMAP), iova, size, pgsize, bytes, address.
    let data = bits.as_mut_ptr().expose_provenance() as u64;
    let mut dirty = [48 | 4 << 32, iova, size, PAGE, bits.len() as u64 * 8, data];
    // SAFETY: the structure of this ioctl, with its size; the bitmap is as long as it tells, and exclusively borrowed.
    unsafe { rustix::ioctl::ioctl(container.as_fd(), Updater::<DIRTY_PAGES, _>::new(&mut dirty)) }
}

/// Why the library asks mapping by mapping, into zeroed words.
fn the_kernels_traps_are_there(address: &str) {
    let _bound = Bound::to(address, "vfio-pci");
    let container = Container::open().unwrap();
    let space = Type1::new(Arc::clone(&container));
    let _device = by_group(&container, address);
    let (memory, _fd) = memory();
    let second = 0x20_0000;
    for at in [0, second] {
        space.map(at, 0x1_0000, Backing::Memory(memory.hold(at, 0x1_0000).unwrap()), true).unwrap();
    }
    let mut source = Type1Dirty::new(&space);
    source.start(&EVERYTHING, PAGE).unwrap();
    // Across the hole: what is there of it stays as it was.
    for stale in [0, u64::MAX] {
        let mut bits = [stale; 9];
        raw_get(&container, 0, second + 0x1_0000, &mut bits).unwrap();
        assert_eq!(bits, [0xffff, stale, stale, stale, stale, stale, stale, stale, 0xffff]);
    }
    let mut bits = [0; 1];
    assert_eq!(raw_get(&container, 0, 0x8000, &mut bits), Err(Errno::INVAL), "half of a mapping");
    source.stop().unwrap();
    assert_eq!(raw_get(&container, 0, 0x1_0000, &mut bits), Err(Errno::INVAL), "nobody tracks");
}

fn guest_memory_of_a_container(address: &str) {
    let _bound = Bound::to(address, "vfio-pci");
    let container = Container::open().unwrap();
    let space = Type1::new(Arc::clone(&container));
    let device = by_group(&container, address);
    let (memory, _fd) = memory();
    let mapping = GuestMapping::new(Arc::clone(&space) as Arc<dyn AddressSpace>, &memory).unwrap();
    assert_eq!(space.mapped(), memory.ranges());
    drop(mapping);
    assert!(space.mapped().is_empty());
    // The memory is let go of as well where the device goes first.
    let mapping = GuestMapping::new(Arc::clone(&space) as Arc<dyn AddressSpace>, &memory).unwrap();
    drop(device);
    drop((mapping, space, container));
    memory.remove_region(0, MEMORY).unwrap();
}

fn this_iommu_tracks_nothing(address: &str, mdev: &str) {
    let iommu = match Iommufd::open() {
        Ok(iommu) => iommu,
        Err(error) => {
            // Debian's kernel.
            println!("# {error}");
            assert_eq!(error.kind, ChannelErrorKind::Unsupported);
            assert!(error.message.contains("CONFIG_IOMMUFD"), "{error}");
            return;
        }
    };
    let _bound = Bound::to(address, "vfio-pci");
    let ioas = Ioas::allocate(&iommu).unwrap();
    let open = |name: &str| {
        VfioDevice::open_cdev(&Place::find(name).unwrap().cdev().unwrap(), name, iommu.as_fd(), None).unwrap()
    };
    let device = open(address);
    let dev_id = device.devid().unwrap();
    assert!(!iommu.hw_info(dev_id).unwrap().can_track_dirty());
    let error = Hwpt::allocate(&ioas, dev_id, true).unwrap_err();
    println!("# {error}");
    assert_eq!((error.kind, error.errno), (ChannelErrorKind::Unsupported, Some(Errno::OPNOTSUPP.raw_os_error())));
    assert!(error.message.contains("doesn't track dirty pages"), "{error}");
    let hwpt = Hwpt::allocate(&ioas, dev_id, false).unwrap();
    device.attach(hwpt.id()).unwrap();
    assert!(hwpt.close().is_err(), "a device uses it");
    let (memory, fd) = memory();
    ioas.map(0, 0x1_0000, Backing::Memory(memory.hold(0, 0x1_0000).unwrap()), true).unwrap();
    ioas.map(0x1_0000, 0x1_0000, Backing::File { fd: fd.as_fd(), offset: 0x1_0000 }, true).unwrap();
    let ranges = ioas.iova_ranges().unwrap();
    println!("# {ranges:x?}");
    assert!(ranges.ranges.iter().all(|r| !(r.gpa..r.gpa + r.len).contains(&0xfee0_0000)));
    let error = IommufdDirty::new(&hwpt).start(&EVERYTHING, PAGE).unwrap_err();
    println!("# {error}");
    assert_eq!(error.kind, ChannelErrorKind::Unsupported);
    device.detach().unwrap();
    hwpt.close().unwrap();

    // A mediated device has no IOMMU that could be asked; it attaches to the address space itself.
    let mediated = open(mdev);
    let error = iommu.hw_info(mediated.devid().unwrap()).unwrap_err();
    println!("# {error}");
    assert!(error.message.contains("mediated"), "{error}");
    mediated.attach(ioas.id()).unwrap();
    assert!(ioas.close().is_err(), "a device uses it");
    drop(mediated);
    ioas.close().unwrap();
    drop(device);
    memory.remove_region(0, MEMORY).unwrap();
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, mdev, ..] = arguments.as_slice() else { panic!("vm_type1 PCI-ADDRESS MDEV-UUID") };
    let tests: [Test<'_>; 5] = [
        (
            "a mediated device is clean, and one that went leaves everything dirty",
            Box::new(|| a_mediated_device_is_clean(mdev)),
        ),
        ("a PCI device dirties all that is mapped, every time", Box::new(|| a_pci_device_dirties_all(address, mdev))),
        ("the kernel's traps are there", Box::new(|| the_kernels_traps_are_there(address))),
        ("guest memory of a container is mapped and let go of", Box::new(|| guest_memory_of_a_container(address))),
        ("this machine's IOMMU tracks nothing and says so", Box::new(|| this_iommu_tracks_nothing(address, mdev))),
    ];
    vm_support::run(&tests)
}
