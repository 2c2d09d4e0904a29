//! SSE4.2: `crc32` takes 8 bytes, has a latency of three cycles and a throughput of one. Three chains over three
//! neighbouring blocks keep it busy; the blocks are joined by appending zero bytes to the earlier ones.

use core::arch::x86_64::{__cpuid, _mm_crc32_u8, _mm_crc32_u64};
use core::sync::atomic::{AtomicU8, Ordering};

use super::tables::shift_table;

const LONG_BYTES: usize = 4096;
const SHORT_BYTES: usize = 256;
static LONG: [[u32; 256]; 4] = shift_table(LONG_BYTES);
static SHORT: [[u32; 256]; 4] = shift_table(SHORT_BYTES);

/// Whether SSE4.2 is there. `std`'s detection does not exist in `no_std`.
pub(super) fn available() -> bool {
    const UNKNOWN: u8 = 0;
    const ABSENT: u8 = 1;
    const PRESENT: u8 = 2;
    static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
    // Relaxed: every thread computes the same answer.
    match STATE.load(Ordering::Relaxed) {
        PRESENT => true,
        ABSENT => false,
        _ => {
            // Leaf 1, ECX bit 20 (Intel SDM, CPUID). Leaf 1 exists on every x86-64.
            let present = __cpuid(1).ecx & (1 << 20) != 0;
            STATE.store(if present { PRESENT } else { ABSENT }, Ordering::Relaxed);
            present
        }
    }
}

/// # Safety
/// The processor has SSE4.2.
#[target_feature(enable = "sse4.2")]
pub(super) unsafe fn crc32c(seed: u32, data: &[u8]) -> u32 {
    let mut crc = !seed;
    let mut rest = data;
    while let Some((blocks, after)) = rest.split_at_checked(3 * LONG_BYTES) {
        crc = three(crc, blocks, LONG_BYTES, &LONG);
        rest = after;
    }
    while let Some((blocks, after)) = rest.split_at_checked(3 * SHORT_BYTES) {
        crc = three(crc, blocks, SHORT_BYTES, &SHORT);
        rest = after;
    }
    let (words, bytes) = rest.as_chunks::<8>();
    let mut wide = u64::from(crc);
    for word in words {
        wide = _mm_crc32_u64(wide, u64::from_le_bytes(*word));
    }
    crc = wide as u32;
    for &byte in bytes {
        crc = _mm_crc32_u8(crc, byte);
    }
    !crc
}

/// `blocks` is three blocks of `len` bytes each, `len` a multiple of 8; `shift` appends `len` zero bytes.
#[target_feature(enable = "sse4.2")]
#[inline]
fn three(crc: u32, blocks: &[u8], len: usize, shift: &[[u32; 256]; 4]) -> u32 {
    let (first, rest) = blocks.split_at(len);
    let (second, third) = rest.split_at(len);
    let (mut a, mut b, mut c) = (u64::from(crc), 0u64, 0u64);
    let words = first.as_chunks::<8>().0.iter().zip(second.as_chunks::<8>().0).zip(third.as_chunks::<8>().0);
    for ((x, y), z) in words {
        a = _mm_crc32_u64(a, u64::from_le_bytes(*x));
        b = _mm_crc32_u64(b, u64::from_le_bytes(*y));
        c = _mm_crc32_u64(c, u64::from_le_bytes(*z));
    }
    append_zeros(append_zeros(a as u32, shift) ^ b as u32, shift) ^ c as u32
}

fn append_zeros(crc: u32, shift: &[[u32; 256]; 4]) -> u32 {
    let [a, b, c, d] = crc.to_le_bytes();
    shift[0][usize::from(a)] ^ shift[1][usize::from(b)] ^ shift[2][usize::from(c)] ^ shift[3][usize::from(d)]
}
