//! The kernel runs out of memory at every allocation of every sequence: migration of a device by its group and by its own
//! node, dirty tracking by iommufd and type1, and removing a mediated device by sysfs. Errors are told with `ENOMEM`, no descriptor
//! is left open, devices are running or do so after a reset, and the same sequence then works. Run by `test/kernel`.
//!
//! `vm_faults MDEV-UUID MDEV-UUID` prints TAP; the exit code is 1 where anything failed. The two mediated devices are of one
//! type of mtty. Making functions is left out: the kernel itself doesn't survive a failure within `sriov_numvfs`
//! (`pci_iov_add_virtfn` removes a device that `device_add` has not added, in `kill_device`; seen with 7.3.4).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use towline_core::channel::{DirtySink, DirtySource, ReadOutcome, StateChannel};
use towline_core::fsm::DeviceState;
use towline_core::memory::MemoryRange;
use towline_linux::address_space::{AddressSpace, Backing};
use towline_linux::errno::errno_text;
use towline_linux::iommufd::{Hwpt, Ioas, Iommufd, IommufdDirty};
use towline_linux::mdev;
use towline_linux::memory::{MappedMemory, memfd};
use towline_linux::type1::{Type1, Type1Dirty};
use towline_linux::vfio::{Container, Place, VfioChannel, VfioDevice};
use vm_support::Test;
use vm_support::fail_nth::{FailNth, Failed, each_allocation};
use vm_support::hosts::{by_group, sysfs};
use vm_support::mock::{self, MockDevice};

mod vm_support;

const PAGE: u64 = 4096;

/// What one sequence may take before it no longer fails every single allocation, on an emulated processor.
const BUDGET: Duration = Duration::from_secs(60);

/// iommufd with its tests compiled in has faults of its own kind, which `fail-nth` reaches too (`iommufd_should_fail` in
/// `drivers/iommu/iommufd`): no object is found (`ENOENT`), no pages are (`EFAULT`), a domain doesn't fit (`EINVAL`).
fn by_iommufd(error: &Failed) -> bool {
    let named = |number| error.errno == Some(number) && error.words.contains(&errno_text(number));
    (error.words.contains("IOMMU_") || error.words.contains("IOMMUFD")) && [2, 14, 22].into_iter().any(named)
}

fn nothing_else(_: &Failed) -> bool {
    false
}

fn wrong(words: &str) -> Failed {
    Failed { errno: None, words: words.to_owned() }
}

/// All of the state, by way of PRE_COPY.
fn save(channel: &mut VfioChannel) -> Result<Vec<u8>, Failed> {
    channel.reset()?;
    let (mut state, mut piece) = (vec![], [0; 40]);
    channel.set_state(DeviceState::PreCopy)?;
    channel.pending()?;
    while let ReadOutcome::Bytes(n) = channel.read(&mut piece)? {
        state.extend_from_slice(&piece[..n]);
    }
    channel.set_state(DeviceState::StopCopy)?;
    channel.pending()?;
    while let ReadOutcome::Bytes(n) = channel.read(&mut piece)? {
        state.extend_from_slice(&piece[..n]);
    }
    channel.set_state(DeviceState::Running)?;
    Ok(state)
}

fn load(channel: &mut VfioChannel, state: &[u8]) -> Result<(), Failed> {
    channel.set_state(DeviceState::Resuming)?;
    channel.write(state)?;
    channel.set_state(DeviceState::Running)?;
    if channel.state()? != DeviceState::Running {
        return Err(wrong("it doesn't run"));
    }
    channel.reset()?;
    Ok(())
}

fn migrate(source: VfioDevice, destination: VfioDevice) -> Result<(), Failed> {
    let mut from = VfioChannel::open(&Arc::new(source))?;
    let mut to = VfioChannel::open(&Arc::new(destination))?;
    let state = save(&mut from)?;
    if state.len() != 96 {
        return Err(wrong("the state is not whole"));
    }
    load(&mut to, &state)
}

/// Every device runs, if need be after a reset: by the library and by the kernel's own account.
fn runs(devices: &[&str]) {
    for name in devices {
        let device = Arc::new(by_group(&Container::open().unwrap(), name));
        let mut channel = VfioChannel::open(&device).unwrap();
        if channel.state().unwrap() != DeviceState::Running {
            channel.reset().unwrap();
        }
        assert_eq!(channel.state(), Ok(DeviceState::Running), "{name}");
        let debugfs = std::fs::read_to_string(Path::new("/sys/kernel/debug/vfio").join(name).join("migration/state"));
        assert_eq!(debugfs.unwrap().trim(), "RUNNING", "{name}");
    }
}

fn migrate_by_group(fail: &FailNth, [a, b]: [&str; 2]) {
    // Where the devices are is looked up before: what fails is what is asked of VFIO.
    let groups = [a, b].map(|name| Place::find(name).unwrap().group().unwrap());
    let mut sequence = || {
        let source = Container::open()?.device(groups[0], a)?;
        let destination = Container::open()?.device(groups[1], b)?;
        migrate(source, destination)
    };
    each_allocation(fail, "migrate by group", BUDGET, &nothing_else, &mut sequence, &mut || runs(&[a, b]));
}

fn migrate_by_cdev(fail: &FailNth, [a, b]: [&str; 2]) {
    let nodes: [PathBuf; 2] = [a, b].map(|name| Place::find(name).unwrap().cdev().unwrap());
    let mut sequence = || {
        let iommu = Iommufd::open()?;
        let ioas = Ioas::allocate(&iommu)?;
        let source = VfioDevice::open_cdev(&nodes[0], a, iommu.as_fd(), None)?;
        let destination = VfioDevice::open_cdev(&nodes[1], b, iommu.as_fd(), None)?;
        source.attach(ioas.id())?;
        destination.attach(ioas.id())?;
        migrate(source, destination)?;
        ioas.close()?;
        Ok(())
    };
    each_allocation(fail, "migrate by cdev", BUDGET, &by_iommufd, &mut sequence, &mut || runs(&[a, b]));
}

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

const LEN: u64 = 0x4_0000;

fn memory() -> (MappedMemory, OwnedFd) {
    let (memory, fd) = (MappedMemory::new(), memfd("vm-faults", 2 * LEN).unwrap());
    memory.add_region(0, fd.as_fd(), 0, 2 * LEN).unwrap();
    (memory, fd)
}

/// A harvest that tells less than was written is the one thing that may never be: an error tells everything.
fn harvest(source: &mut dyn DirtySource, wanted: &BTreeSet<u64>) -> Result<(), Failed> {
    let mut found = Found::default();
    let result = source.harvest(&mut found);
    assert!(found.0.is_superset(wanted), "{:?} lost, {result:?}", wanted.difference(&found.0).next());
    result?;
    assert_eq!(found.0, *wanted);
    Ok(())
}

fn track_by_iommufd(fail: &FailNth) {
    let iommu = Iommufd::open().unwrap();
    let other = Ioas::allocate(&iommu).unwrap();
    let device = MockDevice::new(&iommu, other.id());
    let (memory, fd) = memory();
    let base = *mock::APERTURE.start();
    let (first, second) = (base, base + 0x100_0000);
    let ranges = [MemoryRange { gpa: base, len: 0x200_0000 }];
    let mut sequence = || {
        let ioas = Ioas::allocate(&iommu)?;
        ioas.set_huge_pages(false)?;
        ioas.map(first, LEN, Backing::Memory(memory.hold(0, LEN).unwrap()), true)?;
        let hwpt = Hwpt::allocate(&ioas, device.dev_id, true)?;
        ioas.map(second, LEN, Backing::File { fd: fd.as_fd(), offset: LEN }, true)?;
        let mut source = IommufdDirty::new(&hwpt);
        source.start(&ranges, PAGE)?;
        for at in [first, second] {
            mock::dirty(&iommu, hwpt.id(), at, LEN, PAGE, &[0b1001]).map_err(|errno| {
                let number = errno.raw_os_error();
                Failed { errno: Some(number), words: format!("IOMMU_TEST_OP_DIRTY: {}", errno_text(number)) }
            })?;
        }
        harvest(&mut source, &[first, first + 3 * PAGE, second, second + 3 * PAGE].into())?;
        harvest(&mut source, &BTreeSet::new())?;
        ioas.unmap(first, LEN)?;
        harvest(&mut source, &(first..first + LEN).step_by(PAGE as usize).collect())?;
        source.stop()?;
        drop(source);
        hwpt.close()?;
        ioas.close()?;
        Ok(())
    };
    each_allocation(fail, "track by iommufd", BUDGET, &by_iommufd, &mut sequence, &mut || {});
    drop((device, other));
    // Nothing is held any more, after all those failures.
    memory.remove_region(0, 2 * LEN).unwrap();
}

fn track_by_type1(fail: &FailNth, name: &str) {
    let group = Place::find(name).unwrap().group().unwrap();
    let (memory, _fd) = memory();
    let ranges = [MemoryRange { gpa: 0, len: 2 * LEN }];
    let mut sequence = || {
        let container = Container::open()?;
        let device = container.device(group, name)?;
        let space = Type1::new(Arc::clone(&container));
        space.map(0, LEN, Backing::Memory(memory.hold(0, LEN).unwrap()), true)?;
        let mut source = Type1Dirty::new(&space);
        source.start(&ranges, PAGE)?;
        space.map(LEN, LEN, Backing::Memory(memory.hold(LEN, LEN).unwrap()), true)?;
        harvest(&mut source, &BTreeSet::new())?;
        space.unmap(0, 2 * LEN)?;
        harvest(&mut source, &BTreeSet::new())?;
        source.stop()?;
        drop(device);
        Ok(())
    };
    each_allocation(fail, "track by type1", BUDGET, &nothing_else, &mut sequence, &mut || runs(&[name]));
    memory.remove_region(0, 2 * LEN).unwrap();
}

/// Removing only: the kernel itself warns where it can't make the VFIO group of a new device (`vfio_group_release` in
/// `drivers/vfio/group.c`; seen with 7.3.4).
fn remove_mdev(fail: &FailNth) {
    let uuid = "22222222-0000-4000-8000-000000000001";
    let there = || Path::new("/sys/bus/mdev/devices").join(uuid).exists();
    let make = || {
        if !there() {
            mdev::create(&sysfs(), "devices/virtual/mtty/mtty", "mtty-2", uuid).unwrap();
        }
    };
    make();
    let mut sequence = || {
        mdev::remove(&sysfs(), uuid)?;
        if there() { Err(wrong("the kernel says that it removed the device, and it is there")) } else { Ok(()) }
    };
    each_allocation(fail, "remove mdev", BUDGET, &nothing_else, &mut sequence, &mut || make());
    mdev::remove(&sysfs(), uuid).unwrap();
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [a, b, ..] = arguments.as_slice() else { panic!("vm_faults MDEV-UUID MDEV-UUID") };
    let Some(fail) = FailNth::new() else { panic!("this kernel has no CONFIG_FAILSLAB") };
    let pair = [a.as_str(), b.as_str()];
    let tests: [Test<'_>; 5] = [
        ("removing a mediated device", Box::new(|| remove_mdev(&fail))),
        ("dirty tracking by iommufd", Box::new(|| track_by_iommufd(&fail))),
        ("dirty tracking by type1", Box::new(|| track_by_type1(&fail, a))),
        ("migration by group", Box::new(|| migrate_by_group(&fail, pair))),
        ("migration by cdev", Box::new(|| migrate_by_cdev(&fail, pair))),
    ];
    vm_support::run(&tests)
}
