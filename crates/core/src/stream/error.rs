//! Why a stream was refused, and where.

use core::fmt;

/// A stream that breaks a rule. Nothing after it is read: the decoder answers the same error from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamError {
    /// Bytes from the beginning of the stream to the frame at fault (to the end, for a stream that is incomplete).
    pub offset: u64,
    /// Sequence number that this frame has, or should have; `None` in the stream header.
    pub sequence: Option<u32>,
    /// The rule.
    pub reason: StreamErrorReason,
}

/// See [`StreamError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamErrorReason {
    /// It does not begin with the magic: not a migration stream.
    Magic,
    /// A major version that is neither the current nor the previous one.
    Version {
        /// Major version found.
        major: u16,
        /// Minor version found.
        minor: u16,
    },
    /// The CRC32C of the stream header is wrong.
    HeaderChecksum,
    /// A flag or a reserved field of the stream header is not 0.
    HeaderReserved,
    /// The CRC32C of a frame header is wrong.
    FrameHeaderChecksum,
    /// The CRC32C of a payload is wrong.
    PayloadChecksum,
    /// Frames are lost, repeated or out of order.
    Sequence {
        /// Sequence number that should have come.
        expected: u32,
        /// Sequence number that came.
        found: u32,
    },
    /// 2^32 frames: the sequence would repeat.
    SequenceExhausted,
    /// A payload longer than the limit.
    FrameTooLarge {
        /// Bytes.
        length: u32,
        /// Bytes accepted.
        limit: u32,
    },
    /// A flag that does not exist, or that this type may not have.
    FrameFlags(u16),
    /// A type that is not known, and not optional.
    UnknownType(u16),
    /// A payload length that this type cannot have.
    PayloadLength {
        /// Type of the frame.
        frame_type: u16,
        /// Bytes.
        length: u32,
    },
    /// A field of a payload that has to be 0 is not, or a flag in it does not exist.
    PayloadReserved,
    /// A name that is not UTF-8.
    Name,
    /// A name longer than the limit.
    NameTooLong {
        /// Bytes.
        length: u16,
        /// Bytes accepted.
        limit: u8,
    },
    /// A section kind that is not known, in a section that is not optional.
    SectionKind(u8),
    /// More sections than the limit.
    TooManySections(u32),
    /// No section is open on this channel.
    ChannelNotOpen(u32),
    /// The channel is in use, or was.
    ChannelUsed(u32),
    /// The frame belongs to a section and is on channel 0, or belongs to the stream and is not.
    ChannelWrong(u32),
    /// A section of this kind has no frames of this type.
    NotInSection {
        /// Type of the frame.
        frame_type: u16,
        /// The channel.
        channel: u32,
    },
    /// The table of a PAGES frame is not valid.
    Pages(PagesFault),
    /// Pages after the final round, a round out of order, or a memory section closed before its final round.
    RoundOrder(u32),
    /// The pages or bytes of a round are not what was sent.
    RoundMismatch(u32),
    /// The digest of a section is not that of its frames.
    ManifestMismatch(u32),
    /// The digest of the stream is not that of its frames.
    EndMismatch,
    /// STREAM_END with so many sections open.
    SectionsOpen(u32),
    /// Something follows STREAM_END.
    AfterEnd,
    /// The stream stops before STREAM_END, or within a frame.
    Incomplete,
}

/// What is wrong with the run table of a PAGES frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PagesFault {
    /// The page size is not a power of two from 512 to 1 GiB.
    PageSize(u32),
    /// No run, or more than the limit.
    RunCount(u32),
    /// The table does not fit the payload.
    Table,
    /// A run is empty.
    Empty,
    /// A run is not aligned to the page size.
    Misaligned(u64),
    /// A run ends past the largest address.
    Overflow(u64),
    /// A run begins before the end of the one before it.
    Overlap(u64),
    /// A kind that is neither data nor zero.
    Kind(u32),
    /// The data runs and the payload have not the same length.
    DataLength,
}

impl core::error::Error for StreamError {}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "migration stream at byte {}", self.offset)?;
        if let Some(sequence) = self.sequence {
            write!(f, " (frame {sequence})")?;
        }
        write!(f, ": {}", self.reason)
    }
}

impl fmt::Display for StreamErrorReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("not a migration stream"),
            Self::Version { major, minor } => write!(f, "version {major}.{minor} cannot be read"),
            Self::HeaderChecksum => f.write_str("wrong checksum of the stream header"),
            Self::HeaderReserved => f.write_str("a reserved field of the stream header is set"),
            Self::FrameHeaderChecksum => f.write_str("wrong checksum of a frame header"),
            Self::PayloadChecksum => f.write_str("wrong checksum of a payload"),
            Self::Sequence { expected, found } => write!(f, "frame {expected} should come, frame {found} came"),
            Self::SequenceExhausted => f.write_str("too many frames"),
            Self::FrameTooLarge { length, limit } => write!(f, "a frame of {length} bytes; the limit is {limit}"),
            Self::FrameFlags(flags) => write!(f, "frame flags {flags:#x} are not allowed"),
            Self::UnknownType(t) => write!(f, "frame type {t} is required and not known"),
            Self::PayloadLength { frame_type, length } => {
                write!(f, "a frame of type {frame_type} cannot have {length} bytes")
            }
            Self::PayloadReserved => f.write_str("a reserved field of a payload is set"),
            Self::Name => f.write_str("a section's name is not UTF-8"),
            Self::NameTooLong { length, limit } => write!(f, "a name of {length} bytes; the limit is {limit}"),
            Self::SectionKind(kind) => write!(f, "section kind {kind} is required and not known"),
            Self::TooManySections(limit) => write!(f, "more than {limit} sections"),
            Self::ChannelNotOpen(c) => write!(f, "no section is open on channel {c}"),
            Self::ChannelUsed(c) => write!(f, "channel {c} was used already"),
            Self::ChannelWrong(c) => write!(f, "a frame of this type cannot be on channel {c}"),
            Self::NotInSection { frame_type, channel } => {
                write!(f, "the section on channel {channel} has no frames of type {frame_type}")
            }
            Self::Pages(fault) => write!(f, "invalid page table: {fault:?}"),
            Self::RoundOrder(c) => write!(f, "rounds on channel {c} are out of order, or the final one is missing"),
            Self::RoundMismatch(c) => write!(f, "a round on channel {c} is not what was sent"),
            Self::ManifestMismatch(c) => write!(f, "the section on channel {c} is not what its manifest says"),
            Self::EndMismatch => f.write_str("the stream is not what its end says"),
            Self::SectionsOpen(n) => write!(f, "the stream ends with {n} sections open"),
            Self::AfterEnd => f.write_str("something follows the end of the stream"),
            Self::Incomplete => f.write_str("the stream is incomplete"),
        }
    }
}
