//! What a unit of the namespace holds, so that everybody who reads it can tell what it is.
//!
//! 4096 bytes, little-endian:
//!
//! | offset | what |
//! |---|---|
//! | 0 | magic, "TWLBLOCK" |
//! | 8 | u64 unit: its own address |
//! | 16 | u64 sequence of the command that wrote it, from 1 |
//! | 24 | u32 epoch of that command |
//! | 28 | u8 host tag of who submitted it; then 3 bytes 0 |
//! | 32 | u64 seed of the tenant |
//! | 40 | fill, derived from the above |
//! | 4092 | u32 CRC32C of bytes 0 to 4091 |
//!
//! A unit that was never written is all zero.

use towline_core::crc::crc32c;

use crate::layout::UNIT_BYTES;

/// "TWLBLOCK", little-endian.
pub const BLOCK_MAGIC: u64 = 0x4b43_4f4c_424c_5754;
const BYTES: usize = UNIT_BYTES as usize;

/// What tells a version of a unit from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// Sequence of the command that wrote it; 0 for a unit that was never written.
    pub seq: u64,
    /// Epoch of that command.
    pub epoch: u32,
}

/// What was found in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// All zero.
    Blank,
    /// A whole block of this unit and tenant.
    Version(Version),
    /// Anything else: torn, of another unit, foreign.
    Invalid,
}

/// Makes the block of `unit`.
pub fn fill(out: &mut [u8; BYTES], unit: u64, version: Version, host_tag: u8, seed: u64) {
    let head = [BLOCK_MAGIC, unit, version.seq, u64::from(version.epoch) | u64::from(host_tag) << 32, seed];
    // Any function of the head that differs in every word serves; the multiplier is the golden ratio's.
    let key = (unit.rotate_left(32) ^ version.seq ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let (words, _) = out.as_chunks_mut::<8>();
    for (n, word) in words.iter_mut().enumerate() {
        let value =
            head.get(n).copied().unwrap_or_else(|| key.wrapping_add(n as u64).wrapping_mul(0xbf58_476d_1ce4_e5b9));
        *word = value.to_le_bytes();
    }
    let (body, crc) = out.split_at_mut(BYTES - 4);
    crc.copy_from_slice(&crc32c(0, body).to_le_bytes());
}

/// Says what a unit holds.
#[must_use]
pub fn inspect(block: &[u8; BYTES], unit: u64, seed: u64) -> Found {
    let word = |n: usize| block.as_chunks::<8>().0.get(n).map_or(0, |w| u64::from_le_bytes(*w));
    if word(0) == 0 && block.iter().all(|b| *b == 0) {
        return Found::Blank;
    }
    let (body, crc) = block.split_at(BYTES - 4);
    let version = Version { seq: word(2), epoch: word(3) as u32 };
    let whole = word(0) == BLOCK_MAGIC
        && word(1) == unit
        && word(4) == seed
        && version.seq != 0
        && crc == crc32c(0, body).to_le_bytes();
    if whole { Found::Version(version) } else { Found::Invalid }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_is_noticed() {
        let version = Version { seq: 5, epoch: 2 };
        let mut block = [0; BYTES];
        fill(&mut block, 7, version, 1, 42);
        assert_eq!(inspect(&block, 7, 42), Found::Version(version));
        assert_eq!(inspect(&block, 8, 42), Found::Invalid);
        assert_eq!(inspect(&block, 7, 43), Found::Invalid);
        for bit in 0..BYTES * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(inspect(&block, 7, 42), Found::Invalid, "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(inspect(&[0; BYTES], 7, 42), Found::Blank);
        let mut speck = [0; BYTES];
        speck[4000] = 1;
        assert_eq!(inspect(&speck, 7, 42), Found::Invalid);
    }
}
