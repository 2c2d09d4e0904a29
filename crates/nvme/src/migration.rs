//! Migration Send (41h), Migration Receive (42h), and the controller state formats (CNS 20h) that they speak of.

use crate::command::{AdminCommand, opcode};
use crate::counts::{
    CountError, bytes_of_numd_ones_based, bytes_of_numd_zeroes_based, numd_ones_based, numd_zeroes_based,
};
use crate::identify::IDENTIFY_BYTES;
use crate::state::KNOWN_STATE_VERSIONS;
use crate::status::StatusCode;
use crate::wire::{DecodeError, records};

/// How Migration Send suspends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SuspendType {
    /// Announces a suspend; the controller goes on.
    Notification = 0,
    /// Suspends: completes once every fetched command, asynchronous event requests aside, has completed.
    Suspend = 1,
}

/// Where a part of a controller state stands in the sequence of its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Sequence {
    /// Between the first and the last.
    Middle = 0,
    /// The first of several.
    First = 1,
    /// The last of several: commits.
    Last = 2,
    /// The only one: commits.
    Only = 3,
}

/// Which state format is meant: indices into the list that *this* controller gives (CNS 20h), from 1; 0 is none.
///
/// Indices belong to a controller. Never send one to another: find it there by version and UUID ([`StateFormats::index_of`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FormatIndex {
    /// Controller State Version Index.
    pub version: u8,
    /// Controller State UUID Index.
    pub uuid: u8,
}

/// Migration Send (41h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationSend {
    /// SEL 0.
    Suspend {
        /// Which controller.
        cntlid: u16,
        /// How.
        kind: SuspendType,
        /// Deletes its user data migration queue too.
        delete_queue: bool,
    },
    /// SEL 1. Not to be undone: the controller runs.
    Resume {
        /// Which controller.
        cntlid: u16,
    },
    /// SEL 2.
    SetState {
        /// Which controller.
        cntlid: u16,
        /// Which part.
        sequence: Sequence,
        /// The format, in indices of the controller that gets this command.
        format: FormatIndex,
        /// Where the part belongs, in bytes, a multiple of 4.
        offset: u64,
        /// Length of the part in bytes, a multiple of 4; 0 only in the last part.
        data_bytes: u64,
        /// UUID index of the command (CDW14, bits 6:0).
        uuid_index: u8,
    },
}

impl MigrationSend {
    /// The command.
    ///
    /// # Errors
    /// A length or offset is not whole dwords or does not fit.
    pub fn encode(&self) -> Result<AdminCommand, CountError> {
        let mut cmd = AdminCommand::new(opcode::MIGRATION_SEND);
        match *self {
            Self::Suspend { cntlid, kind, delete_queue } => {
                cmd.cdw11 = u32::from(delete_queue) << 31 | (kind as u32) << 16 | u32::from(cntlid);
            }
            Self::Resume { cntlid } => {
                cmd.cdw10 = 1;
                cmd.cdw11 = u32::from(cntlid);
            }
            Self::SetState { cntlid, sequence, format, offset, data_bytes, uuid_index } => {
                if !offset.is_multiple_of(4) {
                    return Err(CountError { bytes_or_count: offset });
                }
                cmd.cdw10 = (sequence as u32) << 16 | 2;
                cmd.cdw11 = u32::from(format.uuid) << 24 | u32::from(format.version) << 16 | u32::from(cntlid);
                cmd.cdw12 = offset as u32;
                cmd.cdw13 = (offset >> 32) as u32;
                cmd.cdw14 = u32::from(uuid_index & 0x7f);
                cmd.cdw15 = numd_ones_based(data_bytes)?;
            }
        }
        Ok(cmd)
    }

    /// Reads the command.
    ///
    /// # Errors
    /// Invalid Field: another selection or suspend type, an offset that is not a multiple of 4, or no data in another part
    /// than the last.
    pub fn decode(cmd: &AdminCommand) -> Result<Self, StatusCode> {
        let cntlid = cmd.cdw11 as u16;
        match cmd.cdw10 & 0xff {
            0 => {
                let kind = match cmd.cdw11 >> 16 & 0xff {
                    0 => SuspendType::Notification,
                    1 => SuspendType::Suspend,
                    _ => return Err(StatusCode::InvalidField),
                };
                Ok(Self::Suspend { cntlid, kind, delete_queue: cmd.cdw11 >> 31 != 0 })
            }
            1 => Ok(Self::Resume { cntlid }),
            2 => {
                let sequence = match cmd.cdw10 >> 16 & 3 {
                    0 => Sequence::Middle,
                    1 => Sequence::First,
                    2 => Sequence::Last,
                    _ => Sequence::Only,
                };
                let offset = u64::from(cmd.cdw12) | u64::from(cmd.cdw13) << 32;
                if !offset.is_multiple_of(4) || (cmd.cdw15 == 0 && sequence != Sequence::Last) {
                    return Err(StatusCode::InvalidField);
                }
                Ok(Self::SetState {
                    cntlid,
                    sequence,
                    format: FormatIndex { version: (cmd.cdw11 >> 16) as u8, uuid: (cmd.cdw11 >> 24) as u8 },
                    offset,
                    data_bytes: bytes_of_numd_ones_based(cmd.cdw15),
                    uuid_index: cmd.cdw14 as u8 & 0x7f,
                })
            }
            _ => Err(StatusCode::InvalidField),
        }
    }
}

/// Migration Receive (42h): Get Controller State.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MigrationReceive {
    /// Which controller.
    pub cntlid: u16,
    /// The format, in indices of the controller that gets this command.
    pub format: FormatIndex,
    /// Controller State UUID Index Parameter: for whoever defined that UUID.
    pub uuid_parameter: u8,
    /// First byte to return, a multiple of 4.
    pub offset: u64,
    /// Bytes to return, a multiple of 4, at least 4.
    pub data_bytes: u64,
    /// UUID index of the command (CDW14, bits 6:0).
    pub uuid_index: u8,
}

impl MigrationReceive {
    /// Bit 0 of the result, CSUP: the controller was suspended while the data was read, so it is consistent.
    pub const RESULT_SUSPENDED: u64 = 1;

    /// The command.
    ///
    /// # Errors
    /// A length or offset is not whole dwords or does not fit.
    pub fn encode(&self) -> Result<AdminCommand, CountError> {
        if !self.offset.is_multiple_of(4) {
            return Err(CountError { bytes_or_count: self.offset });
        }
        Ok(AdminCommand {
            cdw10: u32::from(self.format.version) << 16,
            cdw11: u32::from(self.uuid_parameter) << 24 | u32::from(self.format.uuid) << 16 | u32::from(self.cntlid),
            cdw12: self.offset as u32,
            cdw13: (self.offset >> 32) as u32,
            cdw14: u32::from(self.uuid_index & 0x7f),
            cdw15: numd_zeroes_based(self.data_bytes)?,
            ..AdminCommand::new(opcode::MIGRATION_RECEIVE)
        })
    }

    /// Reads the command.
    ///
    /// # Errors
    /// Invalid Field: another selection, or an offset that is not a multiple of 4.
    pub fn decode(cmd: &AdminCommand) -> Result<Self, StatusCode> {
        let offset = u64::from(cmd.cdw12) | u64::from(cmd.cdw13) << 32;
        if cmd.cdw10 & 0xff != 0 || !offset.is_multiple_of(4) {
            return Err(StatusCode::InvalidField);
        }
        Ok(Self {
            cntlid: cmd.cdw11 as u16,
            format: FormatIndex { version: (cmd.cdw10 >> 16) as u8, uuid: (cmd.cdw11 >> 16) as u8 },
            uuid_parameter: (cmd.cdw11 >> 24) as u8,
            offset,
            data_bytes: bytes_of_numd_zeroes_based(cmd.cdw15),
            uuid_index: cmd.cdw14 as u8 & 0x7f,
        })
    }
}

/// Supported Controller State Formats (CNS 20h).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateFormats {
    /// Versions of the NVMe controller state; index 1 is the first.
    pub versions: Vec<u16>,
    /// UUIDs of vendor specific state; index 1 is the first.
    pub uuids: Vec<[u8; 16]>,
}

impl StateFormats {
    /// The indices of a format on this controller: `None` where it does not have it. No UUID is index 0.
    #[must_use]
    pub fn index_of(&self, version: u16, uuid: Option<&[u8; 16]>) -> Option<FormatIndex> {
        let index = |at: usize| u8::try_from(at + 1).ok();
        Some(FormatIndex {
            version: self.versions.iter().position(|v| *v == version).and_then(index)?,
            uuid: match uuid {
                Some(uuid) => self.uuids.iter().position(|u| u == uuid).and_then(index)?,
                None => 0,
            },
        })
    }

    /// What a migration from here to `there` can speak: the newest version that both have and this crate knows, and the first
    /// UUID here that both have. `None` where there is no such version. Without a common UUID only the NVMe part moves, which
    /// lacks the admin queue, CC and the features.
    #[must_use]
    pub fn common(&self, there: &Self) -> Option<(u16, Option<[u8; 16]>)> {
        let known = |version: &&u16| KNOWN_STATE_VERSIONS.contains(version) && there.versions.contains(version);
        let version = self.versions.iter().filter(known).max()?;
        Some((*version, self.uuids.iter().find(|uuid| there.uuids.contains(uuid)).copied()))
    }

    /// Reads the structure. Duplicates are kept: indices count them.
    ///
    /// # Errors
    /// The counts do not fit into the structure.
    pub fn decode(bytes: &[u8; IDENTIFY_BYTES]) -> Result<Self, DecodeError> {
        let [versions, uuids, rest @ ..] = bytes.as_slice() else { return Ok(Self::default()) };
        let (versions, uuids) = (usize::from(*versions), usize::from(*uuids));
        let at = 2 * versions;
        let needed = at + 16 * uuids;
        if needed > rest.len() {
            let (needed, got) = (2 + needed as u64, IDENTIFY_BYTES as u64);
            return Err(DecodeError::Truncated { what: "supported controller state formats", needed, got });
        }
        let (head, tail) = rest.split_at(at);
        Ok(Self {
            versions: records::<2>(head, versions).map(|b| u16::from_le_bytes(*b)).collect(),
            uuids: records::<16>(tail, uuids).copied().collect(),
        })
    }

    /// Writes the structure; `None` where it does not fit.
    #[must_use]
    pub fn encode(&self) -> Option<[u8; IDENTIFY_BYTES]> {
        let mut out = vec![u8::try_from(self.versions.len()).ok()?, u8::try_from(self.uuids.len()).ok()?];
        self.versions.iter().for_each(|version| out.extend_from_slice(&version.to_le_bytes()));
        self.uuids.iter().for_each(|uuid| out.extend_from_slice(uuid));
        let mut bytes = [0; IDENTIFY_BYTES];
        bytes.get_mut(..out.len())?.copy_from_slice(&out);
        Some(bytes)
    }
}
