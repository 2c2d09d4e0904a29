//! Against a VM that keeps KVM's rules (`virt/kvm/kvm_main.c`, `virt/kvm/dirty_ring.c`), and fails where it is told to.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};

use super::super::ring::{Entries, Entry};
use super::*;

const PAGE: u64 = 4096;

#[derive(Debug, Default)]
struct Slot {
    pages: u64,
    logging: bool,
    /// Writes get to KVM: not so after `KVM_DIRTY_LOG_INITIALLY_SET`, before the log was cleared.
    watched: bool,
    dirty: BTreeSet<u64>,
}

#[derive(Debug, Default)]
struct Kernel {
    slots: BTreeMap<u32, Slot>,
    manual: u64,
    /// Has a ring, and so no log.
    ring: bool,
    /// Older than `KVM_CLEAR_DIRTY_LOG`.
    old: bool,
    ring_entries: VecDeque<Entry>,
    resets: usize,
    /// The call that fails, and how.
    fails: Option<(&'static str, Errno)>,
    cleared: Vec<(u64, u32)>,
}

#[derive(Clone, Debug, Default)]
struct Fake(Arc<Mutex<Kernel>>);

impl Fake {
    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.0.lock().unwrap()
    }

    /// A vCPU writes.
    fn write(&self, number: u32, page: u64) {
        let mut kernel = self.kernel();
        let ring = kernel.ring;
        let Some(slot) = kernel.slots.get_mut(&number).filter(|slot| slot.logging && slot.watched) else { return };
        if ring {
            kernel.ring_entries.push_back(Entry { slot: number, page });
        } else {
            slot.dirty.insert(page);
        }
    }

    fn fails(&self, call: &'static str) -> Result<(), Errno> {
        match self.kernel().fails {
            Some((failing, errno)) if failing == call => Err(errno),
            _ => Ok(()),
        }
    }
}

impl Vm for Fake {
    fn set_logging(&self, slot: &KvmSlot, on: bool) -> Result<(), Errno> {
        self.fails(if on { "on" } else { "off" })?;
        let mut kernel = self.kernel();
        let all = kernel.manual & abi::INITIALLY_SET != 0;
        let has = kernel.slots.entry(slot.slot).or_insert_with(|| Slot { pages: slot.pages(), ..Slot::default() });
        if has.pages != slot.pages() {
            return Err(Errno::INVAL);
        }
        if on && !has.logging && all {
            has.dirty.extend(0..has.pages);
        } else if !on {
            has.dirty.clear();
        }
        if on != has.logging {
            has.watched = on && !all;
        }
        has.logging = on;
        Ok(())
    }

    fn enable_manual_protect(&self, options: u64) -> Result<(), Errno> {
        self.fails("enable")?;
        self.kernel().manual = options;
        Ok(())
    }

    fn extension(&self, _: u32) -> Result<u64, Errno> {
        Ok(if self.kernel().old { 0 } else { 3 })
    }

    fn get_log(&self, slot: &KvmSlot, bits: &mut GuardedBits) -> Result<(), Errno> {
        self.fails("get")?;
        let mut kernel = self.kernel();
        if kernel.ring {
            return Err(Errno::NXIO);
        }
        let clears = kernel.manual == 0;
        let has = kernel.slots.get_mut(&slot.slot).filter(|slot| slot.logging).ok_or(Errno::NOENT)?;
        let words = bits.zeroed(slot.words());
        if (words.len() as u64) < has.pages.div_ceil(64) {
            return Err(Errno::FAULT);
        }
        has.dirty.iter().for_each(|page| words[(page / 64) as usize] |= 1 << (page % 64));
        if clears {
            has.dirty.clear();
        }
        Ok(())
    }

    fn clear_log(&self, slot: &KvmSlot, first: u64, pages: u32, words: &mut [u64]) -> Result<(), Errno> {
        self.fails("clear")?;
        let mut kernel = self.kernel();
        if kernel.old {
            return Err(Errno::NOTTY);
        }
        if kernel.ring {
            return Err(Errno::NXIO);
        }
        let has = kernel.slots.get_mut(&slot.slot).filter(|slot| slot.logging).ok_or(Errno::NOENT)?;
        let left = has.pages.checked_sub(first).ok_or(Errno::INVAL)?;
        if !first.is_multiple_of(64)
            || u64::from(pages) > left
            || (u64::from(pages) < left && !pages.is_multiple_of(64))
        {
            return Err(Errno::INVAL);
        }
        let cleared = |page: &u64| {
            let bit = page.wrapping_sub(first);
            bit < u64::from(pages) && words[(bit / 64) as usize] >> (bit % 64) & 1 == 1
        };
        has.dirty.retain(|page| !cleared(page));
        has.watched |= has.dirty.is_empty();
        kernel.cleared.push((first, pages));
        Ok(())
    }

    fn reset_rings(&self) -> Result<(), Errno> {
        self.fails("reset")?;
        self.kernel().resets += 1;
        Ok(())
    }
}

#[derive(Debug)]
struct Ring(Fake);

impl Entries for Ring {
    fn next(&mut self) -> Option<Entry> {
        self.0.kernel().ring_entries.pop_front()
    }

    fn entries(&self) -> u32 {
        4
    }
}

#[derive(Default)]
struct Told(BTreeSet<u64>);

impl DirtySink for Told {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.extend((gpa..gpa + len).step_by(PAGE as usize).map(|gpa| gpa / PAGE));
    }

    fn merge_bitmap(&mut self, base: u64, size: u64, bitmap: &[u8]) {
        for bit in (0..bitmap.len() as u64 * 8).filter(|bit| bitmap[(bit / 8) as usize] >> (bit % 8) & 1 == 1) {
            self.mark(base + bit * size, size);
        }
    }
}

/// Memory that is mapped here, since that is checked.
fn memory(len: u64) -> u64 {
    let bytes = vec![0_u8; (len + PAGE) as usize].leak();
    (bytes.as_ptr() as u64).next_multiple_of(PAGE)
}

const LAST: u64 = CLEAR_PAGES + 70;

/// Slot 1 is more than one chunk, slot 4 is behind a hole.
fn slots() -> [KvmSlot; 2] {
    let slot = |slot, page: u64, pages: u64| {
        let len = pages * PAGE;
        KvmSlot { slot, gpa: page * PAGE, len, userspace_addr: memory(len), flags: 0 }
    };
    [slot(1, 0, LAST), slot(4, 0x10_0000, 100)]
}

fn ranges() -> [MemoryRange; 2] {
    [MemoryRange { gpa: 0, len: LAST * PAGE }, MemoryRange { gpa: 0x10_0000 * PAGE, len: 100 * PAGE }]
}

fn tracker(fake: &Fake, manual: bool) -> Tracker {
    let rings = fake.kernel().ring.then(|| Rings::of(vec![Box::new(Ring(fake.clone()))]));
    fake.kernel().slots = slots().map(|slot| (slot.slot, Slot { pages: slot.pages(), ..Slot::default() })).into();
    Tracker::new(Box::new(fake.clone()), rings, &slots(), manual).unwrap()
}

fn harvest(tracker: &mut Tracker) -> BTreeSet<u64> {
    let mut told = Told::default();
    tracker.harvest(&mut told).unwrap();
    told.0
}

fn everything() -> usize {
    (LAST + 100) as usize
}

#[test]
fn a_log_is_read_and_cleared_by_kvms_rules() {
    for (manual, old) in [(true, false), (false, false), (true, true)] {
        let fake = Fake::default();
        fake.kernel().old = old;
        let mut tracker = tracker(&fake, manual);
        assert_eq!(tracker.start(&ranges(), 512), Ok(4096));
        assert_eq!(fake.kernel().manual, if manual && !old { 3 } else { 0 });
        assert!(harvest(&mut tracker).is_empty(), "what was set at first is no news");
        fake.kernel().cleared.clear();
        for page in [0, 63, CLEAR_PAGES - 1, CLEAR_PAGES, LAST - 1] {
            fake.write(1, page);
        }
        fake.write(4, 99);
        let want = BTreeSet::from([0, 63, CLEAR_PAGES - 1, CLEAR_PAGES, LAST - 1, 0x10_0000 + 99]);
        assert_eq!(harvest(&mut tracker), want);
        if !old {
            assert_eq!(fake.kernel().cleared, [(0, CLEAR_PAGES as u32), (CLEAR_PAGES, 70), (0, 100)]);
        }
        assert!(harvest(&mut tracker).is_empty());
        tracker.stop().unwrap();
        assert!(fake.kernel().slots.values().all(|slot| !slot.logging));
    }
}

#[test]
fn a_failure_of_the_log_leaves_everything_dirty() {
    for call in ["get", "clear"] {
        let fake = Fake::default();
        let mut tracker = tracker(&fake, true);
        tracker.start(&ranges(), 4096).unwrap();
        fake.write(1, 7);
        fake.kernel().fails = Some((call, Errno::FAULT));
        let mut told = Told::default();
        let error = tracker.harvest(&mut told).unwrap_err();
        assert_eq!((error.errno, told.0.len()), (Some(14), everything()), "{call}");
        fake.kernel().fails = None;
        assert!(tracker.harvest(&mut told).is_ok());
    }
}

#[test]
fn a_start_that_fails_switches_off_what_it_switched_on() {
    for call in ["enable", "on", "get", "clear"] {
        let fake = Fake::default();
        let mut tracker = tracker(&fake, true);
        fake.kernel().fails = Some((call, Errno::NOMEM));
        let error = tracker.start(&ranges(), 4096).unwrap_err();
        assert_eq!(error.kind, ChannelErrorKind::Limit, "{call}");
        assert!(fake.kernel().slots.values().all(|slot| !slot.logging), "{call}");
        fake.kernel().fails = None;
        tracker.start(&ranges(), 4096).unwrap();
    }
    let fake = Fake::default();
    let mut tracker = tracker(&fake, true);
    for page_size in [8193, 1 << 40] {
        assert!(tracker.start(&ranges(), page_size).is_err(), "{page_size}");
    }
    assert!(tracker.start(&[MemoryRange { gpa: u64::MAX, len: 2 }], 4096).is_err());
    assert!(fake.kernel().slots.values().all(|slot| !slot.logging));
}

#[test]
fn a_slot_that_logs_already_keeps_logging_and_one_that_is_read_only_never_does() {
    let fake = Fake::default();
    let mut all = slots();
    all[0].flags = abi::MEM_LOG_DIRTY_PAGES;
    all[1].flags = abi::MEM_READONLY;
    fake.kernel().slots.insert(1, Slot { pages: LAST, logging: true, watched: true, dirty: BTreeSet::from([5]) });
    let mut tracker = Tracker::new(Box::new(fake.clone()), None, &all, true).unwrap();
    tracker.start(&ranges(), 4096).unwrap();
    assert!(harvest(&mut tracker).is_empty(), "written before");
    fake.write(1, 6);
    assert_eq!(harvest(&mut tracker), BTreeSet::from([6]));
    assert!(!fake.kernel().slots.contains_key(&4));
    tracker.stop().unwrap();
    assert!(fake.kernel().slots[&1].logging);
}

#[test]
fn a_slot_that_was_deleted_is_not_made_again() {
    let fake = Fake::default();
    let mut tracker = tracker(&fake, true);
    tracker.start(&ranges(), 4096).unwrap();
    fake.kernel().slots.remove(&4);
    assert!(tracker.harvest(&mut Told::default()).is_err(), "nobody has told");
    tracker.stop().unwrap();
    assert!(!fake.kernel().slots.contains_key(&4));
}

fn with_ring() -> Fake {
    let fake = Fake::default();
    fake.kernel().ring = true;
    fake
}

#[test]
fn rings_are_harvested_in_rounds_and_reset() {
    let fake = with_ring();
    // The VMM's own idea, with which KVM would watch for nothing at first.
    fake.kernel().manual = abi::INITIALLY_SET | abi::MANUAL_PROTECT_ENABLE;
    // Left by an earlier user.
    fake.kernel().ring_entries.push_back(Entry { slot: 77, page: 1 });
    let mut tracker = tracker(&fake, true);
    tracker.start(&ranges(), 4096).unwrap();
    assert_eq!(fake.kernel().resets, 1);
    for page in [3, 4, 5, 9] {
        fake.write(1, page);
    }
    fake.write(4, 0);
    // A round is as long as the ring: the fifth is left.
    assert_eq!(harvest(&mut tracker), BTreeSet::from([3, 4, 5, 9]));
    assert_eq!(fake.kernel().resets, 2);
    // What was emptied while the ring was full is in the next harvest.
    tracker.drain_rings();
    assert_eq!(fake.kernel().resets, 3);
    assert_eq!(harvest(&mut tracker), BTreeSet::from([0x10_0000]));
    assert_eq!(fake.kernel().resets, 3, "nothing to reset");
}

#[test]
fn entries_that_cannot_be_leave_everything_dirty() {
    for bad in [Entry { slot: 2, page: 0 }, Entry { slot: 4, page: 100 }, Entry { slot: 1, page: u64::MAX }] {
        let fake = with_ring();
        let mut tracker = tracker(&fake, true);
        tracker.start(&ranges(), 4096).unwrap();
        fake.kernel().ring_entries.extend([Entry { slot: 1, page: 1 }, bad]);
        // Found by the thread that empties full rings; the harvest tells.
        tracker.drain_rings();
        let mut told = Told::default();
        let error = tracker.harvest(&mut told).unwrap_err();
        assert!(error.message.contains(&format!("slot {:#x}", bad.slot)), "{error}");
        assert_eq!(told.0.len(), everything());
        assert_eq!(harvest(&mut tracker), BTreeSet::from([1]), "once, and what was good is not lost");
    }
    let fake = with_ring();
    let mut tracker = tracker(&fake, true);
    tracker.start(&ranges(), 4096).unwrap();
    fake.write(1, 1);
    fake.kernel().fails = Some(("reset", Errno::IO));
    let mut told = Told::default();
    assert_eq!(tracker.harvest(&mut told).unwrap_err().kind, ChannelErrorKind::Gone);
    assert_eq!(told.0.len(), everything());
}

#[test]
fn slots_come_and_go_while_tracking() {
    let ring = with_ring();
    for fake in [Fake::default(), ring] {
        let mut tracker = tracker(&fake, true);
        tracker.start(&ranges(), 4096).unwrap();
        fake.write(4, 7);
        // Its last page is known, as nobody writes.
        tracker.remove_slot(4, true).unwrap();
        assert!(!fake.kernel().slots[&4].logging);
        fake.kernel().slots.remove(&4);
        assert_eq!(harvest(&mut tracker), BTreeSet::from([0x10_0000 + 7]));
        if fake.kernel().ring {
            // One that was on its way.
            fake.kernel().ring_entries.push_back(Entry { slot: 4, page: 8 });
            assert_eq!(harvest(&mut tracker), BTreeSet::from([0x10_0000 + 8]));
        }
        // It is back, with another number; all of it is new.
        let again = KvmSlot { slot: 5, ..slots()[1] };
        tracker.add_slot(again).unwrap();
        assert_eq!(harvest(&mut tracker).len(), 100);
        fake.write(5, 1);
        assert_eq!(harvest(&mut tracker), BTreeSet::from([0x10_0000 + 1]));
        // It goes while vCPUs run.
        tracker.remove_slot(5, false).unwrap();
        assert_eq!(harvest(&mut tracker).len(), 100);
        assert!(matches!(tracker.remove_slot(5, false), Err(TrackError::NotFound(_))));
        // One that can't be logged is not there afterwards.
        fake.kernel().fails = Some(("on", Errno::INVAL));
        assert!(matches!(tracker.add_slot(again), Err(TrackError::Refused(_))));
        fake.kernel().fails = None;
        tracker.add_slot(again).unwrap();
        tracker.stop().unwrap();
        assert!(fake.kernel().slots.values().all(|slot| !slot.logging));
    }
}

#[test]
fn only_what_lies_in_the_ranges_is_told() {
    let fake = Fake::default();
    let mut tracker = tracker(&fake, true);
    let part = MemoryRange { gpa: 67 * PAGE, len: 70 * PAGE };
    tracker.start(&[part], 4096).unwrap();
    (0..200).for_each(|page| fake.write(1, page));
    fake.write(4, 1);
    assert!(!fake.kernel().slots[&4].logging);
    assert_eq!(harvest(&mut tracker), (67..137).collect());
    tracker.remove_slot(1, false).unwrap();
    assert_eq!(harvest(&mut tracker), (67..137).collect());
}
