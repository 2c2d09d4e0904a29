//! A small host driver for the controlling PF: real submission queue entries in private memory, real completions.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use towline_core::bar::BarTarget;
use towline_core::memory::GuestMemory;

use super::controller::Controller;
use super::front::{CC_EN, CSTS_CFS, CSTS_RDY, DOORBELLS};
use super::host_memory::HostMemory;
use super::interrupts::InterruptSink;
use super::signal::lock;
use super::subsystem::Subsystem;
use crate::admin::{AdminTransport, Completion, Data, TransportError};
use crate::command::{AdminCommand, CompletionEntry, SubmissionEntry, opcode};

/// Commands that may be under way at once.
const SLOTS: usize = 8;
/// Entries of the admin queues.
const ENTRIES: u16 = 64;
const PAGE: u64 = 4096;
const SQ: u64 = 0;
const CQ: u64 = PAGE;
const FIRST_SLOT: u64 = 2 * PAGE;
/// Largest transfer, whatever MDTS says.
const MAX_TRANSFER: u64 = 512 * 1024;
/// How long the controller may take to become ready.
const READY: Duration = Duration::from_secs(10);
/// How often somebody who waits looks whether the controller is alive.
const LOOK: Duration = Duration::from_millis(100);
/// CC as an NVMe host writes it: entry sizes 2^6 and 2^4, pages of 4096 bytes, enabled.
const CC: u32 = 4 << 20 | 6 << 16 | CC_EN;

/// Drives the admin queue of a subsystem's controlling PF in private host memory. Any number of threads may submit; up to eight
/// commands are under way at once, the others wait. One that does not complete in time is aborted; where the controller does not
/// answer the Abort either, its place is lost, and once all eight are, submissions fail with [`TransportError::Gone`]. There is to be one at a time for a subsystem: a second one resets the
/// controlling PF, and with it every secondary controller goes offline.
pub struct EmbeddedAdmin {
    controller: Arc<Controller>,
    memory: Arc<HostMemory>,
    shared: Arc<Shared>,
    transfer: u64,
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Default)]
struct Queue {
    tail: u16,
    head: u16,
    /// Phase of the completions of this lap.
    phase: bool,
    next_cid: u16,
    slots: [Slot; SLOTS],
    /// Aborts under way: their identifiers, and those of what they are to abort. At most one for each slot.
    aborts: Vec<(u16, u16)>,
    /// The controlling PF is somebody else's now: its registers are not touched any more.
    revoked: bool,
}

impl Queue {
    /// An identifier that nothing under way has.
    fn new_cid(&mut self) -> u16 {
        loop {
            self.next_cid = self.next_cid.wrapping_add(1);
            let cid = self.next_cid;
            let slot = |slot: &Slot| matches!(slot, Slot::Busy { cid: other, .. } if *other == cid);
            if !self.slots.iter().any(slot) && !self.aborts.iter().any(|(abort, _)| *abort == cid) {
                return cid;
            }
        }
    }

    /// Whether nobody waits any more for any command, and none of them has ended.
    fn all_abandoned(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot, Slot::Busy { abandoned: true, .. }))
    }
}

#[derive(Clone, Copy, Default)]
enum Slot {
    #[default]
    Free,
    /// Under way; nobody waits any more where `abandoned`.
    Busy {
        cid: u16,
        abandoned: bool,
    },
    Done(Completion),
}

impl InterruptSink for Shared {
    fn raise(&self, _vector: u16) {
        // Taken and let go, so that somebody between the look at the queue and the wait does not miss it.
        drop(lock(&self.queue));
        self.changed.notify_all();
    }
}

impl EmbeddedAdmin {
    /// Takes the controlling PF over: attaches private memory, programs AQA, ASQ, ACQ and CC, and waits for CSTS.RDY.
    ///
    /// # Errors
    /// The subsystem is closed, or the controller does not become ready.
    pub fn new(subsystem: &Arc<Subsystem>) -> Result<Self, TransportError> {
        let gone = |message: &str| TransportError::Gone { message: message.into() };
        let controller = subsystem.controlling().ok_or_else(|| gone("the subsystem is closed"))?;
        let transfer = (PAGE << subsystem.config().mdts).min(MAX_TRANSFER);
        let memory = Arc::new(HostMemory::new(FIRST_SLOT + SLOTS as u64 * (PAGE + transfer)));
        let shared = Arc::new(Shared::default());
        lock(&shared.queue).phase = true;
        let admin = Self { controller, memory, shared, transfer };
        admin.write_u32(0x14, 0);
        admin.wait_ready(0)?;
        let memory: Arc<dyn GuestMemory> = Arc::clone(&admin.memory) as Arc<dyn GuestMemory>;
        admin.controller.attach(memory, Arc::clone(&admin.shared) as Arc<dyn InterruptSink>);
        let entries = u32::from(ENTRIES) - 1;
        admin.write_u32(0x24, entries << 16 | entries);
        admin.controller.write(0x28, &SQ.to_le_bytes());
        admin.controller.write(0x30, &CQ.to_le_bytes());
        admin.write_u32(0x14, CC);
        admin.wait_ready(CSTS_RDY)?;
        Ok(admin)
    }

    /// Gives the controlling PF up, to whoever is to drive it from now on (a guest, say). Whoever waits for a command gets
    /// [`TransportError::Gone`], as does every later submission; when this returns, neither registers nor doorbells are written any more.
    pub fn revoke(&self) {
        lock(&self.shared.queue).revoked = true;
        self.shared.changed.notify_all();
    }

    fn write_u32(&self, offset: u64, value: u32) {
        self.controller.write(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        let mut raw = [0; 4];
        self.controller.read(0x1c, &mut raw);
        u32::from_le_bytes(raw)
    }

    fn wait_ready(&self, ready: u32) -> Result<(), TransportError> {
        let deadline = Instant::now() + READY;
        loop {
            let status = self.status();
            if status == u32::MAX || (ready != 0 && status & CSTS_CFS != 0) {
                return Err(TransportError::Gone { message: format!("CSTS is {status:#x}") });
            }
            if status & CSTS_RDY == ready {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(TransportError::Gone { message: format!("CSTS.RDY does not become {ready}") });
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Where the data of a slot is; its PRP list is the page before.
    fn buffer(&self, slot: usize) -> u64 {
        FIRST_SLOT + slot as u64 * (PAGE + self.transfer) + PAGE
    }

    /// PRP1 and PRP2 for `len` bytes in the buffer of a slot.
    fn prps(&self, slot: usize, len: usize) -> Result<(u64, u64), TransportError> {
        let buffer = self.buffer(slot);
        match (len as u64).div_ceil(PAGE) {
            0 => Ok((0, 0)),
            1 => Ok((buffer, 0)),
            2 => Ok((buffer, buffer + PAGE)),
            pages => {
                let list: Vec<u8> = (1..pages).flat_map(|n| (buffer + n * PAGE).to_le_bytes()).collect();
                self.copy_in(buffer - PAGE, &list)?;
                Ok((buffer, buffer - PAGE))
            }
        }
    }

    fn copy_in(&self, at: u64, data: &[u8]) -> Result<(), TransportError> {
        self.memory.write(at, data).map_err(|error| TransportError::Unsendable { message: error.to_string() })
    }

    /// Takes every completion that is there.
    fn reap(&self, queue: &mut Queue) {
        if queue.revoked {
            return;
        }
        let before = queue.head;
        loop {
            let mut raw = [0; 16];
            if self.memory.read(CQ + u64::from(queue.head) * 16, &mut raw).is_err() {
                break;
            }
            let entry = CompletionEntry::decode(&raw);
            if entry.phase() != queue.phase {
                break;
            }
            queue.head = (queue.head + 1) % ENTRIES;
            if queue.head == 0 {
                queue.phase = !queue.phase;
            }
            let completion = Completion { result: entry.result(), status: entry.status() };
            if let Some(at) = queue.aborts.iter().position(|(abort, _)| *abort == entry.cid) {
                let (_, cid) = queue.aborts.swap_remove(at);
                // Aborted or ended, its own completion came first. Neither of the two: this controller takes commands in order and
                // knows no more of it, so its completion is lost and its buffer is not written to any more.
                for slot in &mut queue.slots {
                    if matches!(*slot, Slot::Busy { cid: busy, abandoned: true } if busy == cid) {
                        *slot = Slot::Free;
                    }
                }
                continue;
            }
            for slot in &mut queue.slots {
                if let Slot::Busy { cid, abandoned } = *slot
                    && cid == entry.cid
                {
                    *slot = if abandoned { Slot::Free } else { Slot::Done(completion) };
                    break;
                }
            }
        }
        if queue.head != before {
            self.write_u32(DOORBELLS + 4, queue.head.into());
            self.shared.changed.notify_all();
        }
    }

    /// Puts an entry into the submission queue and rings. There is room: there are fewer slots and Aborts than entries.
    fn push(&self, queue: &mut Queue, entry: &SubmissionEntry) -> Result<(), TransportError> {
        if queue.revoked {
            return Err(revoked());
        }
        self.copy_in(SQ + u64::from(queue.tail) * 64, &entry.encode())?;
        queue.tail = (queue.tail + 1) % ENTRIES;
        self.write_u32(DOORBELLS, queue.tail.into());
        Ok(())
    }

    /// Gives up on a command that does not complete: the controller is asked to abort it, and the slot is free again once that
    /// is answered. `false` where it has just completed: the slot is still the caller's.
    fn abandon(&self, slot: usize) -> bool {
        let mut queue = lock(&self.shared.queue);
        let Some(Slot::Busy { cid, abandoned }) = queue.slots.get_mut(slot) else { return false };
        *abandoned = true;
        let cid = *cid;
        let abort = queue.new_cid();
        let cmd = AdminCommand { cdw10: u32::from(cid) << 16, ..AdminCommand::new(opcode::ABORT) };
        if self.push(&mut queue, &cmd.to_entry(abort, 0, 0)).is_ok() {
            queue.aborts.push((abort, cid));
        }
        true
    }

    /// Waits until `f` gives something, looking at the completion queue before each try.
    fn wait<T>(
        &self,
        deadline: Instant,
        mut f: impl FnMut(&mut Queue) -> Option<T>,
    ) -> Result<Option<T>, TransportError> {
        let mut queue = lock(&self.shared.queue);
        loop {
            if queue.revoked {
                return Err(revoked());
            }
            self.reap(&mut queue);
            if let Some(found) = f(&mut queue) {
                return Ok(Some(found));
            }
            let status = self.status();
            if status == u32::MAX || status & CSTS_CFS != 0 || status & CSTS_RDY == 0 {
                return Err(TransportError::Gone { message: format!("CSTS is {status:#x}") });
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            queue = self.shared.changed.wait_timeout(queue, left.min(LOOK)).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn revoked() -> TransportError {
    TransportError::Gone { message: "the admin queue of the controlling function belongs to somebody else now".into() }
}

/// A slot that is given back however the submission ends.
struct Held<'a> {
    admin: &'a EmbeddedAdmin,
    slot: usize,
    /// The controller may still write to the buffer.
    under_way: bool,
    /// It is the Abort's to give the slot back, and another submission may have it by now.
    abandoned: bool,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        if self.abandoned {
            return;
        }
        let mut queue = lock(&self.admin.shared.queue);
        if let Some(slot) = queue.slots.get_mut(self.slot) {
            *slot = match *slot {
                Slot::Busy { cid, .. } if self.under_way => Slot::Busy { cid, abandoned: true },
                _ => Slot::Free,
            };
        }
        drop(queue);
        self.admin.shared.changed.notify_all();
    }
}

impl AdminTransport for EmbeddedAdmin {
    fn submit(&self, cmd: &AdminCommand, data: Data<'_>, timeout: Duration) -> Result<Completion, TransportError> {
        let unsendable = |message: &str| Err(TransportError::Unsendable { message: message.into() });
        let direction = cmd.opcode & 3;
        let fits = match &data {
            Data::None => true,
            Data::FromHost(_) => direction & 1 != 0,
            Data::ToHost(_) => direction & 2 != 0,
        };
        if !fits {
            return unsendable("the direction of the data is not the opcode's");
        }
        if data.len() as u64 > self.transfer {
            return unsendable("the data is longer than the largest transfer");
        }
        let start = Instant::now();
        let deadline = start.checked_add(timeout).unwrap_or(start + Duration::from_secs(86400 * 365));
        let timed_out = || TransportError::Timeout {
            opcode: cmd.opcode,
            timeout_ms: timeout.as_millis().try_into().unwrap_or(u64::MAX),
        };

        let taken = self.wait(deadline, |queue| {
            let slot = queue.slots.iter().position(|slot| matches!(slot, Slot::Free))?;
            let cid = queue.new_cid();
            *queue.slots.get_mut(slot)? = Slot::Busy { cid, abandoned: false };
            Some((slot, cid))
        })?;
        let (slot, cid) = taken.ok_or_else(|| {
            if !lock(&self.shared.queue).all_abandoned() {
                return timed_out();
            }
            let message =
                format!("all of its {SLOTS} commands were abandoned after their timeout, and none has ended since");
            TransportError::Gone { message }
        })?;
        let mut held = Held { admin: self, slot, under_way: false, abandoned: false };
        // What the controller leaves untouched keeps the caller's bytes.
        match &data {
            Data::None => {}
            Data::FromHost(bytes) => self.copy_in(self.buffer(slot), bytes)?,
            Data::ToHost(bytes) => self.copy_in(self.buffer(slot), bytes)?,
        }
        let (prp1, prp2) = self.prps(slot, data.len())?;
        {
            let mut queue = lock(&self.shared.queue);
            self.push(&mut queue, &cmd.to_entry(cid, prp1, prp2))?;
            held.under_way = true;
        }
        let done = self.wait(deadline, |queue| match queue.slots.get(slot) {
            Some(Slot::Done(completion)) => Some(*completion),
            _ => None,
        })?;
        let Some(completion) = done else {
            held.abandoned = self.abandon(slot);
            return Err(timed_out());
        };
        held.under_way = false;
        if let Data::ToHost(bytes) = data {
            let read = self.memory.read(self.buffer(slot), bytes);
            read.map_err(|error| TransportError::Unsendable { message: error.to_string() })?;
        }
        Ok(completion)
    }

    fn max_transfer_bytes(&self) -> u32 {
        u32::try_from(self.transfer).unwrap_or(u32::MAX)
    }
}
