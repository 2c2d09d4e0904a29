//! [`SectionDigest`]: counts and hashes over the frames of a section.

use super::frame::{FRAME_HEADER_BYTES, FrameHeader};
use super::{u32_at, u64_at};
use crate::crc::crc32c;

/// Bytes of a [`SectionDigest`] on the wire.
pub const DIGEST_BYTES: usize = 32;

/// What a sequence of frames was: how many, how many bytes, and two hashes over their headers. A header holds the
/// CRC32C of its payload, so the payloads need no second pass.
///
/// * `crc` is the CRC32C of all 24-byte headers after one another.
/// * `hash` starts as 0x746F776C_696E6531. Each header is three little-endian u64 words `w`; for each of them
///   `hash = rotate_left(hash XOR (w * K1), 29) * K2 + K3` modulo 2^64. The result on the wire is `hash`, then
///   `x = hash XOR (hash >> 32); x *= K2; x XOR (x >> 29)`.
///   K1 = 0x9E3779B97F4A7C15, K2 = 0xD6E8FEB86659FD93, K3 = 0xA0761D6478BD642F.
///
/// K1 and K2 are odd, so a step loses nothing: for a given word it is a bijection of the hash, and the other way round. Two
/// sequences that differ in one word never have the same hash; others have it with a probability near 2^-64. It is made
/// against loss and reordering, not against forgery: that is for TLS.
///
/// On the wire: frames u64, bytes u64, crc u32, reserved u32 = 0, hash u64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionDigest {
    frames: u64,
    bytes: u64,
    crc: u32,
    hash: u64,
}

const START: u64 = 0x746F_776C_696E_6531;
const K1: u64 = 0x9E37_79B9_7F4A_7C15;
const K2: u64 = 0xD6E8_FEB8_6659_FD93;
const K3: u64 = 0xA076_1D64_78BD_642F;

impl Default for SectionDigest {
    fn default() -> Self {
        Self { frames: 0, bytes: 0, crc: 0, hash: START }
    }
}

impl SectionDigest {
    /// The digest of no frame.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one frame.
    pub fn add(&mut self, header: &FrameHeader) {
        let raw: [u8; FRAME_HEADER_BYTES] = header.encode();
        self.frames = self.frames.saturating_add(1);
        self.bytes = self.bytes.saturating_add(u64::from(header.length));
        self.crc = crc32c(self.crc, &raw);
        for word in raw.as_chunks::<8>().0 {
            let mixed = self.hash ^ u64::from_le_bytes(*word).wrapping_mul(K1);
            self.hash = mixed.rotate_left(29).wrapping_mul(K2).wrapping_add(K3);
        }
    }

    /// Frames added.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Payload bytes of the frames added.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// CRC32C of the headers.
    #[must_use]
    pub fn crc(&self) -> u32 {
        self.crc
    }

    /// The 64-bit hash, as it is on the wire.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let x = (self.hash ^ (self.hash >> 32)).wrapping_mul(K2);
        x ^ (x >> 29)
    }

    /// The payload of a MANIFEST or a STREAM_END.
    #[must_use]
    pub fn encode(&self) -> [u8; DIGEST_BYTES] {
        let mut out = [0; DIGEST_BYTES];
        out[0..8].copy_from_slice(&self.frames.to_le_bytes());
        out[8..16].copy_from_slice(&self.bytes.to_le_bytes());
        out[16..20].copy_from_slice(&self.crc.to_le_bytes());
        out[24..32].copy_from_slice(&self.hash().to_le_bytes());
        out
    }

    /// Whether `payload` is this digest.
    #[must_use]
    pub fn matches(&self, payload: &[u8]) -> bool {
        payload.len() == DIGEST_BYTES
            && u64_at(payload, 0) == self.frames
            && u64_at(payload, 8) == self.bytes
            && u32_at(payload, 16) == self.crc
            && u32_at(payload, 20) == 0
            && u64_at(payload, 24) == self.hash()
    }
}
