//! What a guest's CPU can do: access its memory and the registers of the device.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use towline_core::bar::BarTarget;
use towline_core::dirty::MarkLog;
use towline_core::memory::GuestMemory;

use crate::error::TenantError;
use crate::ring::Ring;

/// Guest memory as the tenant's CPU sees it: every write is marked as dirty after it was made, since no hardware does it here.
pub(crate) struct Guest {
    memory: Arc<dyn GuestMemory>,
    marks: Option<Arc<MarkLog>>,
}

impl Guest {
    /// Without `marks`, for what happens before anybody could be tracking.
    pub(crate) fn new(memory: Arc<dyn GuestMemory>, marks: Option<Arc<MarkLog>>) -> Self {
        Self { memory, marks }
    }

    pub(crate) fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), TenantError> {
        Ok(self.memory.read(gpa, out)?)
    }

    pub(crate) fn write(&self, gpa: u64, data: &[u8]) -> Result<(), TenantError> {
        self.memory.write(gpa, data)?;
        if let Some(marks) = &self.marks {
            marks.mark(gpa, data.len() as u64);
        }
        Ok(())
    }

    pub(crate) fn zero(&self, gpa: u64, len: u64) -> Result<(), TenantError> {
        let page = [0; 4096];
        let mut done = 0;
        while done < len {
            let n = (len - done).min(4096);
            self.write(gpa + done, page.get(..n as usize).unwrap_or(&page))?;
            done += n;
        }
        Ok(())
    }
}

/// A completion queue entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) dw0: u32,
    pub(crate) sqid: u16,
    pub(crate) cid: u16,
    /// SCT << 8 | SC and the bits above, without the phase.
    pub(crate) status: u16,
}

/// Registers and doorbells.
pub(crate) struct Device {
    pub(crate) registers: Arc<dyn BarTarget>,
    pub(crate) doorbells: Arc<dyn BarTarget>,
    pub(crate) doorbell_base: u64,
    pub(crate) doorbell_stride: u64,
}

impl Device {
    pub(crate) fn read32(&self, offset: u64) -> u32 {
        let mut out = [0xff; 4];
        self.registers.read(offset, &mut out);
        u32::from_le_bytes(out)
    }

    pub(crate) fn write32(&self, offset: u64, value: u32) {
        self.registers.write(offset, &value.to_le_bytes());
    }

    /// Low half first, as Linux does (`lo_hi_readq`).
    pub(crate) fn read64(&self, offset: u64) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset + 4)) << 32
    }

    pub(crate) fn write64(&self, offset: u64, value: u64) {
        self.write32(offset, value as u32);
        self.write32(offset + 4, (value >> 32) as u32);
    }

    /// Doorbell of a submission queue (`completion` false) or completion queue. What was written to memory before is seen
    /// by a device that has seen this.
    fn ring(&self, qid: u16, completion: bool, value: u32) {
        fence(Ordering::SeqCst);
        let index = 2 * u64::from(qid) + u64::from(completion);
        self.doorbells.write(self.doorbell_base + index * self.doorbell_stride, &value.to_le_bytes());
    }
}

/// A pair of queues of one length, where it lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queues {
    pub(crate) qid: u16,
    pub(crate) sq: u64,
    pub(crate) cq: u64,
    pub(crate) entries: u32,
}

impl Queues {
    /// Writes a command and tells the device. The caller has seen that the queue is not full.
    pub(crate) fn submit(
        &self,
        guest: &Guest,
        device: &Device,
        ring: &mut Ring,
        entry: &Command,
    ) -> Result<(), TenantError> {
        guest.write(self.sq + u64::from(ring.sq_tail) * 64, &entry.encode())?;
        ring.pushed(self.entries);
        device.ring(self.qid, false, ring.sq_tail);
        Ok(())
    }

    /// The next new completion. The caller calls [`Queues::done`] after it took a batch.
    pub(crate) fn poll(&self, guest: &Guest, ring: &mut Ring) -> Result<Option<Completion>, TenantError> {
        let at = self.cq + u64::from(ring.cq_head) * 16;
        // Dword 3 holds the phase: with acquire, so that the rest is as new.
        let dw3 = guest.memory.load_u32(at + 12)?;
        if (dw3 >> 16 & 1 == 1) != ring.phase {
            return Ok(None);
        }
        let (dw0, dw2) = (guest.memory.load_u32(at)?, guest.memory.load_u32(at + 8)?);
        ring.popped(self.entries, dw2 as u16);
        Ok(Some(Completion { dw0, sqid: (dw2 >> 16) as u16, cid: dw3 as u16, status: (dw3 >> 17) as u16 }))
    }

    pub(crate) fn done(&self, device: &Device, ring: &Ring) {
        device.ring(self.qid, true, ring.cq_head);
    }
}

/// A submission queue entry, as far as it is used here.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Command {
    pub(crate) opcode: u8,
    pub(crate) cid: u16,
    pub(crate) nsid: u32,
    pub(crate) prp1: u64,
    pub(crate) prp2: u64,
    pub(crate) dw10: u32,
    pub(crate) dw11: u32,
    pub(crate) dw12: u32,
}

impl Command {
    fn encode(&self) -> [u8; 64] {
        let dw0 = u32::from(self.opcode) | u32::from(self.cid) << 16;
        let words = [
            u64::from(dw0) | u64::from(self.nsid) << 32,
            0,
            0,
            self.prp1,
            self.prp2,
            u64::from(self.dw10) | u64::from(self.dw11) << 32,
            u64::from(self.dw12),
            0,
        ];
        let mut out = [0; 64];
        for (to, word) in out.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        out
    }
}
