//! Descriptions of regions as a kernel would write them, and as it never should.

use towline_core::bar::{Fill, Policy, Rule};

use super::*;

/// A description with capabilities: (id, payload) behind the 8 bytes of a header.
fn described(size: u64, flags: u32, caps: &[(u16, Vec<u8>)]) -> (vfio_region_info, Vec<u8>) {
    let mut bytes = vec![0u8; INFO_BYTES];
    for (n, (id, payload)) in caps.iter().enumerate() {
        let next = if n + 1 == caps.len() { 0 } else { bytes.len() + 8 + payload.len() } as u32;
        bytes.extend_from_slice(&id.to_ne_bytes());
        bytes.extend_from_slice(&1u16.to_ne_bytes());
        bytes.extend_from_slice(&next.to_ne_bytes());
        bytes.extend_from_slice(payload);
    }
    let flags = flags | if caps.is_empty() { 0 } else { VFIO_REGION_INFO_FLAG_CAPS };
    let cap_offset = if caps.is_empty() { 0 } else { INFO_BYTES as u32 };
    (vfio_region_info { argsz: bytes.len() as u32, flags, index: 2, cap_offset, size, offset: 2 << 40 }, bytes)
}

fn sparse(areas: &[(u64, u64)]) -> (u16, Vec<u8>) {
    let mut payload = (areas.len() as u32).to_ne_bytes().to_vec();
    payload.extend([0; 4]);
    for (offset, len) in areas {
        payload.extend(offset.to_ne_bytes());
        payload.extend(len.to_ne_bytes());
    }
    (1, payload)
}

fn runs(of: &[(u64, u64)]) -> Vec<MmapRun> {
    of.iter().map(|(offset, len)| MmapRun { offset: *offset, len: *len }).collect()
}

#[test]
fn what_may_be_mapped() {
    let (info, bytes) = described(0x4000, 7, &[]);
    assert_eq!(parse(&info, &bytes).unwrap().mappable, runs(&[(0, 0x4000)]));
    let (info, bytes) = described(0x4000, 3, &[sparse(&[(0, 0x1000)])]);
    assert_eq!(parse(&info, &bytes).unwrap().mappable, [], "no mmap without its flag");
    let (info, bytes) = described(
        0x4000,
        7,
        &[(2, vec![1, 0, 0, 0, 2, 0, 0, 0]), sparse(&[(0x2000, 0x2000), (0x1000, 0), (0, 0x1000)]), (3, vec![])],
    );
    let region = parse(&info, &bytes).unwrap();
    assert_eq!(region.mappable, runs(&[(0, 0x1000), (0x2000, 0x2000)]));
    assert_eq!((region.kind, region.msix_mappable), (Some((1, 2)), true));
    // None at all is not everything.
    let (info, bytes) = described(0x4000, 7, &[sparse(&[])]);
    assert_eq!(parse(&info, &bytes).unwrap().mappable, []);
    // Unknown ones are passed over.
    let (info, bytes) = described(0x4000, 7, &[(77, vec![1; 24])]);
    assert_eq!(parse(&info, &bytes).unwrap().mappable, runs(&[(0, 0x4000)]));
}

#[test]
fn chains_that_are_none_are_refused() {
    let good = described(0x4000, 7, &[(77, vec![0; 8]), sparse(&[(0, 0x1000)])]);
    assert!(parse(&good.0, &good.1).is_ok());
    for first in [1, 4, 31, good.1.len() as u32 - 7, good.1.len() as u32, u32::MAX] {
        let info = vfio_region_info { cap_offset: first, ..good.0 };
        assert!(parse(&info, &good.1).is_err(), "{first}");
    }
    for next in [1, 16, 31, 32, good.1.len() as u32 - 4, u32::MAX] {
        let mut bytes = good.1.clone();
        bytes[INFO_BYTES + 4..INFO_BYTES + 8].copy_from_slice(&next.to_ne_bytes());
        assert!(parse(&good.0, &bytes).is_err(), "{next}");
    }
}

#[test]
fn sparse_areas_that_are_none_are_refused() {
    for areas in [&[(0x3000, 0x1001)][..], &[(u64::MAX, 2)], &[(0, 0x2000), (0x1000, 0x1000)]] {
        let (info, bytes) = described(0x4000, 7, &[sparse(areas)]);
        assert!(parse(&info, &bytes).is_err(), "{areas:?}");
    }
    let (info, mut bytes) = described(0x4000, 7, &[sparse(&[(0, 0x1000)])]);
    bytes[INFO_BYTES + 8..INFO_BYTES + 12].copy_from_slice(&2u32.to_ne_bytes());
    assert!(parse(&info, &bytes).is_err(), "two areas, room for one");
    let (info, bytes) = described(u64::MAX, 7, &[]);
    assert!(parse(&info, &bytes).is_err());
}

#[test]
fn any_bytes_are_read_without_panic() {
    let (info, bytes) = described(0x4000, 7, &[(2, vec![1; 8]), sparse(&[(0, 0x1000), (0x2000, 0x1000)])]);
    for at in 0..bytes.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut damaged = bytes.clone();
            damaged[at] = value;
            let _ = parse(&info, &damaged);
            let _ = parse(&info, &damaged[..at]);
        }
    }
}

#[test]
fn a_plan_is_what_both_the_policy_and_the_kernel_let_through() {
    let (info, bytes) = described(0x8000, 7, &[sparse(&[(0, 0x3000), (0x4000, 0x3800)])]);
    let region = parse(&info, &bytes).unwrap();
    let policy = Policy::new(0x8000).rule(Rule::deny("doorbell", 0x1000, 4, Fill::Zeros));
    let plan = region.mmap_plan(&policy.compile().unwrap(), 4096).unwrap();
    assert_eq!(plan, runs(&[(0, 0x1000), (0x2000, 0x1000), (0x4000, 0x3000)]));
    assert!(region.mmap_plan(&Policy::new(0x8000).compile().unwrap(), 12).is_err());
}

#[test]
fn accesses_are_kept_inside() {
    let region = Region { index: 0, offset: 1 << 40, size: 0x100, ..Region::default() };
    assert_eq!(region.at(0xfc, 4), Ok((1 << 40) + 0xfc));
    assert_eq!(region.at(0x100, 0), Ok((1 << 40) + 0x100));
    for (offset, len) in [(0xfd, 4), (0x100, 1), (u64::MAX, 1), (u64::MAX, 0)] {
        assert_eq!(region.at(offset, len).unwrap_err().kind, ChannelErrorKind::Limit, "{offset:#x}+{len}");
    }
}
