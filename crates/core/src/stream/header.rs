//! The first 40 bytes.

use super::error::StreamErrorReason;
use super::limits::Limits;
use super::{bytes_at, u16_at, u32_at};
use crate::crc::crc32c;

/// Bytes of a [`StreamHeader`].
pub const STREAM_HEADER_BYTES: usize = 40;
/// What a stream begins with.
pub const MAGIC: [u8; 8] = *b"TOWLINE\0";
/// The major version that is written, and the newest that is read.
pub const MAJOR: u16 = 1;
/// The minor version that is written.
pub const MINOR: u16 = 0;
/// The oldest major version that is read: the one before [`MAJOR`]. There was none before 1.
pub const OLDEST_MAJOR: u16 = if MAJOR > 1 { MAJOR - 1 } else { MAJOR };

const CHECKED_BYTES: usize = 36;

/// Who the stream is for, and in which version it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHeader {
    /// Major version: a reader that does not know it cannot read the rest.
    pub major: u16,
    /// Minor version: says which optional frames may come.
    pub minor: u16,
    /// The migration session.
    pub session: [u8; 16],
}

impl StreamHeader {
    /// The header of a stream of `session` in the current version.
    #[must_use]
    pub fn new(session: [u8; 16]) -> Self {
        Self { major: MAJOR, minor: MINOR, session }
    }

    /// Whether this major version can be read and written.
    #[must_use]
    pub fn is_supported(&self) -> bool {
        (OLDEST_MAJOR..=MAJOR).contains(&self.major)
    }

    /// The bytes, checksum included.
    #[must_use]
    pub fn encode(&self) -> [u8; STREAM_HEADER_BYTES] {
        let mut out = [0; STREAM_HEADER_BYTES];
        out[..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&self.major.to_le_bytes());
        out[10..12].copy_from_slice(&self.minor.to_le_bytes());
        out[16..32].copy_from_slice(&self.session);
        let crc = crc32c(0, &out[..CHECKED_BYTES]);
        out[CHECKED_BYTES..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and checks the bytes.
    ///
    /// # Errors
    /// `Magic`, `Version`, `HeaderChecksum` or `HeaderReserved`, looked for in this order: a later major version may have
    /// another layout behind the version.
    pub fn decode(raw: &[u8; STREAM_HEADER_BYTES], limits: &Limits) -> Result<Self, StreamErrorReason> {
        if !raw.starts_with(&MAGIC) {
            return Err(StreamErrorReason::Magic);
        }
        let header = Self { major: u16_at(raw, 8), minor: u16_at(raw, 10), session: bytes_at(raw, 16) };
        if !header.is_supported() {
            return Err(StreamErrorReason::Version { major: header.major, minor: header.minor });
        }
        if !limits.same(u32_at(raw, CHECKED_BYTES), crc32c(0, &raw[..CHECKED_BYTES])) {
            return Err(StreamErrorReason::HeaderChecksum);
        }
        if u32_at(raw, 12) != 0 || u32_at(raw, 32) != 0 {
            return Err(StreamErrorReason::HeaderReserved);
        }
        Ok(header)
    }
}
