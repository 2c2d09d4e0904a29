//! Submits commands and writes memory: the workload.

use std::time::{Duration, Instant};

use super::Vcpu;
use crate::block::{self, Version};
use crate::boot::AER_CID;
use crate::error::TenantError;
use crate::guest::Command;
use crate::layout::{ADMIN_ENTRIES, IO_ENTRIES, UNIT_BYTES};
use crate::slot::{Op, Slot};

/// How often the SMART log is read.
const SMART_PERIOD: Duration = Duration::from_millis(5);

impl Vcpu {
    /// Submits one command. `false` where there is no room or no free units.
    pub(super) fn submit(&mut self) -> Result<bool, TenantError> {
        if self.slots.in_flight() as u64 >= self.state.queue_depth {
            return Ok(false);
        }
        let Some(index) = self.slots.rested() else { return Ok(false) };
        let qid = (self.state.next_queue % self.state.io_queue_pairs) as u16 + 1;
        if self.state.rings.get(usize::from(qid)).is_none_or(|ring| ring.full(IO_ENTRIES)) {
            return Ok(false);
        }
        let dice = self.random();
        let op = match dice % 100 {
            _ if self.options.flush_only => Op::Flush,
            0 => Op::Flush,
            _ if dice / 100 % 100 < self.state.read_percent => Op::Read,
            _ => Op::Write,
        };
        let (unit, units) = match op {
            Op::Flush => (0, 0),
            _ => match self.choose_units() {
                Some(range) => range,
                None => return Ok(false),
            },
        };
        let slot = Slot {
            op: Some(op),
            cid: self.next_cid(),
            qid,
            units: units as u16,
            unit,
            seq: self.state.next_seq,
            epoch: self.state.epoch as u32,
            rested: 0,
        };
        self.state.next_seq += 1;
        self.state.next_queue = self.state.next_queue.wrapping_add(1);
        if op == Op::Write {
            self.fill(index, &slot)?;
        }
        let command = self.command(index, &slot, op)?;
        self.slots.set(&self.guest, &self.layout, index, slot)?;
        let queues = self.queues(qid);
        if let Some(ring) = self.state.rings.get_mut(usize::from(qid)) {
            queues.submit(&self.guest, &self.device, ring, &command)?;
        }
        self.save()?;
        Ok(true)
    }

    /// Free units: half of the commands go to the first eighth of the namespace, so that much is overwritten and read soon.
    fn choose_units(&mut self) -> Option<(u64, u64)> {
        let most = self.state.max_units.min(self.state.units);
        for _ in 0..8 {
            let (size, place) = (self.random(), self.random());
            // Half are one unit, the others up to all.
            let units = if size & 1 == 0 { 1 } else { (size >> 1) % most + 1 };
            let space = self.state.units - units + 1;
            let space = if place & 1 == 0 { space.div_ceil(8) } else { space };
            let unit = (place >> 1) % space;
            if !self.slots.overlaps(unit, units) {
                return Some((unit, units));
            }
        }
        None
    }

    fn fill(&mut self, index: usize, slot: &Slot) -> Result<(), TenantError> {
        let mut data = [0; UNIT_BYTES as usize];
        let version = Version { seq: slot.seq, epoch: slot.epoch };
        for n in 0..u64::from(slot.units) {
            block::fill(&mut data, slot.unit + n, version, self.options.host_tag, self.state.seed);
            self.guest.write(self.layout.data(index) + n * UNIT_BYTES, &data)?;
        }
        Ok(())
    }

    fn command(&mut self, index: usize, slot: &Slot, op: Op) -> Result<Command, TenantError> {
        let mut command =
            Command { opcode: op.opcode(), cid: slot.cid, nsid: self.state.nsid as u32, ..Command::default() };
        if op == Op::Flush {
            return Ok(command);
        }
        let data = self.layout.data(index);
        command.prp1 = data;
        match slot.units {
            1 => {}
            2 => command.prp2 = data + UNIT_BYTES,
            units => {
                let mut list = [0; 16 * 8];
                for (n, entry) in (1..u64::from(units)).zip(list.chunks_exact_mut(8)) {
                    entry.copy_from_slice(&(data + n * UNIT_BYTES).to_le_bytes());
                }
                command.prp2 = self.layout.prp_list(index);
                self.guest.write(command.prp2, &list)?;
            }
        }
        let lba = slot.unit * self.state.blocks_per_unit;
        command.dw10 = lba as u32;
        command.dw11 = (lba >> 32) as u32;
        command.dw12 = (u64::from(slot.units) * self.state.blocks_per_unit - 1) as u32;
        Ok(command)
    }

    /// The next identifier: none comes again for 65535 commands, so that a completion that is repeated is recognised. FFFFh is
    /// reserved.
    fn next_cid(&mut self) -> u16 {
        loop {
            let cid = (self.state.next_cid % 0xffff) as u16;
            self.state.next_cid = u64::from(cid) + 1;
            // Commands whose completion never came keep theirs.
            if !self.slots.uses_cid(cid) {
                return cid;
            }
        }
    }

    pub(super) fn submit_admin(&mut self, command: Command) -> Result<(), TenantError> {
        let queues = self.queues(0);
        match self.state.rings.first_mut().filter(|ring| !ring.full(ADMIN_ENTRIES)) {
            Some(ring) => queues.submit(&self.guest, &self.device, ring, &command),
            None => Ok(()),
        }
    }

    pub(super) fn poll_smart(&mut self) -> Result<(), TenantError> {
        if self.state.smart_pending != 0 || Instant::now() < self.smart_next {
            return Ok(());
        }
        self.smart_next = Instant::now() + SMART_PERIOD;
        let cid = ((self.state.admin_cid + 1) % u64::from(AER_CID)) as u16;
        self.state.admin_cid = cid.into();
        self.state.smart_pending = u64::from(cid) + 1;
        // Get Log Page 02h, 512 bytes (a 0's-based count of dwords), of the whole controller.
        let command = Command {
            opcode: 0x02,
            cid,
            nsid: u32::MAX,
            prp1: self.layout.telemetry().gpa,
            dw10: 127 << 16 | 2,
            ..Command::default()
        };
        self.submit_admin(command)
    }

    pub(super) fn write_working_set(&mut self) -> Result<(), TenantError> {
        let page = self.random() % self.state.working_set_pages;
        self.state.cpu_pages_written += 1;
        let count = self.state.cpu_pages_written;
        let mut data = [0; UNIT_BYTES as usize];
        for (n, word) in (0u64..).zip(data.chunks_exact_mut(8)) {
            word.copy_from_slice(&(count ^ page << 32 ^ n << 56).to_le_bytes());
        }
        self.guest.write(self.layout.working_set().gpa + page * UNIT_BYTES, &data)
    }

    /// xorshift64* (Vigna 2016).
    fn random(&mut self) -> u64 {
        let mut x = self.state.rng;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.state.rng = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 1
    }
}
