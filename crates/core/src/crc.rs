//! CRC32C (Castagnoli), the checksum of every frame of the migration stream.
//!
//! The polynomial is 0x1EDC6F41 (reflected 0x82F63B78), initial value and final XOR are all ones, as in RFC 3720
//! appendix B.4. On x86-64 with SSE4.2 three independent `crc32` chains hide the latency of the instruction and are
//! joined by a table; elsewhere a slicing-by-8 table walk is used. Which one runs is decided once, by `cpuid`.

mod software;
mod tables;
#[cfg(target_arch = "x86_64")]
mod x86;

/// Bytes that [`crc32c_copy`] copies before it hashes them: they are still in the first-level cache then.
const COPY_PIECE_BYTES: usize = 16 * 1024;

/// The CRC32C of `data`, continuing from `seed`.
///
/// `seed` is 0 for a new checksum, or the result for the bytes before: `crc32c(crc32c(0, a), b)` is the checksum of
/// `a` followed by `b`.
///
/// ```
/// assert_eq!(towline_core::crc::crc32c(0, b"123456789"), 0xE306_9283);
/// ```
#[must_use]
pub fn crc32c(seed: u32, data: &[u8]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    if x86::available() {
        // SAFETY: `available` has asked cpuid for SSE4.2.
        return unsafe { x86::crc32c(seed, data) };
    }
    software::crc32c(seed, data)
}

/// The table-driven form of [`crc32c`], whatever the machine can do. The same function, slower.
#[must_use]
pub fn crc32c_software(seed: u32, data: &[u8]) -> u32 {
    software::crc32c(seed, data)
}

/// Copies `dst.len()` bytes from `src` into `dst` and returns their CRC32C, continuing from `seed`.
///
/// The checksum is that of the bytes which arrived in `dst`. `src` may be guest memory: where somebody writes it
/// meanwhile, `dst` holds some mix of old and new bytes, and the checksum fits that mix. Use a `dst` that fits the
/// second-level cache (1 MiB or less), and use it again for the next piece.
///
/// # Safety
/// `src` is readable for `dst.len()` bytes until the call returns, and does not overlap `dst`.
#[must_use]
pub unsafe fn crc32c_copy(seed: u32, src: *const u8, dst: &mut [u8]) -> u32 {
    let mut crc = seed;
    let mut at = 0;
    for piece in dst.chunks_mut(COPY_PIECE_BYTES) {
        // SAFETY: `at + piece.len() <= dst.len()`, for which the caller vouches; the two do not overlap.
        unsafe { core::ptr::copy_nonoverlapping(src.add(at), piece.as_mut_ptr(), piece.len()) };
        crc = crc32c(crc, piece);
        at += piece.len();
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;
    use proptest::prelude::*;

    /// One bit at a time, straight from the definition.
    fn naive(seed: u32, data: &[u8]) -> u32 {
        let mut crc = !seed;
        for &byte in data {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ 0x82F6_3B78 } else { crc >> 1 };
            }
        }
        !crc
    }

    fn noise(len: usize, mut state: u64) -> Vec<u8> {
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            })
            .collect()
    }

    #[test]
    fn known_answers() {
        for f in [crc32c, crc32c_software, naive] {
            assert_eq!(f(0, b""), 0);
            assert_eq!(f(0, b"123456789"), 0xE306_9283);
            // RFC 3720 B.4.
            assert_eq!(f(0, &[0; 32]), 0x8A91_36AA);
            assert_eq!(f(0, &[0xff; 32]), 0x62A8_AB43);
        }
    }

    #[test]
    fn all_lengths_and_alignments_around_the_block_sizes() {
        let data = noise(3 * 4096 * 2 + 64, 7);
        for start in 0..9 {
            for len in (0..1600).chain(3 * 4096 - 9..3 * 4096 + 9).chain(6 * 4096 - 3..6 * 4096 + 20) {
                let piece = &data[start..start + len];
                assert_eq!(crc32c(0x1234_5678, piece), crc32c_software(0x1234_5678, piece), "start {start} len {len}");
            }
        }
        assert_eq!(crc32c_software(0, &data), naive(0, &data));
    }

    #[test]
    fn copy_returns_the_checksum_of_what_arrived() {
        let data = noise(100_001, 3);
        let mut dst = alloc::vec![0; data.len()];
        // SAFETY: both buffers are as long, and apart.
        let crc = unsafe { crc32c_copy(9, data.as_ptr(), &mut dst) };
        assert_eq!(dst, data);
        assert_eq!(crc, crc32c(9, &data));
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn the_hardware_arm_is_the_one_under_test() {
        assert_eq!(x86::available(), std::is_x86_feature_detected!("sse4.2"));
    }

    proptest! {
        #[test]
        fn chains(data in proptest::collection::vec(any::<u8>(), 0..9000), cut in 0usize..9000, seed: u32) {
            let (a, b) = data.split_at(cut.min(data.len()));
            prop_assert_eq!(crc32c(crc32c(seed, a), b), naive(seed, &data));
            prop_assert_eq!(crc32c_software(crc32c_software(seed, a), b), naive(seed, &data));
        }
    }
}
