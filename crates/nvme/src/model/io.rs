//! The NVM command set: Read, Write, Flush, Write Zeroes, Dataset Management.

use std::time::Duration;

use super::engine::Engine;
use super::execute::Execution;
use super::queue::Outcome;
use crate::command::{SubmissionEntry, io_opcode};
use crate::status::StatusCode;
use crate::wire::WireField;

impl Engine {
    pub(crate) fn io(&mut self, entry: &SubmissionEntry) -> Execution {
        let outcome = match entry.opcode {
            io_opcode::READ => self.read(entry),
            io_opcode::WRITE => self.write(entry),
            io_opcode::FLUSH => self.flush(entry.nsid),
            io_opcode::WRITE_ZEROES => self.write_zeroes(entry),
            io_opcode::DATASET_MANAGEMENT => self.dataset_management(entry),
            _ => Err(StatusCode::InvalidOpcode.into()),
        };
        match self.faults.rates().io_latency_us {
            0 => Execution::Done(outcome),
            micros => Execution::After(Duration::from_micros(micros.into()), outcome),
        }
    }

    /// SLBA and the number of blocks (NLB is 0's-based) as byte offset and length; at most MDTS, and as much for WZSL.
    fn extent(&self, entry: &SubmissionEntry) -> Result<(u64, usize), super::queue::Failure> {
        let disk = self.disk(entry.nsid)?;
        let slba = u64::from(entry.cdw10) | u64::from(entry.cdw11) << 32;
        let blocks = u64::from(entry.cdw12 & 0xffff) + 1;
        // No protection information, so PRINFO has to be 0.
        if entry.cdw12 >> 26 & 15 != 0 {
            return Err(StatusCode::InvalidField.into());
        }
        let (offset, len) = disk.extent(slba, blocks)?;
        let len = usize::try_from(len).map_err(|_| StatusCode::InvalidField)?;
        if len > self.max_transfer() {
            return Err(StatusCode::InvalidField.into());
        }
        Ok((offset, len))
    }

    fn read(&mut self, entry: &SubmissionEntry) -> Outcome {
        let (offset, len) = self.extent(entry)?;
        let mut data = vec![0; len];
        self.disk(entry.nsid)?.read(offset, &mut data)?;
        self.stats.reads += 1;
        self.stats.bytes_read += len as u64;
        self.reply(entry, &data)
    }

    fn write(&mut self, entry: &SubmissionEntry) -> Outcome {
        let (offset, len) = self.extent(entry)?;
        let data = self.fetch_data(entry, len)?;
        let disk = self.disk(entry.nsid)?;
        disk.write(offset, &data)?;
        // FUA.
        if entry.cdw12 & 1 << 30 != 0 {
            disk.flush()?;
        }
        self.stats.writes += 1;
        self.stats.bytes_written += len as u64;
        Ok(0)
    }

    /// NSID FFFFFFFFh is every attached namespace (VWC bits 2:1 = 11b).
    fn flush(&self, nsid: u32) -> Outcome {
        if nsid != u32::MAX {
            self.disk(nsid)?.flush()?;
            return Ok(0);
        }
        for disk in self.disks.iter().filter(|disk| self.attached.contains(&disk.nsid)) {
            disk.flush()?;
        }
        Ok(0)
    }

    fn write_zeroes(&mut self, entry: &SubmissionEntry) -> Outcome {
        let (offset, len) = self.extent(entry)?;
        self.disk(entry.nsid)?.write_zeroes(offset, len as u64)?;
        self.stats.writes += 1;
        Ok(0)
    }

    /// Every range is checked before the first is deallocated. Deallocated blocks read as zeroes (DLFEAT 001b), which here means
    /// that they are written.
    fn dataset_management(&mut self, entry: &SubmissionEntry) -> Outcome {
        let count = (entry.cdw10 as usize & 0xff) + 1;
        self.disk(entry.nsid)?;
        let data = self.fetch_data(entry, count * 16)?;
        let disk = self.disk(entry.nsid)?;
        let mut extents = Vec::with_capacity(count);
        let mut total = 0u64;
        for range in data.as_chunks::<16>().0 {
            let (_, rest) = range.split_at(4);
            let (blocks, slba) = rest.split_at(4);
            let (offset, len) = disk.extent(u64::load(slba), u32::load(blocks).into())?;
            total = total.saturating_add(len);
            extents.push((offset, len));
        }
        // Deallocation is a hint. One that is too large to be carried out at once is not taken, so that nobody waits for it.
        if entry.cdw11 & 4 != 0 && total <= self.max_transfer() as u64 * 64 {
            for (offset, len) in extents {
                disk.write_zeroes(offset, len)?;
            }
        }
        Ok(0)
    }
}
