//! The 24 bytes before each payload.

use super::error::StreamErrorReason;
use super::limits::Limits;
use super::{u16_at, u32_at};
use crate::crc::crc32c;

/// Bytes of a [`FrameHeader`].
pub const FRAME_HEADER_BYTES: usize = 24;
/// Flag: a reader that does not know the type (or the section kind) skips it.
pub const OPTIONAL: u16 = 1;

const CHECKED_BYTES: usize = 16;

/// The types that this version knows; see [`crate::stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum FrameType {
    /// Opens a section on a new channel.
    SectionBegin = 1,
    /// Opaque device state.
    StateChunk = 2,
    /// Pages of guest memory.
    Pages = 3,
    /// Bytes of a section of the caller or of an exposure.
    SectionData = 4,
    /// A round over guest memory ends.
    RoundEnd = 5,
    /// Closes a section.
    Manifest = 6,
    /// The two sides talk.
    Dialogue = 7,
    /// Closes the stream.
    StreamEnd = 8,
}

impl FrameType {
    /// The type with this number; `None` where this version knows none.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::SectionBegin,
            2 => Self::StateChunk,
            3 => Self::Pages,
            4 => Self::SectionData,
            5 => Self::RoundEnd,
            6 => Self::Manifest,
            7 => Self::Dialogue,
            8 => Self::StreamEnd,
            _ => return None,
        })
    }

    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> u16 {
        self as u16
    }
}

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// A [`FrameType`], or a number that this version does not know.
    pub frame_type: u16,
    /// [`OPTIONAL`] or 0.
    pub flags: u16,
    /// The section, or 0 for the stream itself.
    pub channel: u32,
    /// Counts the frames of the stream from 0.
    pub sequence: u32,
    /// Bytes of payload.
    pub length: u32,
    /// CRC32C of the payload; 0 for an empty one.
    pub payload_crc: u32,
}

impl FrameHeader {
    /// The bytes, checksum included.
    #[must_use]
    pub fn encode(&self) -> [u8; FRAME_HEADER_BYTES] {
        let mut out = [0; FRAME_HEADER_BYTES];
        out[0..2].copy_from_slice(&self.frame_type.to_le_bytes());
        out[2..4].copy_from_slice(&self.flags.to_le_bytes());
        out[4..8].copy_from_slice(&self.channel.to_le_bytes());
        out[8..12].copy_from_slice(&self.sequence.to_le_bytes());
        out[12..16].copy_from_slice(&self.length.to_le_bytes());
        let crc = crc32c(0, &out[..CHECKED_BYTES]);
        out[16..20].copy_from_slice(&crc.to_le_bytes());
        out[20..24].copy_from_slice(&self.payload_crc.to_le_bytes());
        out
    }

    /// Reads the bytes and checks what can be checked without knowing the frames before: checksum, length, flags.
    ///
    /// # Errors
    /// `FrameHeaderChecksum`, `FrameTooLarge` or `FrameFlags`.
    pub fn decode(raw: &[u8; FRAME_HEADER_BYTES], limits: &Limits) -> Result<Self, StreamErrorReason> {
        if !limits.same(u32_at(raw, 16), crc32c(0, &raw[..CHECKED_BYTES])) {
            return Err(StreamErrorReason::FrameHeaderChecksum);
        }
        let header = Self {
            frame_type: u16_at(raw, 0),
            flags: u16_at(raw, 2),
            channel: u32_at(raw, 4),
            sequence: u32_at(raw, 8),
            length: u32_at(raw, 12),
            payload_crc: u32_at(raw, 20),
        };
        if header.length > limits.max_frame_bytes {
            return Err(StreamErrorReason::FrameTooLarge { length: header.length, limit: limits.max_frame_bytes });
        }
        if header.flags & !OPTIONAL != 0 {
            return Err(StreamErrorReason::FrameFlags(header.flags));
        }
        Ok(header)
    }

    /// Whether [`OPTIONAL`] is set.
    #[must_use]
    pub fn is_optional(&self) -> bool {
        self.flags & OPTIONAL != 0
    }
}
