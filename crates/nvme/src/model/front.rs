//! What a guest sees of a controller without waiting: its registers and doorbells. A write here is noted for the worker and
//! never waits for DMA or for a file, so that a vCPU (or the thread that serves a guest's messages) is never held up.
//!
//! Register layout: NVM Express Base 2.1, 3.1.4.

use std::collections::VecDeque;

use crate::vendor_state::{AdminQueueState, RegisterState};

/// First byte of the doorbells in BAR0.
pub const DOORBELLS: u64 = 0x1000;
/// CAP.TO in units of 500 ms. Linux waits so long for CSTS.RDY; 0 would be almost no wait.
const TIMEOUT_UNITS: u64 = 20;
/// CAP.MPSMAX: pages up to 64 KiB.
pub(crate) const MPS_MAX: u32 = 4;
/// VS: 2.1.
pub(crate) const VERSION: u32 = 0x0002_0100;

pub(crate) const CC_EN: u32 = 1;
pub(crate) const CSTS_RDY: u32 = 1;
pub(crate) const CSTS_CFS: u32 = 2;
const CSTS_SHST: u32 = 0b1100;
/// CSTS.SHST: shutdown processing complete.
pub(crate) const SHUTDOWN_COMPLETE: u32 = 2;
const CC_SHN: u32 = 0b11 << 14;
/// Bits of CC and AQA that are not reserved.
const CC_BITS: u32 = 0x01ff_fff1;
const AQA_BITS: u32 = 0x0fff_0fff;
/// The most words of registers that are held while the state is on its way. A driver writes about ten to set a controller going.
const MAX_HELD: usize = 1024;

/// How a controller's registers answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Presence {
    /// As a controller.
    Online,
    /// A secondary controller that is offline: everything reads 0 but CSTS.CFS (QEMU `hw/nvme/ctrl.c` does the same).
    Offline,
    /// No function is there (a VF that is not enabled): reads give all ones, as a bus without an answer.
    Absent,
}

/// What the worker has to look at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RegisterEvents {
    /// CC.EN went from 1 to 0 since the last look.
    pub reset: bool,
    /// CC.EN as it is now.
    pub enable: bool,
    /// CC.SHN as it is now.
    pub shutdown: u32,
}

/// A doorbell that was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DoorbellWrite {
    /// 2 * QID for a submission queue tail, 2 * QID + 1 for a completion queue head.
    pub index: u16,
    /// What was written.
    pub value: u32,
}

#[derive(Debug)]
pub(crate) struct Front {
    pub presence: Presence,
    /// Queue pairs, admin included, and vectors that the controller may use.
    pub resources: (u16, u16),
    cap: u64,
    interrupt_mask: u32,
    pub cc: u32,
    pub csts: u32,
    pub aqa: u32,
    pub asq: u64,
    pub acq: u64,
    reset: bool,
    /// Last value written to each doorbell and not yet looked at.
    doorbells: Vec<Option<u32>>,
    rung: VecDeque<u16>,
    stray_doorbell: bool,
    /// What was written to registers since the state was sealed: word and value, to be written once the controller runs again.
    held: Option<Vec<(u64, u32)>>,
    /// More was written than is held.
    held_overflow: bool,
}

impl Front {
    /// `queues` counts the admin queue; `max_entries` is the size of the largest queue.
    pub(crate) fn new(presence: Presence, queues: u16, max_entries: u16) -> Self {
        let mqes = u64::from(max_entries.saturating_sub(1));
        let cap = mqes | 1 << 16 | TIMEOUT_UNITS << 24 | 1 << 37 | u64::from(MPS_MAX) << 52;
        Self {
            presence,
            resources: (queues, 0),
            cap,
            interrupt_mask: 0,
            cc: 0,
            csts: 0,
            aqa: 0,
            asq: 0,
            acq: 0,
            reset: false,
            doorbells: vec![None; usize::from(queues) * 2],
            rung: VecDeque::new(),
            stray_doorbell: false,
            held: None,
            held_overflow: false,
        }
    }

    /// From here on registers do not change: what is written to them is kept until [`Front::unseal`]. Doorbells that are rung are noted as
    /// ever; the engine looks at none meanwhile.
    pub(crate) fn seal(&mut self) {
        self.held.get_or_insert_default();
    }

    pub(crate) fn sealed(&self) -> bool {
        self.held.is_some()
    }

    /// Writes what was held, in its order. Where more came than could be kept, the controller has failed.
    pub(crate) fn unseal(&mut self) {
        for (word, value) in self.held.take().unwrap_or_default() {
            self.write_word(word, value);
        }
        if std::mem::take(&mut self.held_overflow) {
            self.fail();
        }
    }

    /// Everything that a function level reset clears.
    pub(crate) fn clear(&mut self) {
        (self.interrupt_mask, self.cc, self.csts, self.aqa, self.asq, self.acq) = (0, 0, 0, 0, 0, 0);
        self.reset = false;
        (self.held, self.held_overflow) = (None, false);
        self.forget_doorbells();
    }

    pub(crate) fn forget_doorbells(&mut self) {
        self.doorbells.fill(None);
        self.rung.clear();
        self.stray_doorbell = false;
    }

    /// Fatal: the controller does nothing until it is reset.
    pub(crate) fn fail(&mut self) {
        self.csts |= CSTS_CFS;
    }

    pub(crate) fn set_shutdown_status(&mut self, status: u32) {
        self.csts = self.csts & !CSTS_SHST | status << 2;
    }

    pub(crate) fn shutdown_status(&self) -> u32 {
        (self.csts & CSTS_SHST) >> 2
    }

    /// Takes what was written to CC; the reset is handed out once.
    pub(crate) fn take_events(&mut self) -> RegisterEvents {
        let reset = std::mem::take(&mut self.reset);
        RegisterEvents { reset, enable: self.cc & CC_EN != 0, shutdown: (self.cc & CC_SHN) >> 14 }
    }

    pub(crate) fn cap(&self) -> u64 {
        self.cap
    }

    pub(crate) fn interrupt_mask(&self) -> u32 {
        self.interrupt_mask
    }

    /// Registers as a controller state carries them. Doorbells that were rung before belong to what was here before.
    pub(crate) fn restore(&mut self, registers: &RegisterState, admin: &AdminQueueState) {
        self.cc = registers.cc & CC_BITS;
        self.csts = registers.csts & (CSTS_RDY | CSTS_CFS | CSTS_SHST);
        self.interrupt_mask = registers.intms;
        (self.aqa, self.asq, self.acq) = (admin.aqa & AQA_BITS, admin.asq & !0xfff, admin.acq & !0xfff);
        self.reset = false;
        self.forget_doorbells();
    }

    /// Whether a reset was asked for that the worker has not seen yet.
    pub(crate) fn reset_pending(&self) -> bool {
        self.reset
    }

    pub(crate) fn take_doorbell(&mut self) -> Option<DoorbellWrite> {
        loop {
            let index = self.rung.pop_front()?;
            let value = self.doorbells.get_mut(usize::from(index)).and_then(Option::take);
            if let Some(value) = value {
                return Some(DoorbellWrite { index, value });
            }
        }
    }

    /// Whether a doorbell was written that no queue could ever have.
    pub(crate) fn take_stray_doorbell(&mut self) -> bool {
        std::mem::take(&mut self.stray_doorbell)
    }

    fn ring(&mut self, offset: u64, value: u32) {
        // Doorbells of a controller that is not ready mean nothing.
        if self.csts & CSTS_RDY == 0 || self.reset {
            return;
        }
        let index = u16::try_from(offset / 4).ok();
        match index.and_then(|index| self.doorbells.get_mut(usize::from(index)).map(|slot| (index, slot))) {
            Some((index, slot)) => {
                if slot.replace(value).is_none() {
                    self.rung.push_back(index);
                }
            }
            None => self.stray_doorbell = true,
        }
    }

    fn image(&self) -> [u8; 0x40] {
        let mut image = [0u8; 0x40];
        let mut put = |at: usize, bytes: &[u8]| {
            image.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
        };
        put(0x00, &self.cap.to_le_bytes());
        put(0x08, &VERSION.to_le_bytes());
        put(0x0c, &self.interrupt_mask.to_le_bytes());
        put(0x10, &self.interrupt_mask.to_le_bytes());
        put(0x14, &self.cc.to_le_bytes());
        put(0x1c, &self.csts.to_le_bytes());
        put(0x24, &self.aqa.to_le_bytes());
        put(0x28, &self.asq.to_le_bytes());
        put(0x30, &self.acq.to_le_bytes());
        image
    }

    /// Reads registers; every length and alignment. Doorbells read as 0.
    pub(crate) fn read(&self, offset: u64, out: &mut [u8]) {
        match self.presence {
            Presence::Absent => out.fill(0xff),
            Presence::Offline => {
                let csts = CSTS_CFS.to_le_bytes();
                fill(out, offset, |at| at.checked_sub(0x1c).and_then(|i| csts.get(i).copied()));
            }
            Presence::Online => {
                let image = self.image();
                fill(out, offset, |at| image.get(at).copied());
            }
        }
    }

    /// Writes registers (below [`DOORBELLS`]). Accesses are taken apart into 32-bit words; narrower ones change their bytes
    /// of the word. Returns whether the worker has something to do.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> bool {
        if self.presence != Presence::Online {
            return false;
        }
        let mut work = false;
        let mut at = offset;
        let mut rest = data;
        while let Some((word, first)) = Some((at & !3, (at & 3) as usize)).filter(|_| !rest.is_empty()) {
            let take = (4 - first).min(rest.len());
            let (now, later) = rest.split_at(take);
            let mut bytes = self.current(word).to_le_bytes();
            bytes.iter_mut().skip(first).zip(now).for_each(|(to, from)| *to = *from);
            work |= self.write_word(word, u32::from_le_bytes(bytes));
            rest = later;
            let Some(next) = word.checked_add(4) else { break };
            at = next;
        }
        work
    }

    /// What a narrow write is merged into: nothing for registers where a written 1 acts.
    fn current(&self, word: u64) -> u32 {
        if let Some((_, value)) = self.held.iter().flatten().rev().find(|(at, _)| *at == word) {
            return if matches!(word, 0x0c | 0x10) { 0 } else { *value };
        }
        match word {
            0x14 => self.cc,
            0x24 => self.aqa,
            0x28 => self.asq as u32,
            0x2c => (self.asq >> 32) as u32,
            0x30 => self.acq as u32,
            0x34 => (self.acq >> 32) as u32,
            _ => 0,
        }
    }

    fn write_word(&mut self, word: u64, value: u32) -> bool {
        if let Some(held) = &mut self.held {
            if held.len() < MAX_HELD {
                held.push((word, value));
            } else {
                self.held_overflow = true;
            }
            return false;
        }
        match word {
            0x0c => self.interrupt_mask |= value,
            0x10 => self.interrupt_mask &= !value,
            0x14 => {
                if self.cc & CC_EN != 0 && value & CC_EN == 0 {
                    self.reset = true;
                    self.forget_doorbells();
                }
                self.cc = value & CC_BITS;
                return true;
            }
            // The admin queue is fixed while the controller is enabled.
            0x24..=0x37 if self.cc & CC_EN != 0 => {}
            0x24 => self.aqa = value & AQA_BITS,
            0x28 => self.asq = self.asq & !0xffff_ffff | u64::from(value & !0xfff),
            0x2c => self.asq = self.asq & 0xffff_ffff | u64::from(value) << 32,
            0x30 => self.acq = self.acq & !0xffff_ffff | u64::from(value & !0xfff),
            0x34 => self.acq = self.acq & 0xffff_ffff | u64::from(value) << 32,
            _ => {}
        }
        false
    }

    /// Writes doorbells; `offset` is counted from the first doorbell. Only aligned accesses of 4 bytes mean something, an
    /// aligned one of 8 is two. Returns whether the worker has something to do.
    pub(crate) fn write_doorbells(&mut self, offset: u64, data: &[u8]) -> bool {
        if self.presence != Presence::Online || offset & 3 != 0 {
            return false;
        }
        let (words, _) = data.as_chunks::<4>();
        let mut at = offset;
        for word in words {
            self.ring(at, u32::from_le_bytes(*word));
            let Some(next) = at.checked_add(4) else { break };
            at = next;
        }
        !self.rung.is_empty() || self.stray_doorbell
    }
}

fn fill(out: &mut [u8], offset: u64, byte: impl Fn(usize) -> Option<u8>) {
    for (i, to) in out.iter_mut().enumerate() {
        let at = offset.checked_add(i as u64).and_then(|at| usize::try_from(at).ok());
        *to = at.and_then(&byte).unwrap_or(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn front() -> Front {
        Front::new(Presence::Online, 3, 64)
    }

    fn read_u32(front: &Front, offset: u64) -> u32 {
        let mut raw = [0; 4];
        front.read(offset, &mut raw);
        u32::from_le_bytes(raw)
    }

    #[test]
    fn cap_says_what_linux_needs() {
        let mut raw = [0; 8];
        front().read(0, &mut raw);
        let cap = u64::from_le_bytes(raw);
        assert_eq!(cap & 0xffff, 63);
        assert_eq!(cap >> 16 & 1, 1, "CQR");
        assert!(cap >> 24 & 0xff >= 1, "TO");
        assert_eq!(cap >> 37 & 1, 1, "CSS");
        assert_eq!(cap >> 48 & 15, 0, "MPSMIN");
        assert_eq!((read_u32(&front(), 0), read_u32(&front(), 4)), (cap as u32, (cap >> 32) as u32));
        assert_eq!(read_u32(&front(), 0x3c), 0, "CMBSZ");
    }

    #[test]
    fn split_and_narrow_writes() {
        let mut front = front();
        front.write(0x28, &0x1234_5000u32.to_le_bytes());
        front.write(0x2c, &7u32.to_le_bytes());
        assert_eq!(front.asq, 0x7_1234_5000);
        front.write(0x30, &0x9_8765_4fffu64.to_le_bytes());
        assert_eq!(front.acq, 0x9_8765_4000, "the low bits are reserved");
        front.write(0x26, &[31]);
        assert_eq!(front.aqa, 31 << 16);
        assert!(front.write(0x14, &1u32.to_le_bytes()));
        front.write(0x24, &0u32.to_le_bytes());
        assert_eq!(front.aqa, 31 << 16, "fixed while enabled");
    }

    #[test]
    fn doorbells_before_ready_are_forgotten_and_strays_are_told() {
        let mut front = front();
        assert!(!front.write_doorbells(0, &1u32.to_le_bytes()));
        front.csts = CSTS_RDY;
        assert!(front.write_doorbells(8, &[5, 0, 0, 0, 6, 0, 0, 0]));
        assert_eq!(front.take_doorbell(), Some(DoorbellWrite { index: 2, value: 5 }));
        assert_eq!(front.take_doorbell(), Some(DoorbellWrite { index: 3, value: 6 }));
        assert_eq!(front.take_doorbell(), None);
        front.write_doorbells(24, &1u32.to_le_bytes());
        assert!(front.take_stray_doorbell() && !front.take_stray_doorbell());
    }

    #[test]
    fn what_is_written_while_sealed_comes_later_and_in_order() {
        let mut front = front();
        front.seal();
        assert!(!front.write(0x24, &[31, 0]));
        assert!(!front.write(0x26, &[63, 0]), "merged with what is held");
        assert!(!front.write(0x14, &1u32.to_le_bytes()));
        assert_eq!((front.aqa, read_u32(&front, 0x14)), (0, 0));
        front.unseal();
        assert_eq!((front.aqa, front.cc), (63 << 16 | 31, 1));
        // Doorbells stay what they are.
        front.csts = CSTS_RDY;
        front.seal();
        front.write_doorbells(8, &5u32.to_le_bytes());
        front.unseal();
        assert_eq!(front.take_doorbell(), Some(DoorbellWrite { index: 2, value: 5 }));
        // A reset forgets it; too much is not kept in silence.
        front.seal();
        front.write(0x0c, &1u32.to_le_bytes());
        front.clear();
        assert!(!front.sealed() && front.interrupt_mask == 0);
        front.seal();
        (0..=MAX_HELD).for_each(|_| assert!(!front.write(0x0c, &1u32.to_le_bytes())));
        front.unseal();
        assert_eq!(front.csts & CSTS_CFS, CSTS_CFS);
    }

    #[test]
    fn offline_reads_zero_but_for_cfs() {
        let mut front = front();
        front.presence = Presence::Offline;
        assert_eq!(read_u32(&front, 0x1c), CSTS_CFS);
        assert_eq!(read_u32(&front, 8), 0);
        front.presence = Presence::Absent;
        assert_eq!(read_u32(&front, 0x1c), u32::MAX);
    }
}
