//! [`Tracker`]: slots whose writes are logged, in the log or in rings, and the pages that were found and not yet told.

use std::collections::BTreeMap;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::param::page_size;
use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource};
use towline_core::dirty::{MarkLog, MarkSource};
use towline_core::memory::MemoryRange;

use super::abi;
use super::bits::GuardedBits;
use super::ring::Rings;
use super::slot::KvmSlot;
use super::vm::{Vm, failed};
use crate::track_error::TrackError;

/// Pages that are watched for again by one call: 128 MiB in pages of 4 KiB. KVM holds the VM's memory lock for so long.
const CLEAR_PAGES: u64 = 1 << 15;

/// A slot that is tracked.
#[derive(Debug)]
struct Logged {
    slot: KvmSlot,
    /// Towline has switched logging on, and so switches it off.
    ours: bool,
}

/// What is there while tracking is on.
#[derive(Debug)]
struct Active {
    ranges: Vec<MemoryRange>,
    /// By number.
    logged: BTreeMap<u32, Logged>,
    /// Slots that were removed: what rings still hold of them is no mistake.
    retired: BTreeMap<u32, KvmSlot>,
    bits: GuardedBits,
    /// The slots have a log: always without rings, and with them where KVM writes without a vCPU
    /// (`KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP`, on arm64).
    has_log: bool,
    /// `KVM_CLEAR_DIRTY_LOG` exists.
    can_clear: bool,
    /// What went wrong where nobody could be told, on the thread that empties full rings.
    broken: Option<ChannelError>,
}

/// Everything behind the lock of a source.
#[derive(Debug)]
pub(super) struct Tracker {
    vm: Box<dyn Vm>,
    rings: Option<Rings>,
    /// By number. All that the VMM has, also those that aren't tracked.
    slots: BTreeMap<u32, KvmSlot>,
    manual_protect: bool,
    /// What was found outside of a harvest; its source tracks while `active`.
    marks: Arc<MarkLog>,
    found: MarkSource,
    active: Option<Active>,
}

fn overlap(slot: &KvmSlot, range: &MemoryRange) -> Option<MemoryRange> {
    let (gpa, end) = (slot.gpa.max(range.gpa), slot.range().end()?.min(range.end()?));
    (gpa < end).then(|| MemoryRange { gpa, len: end - gpa })
}

fn bad_entry(slot: u32, page: u64, why: &str) -> ChannelError {
    let message = format!("a dirty ring names page {page:#x} of slot {slot:#x}, {why}");
    ChannelError::new(ChannelErrorKind::Device, message)
}

impl Tracker {
    pub(super) fn new(
        vm: Box<dyn Vm>,
        rings: Option<Rings>,
        slots: &[KvmSlot],
        manual_protect: bool,
    ) -> Result<Self, TrackError> {
        let marks = Arc::new(MarkLog::new());
        let found = marks.source();
        let mut tracker = Self { vm, rings, slots: BTreeMap::new(), manual_protect, marks, found, active: None };
        for slot in slots {
            tracker.insert(*slot)?;
        }
        Ok(tracker)
    }

    fn insert(&mut self, slot: KvmSlot) -> Result<(), TrackError> {
        if self.slots.len() >= abi::MAX_SLOTS {
            return Err(TrackError::Argument(format!("more than {} memory slots", abi::MAX_SLOTS)));
        }
        slot.check(self.slots.values())?;
        self.slots.insert(slot.slot, slot);
        Ok(())
    }

    pub(super) fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        if self.active.is_some() {
            return Err(ChannelError::new(ChannelErrorKind::State, "this virtual machine is tracked already"));
        }
        let page_size_bytes = page_size_bytes.max(page_size() as u64);
        let words = self.slots.values().map(KvmSlot::words).max().unwrap_or(1);
        let bits = GuardedBits::new(words)?;
        // Also checks ranges and page size.
        self.found.start(ranges, page_size_bytes)?;
        self.active = Some(Active {
            ranges: ranges.to_vec(),
            logged: BTreeMap::new(),
            retired: BTreeMap::new(),
            bits,
            has_log: self.rings.is_none(),
            can_clear: true,
            broken: None,
        });
        match self.start_slots() {
            Ok(()) => Ok(page_size_bytes),
            Err(error) => {
                // What failed is known; that undoing it fails too changes nothing.
                let _ = self.stop();
                Err(error)
            }
        }
    }

    fn start_slots(&mut self) -> Result<(), ChannelError> {
        let can = self.vm.extension(abi::CAP_MANUAL_DIRTY_LOG_PROTECT2).unwrap_or(0)
            & (abi::MANUAL_PROTECT_ENABLE | abi::INITIALLY_SET);
        let wanted = match self.rings {
            None if !self.manual_protect => 0,
            None => can,
            // With KVM_DIRTY_LOG_INITIALLY_SET, whoever set it, KVM watches for nothing at first: everything is taken for dirty until it is
            // cleared in a log that a VM with rings does not have (`kvm_mmu_slot_apply_flags`).
            Some(_) => can & abi::MANUAL_PROTECT_ENABLE,
        };
        if wanted != 0 {
            self.vm
                .enable_manual_protect(wanted)
                .map_err(|errno| failed("KVM_ENABLE_CAP of KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", errno))?;
        }
        // What an earlier user left in the rings: before logging is on, as nothing of it counts.
        if let Some(rings) = &mut self.rings
            && rings.harvest(&mut |_| {})
        {
            self.vm.reset_rings().map_err(|errno| failed("KVM_RESET_DIRTY_RINGS", errno))?;
        }
        let slots: Vec<KvmSlot> = self.slots.values().copied().collect();
        slots.into_iter().try_for_each(|slot| self.begin(slot))
    }

    /// Switches logging of one slot on, where it is to be tracked.
    fn begin(&mut self, slot: KvmSlot) -> Result<(), ChannelError> {
        let Some(active) = &mut self.active else { return Ok(()) };
        if !slot.is_writable() || active.ranges.iter().all(|range| overlap(&slot, range).is_none()) {
            return Ok(());
        }
        // For one that logs already this changes nothing, and KVM compares what it is given with what it has.
        self.vm
            .set_logging(&slot, true)
            .map_err(|errno| failed(&format!("KVM_SET_USER_MEMORY_REGION of slot {}", slot.slot), errno))?;
        active.logged.insert(slot.slot, Logged { slot, ours: !slot.logs_already() });
        if self.rings.is_some() && active.logged.len() == 1 {
            active.has_log = match self.vm.get_log(&slot, &mut active.bits) {
                Ok(()) => true,
                Err(Errno::NXIO | Errno::NOENT) => false,
                Err(errno) => return Err(failed("KVM_GET_DIRTY_LOG", errno)),
            };
        }
        // With KVM_DIRTY_LOG_INITIALLY_SET every page is in the log at first, and none is watched for; and a slot that logged before has
        // what was written then. That is no news.
        if active.has_log {
            active.read_log(self.vm.as_ref(), &slot, None)?;
        }
        Ok(())
    }

    /// Takes what is in the rings into `marks`, and lets KVM watch for it again.
    pub(super) fn drain_rings(&mut self) {
        let (Some(rings), Some(active)) = (&mut self.rings, &mut self.active) else { return };
        let page = page_size() as u64;
        let (marks, slots) = (&self.marks, &self.slots);
        // Pages that follow each other come after each other.
        let mut run: Option<MemoryRange> = None;
        let any = rings.harvest(&mut |entry| {
            let slot = match slots.get(&entry.slot).or_else(|| active.retired.get(&entry.slot)) {
                Some(slot) if entry.page < slot.pages() => slot,
                Some(_) => {
                    active.broken = Some(bad_entry(entry.slot, entry.page, "which is behind its end"));
                    return;
                }
                None => {
                    active.broken = Some(bad_entry(entry.slot, entry.page, "of which nobody has told"));
                    return;
                }
            };
            // In range: the page is in the slot, whose end was checked.
            let gpa = slot.gpa + entry.page * page;
            match &mut run {
                Some(run) if run.gpa + run.len == gpa => run.len += page,
                _ => {
                    if let Some(run) = run.replace(MemoryRange { gpa, len: page }) {
                        marks.mark(run.gpa, run.len);
                    }
                }
            }
        });
        if let Some(run) = run {
            marks.mark(run.gpa, run.len);
        }
        if any && let Err(errno) = self.vm.reset_rings() {
            active.broken = Some(failed("KVM_RESET_DIRTY_RINGS", errno));
        }
    }

    pub(super) fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        if self.active.is_none() {
            return Err(ChannelError::new(ChannelErrorKind::State, "this virtual machine is not tracked"));
        }
        self.drain_rings();
        let Some(active) = &mut self.active else { return Ok(()) };
        let mut result = active.broken.take().map_or(Ok(()), Err);
        if result.is_ok() && active.has_log {
            let slots: Vec<KvmSlot> = active.logged.values().map(|logged| logged.slot).collect();
            for slot in slots {
                result = active.read_log(self.vm.as_ref(), &slot, Some(sink));
                if result.is_err() {
                    break;
                }
            }
        }
        if let Err(error) = result {
            // Bits may have been taken and not told.
            active.ranges.iter().for_each(|range| sink.mark(range.gpa, range.len));
            return Err(error);
        }
        self.found.harvest(sink)
    }

    pub(super) fn stop(&mut self) -> Result<(), ChannelError> {
        let Some(active) = self.active.take() else { return Ok(()) };
        let mut result = self.found.stop();
        for logged in active.logged.values().filter(|logged| logged.ours) {
            if active.has_log && active.is_gone(self.vm.as_ref(), &logged.slot) {
                continue;
            }
            if let Err(errno) = self.vm.set_logging(&logged.slot, false) {
                let what = format!("KVM_SET_USER_MEMORY_REGION of slot {}", logged.slot.slot);
                result = result.and(Err(failed(&what, errno)));
            }
        }
        // Nobody empties the rings from here on, and a full one would stop its vCPU.
        if let Some(rings) = &mut self.rings
            && rings.harvest(&mut |_| {})
        {
            result = result.and(self.vm.reset_rings().map_err(|errno| failed("KVM_RESET_DIRTY_RINGS", errno)));
        }
        result
    }

    pub(super) fn add_slot(&mut self, slot: KvmSlot) -> Result<(), TrackError> {
        // Entries of a former slot of this number are told apart from new ones by being taken now.
        self.drain_rings();
        self.insert(slot)?;
        if let Some(active) = &mut self.active {
            active.retired.remove(&slot.slot);
            if slot.words() > active.bits.capacity() {
                active.bits = GuardedBits::new(slot.words()).inspect_err(|_| {
                    self.slots.remove(&slot.slot);
                })?;
            }
        }
        if let Err(error) = self.begin(slot) {
            self.slots.remove(&slot.slot);
            self.forget(slot.slot);
            return Err(error.into());
        }
        // What was written before logging was on, and whatever this memory had before it was the guest's.
        self.marks.mark(slot.gpa, slot.len);
        Ok(())
    }

    /// Takes a slot out of what is tracked, and switches its logging off where it was switched on here.
    fn forget(&mut self, number: u32) {
        let Some(active) = &mut self.active else { return };
        if let Some(logged) = active.logged.remove(&number).filter(|logged| logged.ours) {
            // The slot is about to go; if it is gone already, there is nothing to be switched.
            let gone = active.has_log && active.is_gone(self.vm.as_ref(), &logged.slot);
            if !gone {
                let _ = self.vm.set_logging(&logged.slot, false);
            }
        }
    }

    pub(super) fn remove_slot(&mut self, number: u32, quiesced: bool) -> Result<(), TrackError> {
        let missing = || TrackError::NotFound(format!("memory slot {number} is not there"));
        let slot = *self.slots.get(&number).ok_or_else(missing)?;
        self.drain_rings();
        let mut exact = quiesced;
        if let Some(active) = &mut self.active {
            if active.has_log && active.logged.contains_key(&number) {
                let mut sink = ToMarks(&self.marks);
                exact &= active.read_log(self.vm.as_ref(), &slot, Some(&mut sink)).is_ok();
            }
            active.retired.insert(number, slot);
        }
        self.forget(number);
        // After the last entry that comes from a slot with logging on.
        self.drain_rings();
        self.slots.remove(&number);
        if !exact {
            self.marks.mark(slot.gpa, slot.len);
        }
        Ok(())
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.stop();
    }
}

struct ToMarks<'a>(&'a MarkLog);

impl DirtySink for ToMarks<'_> {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.mark(gpa, len);
    }

    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
        for (index, byte) in bitmap.iter().enumerate().filter(|(_, byte)| **byte != 0) {
            for bit in (0..8).filter(|bit| byte >> bit & 1 == 1) {
                self.0.mark(base + (index as u64 * 8 + bit) * page_size_bytes, page_size_bytes);
            }
        }
    }
}

impl Active {
    /// Whether nobody logs this slot any more: it was deleted, and to switch its logging off would make it anew.
    fn is_gone(&self, vm: &dyn Vm, slot: &KvmSlot) -> bool {
        // Of no pages at all: only looks for the slot and its log.
        self.can_clear && vm.clear_log(slot, 0, 0, &mut []) == Err(Errno::NOENT)
    }

    /// Reads one slot's log and has its pages watched for again, before anybody reads them. Tells what of it lies in the ranges.
    fn read_log(&mut self, vm: &dyn Vm, slot: &KvmSlot, sink: Option<&mut dyn DirtySink>) -> Result<(), ChannelError> {
        let about = |call: &str| format!("{call} of slot {}", slot.slot);
        vm.get_log(slot, &mut self.bits).map_err(|errno| failed(&about("KVM_GET_DIRTY_LOG"), errno))?;
        let words = self.bits.words(slot.words());
        // With manual protection the call above left everything as it was. Without, it has cleared the log itself; what is cleared
        // once more then was told by it too, and is read by nobody before this call is over.
        let (mut first, pages) = (0, slot.pages());
        for chunk in words.chunks_mut((CLEAR_PAGES / 64) as usize) {
            if self.can_clear && chunk.iter().any(|word| *word != 0) {
                // The last chunk ends with the slot, the others are multiples of 64.
                let count = CLEAR_PAGES.min(pages - first) as u32;
                match vm.clear_log(slot, first, count, chunk) {
                    Ok(()) => {}
                    Err(Errno::NOTTY | Errno::OPNOTSUPP) => self.can_clear = false,
                    Err(errno) => return Err(failed(&about("KVM_CLEAR_DIRTY_LOG"), errno)),
                }
            }
            first += CLEAR_PAGES;
        }
        if let Some(sink) = sink {
            tell(slot, words, &self.ranges, sink);
        }
        Ok(())
    }
}

/// Hands a slot's bitmap to `sink`, without pages outside of `ranges`.
fn tell(slot: &KvmSlot, words: &mut [u64], ranges: &[MemoryRange], sink: &mut dyn DirtySink) {
    let page = page_size() as u64;
    let mut told = Vec::new();
    for part in ranges.iter().filter_map(|range| overlap(slot, range)) {
        // A page that a range only touches is told. Parts are inside of the slot.
        let (from, to) = ((part.gpa - slot.gpa) / page, (part.gpa + part.len - slot.gpa).div_ceil(page));
        let (low, high) = ((from / 64) as usize, to.div_ceil(64) as usize);
        let Some(piece) = words.get(low..high) else { continue };
        if piece.iter().all(|word| *word == 0) {
            continue;
        }
        told.clear();
        told.extend(piece.iter().flat_map(|word| word.to_le_bytes()));
        // Bits of other pages in the first and the last word.
        let base = low as u64 * 64;
        clear_bits(&mut told, 0, from - base);
        clear_bits(&mut told, to - base, (high - low) as u64 * 64);
        sink.merge_bitmap(slot.gpa + base * page, page, &told);
    }
}

/// Clears bits `from .. to`, fewer than 64.
fn clear_bits(bytes: &mut [u8], from: u64, to: u64) {
    for bit in from..to {
        if let Some(byte) = bytes.get_mut((bit / 8) as usize) {
            *byte &= !(1 << (bit % 8));
        }
    }
}

#[cfg(test)]
mod tests;
