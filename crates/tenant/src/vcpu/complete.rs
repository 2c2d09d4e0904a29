//! Takes completions, and tells the log what they mean.

use towline_linux::clock::monotonic_ns;

use super::Vcpu;
use crate::block::{self, Found, Version};
use crate::boot::AER_CID;
use crate::error::TenantError;
use crate::guest::{Command, Completion};
use crate::layout::UNIT_BYTES;
use crate::record::{FLAG_UNEXPECTED, FOUND_INVALID, Kind, Record};
use crate::slot::Op;

impl Vcpu {
    /// Takes every new completion of every queue.
    pub(super) fn reap(&mut self) -> Result<(), TenantError> {
        for qid in 0..=self.state.io_queue_pairs as u16 {
            let queues = self.queues(qid);
            let mut took = 0;
            // One lap at most: a device that posts without end does not keep the CPU here.
            while took < queues.entries {
                let Some(ring) = self.state.rings.get_mut(usize::from(qid)) else { break };
                let Some(completion) = queues.poll(&self.guest, ring)? else { break };
                took += 1;
                if qid == 0 {
                    self.completed_admin(completion)?;
                } else {
                    self.completed(qid, completion)?;
                }
                self.save()?;
            }
            if let Some(ring) = self.state.rings.get(usize::from(qid)).filter(|_| took > 0) {
                queues.done(&self.device, ring);
            }
        }
        Ok(())
    }

    fn completed_admin(&mut self, completion: Completion) -> Result<(), TenantError> {
        if u64::from(completion.cid) + 1 == self.state.smart_pending {
            self.state.smart_pending = 0;
            self.state.smart_polls += 1;
        } else if completion.cid == AER_CID && completion.status & 0x7ff == 0 {
            self.submit_admin(Command { opcode: 0x0c, cid: AER_CID, ..Command::default() })?;
        } else if completion.cid != AER_CID {
            self.duplicate(completion);
        }
        Ok(())
    }

    fn completed(&mut self, qid: u16, completion: Completion) -> Result<(), TenantError> {
        let Some((index, slot)) = self.slots.find(qid, completion.cid).filter(|_| completion.sqid == qid) else {
            self.duplicate(completion);
            return Ok(());
        };
        let Some(op) = slot.op else { return Ok(()) };
        self.slots.free(&self.guest, &self.layout, index, self.state.next_seq)?;
        let now = monotonic_ns();
        let record = Record {
            units: slot.units as u8,
            seq: slot.seq,
            unit: slot.unit,
            status: completion.status,
            cid: completion.cid,
            t_ns: now,
            ..self.record(Kind::Error)
        };
        if completion.status & 0x7ff != 0 {
            self.state.errors += 1;
            self.log.push(&Record { flags: op.opcode() << 4, found_epoch: slot.epoch, ..record });
            return Ok(());
        }
        self.last_ack_ns = now;
        if self.first_ack_ns == 0 {
            self.first_ack_ns = now;
        }
        match op {
            Op::Flush => {
                self.state.flushes += 1;
                self.log.push(&Record { kind: Kind::Flush, ..record });
            }
            Op::Write => {
                self.state.writes += 1;
                let version = Version { seq: slot.seq, epoch: slot.epoch };
                for unit in slot.unit..slot.unit + u64::from(slot.units) {
                    self.expect(unit, version)?;
                }
                self.log.push(&Record { kind: Kind::Write, found_seq: slot.seq, found_epoch: slot.epoch, ..record });
            }
            Op::Read => {
                self.state.reads += 1;
                for n in 0..u64::from(slot.units) {
                    self.verify(index, n, Record { kind: Kind::Read, units: 1, unit: slot.unit + n, ..record })?;
                }
            }
        }
        Ok(())
    }

    /// Notes what `unit` holds from now on.
    fn expect(&mut self, unit: u64, version: Version) -> Result<(), TenantError> {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&version.seq.to_le_bytes());
        entry[8..12].copy_from_slice(&version.epoch.to_le_bytes());
        self.guest.write(self.layout.unit(unit), &entry)
    }

    fn verify(&mut self, slot: usize, n: u64, mut record: Record) -> Result<(), TenantError> {
        let mut data = [0; UNIT_BYTES as usize];
        self.guest.read(self.layout.data(slot) + n * UNIT_BYTES, &mut data)?;
        let mut entry = [0; 16];
        self.guest.read(self.layout.unit(record.unit), &mut entry)?;
        let word = u128::from_le_bytes(entry);
        let expected = Version { seq: word as u64, epoch: (word >> 64) as u32 };
        let found = match block::inspect(&data, record.unit, self.state.seed) {
            Found::Blank => Some(Version { seq: 0, epoch: 0 }),
            Found::Version(version) => Some(version),
            Found::Invalid => None,
        };
        record.found_seq = found.map_or(FOUND_INVALID, |v| v.seq);
        record.found_epoch = found.map_or(0, |v| v.epoch);
        if found != Some(expected) {
            record.flags |= FLAG_UNEXPECTED;
            self.state.mismatches += 1;
        }
        self.log.push(&record);
        Ok(())
    }

    fn duplicate(&mut self, completion: Completion) {
        self.state.duplicates += 1;
        let record = Record { status: completion.status, cid: completion.cid, ..self.record(Kind::Duplicate) };
        self.log.push(&record);
    }
}
