//! Submission and completion queue entries, opcodes, and the commands that make and delete I/O queues.

use crate::counts::{CountError, count_of_zeroes_based_u16, zeroes_based_u16_field};
use crate::status::Status;
use crate::wire_struct;

/// Admin command opcodes (Base 2.1, figure "Opcodes for Admin Commands").
pub mod opcode {
    /// Delete I/O Submission Queue.
    pub const DELETE_IO_SQ: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_IO_SQ: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_IO_CQ: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_IO_CQ: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT_REQUEST: u8 = 0x0c;
    /// Namespace Management.
    pub const NAMESPACE_MANAGEMENT: u8 = 0x0d;
    /// Namespace Attachment.
    pub const NAMESPACE_ATTACHMENT: u8 = 0x15;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Virtualization Management.
    pub const VIRTUALIZATION_MANAGEMENT: u8 = 0x1c;
    /// Track Send.
    pub const TRACK_SEND: u8 = 0x3d;
    /// Track Receive.
    pub const TRACK_RECEIVE: u8 = 0x3e;
    /// Migration Send.
    pub const MIGRATION_SEND: u8 = 0x41;
    /// Migration Receive.
    pub const MIGRATION_RECEIVE: u8 = 0x42;
    /// Controller Data Queue.
    pub const CONTROLLER_DATA_QUEUE: u8 = 0x45;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER_CONFIG: u8 = 0x7c;
    /// Format NVM.
    pub const FORMAT_NVM: u8 = 0x80;
}

/// I/O command opcodes of the NVM command set.
pub mod io_opcode {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
}

/// Feature identifiers.
pub mod feature {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER_MANAGEMENT: u8 = 0x02;
    /// Temperature Threshold.
    pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
    /// Error Recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUMBER_OF_QUEUES: u8 = 0x07;
    /// Interrupt Coalescing.
    pub const INTERRUPT_COALESCING: u8 = 0x08;
    /// Interrupt Vector Configuration.
    pub const INTERRUPT_VECTOR_CONFIGURATION: u8 = 0x09;
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENT_CONFIGURATION: u8 = 0x0b;
    /// Timestamp.
    pub const TIMESTAMP: u8 = 0x0e;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE_TIMER: u8 = 0x0f;
    /// Host Behavior Support.
    pub const HOST_BEHAVIOR_SUPPORT: u8 = 0x16;
    /// Controller Data Queue.
    pub const CONTROLLER_DATA_QUEUE: u8 = 0x21;
    /// Rate limit on another controller's I/O: vendor specific (C0h to FFh are), see [`crate::limit`].
    pub const RATE_LIMIT: u8 = 0xc0;
}

wire_struct! {
    /// A submission queue entry (Base 2.1, "Common Command Format").
    pub struct SubmissionEntry [64] {
        /// OPC.
        opcode: u8 = 0,
        /// Bits 1:0 FUSE, 7:6 PSDT (0: PRPs).
        flags: u8 = 1,
        /// Command identifier.
        cid: u16 = 2,
        /// Namespace identifier.
        nsid: u32 = 4,
        /// Command dword 2.
        cdw2: u32 = 8,
        /// Command dword 3.
        cdw3: u32 = 12,
        /// Metadata pointer.
        mptr: u64 = 16,
        /// PRP entry 1.
        prp1: u64 = 24,
        /// PRP entry 2 or the address of a PRP list.
        prp2: u64 = 32,
        /// Command dword 10.
        cdw10: u32 = 40,
        /// Command dword 11.
        cdw11: u32 = 44,
        /// Command dword 12.
        cdw12: u32 = 48,
        /// Command dword 13.
        cdw13: u32 = 52,
        /// Command dword 14.
        cdw14: u32 = 56,
        /// Command dword 15.
        cdw15: u32 = 60,
    }
}

wire_struct! {
    /// A completion queue entry as it stands in memory.
    pub struct CompletionEntry [16] {
        /// Dword 0: the result of the command.
        dw0: u32 = 0,
        /// Dword 1: more of the result.
        dw1: u32 = 4,
        /// Submission queue head.
        sq_head: u16 = 8,
        /// Submission queue identifier.
        sq_id: u16 = 10,
        /// Command identifier.
        cid: u16 = 12,
        /// Bit 0 is the phase, 15:1 the status field.
        status_and_phase: u16 = 14,
    }
}

impl CompletionEntry {
    /// The phase bit.
    #[must_use]
    pub fn phase(&self) -> bool {
        self.status_and_phase & 1 != 0
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> Status {
        Status::from_field(self.status_and_phase >> 1)
    }

    /// Sets both.
    pub fn set_status(&mut self, status: Status, phase: bool) {
        self.status_and_phase = status.field() << 1 | u16::from(phase);
    }

    /// `DW0 | DW1 << 32`.
    #[must_use]
    pub fn result(&self) -> u64 {
        u64::from(self.dw0) | u64::from(self.dw1) << 32
    }
}

/// An admin command without what the transport adds: identifier, data pointers, PSDT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdminCommand {
    /// See [`opcode`]. Bits 1:0 tell the data direction: 1 host to controller, 2 controller to host, 0 none.
    pub opcode: u8,
    /// Namespace identifier, 0 where the command has none.
    pub nsid: u32,
    /// Command dword 2.
    pub cdw2: u32,
    /// Command dword 3.
    pub cdw3: u32,
    /// Command dword 10.
    pub cdw10: u32,
    /// Command dword 11.
    pub cdw11: u32,
    /// Command dword 12.
    pub cdw12: u32,
    /// Command dword 13.
    pub cdw13: u32,
    /// Command dword 14.
    pub cdw14: u32,
    /// Command dword 15.
    pub cdw15: u32,
}

impl AdminCommand {
    /// A command of this opcode with everything else zero.
    #[must_use]
    pub fn new(opcode: u8) -> Self {
        Self { opcode, ..Self::default() }
    }

    /// The queue entry for it.
    #[must_use]
    pub fn to_entry(&self, cid: u16, prp1: u64, prp2: u64) -> SubmissionEntry {
        SubmissionEntry {
            opcode: self.opcode,
            flags: 0,
            cid,
            nsid: self.nsid,
            cdw2: self.cdw2,
            cdw3: self.cdw3,
            mptr: 0,
            prp1,
            prp2,
            cdw10: self.cdw10,
            cdw11: self.cdw11,
            cdw12: self.cdw12,
            cdw13: self.cdw13,
            cdw14: self.cdw14,
            cdw15: self.cdw15,
        }
    }
}

impl From<&SubmissionEntry> for AdminCommand {
    fn from(entry: &SubmissionEntry) -> Self {
        Self {
            opcode: entry.opcode,
            nsid: entry.nsid,
            cdw2: entry.cdw2,
            cdw3: entry.cdw3,
            cdw10: entry.cdw10,
            cdw11: entry.cdw11,
            cdw12: entry.cdw12,
            cdw13: entry.cdw13,
            cdw14: entry.cdw14,
            cdw15: entry.cdw15,
        }
    }
}

/// Create I/O Completion Queue (05h). The base address is PRP1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateIoCq {
    /// Queue identifier.
    pub qid: u16,
    /// Entries, 1 to 65536 (the field is 0's-based).
    pub entries: u32,
    /// Physically contiguous.
    pub contiguous: bool,
    /// Interrupts enabled.
    pub interrupts: bool,
    /// Interrupt vector.
    pub vector: u16,
}

impl CreateIoCq {
    /// The command.
    ///
    /// # Errors
    /// `entries` does not fit.
    pub fn encode(&self) -> Result<AdminCommand, CountError> {
        Ok(AdminCommand {
            cdw10: u32::from(zeroes_based_u16_field(self.entries)?) << 16 | u32::from(self.qid),
            cdw11: u32::from(self.vector) << 16 | u32::from(self.interrupts) << 1 | u32::from(self.contiguous),
            ..AdminCommand::new(opcode::CREATE_IO_CQ)
        })
    }

    /// Reads the command.
    #[must_use]
    pub fn decode(cmd: &AdminCommand) -> Self {
        Self {
            qid: cmd.cdw10 as u16,
            entries: count_of_zeroes_based_u16((cmd.cdw10 >> 16) as u16),
            contiguous: cmd.cdw11 & 1 != 0,
            interrupts: cmd.cdw11 & 2 != 0,
            vector: (cmd.cdw11 >> 16) as u16,
        }
    }
}

/// Create I/O Submission Queue (01h). The base address is PRP1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateIoSq {
    /// Queue identifier.
    pub qid: u16,
    /// Entries, 1 to 65536 (the field is 0's-based).
    pub entries: u32,
    /// Physically contiguous.
    pub contiguous: bool,
    /// Priority class, 0 (urgent) to 3 (low).
    pub priority: u8,
    /// The completion queue.
    pub cqid: u16,
}

impl CreateIoSq {
    /// The command.
    ///
    /// # Errors
    /// `entries` does not fit.
    pub fn encode(&self) -> Result<AdminCommand, CountError> {
        Ok(AdminCommand {
            cdw10: u32::from(zeroes_based_u16_field(self.entries)?) << 16 | u32::from(self.qid),
            cdw11: u32::from(self.cqid) << 16 | u32::from(self.priority & 3) << 1 | u32::from(self.contiguous),
            ..AdminCommand::new(opcode::CREATE_IO_SQ)
        })
    }

    /// Reads the command.
    #[must_use]
    pub fn decode(cmd: &AdminCommand) -> Self {
        Self {
            qid: cmd.cdw10 as u16,
            entries: count_of_zeroes_based_u16((cmd.cdw10 >> 16) as u16),
            contiguous: cmd.cdw11 & 1 != 0,
            priority: (cmd.cdw11 >> 1) as u8 & 3,
            cqid: (cmd.cdw11 >> 16) as u16,
        }
    }
}

/// Delete I/O Submission Queue or Delete I/O Completion Queue.
#[must_use]
pub fn delete_io_queue(opcode: u8, qid: u16) -> AdminCommand {
    AdminCommand { cdw10: u32::from(qid), ..AdminCommand::new(opcode) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn submission_entries_round_trip(bytes in proptest::array::uniform32(any::<u8>()), more in proptest::array::uniform32(any::<u8>())) {
            let mut all = [0; 64];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&more);
            let entry = SubmissionEntry::decode(&all);
            prop_assert_eq!(entry.encode(), all);
            let again = AdminCommand::from(&entry).to_entry(entry.cid, entry.prp1, entry.prp2);
            prop_assert_eq!(SubmissionEntry { flags: entry.flags, mptr: entry.mptr, ..again }, entry);
        }

        #[test]
        fn completion_entries_round_trip(bytes in any::<[u8; 16]>()) {
            let entry = CompletionEntry::decode(&bytes);
            prop_assert_eq!(entry.encode(), bytes);
            let mut again = entry;
            again.set_status(entry.status(), entry.phase());
            // Retry delay and More, bits 14:12 of the word, are not kept.
            prop_assert_eq!(again.status_and_phase, entry.status_and_phase & !0x7000);
        }

        #[test]
        fn queue_commands_round_trip(qid: u16, size: u16, cqid: u16, pc: bool, prio in 0u8..4, ien: bool) {
            let sq = CreateIoSq { qid, entries: u32::from(size) + 1, contiguous: pc, priority: prio, cqid };
            prop_assert_eq!(CreateIoSq::decode(&sq.encode().unwrap()), sq);
            let cq = CreateIoCq { qid, entries: u32::from(size) + 1, contiguous: pc, interrupts: ien, vector: cqid };
            prop_assert_eq!(CreateIoCq::decode(&cq.encode().unwrap()), cq);
        }
    }
}
