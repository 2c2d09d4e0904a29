//! Track Send (3Dh) and Track Receive (3Eh) for host memory: which bytes of a guest a controller wrote. (User data changes
//! need controller data queues, which towline does not use: namespaces are shared.)

use crate::command::{AdminCommand, opcode};
use crate::counts::{CountError, bytes_of_numd_zeroes_based, numd_zeroes_based};
use crate::status::StatusCode;
use crate::wire::{DecodeError, records};
use crate::wire_struct;

/// Tracking granularity is a power of two of this many bytes.
pub const GRANULARITY_UNIT_BYTES: u64 = 4096;

/// Most range descriptors that we accept from a host or send to a device.
pub const MAX_TRACKED_RANGES: u32 = 65536;

/// Bytes of a granularity field: 4 KiB times two to its power; `None` beyond 2^63.
#[must_use]
pub fn granularity_bytes(field: u8) -> Option<u64> {
    (field < 52).then(|| GRANULARITY_UNIT_BYTES << field)
}

/// Track Send (3Dh).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrackSend {
    /// SEL 0: logs user data changes to a controller data queue.
    LogUserData {
        /// Start or stop.
        start: bool,
        /// The queue.
        cdqid: u16,
    },
    /// SEL 1: tracks memory changes of a controller. The data is a [`TrackRanges`].
    TrackMemory {
        /// Start or stop.
        start: bool,
        /// The controller whose changes are tracked.
        cntlid: u16,
    },
}

impl TrackSend {
    /// The command.
    #[must_use]
    pub fn encode(&self) -> AdminCommand {
        let (sel, start, id) = match *self {
            Self::LogUserData { start, cdqid } => (0, start, cdqid),
            Self::TrackMemory { start, cntlid } => (1, start, cntlid),
        };
        let cdw10 = u32::from(start) << 16 | sel;
        AdminCommand { cdw10, cdw11: u32::from(id), ..AdminCommand::new(opcode::TRACK_SEND) }
    }

    /// Reads the command.
    ///
    /// # Errors
    /// Invalid Field for another selection or action.
    pub fn decode(cmd: &AdminCommand) -> Result<Self, StatusCode> {
        let start = match cmd.cdw10 >> 16 {
            0 => false,
            1 => true,
            _ => return Err(StatusCode::InvalidField),
        };
        match cmd.cdw10 & 0xff {
            0 => Ok(Self::LogUserData { start, cdqid: cmd.cdw11 as u16 }),
            1 => Ok(Self::TrackMemory { start, cntlid: cmd.cdw11 as u16 }),
            _ => Err(StatusCode::InvalidField),
        }
    }
}

/// What Track Send says in the result of a start that failed with Not Enough Resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackResources {
    /// Granularity that is possible, as a power of two of 4 KiB (DW0, bits 15:0).
    pub granularity: u16,
    /// Range descriptors that are possible (DW1).
    pub descriptors: u32,
}

impl TrackResources {
    /// Out of `DW0 | DW1 << 32`.
    #[must_use]
    pub fn from_result(result: u64) -> Self {
        Self { granularity: result as u16, descriptors: (result >> 32) as u32 }
    }

    /// As `DW0 | DW1 << 32`.
    #[must_use]
    pub fn to_result(self) -> u64 {
        u64::from(self.granularity) | u64::from(self.descriptors) << 32
    }
}

wire_struct! {
    /// Header of the data of Track Send with SEL 1.
    pub struct TrackRangesHeader [8] {
        /// Version, 0.
        version: u8 = 0,
        /// Requested granularity, as a power of two of 4 KiB.
        granularity: u8 = 3,
        /// Number of descriptors, 1's-based.
        count: u32 = 4,
    }
}

wire_struct! {
    /// One range to track.
    pub struct TrackRange [12] {
        /// First guest-physical address, a multiple of the granularity.
        address: u64 = 0,
        /// Length in bytes, a multiple of the granularity.
        len: u32 = 8,
    }
}

/// Data of Track Send with SEL 1.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackRanges {
    /// Requested granularity, as a power of two of 4 KiB.
    pub granularity: u8,
    /// The ranges.
    pub ranges: Vec<TrackRange>,
}

impl TrackRanges {
    /// The bytes: 8 + 12 for each range.
    ///
    /// # Errors
    /// More than [`MAX_TRACKED_RANGES`].
    pub fn encode(&self) -> Result<Vec<u8>, CountError> {
        let count = u32::try_from(self.ranges.len()).ok().filter(|n| *n <= MAX_TRACKED_RANGES);
        let count = count.ok_or(CountError { bytes_or_count: self.ranges.len() as u64 })?;
        let mut bytes = TrackRangesHeader { version: 0, granularity: self.granularity, count }.encode().to_vec();
        self.ranges.iter().for_each(|range| bytes.extend_from_slice(&range.encode()));
        Ok(bytes)
    }

    /// How many bytes the data has whose header this is; the controller has no other way to know.
    ///
    /// # Errors
    /// An unknown version, or more than [`MAX_TRACKED_RANGES`].
    pub fn data_len(header: &TrackRangesHeader) -> Result<usize, DecodeError> {
        let limit = MAX_TRACKED_RANGES;
        if header.version != 0 {
            let version = u32::from(header.version);
            return Err(DecodeError::Version { what: "memory range tracking data", version, known: 0 });
        }
        if header.count > limit {
            let (value, limit) = (u128::from(header.count), u64::from(limit));
            return Err(DecodeError::Limit { what: "number of memory range tracking descriptors", value, limit });
        }
        Ok(TrackRangesHeader::SIZE + TrackRange::SIZE * header.count as usize)
    }

    /// Reads the data. Bytes after the last descriptor are ignored.
    ///
    /// # Errors
    /// Cut short, too many, or of an unknown version.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let truncated = |needed: usize| {
            let (needed, got) = (needed as u64, bytes.len() as u64);
            DecodeError::Truncated { what: "memory range tracking data", needed, got }
        };
        let header = TrackRangesHeader::decode_prefix(bytes).ok_or_else(|| truncated(TrackRangesHeader::SIZE))?;
        let needed = Self::data_len(&header)?;
        let body = bytes.get(TrackRangesHeader::SIZE..needed).ok_or_else(|| truncated(needed))?;
        let ranges = records::<12>(body, header.count as usize).map(TrackRange::decode).collect();
        Ok(Self { granularity: header.granularity, ranges })
    }
}

/// Track Receive (3Eh). Reading is destructive: what it returned is not returned again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackReceive {
    /// The tracked controller.
    pub cntlid: u16,
    /// Bytes to return, a multiple of 4, at least 4.
    pub data_bytes: u64,
}

impl TrackReceive {
    /// The command.
    ///
    /// # Errors
    /// `data_bytes` is not whole dwords, none or too many.
    pub fn encode(&self) -> Result<AdminCommand, CountError> {
        Ok(AdminCommand {
            cdw11: u32::from(self.cntlid),
            cdw12: numd_zeroes_based(self.data_bytes)?,
            ..AdminCommand::new(opcode::TRACK_RECEIVE)
        })
    }

    /// Reads the command.
    ///
    /// # Errors
    /// Invalid Field for a selection other than 0.
    pub fn decode(cmd: &AdminCommand) -> Result<Self, StatusCode> {
        if cmd.cdw10 & 0xff != 0 {
            return Err(StatusCode::InvalidField);
        }
        Ok(Self { cntlid: cmd.cdw11 as u16, data_bytes: bytes_of_numd_zeroes_based(cmd.cdw12) })
    }
}

wire_struct! {
    /// Header of the data of Track Receive.
    pub struct TrackedMemoryHeader [16] {
        /// Version, 0.
        version: u8 = 0,
        /// Bit 0 MTR: more to report. Bit 1 SUSP: the controller is suspended.
        attributes: u8 = 1,
        /// The tracked controller.
        cntlid: u16 = 2,
        /// Number of tracked memory changed descriptors (NTMCD).
        count: u32 = 4,
        /// Granularity of the report (RPMPG). Its unit is not settled among readings, so it is for display only. The model fills
        /// it as Track Send asks for it and as [`TrackResources::granularity`] tells it: a power of two of 4 KiB.
        page_granularity: u16 = 8,
    }
}

impl TrackedMemoryHeader {
    /// More changes are there to be received.
    pub const MORE: u8 = 1;
    /// The controller is suspended.
    pub const SUSPENDED: u8 = 2;

    /// Whether there is more to receive.
    #[must_use]
    pub fn more(&self) -> bool {
        self.attributes & Self::MORE != 0
    }

    /// Whether the controller is suspended; with `!more()` this was the last report.
    #[must_use]
    pub fn suspended(&self) -> bool {
        self.attributes & Self::SUSPENDED != 0
    }
}

wire_struct! {
    /// One range that was written.
    pub struct ChangedRange [16] {
        /// First guest-physical address.
        address: u64 = 0,
        /// Length in bytes.
        len: u32 = 8,
    }
}

/// Data of Track Receive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrackedMemory {
    /// The header.
    pub header: TrackedMemoryHeader,
    /// The ranges; as many as the header says.
    pub ranges: Vec<ChangedRange>,
}

impl TrackedMemory {
    /// The most ranges that `bytes` can carry.
    #[must_use]
    pub fn capacity(bytes: usize) -> usize {
        bytes.saturating_sub(TrackedMemoryHeader::SIZE) / ChangedRange::SIZE
    }

    /// Reads what was received.
    ///
    /// # Errors
    /// The count does not fit into `bytes`, or the version is unknown.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let what = "tracked memory changes";
        let got = bytes.len() as u64;
        let header =
            TrackedMemoryHeader::decode_prefix(bytes).ok_or(DecodeError::Truncated { what, needed: 16, got })?;
        if header.version != 0 {
            return Err(DecodeError::Version { what, version: u32::from(header.version), known: 0 });
        }
        let needed = 16 + 16 * u64::from(header.count);
        if needed > got {
            return Err(DecodeError::Truncated { what, needed, got });
        }
        let body = bytes.get(TrackedMemoryHeader::SIZE..).unwrap_or_default();
        let ranges = records::<16>(body, header.count as usize).map(ChangedRange::decode).collect();
        Ok(Self { header, ranges })
    }

    /// Writes header and ranges; the header's count is set to the number of ranges.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let count = u32::try_from(self.ranges.len()).unwrap_or(u32::MAX);
        let mut bytes = TrackedMemoryHeader { count, ..self.header }.encode().to_vec();
        self.ranges.iter().take(count as usize).for_each(|range| bytes.extend_from_slice(&range.encode()));
        bytes
    }
}
