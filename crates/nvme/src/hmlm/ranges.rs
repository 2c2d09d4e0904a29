//! Guest memory as range descriptors that a device accepts.

use towline_core::memory::MemoryRange;

use crate::track::TrackRange;

/// Ranges to give to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// The descriptors, ascending and disjoint.
    pub(super) ranges: Vec<TrackRange>,
    /// Bytes that they cover.
    pub(super) tracked_bytes: u64,
}

/// Covers `ranges` (sorted, disjoint) with at most `max` descriptors whose addresses and lengths are multiples of `granule`
/// (a power of two). Where there are too many, the smallest gaps are tracked too: what lies there is not guest memory, and a
/// dirty sink ignores it.
pub(super) fn plan(ranges: &[MemoryRange], granule: u64, max: usize, power_of_two: bool) -> Result<Plan, String> {
    if granule > u64::from(u32::MAX) {
        return Err(format!("a granularity of {granule} bytes does not fit the length of a range"));
    }
    let mut spans = aligned(ranges, granule)?;
    loop {
        let pieces = spans.iter().map(|span| pieces(*span, granule, power_of_two, max));
        let needed = pieces.clone().map(|pieces| pieces.len()).fold(0, usize::saturating_add);
        if needed <= max {
            let ranges: Vec<TrackRange> = pieces.flatten().collect();
            let tracked_bytes = ranges.iter().map(|range| u64::from(range.len)).sum();
            return Ok(Plan { ranges, tracked_bytes });
        }
        if !merge_closest(&mut spans) {
            return Err(format!("guest memory takes more than {max} range descriptors"));
        }
    }
}

/// The ranges, grown to whole granules, with those joined that touch.
fn aligned(ranges: &[MemoryRange], granule: u64) -> Result<Vec<MemoryRange>, String> {
    let mut spans: Vec<MemoryRange> = Vec::new();
    for range in ranges {
        let gpa = range.gpa & !(granule - 1);
        let end = range.end().and_then(|end| end.checked_next_multiple_of(granule));
        let end = end.ok_or_else(|| format!("the memory at {:#x} ends beyond what can be tracked", range.gpa))?;
        match spans.last_mut() {
            Some(last) if gpa <= last.gpa + last.len => last.len = last.len.max(end - last.gpa),
            _ => spans.push(MemoryRange { gpa, len: end - gpa }),
        }
    }
    Ok(spans)
}

/// Joins the two spans with the smallest gap between them; false where there is only one.
fn merge_closest(spans: &mut Vec<MemoryRange>) -> bool {
    let gaps = spans.array_windows().map(|[a, b]| b.gpa - (a.gpa + a.len));
    let Some((at, _)) = gaps.enumerate().min_by_key(|(_, gap)| *gap) else { return false };
    let second = spans.remove(at + 1);
    if let Some(first) = spans.get_mut(at) {
        first.len = second.gpa + second.len - first.gpa;
    }
    true
}

/// Cuts a span into lengths that fit the 32-bit field; stops after `max` + 1, which is too many anyway.
fn pieces(span: MemoryRange, granule: u64, power_of_two: bool, max: usize) -> Vec<TrackRange> {
    // 2 GiB, or the granule where that is coarser: whole granules in either case.
    let longest = granule.max(1 << 31);
    let mut out = Vec::new();
    let (mut address, mut left) = (span.gpa, span.len);
    while left > 0 && out.len() <= max {
        let len = match power_of_two {
            true => 1 << left.min(longest).ilog2(),
            false => left.min(longest),
        };
        out.push(TrackRange { address, len: u32::try_from(len).unwrap_or(u32::MAX) });
        address += len;
        left -= len;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use towline_core::channel::normalise_ranges;

    fn range(gpa: u64, len: u64) -> MemoryRange {
        MemoryRange { gpa, len }
    }

    #[test]
    fn a_guest_with_a_hole_below_four_gib() {
        let ranges = [range(0, 3 << 30), range(4 << 30, 5 << 30)];
        let all = plan(&ranges, 4096, 64, false).unwrap();
        assert_eq!(all.ranges.len(), 2 + 3);
        assert_eq!(all.tracked_bytes, 8 << 30);
        // Five do not fit into four; with the hole tracked too, nine GiB still take five.
        assert!(plan(&ranges, 4096, 4, false).unwrap_err().contains("4 range descriptors"));
    }

    #[test]
    fn the_smallest_gaps_go_first() {
        let ranges = [range(0, 4096), range(0x10000, 4096), range(0x12000, 4096)];
        let two = plan(&ranges, 4096, 2, false).unwrap();
        let expected = [(0, 4096), (0x10000, 0x3000)].map(|(address, len)| TrackRange { address, len });
        assert_eq!(two.ranges, expected);
        assert_eq!(plan(&ranges, 4096, 1, false).unwrap().tracked_bytes, 0x13000);
    }

    #[test]
    fn a_granule_beyond_the_length_field_is_refused() {
        assert!(plan(&[range(0, 4096)], 1 << 32, 8, false).is_err());
        assert_eq!(plan(&[range(0, 4096)], 1 << 31, 8, true).unwrap().tracked_bytes, 1 << 31);
    }

    #[test]
    fn memory_at_the_very_top_is_refused_not_wrapped() {
        assert!(plan(&[range(u64::MAX - 8191, 8191)], 1 << 20, 8, false).is_err());
    }

    proptest! {
        #[test]
        fn every_byte_is_covered_by_whole_granules(
            raw in proptest::collection::vec((0u64..1 << 36, 1u64..1 << 33), 1..20),
            shift in 12u32..25,
            max in 1usize..200,
            power_of_two: bool,
        ) {
            let ranges: Vec<_> = raw.iter().map(|(gpa, len)| range(*gpa, *len)).collect();
            let ranges = normalise_ranges(&ranges);
            let granule = 1u64 << shift;
            if let Ok(plan) = plan(&ranges, granule, max, power_of_two) {
                prop_assert!(plan.ranges.len() <= max);
                let mut end = 0;
                for part in &plan.ranges {
                    prop_assert!(part.address.is_multiple_of(granule) && u64::from(part.len).is_multiple_of(granule));
                    prop_assert!(part.len > 0 && part.address >= end);
                    prop_assert!(!power_of_two || part.len.is_power_of_two());
                    end = part.address + u64::from(part.len);
                }
                for wanted in &ranges {
                    // Walk over the descriptors from the first byte of the range to its last one.
                    let mut at = wanted.gpa;
                    for part in &plan.ranges {
                        if part.address <= at && at < part.address + u64::from(part.len) {
                            at = part.address + u64::from(part.len);
                        }
                    }
                    prop_assert!(at >= wanted.end().unwrap(), "covered up to {at:#x} of {wanted:?}");
                }
            }
        }
    }
}
