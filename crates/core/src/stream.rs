//! The migration stream: device state, memory and the caller's sections as frames on a wire or in a file.
//!
//! Everything is little-endian. A stream is a [`StreamHeader`] of 40 bytes, then frames. A frame is a [`FrameHeader`] of
//! 24 bytes and `length` bytes of payload.
//!
//! | offset | stream header | | offset | frame header |
//! |---|---|---|---|---|
//! | 0 | magic `TOWLINE\0` | | 0 | type, u16 |
//! | 8 | major, u16 | | 2 | flags, u16: bit 0 OPTIONAL, others 0 |
//! | 10 | minor, u16 | | 4 | channel, u32 |
//! | 12 | flags, u32, 0 | | 8 | sequence, u32: 0, 1, 2, … in the stream |
//! | 16 | session id, 16 bytes | | 12 | payload length, u32 |
//! | 32 | reserved, u32, 0 | | 16 | CRC32C of bytes 0 to 15, u32 |
//! | 36 | CRC32C of bytes 0 to 35, u32 | | 20 | CRC32C of the payload, u32 |
//!
//! | type | frame | channel | payload |
//! |---|---|---|---|
//! | 1 | SECTION_BEGIN | a new one | [`SectionBegin`] |
//! | 2 | STATE_CHUNK | device state | at least one byte of opaque device state |
//! | 3 | PAGES | memory | run table ([`PagesRun`]), then the bytes of its data runs |
//! | 4 | SECTION_DATA | caller, exposure | any bytes, or none |
//! | 5 | ROUND_END | memory | [`RoundEnd`] |
//! | 6 | MANIFEST | any open one; closes it | [`SectionDigest`] of every frame of the section before it |
//! | 7 | DIALOGUE | 0 | opaque, at least one byte; in no digest |
//! | 8 | STREAM_END | 0 | [`SectionDigest`] of every frame before it, DIALOGUE left out |
//!
//! Rules: channel 0 is the stream itself; a section has a channel of its own that is never used again; a memory section
//! ends with a final ROUND_END and its MANIFEST; every section is closed before STREAM_END; nothing follows that, or only
//! DIALOGUE where [`Limits::dialogue_after_end`] says so. A stream that ends before STREAM_END is incomplete.
//!
//! A frame of an unknown type is skipped where it is OPTIONAL, and refused where it is not; so is a whole section of an
//! unknown kind. What is skipped is checked and counted all the same. OPTIONAL on the other known types is refused.
//!
//! Version rule: a reader reads the current and the previous major version ([`OLDEST_MAJOR`] to [`MAJOR`]) in any minor
//! version; a minor version only adds optional frames and sections.
//!
//! [`FrameRules`] is the whole rule book. [`Decoder`] and [`Encoder`] are built on it, and so is a fast path that receives
//! pages straight into memory.

mod decoder;
mod digest;
mod encoder;
mod error;
mod event;
#[cfg(test)]
mod flips;
mod frame;
mod header;
mod limits;
mod pages;
mod rules;
mod section;

pub use decoder::Decoder;
pub use digest::{DIGEST_BYTES, SectionDigest};
pub use encoder::Encoder;
pub use error::{PagesFault, StreamError, StreamErrorReason};
pub use event::{Disposition, Event};
pub use frame::{FRAME_HEADER_BYTES, FrameHeader, FrameType, OPTIONAL};
pub use header::{MAGIC, MAJOR, MINOR, OLDEST_MAJOR, STREAM_HEADER_BYTES, StreamHeader};
pub use limits::Limits;
pub use pages::{
    PAGES_PREFIX_BYTES, PAGES_RUN_BYTES, Pages, PagesPrefix, PagesRun, PagesSummary, RunKind, decode_pages_prefix,
    decode_pages_table, encode_pages_table,
};
pub use rules::FrameRules;
pub use section::{RESERVED_KINDS, RoundEnd, SECTION_BEGIN_BYTES, SectionBegin, SectionKind};

/// The `N` bytes at `at`. Reading past the end is a fault of the caller's length check, and answered with zeros.
fn bytes_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..).and_then(|tail| tail.first_chunk::<N>()).copied().unwrap_or([0; N])
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes_at(bytes, at))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes_at(bytes, at))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes_at(bytes, at))
}
