//! Merging somebody else's bitmap: its own base, its own page size.

use super::bitmap::DirtyBitmap;
use super::page_map::PageMap;

/// `count` (1 to 64) bits of `bytes` from bit `at`, where bit `n` is byte `n / 8`, bit `n % 8`. Bits behind the end are 0.
pub(super) fn read_bits(bytes: &[u8], at: u64, count: u64) -> u64 {
    let Ok(byte) = usize::try_from(at / 8) else { return 0 };
    let shift = at % 8;
    let tail = bytes.get(byte..).unwrap_or(&[]);
    let low = match tail.first_chunk::<8>() {
        Some(word) => u64::from_le_bytes(*word),
        None => tail.iter().rev().fold(0, |word, b| word << 8 | u64::from(*b)),
    };
    let mut bits = low >> shift;
    if shift != 0 {
        bits |= tail.get(8).map_or(0, |b| u64::from(*b) << (64 - shift));
    }
    if count >= 64 { bits } else { bits & ((1 << count) - 1) }
}

/// Calls `f(first, count)` for each run of set bits in `from .. to`.
fn each_run(bytes: &[u8], from: u64, to: u64, f: &mut dyn FnMut(u64, u64)) {
    let (mut start, mut length) = (0, 0);
    let mut at = from;
    while at < to {
        let step = (to - at).min(64);
        let mut word = read_bits(bytes, at, step);
        while word != 0 {
            let zeros = word.trailing_zeros();
            let ones = (word >> zeros).trailing_ones();
            let first = at + u64::from(zeros);
            if length != 0 && start + length == first {
                length += u64::from(ones);
            } else {
                if length != 0 {
                    f(start, length);
                }
                (start, length) = (first, u64::from(ones));
            }
            if zeros + ones == 64 {
                break;
            }
            word &= u64::MAX << (zeros + ones);
        }
        at += step;
    }
    if length != 0 {
        f(start, length);
    }
}

/// As [`crate::channel::DirtySink::merge_bitmap`]: marks every page of `map` that a set bit touches.
///
/// A page size that is not a power of two says nothing about where the bits are, so everything is marked.
pub(super) fn merge(map: &PageMap, pages: &DirtyBitmap, base: u64, page_size_bytes: u64, bitmap: &[u8]) {
    if !page_size_bytes.is_power_of_two() {
        pages.mark_range(0, map.pages());
        return;
    }
    let own_size = map.page_size_bytes();
    let same_grid = page_size_bytes == own_size && base.is_multiple_of(own_size);
    // 128 bits hold any base plus any number of bits times any page size.
    let size = u128::from(page_size_bytes);
    let bits = bitmap.len() as u128 * 8;
    let bitmap_end = u128::from(base) + bits * size;
    for range in map.placed() {
        let start = u128::from(range.gpa.max(base));
        let end = (u128::from(range.gpa) + u128::from(range.len)).min(bitmap_end);
        if start >= end {
            continue;
        }
        // Both are at most `bits`, a slice's length times 8.
        let first_bit = ((start - u128::from(base)) / size) as u64;
        let end_bit = (end - u128::from(base)).div_ceil(size) as u64;
        if same_grid {
            let page = range.first + (start as u64 - range.gpa) / own_size;
            pages.or_with(page, end_bit - first_bit, |at, count| read_bits(bitmap, first_bit + at, count));
            continue;
        }
        each_run(bitmap, first_bit, end_bit, &mut |first, count| {
            let run_start = (u128::from(base) + u128::from(first) * size).max(start);
            let run_end = (u128::from(base) + u128::from(first + count) * size).min(end);
            // Clipped to the range, both offsets are below 2^64, and the run is not empty.
            let from = (run_start - u128::from(range.gpa)) as u64 / own_size;
            let to = (run_end - u128::from(range.gpa) - 1) as u64 / own_size;
            pages.mark_range(range.first + from, to - from + 1);
        });
    }
}
