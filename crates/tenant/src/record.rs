//! The log of a tenant: what it got to know, as it got to know it, for a witness to judge.
//!
//! Records of 64 bytes, little-endian, written in order, several at once:
//!
//! | offset | type | what |
//! |---|---|---|
//! | 0 | u8 | kind, see [`Kind`] |
//! | 1 | u8 | host tag of the process that the tenant runs in |
//! | 2 | u8 | units: of the command for 1, 4 and 8; 1 for 2 |
//! | 3 | u8 | flags: bit 0 = the tenant itself expected something else ([`FLAG_UNEXPECTED`]); bits 7:4 of an error record: opcode |
//! | 4 | u32 | epoch: incarnation of the tenant that logs |
//! | 8 | u64 | sequence of the command, counted over all commands from 1 |
//! | 16 | u64 | unit: first unit for 1 and 8, the unit for 2 |
//! | 24 | u64 | found sequence: for 2 what the unit held, 0 = never written, `u64::MAX` = not a valid block; for 1 equal to the sequence |
//! | 32 | u32 | found epoch: for 2 as found; for 1 the epoch that the written blocks carry, which is older than that at 4 where the command was submitted before a migration |
//! | 36 | u16 | status field of the completion without its phase bit |
//! | 38 | u16 | command identifier |
//! | 40 | u64 | time in nanoseconds, `CLOCK_MONOTONIC` |
//! | 48 | u64 | sequence that the next command gets |
//! | 56 | u64 | commands in flight after this |
//!
//! There is one record a write and a flush, and one for each unit of a read. The tenant never has two commands in flight
//! that touch the same unit, so within a log the order of records is the order of effects on a unit.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;

use crate::error::TenantError;

/// Bytes of a record.
pub const RECORD_BYTES: usize = 64;
/// In `flags`: the tenant's own table says that the unit should hold something else.
pub const FLAG_UNEXPECTED: u8 = 1;
/// In `found_seq`: the unit held no valid block.
pub const FOUND_INVALID: u64 = u64::MAX;

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A write was completed.
    Write = 1,
    /// A read was completed; what one of its units held.
    Read = 2,
    /// A flush was completed.
    Flush = 3,
    /// A completion for a command that is not in flight. Sequence and unit are 0.
    Duplicate = 4,
    /// The tenant runs from here on.
    Started = 5,
    /// The tenant stands still from here on; nothing was waited for.
    Stopped = 6,
    /// The tenant submits no more, and waited for what was in flight. Every sequence below `next_seq` should have been completed.
    Drained = 7,
    /// A command ended with an error status: its effect is unknown.
    Error = 8,
}

/// One record; see the table of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Record {
    pub kind: Kind,
    pub host_tag: u8,
    pub units: u8,
    pub flags: u8,
    pub epoch: u32,
    pub seq: u64,
    pub unit: u64,
    pub found_seq: u64,
    pub found_epoch: u32,
    pub status: u16,
    pub cid: u16,
    pub t_ns: u64,
    pub next_seq: u64,
    pub in_flight: u64,
}

impl Record {
    /// As it stands in the log.
    #[must_use]
    pub fn encode(&self) -> [u8; RECORD_BYTES] {
        let head = [self.kind as u8, self.host_tag, self.units, self.flags];
        let words = [
            u64::from(u32::from_le_bytes(head)) | u64::from(self.epoch) << 32,
            self.seq,
            self.unit,
            self.found_seq,
            u64::from(self.found_epoch) | u64::from(self.status) << 32 | u64::from(self.cid) << 48,
            self.t_ns,
            self.next_seq,
            self.in_flight,
        ];
        let mut out = [0; RECORD_BYTES];
        for (to, word) in out.chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// Reads one back. `None` where the kind is unknown.
    #[must_use]
    pub fn decode(bytes: &[u8; RECORD_BYTES]) -> Option<Self> {
        let word = |n: usize| bytes.as_chunks::<8>().0.get(n).map_or(0, |w| u64::from_le_bytes(*w));
        let [kind, host_tag, units, flags] = (word(0) as u32).to_le_bytes();
        let kind = match kind {
            1 => Kind::Write,
            2 => Kind::Read,
            3 => Kind::Flush,
            4 => Kind::Duplicate,
            5 => Kind::Started,
            6 => Kind::Stopped,
            7 => Kind::Drained,
            8 => Kind::Error,
            _ => return None,
        };
        Some(Self {
            kind,
            host_tag,
            units,
            flags,
            epoch: (word(0) >> 32) as u32,
            seq: word(1),
            unit: word(2),
            found_seq: word(3),
            found_epoch: word(4) as u32,
            status: (word(4) >> 32) as u16,
            cid: (word(4) >> 48) as u16,
            t_ns: word(5),
            next_seq: word(6),
            in_flight: word(7),
        })
    }
}

/// Gathers records and writes them at once. Blocks while the reader is slow: none is ever dropped.
pub(crate) struct LogWriter {
    file: File,
    pending: Vec<u8>,
}

impl LogWriter {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { file: File::from(fd), pending: Vec::with_capacity(64 * RECORD_BYTES) }
    }

    pub(crate) fn push(&mut self, record: &Record) {
        self.pending.extend_from_slice(&record.encode());
    }

    pub(crate) fn flush(&mut self) -> Result<(), TenantError> {
        if !self.pending.is_empty() {
            self.file.write_all(&self.pending).map_err(TenantError::Log)?;
            self.pending.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_documented_one() {
        let record = Record {
            kind: Kind::Read,
            host_tag: 0x22,
            units: 1,
            flags: FLAG_UNEXPECTED,
            epoch: 0x0403_0201,
            seq: 0x11,
            unit: 0x12,
            found_seq: FOUND_INVALID,
            found_epoch: 0x0807_0605,
            status: 0x4281,
            cid: 0xbeef,
            t_ns: 0x13,
            next_seq: 0x14,
            in_flight: 0x15,
        };
        let bytes = record.encode();
        assert_eq!(bytes[..8], [2, 0x22, 1, 1, 1, 2, 3, 4]);
        assert_eq!((bytes[8], bytes[16], bytes[40], bytes[48], bytes[56]), (0x11, 0x12, 0x13, 0x14, 0x15));
        assert_eq!(bytes[24..32], [0xff; 8]);
        assert_eq!(bytes[32..40], [5, 6, 7, 8, 0x81, 0x42, 0xef, 0xbe]);
        assert_eq!(Record::decode(&bytes), Some(record));
        assert_eq!(Record::decode(&[0; 64]), None);
    }
}
