//! Payloads of SECTION_BEGIN and ROUND_END.

use alloc::vec::Vec;
use core::str;

use super::error::StreamErrorReason;
use super::frame::FrameType;
use super::limits::Limits;
use super::{bytes_at, u16_at, u32_at, u64_at};

/// Bytes of a SECTION_BEGIN payload before the name.
pub const SECTION_BEGIN_BYTES: usize = 40;
/// Section kinds that have a meaning to come: 5 the config space of an exposure, 6 the user data of a namespace, 7 what a
/// resumed migration needs. This version neither writes nor reads them.
pub const RESERVED_KINDS: [u8; 3] = [5, 6, 7];

const ROUND_END_BYTES: usize = 24;
const FINAL: u32 = 1;

/// What a section holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum SectionKind {
    /// The device state of one function: STATE_CHUNK.
    DeviceState = 1,
    /// Guest memory: PAGES and ROUND_END.
    Memory = 2,
    /// What the caller of the migration sends: SECTION_DATA.
    Caller = 3,
    /// What an exposure owns of a function: SECTION_DATA.
    Exposure = 4,
}

impl SectionKind {
    /// The kind with this number; `None` where this version knows none.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::DeviceState,
            2 => Self::Memory,
            3 => Self::Caller,
            4 => Self::Exposure,
            _ => return None,
        })
    }

    /// Whether frames of `frame_type` belong into such a section, between SECTION_BEGIN and MANIFEST.
    #[must_use]
    pub fn holds(self, frame_type: FrameType) -> bool {
        match self {
            Self::DeviceState => frame_type == FrameType::StateChunk,
            Self::Memory => matches!(frame_type, FrameType::Pages | FrameType::RoundEnd),
            Self::Caller | Self::Exposure => frame_type == FrameType::SectionData,
        }
    }
}

/// The payload of SECTION_BEGIN: kind u8, reserved u8 = 0, name length u16, format version u32, function 16 bytes, format
/// 16 bytes, name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionBegin<'a> {
    /// What it holds.
    pub kind: SectionKind,
    /// UUID of the function that it belongs to; zeros for guest memory and the caller's sections.
    pub function: [u8; 16],
    /// The declared format of its bytes: a UUID, or ASCII filled up with zeros. All zeros where none is declared.
    pub format: [u8; 16],
    /// Version of that format; its own counting.
    pub format_version: u32,
    /// A name, at most 255 bytes.
    pub name: &'a str,
}

impl<'a> SectionBegin<'a> {
    /// Appends the payload.
    ///
    /// # Errors
    /// `NameTooLong`.
    pub fn encode(&self, limits: &Limits, out: &mut Vec<u8>) -> Result<(), StreamErrorReason> {
        let length = u16::try_from(self.name.len()).unwrap_or(u16::MAX);
        if length > u16::from(limits.max_name_bytes) {
            return Err(StreamErrorReason::NameTooLong { length, limit: limits.max_name_bytes });
        }
        out.extend_from_slice(&[self.kind as u8, 0]);
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&self.format_version.to_le_bytes());
        out.extend_from_slice(&self.function);
        out.extend_from_slice(&self.format);
        out.extend_from_slice(self.name.as_bytes());
        Ok(())
    }

    /// Reads the payload; `None` for a section of an unknown kind that is `optional`.
    ///
    /// # Errors
    /// `PayloadLength`, `NameTooLong`, `SectionKind`, `PayloadReserved` or `Name`.
    pub fn decode(payload: &'a [u8], optional: bool, limits: &Limits) -> Result<Option<Self>, StreamErrorReason> {
        let wrong_length = StreamErrorReason::PayloadLength {
            frame_type: FrameType::SectionBegin.number(),
            length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        };
        let Some(name) = payload.get(SECTION_BEGIN_BYTES..) else { return Err(wrong_length) };
        let number = payload.first().copied().unwrap_or(0);
        let Some(kind) = SectionKind::from_number(number) else {
            return if optional { Ok(None) } else { Err(StreamErrorReason::SectionKind(number)) };
        };
        let length = u16_at(payload, 2);
        if length > u16::from(limits.max_name_bytes) {
            return Err(StreamErrorReason::NameTooLong { length, limit: limits.max_name_bytes });
        }
        if name.len() != usize::from(length) {
            return Err(wrong_length);
        }
        if payload.get(1) != Some(&0) {
            return Err(StreamErrorReason::PayloadReserved);
        }
        Ok(Some(Self {
            kind,
            function: bytes_at(payload, 8),
            format: bytes_at(payload, 24),
            format_version: u32_at(payload, 4),
            name: str::from_utf8(name).map_err(|_| StreamErrorReason::Name)?,
        }))
    }
}

/// The payload of ROUND_END: round u32, flags u32 (bit 0 final), pages u64, bytes u64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundEnd {
    /// Counts the rounds of the section from 0.
    pub round: u32,
    /// Whether it was made after every writer had stopped. Only the MANIFEST follows it.
    pub is_final: bool,
    /// Pages of the round's PAGES frames, zero pages included.
    pub pages: u64,
    /// Bytes of its data runs.
    pub bytes: u64,
}

impl RoundEnd {
    /// The payload.
    #[must_use]
    pub fn encode(&self) -> [u8; ROUND_END_BYTES] {
        let mut out = [0; ROUND_END_BYTES];
        out[0..4].copy_from_slice(&self.round.to_le_bytes());
        out[4..8].copy_from_slice(&(if self.is_final { FINAL } else { 0 }).to_le_bytes());
        out[8..16].copy_from_slice(&self.pages.to_le_bytes());
        out[16..24].copy_from_slice(&self.bytes.to_le_bytes());
        out
    }

    /// Reads the payload.
    ///
    /// # Errors
    /// `PayloadLength` or `PayloadReserved`.
    pub fn decode(payload: &[u8]) -> Result<Self, StreamErrorReason> {
        if payload.len() != ROUND_END_BYTES {
            return Err(StreamErrorReason::PayloadLength {
                frame_type: FrameType::RoundEnd.number(),
                length: u32::try_from(payload.len()).unwrap_or(u32::MAX),
            });
        }
        let flags = u32_at(payload, 4);
        if flags & !FINAL != 0 {
            return Err(StreamErrorReason::PayloadReserved);
        }
        Ok(Self {
            round: u32_at(payload, 0),
            is_final: flags & FINAL != 0,
            pages: u64_at(payload, 8),
            bytes: u64_at(payload, 16),
        })
    }
}
