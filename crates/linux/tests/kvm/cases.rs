//! The cases. In each, vCPUs write at random while somebody harvests.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use towline_core::channel::{ChannelError, DirtySink, DirtySource};
use towline_core::memory::MemoryRange;
use towline_linux::TrackError;
use towline_linux::kvm::{KvmDirty, KvmHandle, KvmMode, KvmOptions, KvmSlot};

use crate::guest::{PAGE, Running, Slot, Vm};
use crate::harness::Case;
use crate::oracle::{Copy, Verdict};

pub const CASES: &[Case] = &[
    ("log_with_manual_protection_finds_every_write", || every_write(false, true)),
    ("log_without_manual_protection_finds_every_write", || every_write(false, false)),
    ("full_rings_find_every_write", || every_write(true, true)),
    ("log_starts_again_after_a_stop", || starts_again(false)),
    ("ring_starts_again_after_a_stop", || starts_again(true)),
    ("log_follows_slots_that_come_and_go", || slots_come_and_go(false)),
    ("ring_follows_slots_that_come_and_go", || slots_come_and_go(true)),
    ("a_range_in_the_middle_of_a_slot_is_tracked_alone", a_part_of_a_slot),
    ("a_slot_that_is_left_out_is_noticed", || a_slot_left_out(false)),
    ("a_slot_that_is_left_out_of_a_ring_is_an_error", || a_slot_left_out(true)),
    ("a_log_that_is_cleared_before_it_is_read_is_noticed", || sabotaged(false, |source| Box::new(ClearsFirst(source)))),
    ("a_ring_entry_that_is_skipped_is_noticed", || sabotaged(true, |source| Box::new(Skips(source)))),
    ("pages_that_are_read_before_they_are_told_are_noticed", reads_first),
    ("another_process_is_refused", another_process),
    ("what_is_no_vm_and_no_ring_is_refused", wrong_descriptors),
    ("a_slot_that_kvm_has_otherwise_is_refused", wrong_slots),
];

fn source(vm: &Vm, slots: &[Slot], manual_protect: bool) -> Result<KvmDirty, TrackError> {
    let slots: Vec<KvmSlot> = slots.iter().map(Slot::kvm).collect();
    let vcpus: Vec<BorrowedFd<'_>> = vm.vcpu_fds.iter().map(AsFd::as_fd).collect();
    let mode = match vm.ring_entries {
        None => KvmMode::Log,
        Some(_) => KvmMode::Ring { vcpus: &vcpus, entries: vm.ring_entries },
    };
    // SAFETY: the slots are those that `vm` has, and its memory is there for as long as the source.
    unsafe { KvmDirty::new(vm.vm_fd(), KvmOptions { slots: &slots, mode, manual_protect }) }
}

fn ranges(slots: &[Slot]) -> Vec<MemoryRange> {
    slots.iter().map(Slot::range).collect()
}

fn full_event(handle: &KvmHandle) -> Option<OwnedFd> {
    handle.full_event().map(|fd| fd.try_clone_to_owned().unwrap())
}

/// Rounds until `pages` of the two slots were told, at least 5.
fn rounds_until(copy: &mut Copy, source: &mut dyn DirtySource, pages: usize) {
    let begin = Instant::now();
    let mut rounds = 0;
    while rounds < 5 || copy.told.len() < pages {
        copy.round(source).unwrap();
        rounds += 1;
        assert!(begin.elapsed() < Duration::from_secs(60), "{} pages after {rounds} rounds", copy.told.len());
    }
}

/// No page of the two slots is stale, missed, or told without having been written.
fn assert_exact(verdict: &Verdict) {
    assert!(verdict.written > 1000, "{verdict:?}");
    assert_eq!(*verdict, Verdict { written: verdict.written, ..Verdict::default() });
}

/// The slots that are written at random: the other has tables, which vCPUs mark as accessed as well.
fn data(vm: &Vm) -> Vec<Slot> {
    vm.slots[1..].to_vec()
}

fn every_write(ring: bool, manual_protect: bool) {
    let mut vm = Vm::new(2, ring);
    // Before anybody tracks: vCPUs have mapped most pages for writing then.
    let running = vm.run(10_000, None);
    std::thread::sleep(Duration::from_millis(200));
    vm.stop(running);
    assert!(counters(&vm).iter().filter(|counter| **counter != 0).count() > 3000);
    let mut dirty = source(&vm, &vm.slots, manual_protect).unwrap();
    assert_eq!(dirty.start(&ranges(&vm.slots), 4096), Ok(4096));
    let mut copy = Copy::new(&data(&vm));
    // Nobody has written since.
    assert_eq!(copy.round(&mut dirty).unwrap(), 0);
    let running = vm.run(3000, full_event(&dirty.handle()));
    rounds_until(&mut copy, &mut dirty, 3000);
    if ring {
        // Long enough for both rings to be full, with nobody but the source's own thread to empty them.
        std::thread::sleep(Duration::from_millis(50));
    }
    let fulls = vm.stop(running);
    copy.round(&mut dirty).unwrap();
    assert_exact(&copy.verdict());
    assert_eq!(copy.round(&mut dirty).unwrap(), 0, "nobody wrote");
    assert_eq!(fulls > 0, ring, "{fulls} times a ring was full");
    dirty.stop().unwrap();
    dirty.stop().unwrap();
    assert!(dirty.harvest(&mut Ignore).is_err());
}

fn starts_again(ring: bool) {
    let mut vm = Vm::new(1, ring);
    let mut dirty = source(&vm, &vm.slots, true).unwrap();
    for round in 1..=3 {
        dirty.start(&ranges(&vm.slots), 4096).unwrap();
        assert!(dirty.start(&ranges(&vm.slots), 4096).is_err());
        let before: Vec<u64> = counters(&vm);
        let running = vm.run(500, full_event(&dirty.handle()));
        std::thread::sleep(Duration::from_millis(20));
        vm.stop(running);
        let mut copy = Copy::new(&data(&vm));
        copy.round(&mut dirty).unwrap();
        let changed = counters(&vm).iter().zip(&before).filter(|(now, then)| now != then).count();
        let in_data = copy.told.iter().filter(|gpa| **gpa >= vm.slots[1].gpa).count();
        assert_eq!(in_data, changed, "round {round}");
        dirty.stop().unwrap();
        // Untracked: neither does a ring fill, nor does any of it come up later.
        let running = vm.run(500, None);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(vm.stop(running), 0);
    }
}

fn counters(vm: &Vm) -> Vec<u64> {
    let pages = |slot: &Slot| slot.memory.len / PAGE;
    let slots = data(vm);
    let all = slots.iter().flat_map(|slot| (0..pages(slot)).map(|page| slot.memory.counter(page)));
    all.map(|counter| counter.load(std::sync::atomic::Ordering::SeqCst)).collect()
}

/// The second slot goes away and comes back in two halves, under other numbers; writes before, in between and after.
fn slots_come_and_go(ring: bool) {
    let mut vm = Vm::new(2, ring);
    let mut dirty = source(&vm, &vm.slots, true).unwrap();
    let handle = dirty.handle();
    dirty.start(&ranges(&vm.slots), 4096).unwrap();
    let mut copy = Copy::new(&data(&vm));
    let running = vm.run(2000, full_event(&handle));
    rounds_until(&mut copy, &mut dirty, 1000);
    vm.stop(running);

    // The last pages of the slot were never harvested; no vCPU runs, so they are exactly known.
    let slot = vm.slots[2].clone();
    assert!(matches!(handle.remove_slot(77, true), Err(TrackError::NotFound(_))));
    handle.remove_slot(slot.number, true).unwrap();
    vm.give(&slot, 0);
    copy.round(&mut dirty).unwrap();
    assert_exact(&copy.verdict());

    // The same memory again, under another number.
    let again = Slot { number: 9, ..slot.clone() };
    vm.give(&again, again.memory.len);
    handle.add_slot(again.kvm()).unwrap();
    assert!(matches!(handle.add_slot(again.kvm()), Err(TrackError::Exists(_))));
    let running = vm.run(2000, full_event(&handle));
    for _ in 0..5 {
        copy.round(&mut dirty).unwrap();
    }
    vm.stop(running);
    copy.round(&mut dirty).unwrap();
    let verdict = copy.verdict();
    // All of a slot that has just come counts as written.
    assert_eq!((verdict.stale, verdict.missed), (0, 0), "{verdict:?}");
    assert!(again.memory.len / PAGE <= copy.told.len() as u64);

    // One that goes while vCPUs may write it counts as written, all of it.
    let before = copy.told.len();
    copy.told.clear();
    handle.remove_slot(9, false).unwrap();
    vm.give(&again, 0);
    copy.round(&mut dirty).unwrap();
    assert_eq!(copy.told.len() as u64, again.memory.len / PAGE, "{before}");
    // Not made anew by switching its logging off.
    dirty.stop().unwrap();
    let whole = Slot { number: 10, ..slot };
    vm.give(&whole, whole.memory.len);
}

fn a_part_of_a_slot() {
    let mut vm = Vm::new(1, false);
    let mut dirty = source(&vm, &vm.slots, true).unwrap();
    // Neither its beginning nor its end is a multiple of 64 pages, or of a byte of the bitmap.
    let part = MemoryRange { gpa: vm.slots[2].gpa + 67 * PAGE, len: 1001 * PAGE };
    dirty.start(&[part], 4096).unwrap();
    let running = vm.run(3000, None);
    let mut copy = Copy::new(&data(&vm));
    rounds_until(&mut copy, &mut dirty, 900);
    vm.stop(running);
    copy.round(&mut dirty).unwrap();
    assert!(copy.told.iter().all(|gpa| (part.gpa..part.gpa + part.len).contains(gpa)), "outside of the range");
    let slot = &vm.slots[2];
    let written =
        (67..67 + 1001).filter(|page| slot.memory.counter(*page).load(std::sync::atomic::Ordering::SeqCst) != 0);
    assert_eq!(written.count(), copy.told.len());
}

fn a_slot_left_out(ring: bool) {
    let mut vm = Vm::new(1, ring);
    let mut dirty = source(&vm, &vm.slots[..2], true).unwrap();
    dirty.start(&ranges(&vm.slots), 4096).unwrap();
    if ring {
        // The VMM logs the slot by itself and has not told: pages that nobody can place are in the ring.
        let mut region = kvm_bindings::kvm_userspace_memory_region { slot: 2, flags: 1, ..Default::default() };
        region.guest_phys_addr = vm.slots[2].gpa;
        region.memory_size = vm.slots[2].memory.len;
        region.userspace_addr = vm.slots[2].memory.address();
        // SAFETY: what KVM has already, with logging.
        unsafe { vm.fd.set_user_memory_region(region) }.unwrap();
    }
    let mut copy = Copy::new(&data(&vm));
    let running = vm.run(200, full_event(&dirty.handle()));
    std::thread::sleep(Duration::from_millis(10));
    vm.stop(running);
    if ring {
        let mut told = crate::oracle::Pages::default();
        let error = dirty.harvest(&mut told).unwrap_err();
        assert!(error.message.contains("slot 0x2"), "{error}");
        let all: u64 = vm.slots.iter().map(|slot| slot.memory.len / PAGE).sum();
        assert_eq!(told.0.len() as u64, all, "everything counts as written");
        return;
    }
    copy.round(&mut dirty).unwrap();
    let verdict = copy.verdict();
    assert!(verdict.stale > 10 && verdict.missed == verdict.stale, "{verdict:?}");
}

/// Runs a source that is broken, and expects that the oracle says so.
fn sabotaged(ring: bool, sabotage: fn(KvmDirty) -> Box<dyn DirtySource>) {
    let mut vm = Vm::new(1, ring);
    let dirty = source(&vm, &vm.slots, true).unwrap();
    let full = full_event(&dirty.handle());
    let mut broken = sabotage(dirty);
    broken.start(&ranges(&vm.slots), 4096).unwrap();
    let mut copy = Copy::new(&data(&vm));
    let running: Running = vm.run(1000, full);
    for _ in 0..5 {
        copy.round(broken.as_mut()).unwrap();
        std::thread::sleep(Duration::from_millis(2));
    }
    vm.stop(running);
    copy.round(broken.as_mut()).unwrap();
    let verdict = copy.verdict();
    assert!(verdict.stale > 0 && verdict.missed > 0, "{verdict:?}");
}

/// A harvester that copies pages first and then harvests: what is written in between is lost.
fn reads_first() {
    let mut vm = Vm::new(1, false);
    let mut dirty = source(&vm, &vm.slots, true).unwrap();
    dirty.start(&ranges(&vm.slots), 4096).unwrap();
    let mut copy = Copy::new(&data(&vm));
    let mut pages = crate::oracle::Pages::default();
    for _ in 0..5 {
        let running = vm.run(1000, None);
        std::thread::sleep(Duration::from_millis(2));
        vm.stop(running);
        // The pages that were told last time are copied now, which is too late for those of this time.
        copy.told.append(&mut pages.0);
        dirty.harvest(&mut pages).unwrap();
    }
    copy.told.append(&mut pages.0);
    let verdict = copy.verdict();
    assert!(verdict.stale > 0 && verdict.missed == 0, "{verdict:?}");
}

struct Ignore;

impl DirtySink for Ignore {
    fn mark(&mut self, _: u64, _: u64) {}
    fn merge_bitmap(&mut self, _: u64, _: u64, _: &[u8]) {}
}

/// Clears the log, and reads it after that.
struct ClearsFirst(KvmDirty);

impl DirtySource for ClearsFirst {
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        self.0.start(ranges, page_size_bytes)
    }
    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        self.0.harvest(&mut Ignore)?;
        self.0.harvest(sink)
    }
    fn stop(&mut self) -> Result<(), ChannelError> {
        self.0.stop()
    }
}

/// Loses one page of each harvest.
struct Skips(KvmDirty);

impl DirtySource for Skips {
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        self.0.start(ranges, page_size_bytes)
    }
    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        let mut pages = crate::oracle::Pages::default();
        self.0.harvest(&mut pages)?;
        pages.0.iter().rev().skip(1).for_each(|gpa| sink.mark(*gpa, PAGE));
        Ok(())
    }
    fn stop(&mut self) -> Result<(), ChannelError> {
        self.0.stop()
    }
}

/// By this the test calls itself as a process that has not made the VM.
const OTHER: &str = "TOWLINE_TEST_KVM_OF_ANOTHER_PROCESS";

pub fn as_another_process() -> Option<ExitCode> {
    let fd: i32 = std::env::var(OTHER).ok()?.parse().ok()?;
    // SAFETY: the parent leaves this descriptor open for the child.
    let vm = unsafe { BorrowedFd::borrow_raw(fd) };
    // SAFETY: no slots.
    let source = unsafe { KvmDirty::new(vm, KvmOptions { slots: &[], mode: KvmMode::Log, manual_protect: true }) };
    println!("{}", source.map_or_else(|error| error.to_string(), |_| "nothing was refused".into()));
    Some(ExitCode::SUCCESS)
}

fn another_process() {
    let vm = Vm::new(1, false);
    let fd = Arc::new(rustix::io::dup(vm.vm_fd()).unwrap());
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .env(OTHER, fd.as_raw_fd().to_string())
        .output()
        .unwrap();
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(words.contains("EIO") && words.contains("belongs to another process"), "{words}");
}

fn refused(result: Result<KvmDirty, TrackError>) -> ChannelError {
    match result {
        Err(TrackError::Refused(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn wrong_descriptors() {
    let file = std::fs::File::open("/dev/null").unwrap();
    let options = KvmOptions { slots: &[], mode: KvmMode::Log, manual_protect: true };
    // SAFETY: no slots.
    let error = refused(unsafe { KvmDirty::new(file.as_fd(), options) });
    assert!(error.message.contains("not that of a KVM virtual machine"), "{error}");
    let kvm = std::fs::File::open("/dev/kvm").unwrap();
    // SAFETY: no slots.
    let error = refused(unsafe { KvmDirty::new(kvm.as_fd(), options) });
    assert!(error.message.contains("of /dev/kvm"), "{error}");

    // A VM that has rings has no log, and the other way round.
    let ring = Vm::new(1, true);
    let slots: Vec<KvmSlot> = ring.slots.iter().map(Slot::kvm).collect();
    let options = KvmOptions { slots: &slots, mode: KvmMode::Log, manual_protect: true };
    // SAFETY: the slots of that VM.
    let mut log = unsafe { KvmDirty::new(ring.vm_fd(), options) }.unwrap();
    let error = log.start(&ranges(&ring.slots), 4096).unwrap_err();
    assert!(error.message.contains("has dirty rings"), "{error}");
    let vm = Vm::new(1, false);
    let vcpus = [vm.vcpu_fds[0].as_fd()];
    let mode = KvmMode::Ring { vcpus: &vcpus, entries: None };
    // SAFETY: no slots.
    let error = refused(unsafe { KvmDirty::new(vm.vm_fd(), KvmOptions { slots: &[], mode, manual_protect: true }) });
    assert!(error.message.contains("KVM_CAP_DIRTY_LOG_RING before"), "{error}");
    // Rings of another size than the VMM says, none at all, and one of something else.
    let vcpus = [ring.vcpu_fds[0].as_fd()];
    let wrong = [file.as_fd()];
    for (vcpus, entries) in [(&vcpus[..], Some(65536)), (&[], None), (&wrong, None)] {
        let options = KvmOptions { slots: &[], mode: KvmMode::Ring { vcpus, entries }, manual_protect: true };
        // SAFETY: no slots.
        refused(unsafe { KvmDirty::new(ring.vm_fd(), options) });
    }
}

fn wrong_slots() {
    let vm = Vm::new(1, false);
    let good = vm.slots[1].kvm();
    let over = |slots: &[KvmSlot]| {
        // SAFETY: what is wrong with these slots is found before, or by KVM.
        unsafe { KvmDirty::new(vm.vm_fd(), KvmOptions { slots, mode: KvmMode::Log, manual_protect: true }) }
    };
    let bad = [
        KvmSlot { len: 0, ..good },
        KvmSlot { gpa: good.gpa + 1, ..good },
        KvmSlot { len: good.len + 1, ..good },
        KvmSlot { userspace_addr: 4096, ..good },
        KvmSlot { len: 1 << 44, ..good },
        KvmSlot { gpa: u64::MAX - 4095, ..good },
        KvmSlot { flags: 4, ..good },
    ];
    for slot in bad {
        assert!(matches!(over(&[slot]), Err(TrackError::Argument(_))), "{slot:x?}");
    }
    assert!(matches!(over(&[good, good]), Err(TrackError::Exists(_))));
    assert!(matches!(over(&[good, KvmSlot { slot: 5, gpa: good.gpa + PAGE, ..good }]), Err(TrackError::Exists(_))));
    // KVM has it longer: nothing is tracked then, and what was switched on before is switched off.
    let mut dirty = over(&[vm.slots[0].kvm(), KvmSlot { len: good.len / 2, ..good }]).unwrap();
    let error = dirty.start(&ranges(&vm.slots), 4096).unwrap_err();
    assert_eq!(error.errno, Some(22), "{error}");
    assert!(dirty.harvest(&mut Ignore).is_err());
    assert!(vm.fd.get_dirty_log(0, vm.slots[0].memory.len as usize).is_err(), "slot 0 is still logged");
}
