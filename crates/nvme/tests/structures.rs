//! Data structures: offsets, round trips, every truncation, and bytes that mean nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::collection::vec;
use proptest::prelude::*;
use towline_nvme::command::{CompletionEntry, SubmissionEntry};
use towline_nvme::identify::{
    IDENTIFY_BYTES, IdentifyController, IdentifyNamespace, NamespaceIds, decode_controller_list, decode_namespace_list,
    encode_controller_list, encode_namespace_list,
};
use towline_nvme::migration::{FormatIndex, StateFormats};
use towline_nvme::resources::{PrimaryCapabilities, SecondaryController, decode_secondary_list, encode_secondary_list};
use towline_nvme::state::{ControllerState, CqState, NvmeStateHeader, SqState, StateHeader};
use towline_nvme::track::{
    ChangedRange, TrackRange, TrackRanges, TrackRangesHeader, TrackedMemory, TrackedMemoryHeader,
};
use towline_nvme::wire::{DecodeError, FieldInfo, assert_layout};

fn offset(layout: &[FieldInfo], name: &str) -> usize {
    layout.iter().find(|field| field.name == name).unwrap_or_else(|| panic!("no {name}")).offset
}

#[test]
fn offsets_that_migration_depends_on() {
    let ctrl = |name| offset(IdentifyController::LAYOUT, name);
    let got =
        ["oacs", "cmmrtd", "nmmrtd", "minmrtg", "maxmrtg", "trattr", "mcudmq", "mnsudmq", "mcmr", "nmcmr", "mcdqpc"];
    assert_eq!(got.map(ctrl), [256, 570, 572, 574, 575, 576, 578, 580, 582, 584, 586]);
    assert_eq!(["cntlid", "mdts", "cmic", "sqes", "nn", "subnqn"].map(ctrl), [78, 77, 76, 512, 516, 768]);
    let ns = |name| offset(IdentifyNamespace::LAYOUT, name);
    assert_eq!(["nsze", "flbas", "nmic", "nguid", "eui64", "lbaf0"].map(ns), [0, 26, 30, 104, 120, 128]);
    let caps = |name| offset(PrimaryCapabilities::LAYOUT, name);
    assert_eq!(["vqfrt", "vqrfa", "vqrfap", "vqprt", "vqfrsm", "vqgran"].map(caps), [32, 36, 40, 42, 44, 46]);
    assert_eq!(["vifrt", "virfa", "virfap", "viprt", "vifrsm", "vigran"].map(caps), [64, 68, 72, 74, 76, 78]);
    let sc = |name| offset(SecondaryController::LAYOUT, name);
    assert_eq!(["scid", "pcid", "scs", "vfn", "nvq", "nvi"].map(sc), [0, 2, 4, 8, 10, 12]);
    let sq = |name| offset(SqState::LAYOUT, name);
    assert_eq!(["prp1", "size", "qid", "cqid", "attributes", "head", "tail"].map(sq), [0, 8, 10, 12, 14, 16, 18]);
    let cq = |name| offset(CqState::LAYOUT, name);
    assert_eq!(["prp1", "size", "qid", "head", "tail", "attributes"].map(cq), [0, 8, 10, 12, 14, 16]);
    let header = |name| offset(StateHeader::LAYOUT, name);
    assert_eq!(["version", "attributes", "nvme_dwords", "vendor_dwords"].map(header), [0, 2, 16, 32]);
    assert_eq!(offset(TrackRangesHeader::LAYOUT, "granularity"), 3);
    let report = |name| offset(TrackedMemoryHeader::LAYOUT, name);
    assert_eq!(["attributes", "cntlid", "count", "page_granularity"].map(report), [1, 2, 4, 8]);
    let sizes = [
        (SubmissionEntry::SIZE, 64),
        (CompletionEntry::SIZE, 16),
        (SecondaryController::SIZE, 32),
        (StateHeader::SIZE, 48),
        (NvmeStateHeader::SIZE, 8),
        (SqState::SIZE, 24),
        (CqState::SIZE, 24),
        (TrackRange::SIZE, 12),
        (TrackedMemoryHeader::SIZE, 16),
        (ChangedRange::SIZE, 16),
    ];
    assert!(sizes.iter().all(|(ours, theirs)| ours == theirs));
}

/// The check that stands behind every structure sees what it is for.
#[test]
fn a_wrong_layout_does_not_pass_the_check() {
    let field = |offset, len| FieldInfo { name: "x", offset, len };
    let fails = |fields: Vec<FieldInfo>| std::panic::catch_unwind(move || assert_layout(&fields, 16)).is_err();
    assert!(!fails(vec![field(0, 8), field(8, 8)]));
    assert!(fails(vec![field(0, 8), field(7, 4)]), "overlap");
    assert!(fails(vec![field(8, 4), field(0, 4)]), "order");
    assert!(fails(vec![field(8, 9)]), "end");
}

#[test]
fn bytes_and_fields_of_identify_controller_agree() {
    let mut bytes = [0; 4096];
    bytes[256..258].copy_from_slice(&(1u16 << 11).to_le_bytes());
    bytes[574] = 1;
    bytes[576] = 1;
    bytes[77] = 5;
    let ctrl = IdentifyController::decode(&bytes);
    assert!(ctrl.migrates_others());
    assert_eq!((ctrl.minmrtg, ctrl.trattr, ctrl.max_transfer_bytes(u32::MAX)), (1, 1, 128 << 10));
    assert_eq!(ctrl.encode(), bytes);
    for (mdts, expected) in [(0, 1 << 20), (1, 8192), (8, 1 << 20), (31, 1 << 20), (255, 1 << 20)] {
        assert_eq!(IdentifyController { mdts, ..ctrl }.max_transfer_bytes(1 << 20), expected);
    }
}

#[test]
fn the_phase_of_the_next_entry() {
    let cq = |tail, slot_0| CqState { tail, attributes: if slot_0 { 4 } else { 0 }, ..CqState::default() };
    // A new queue: nothing was posted, slot 0 holds phase 0, the first entry has phase 1.
    assert!(cq(0, false).next_phase());
    assert!(cq(5, true).next_phase());
    assert!(!cq(0, true).next_phase());
    assert!(!cq(5, false).next_phase());
    for (tail, phase) in [(0, false), (0, true), (9, false), (9, true)] {
        assert_eq!(cq(tail, CqState::slot_0_phase(phase, tail)).next_phase(), phase);
    }
}

#[test]
fn counts_beyond_their_limits_are_refused() {
    let mut bytes = [0; IDENTIFY_BYTES];
    bytes[0] = 128;
    assert!(matches!(decode_secondary_list(&bytes), Err(DecodeError::Limit { .. })));
    bytes[..2].copy_from_slice(&2048u16.to_le_bytes());
    assert!(matches!(decode_controller_list(&bytes), Err(DecodeError::Limit { .. })));
    assert!(encode_controller_list(&vec![0; 2048]).is_none());
    let header = TrackRangesHeader { version: 0, granularity: 0, count: u32::MAX };
    assert!(matches!(TrackRanges::decode(&header.encode()), Err(DecodeError::Limit { .. })));
    let header = TrackedMemoryHeader { count: u32::MAX, ..Default::default() };
    assert!(matches!(TrackedMemory::decode(&header.encode()), Err(DecodeError::Truncated { .. })));
    let header = StateHeader { nvme_dwords: u128::MAX, vendor_dwords: u128::MAX, ..Default::default() };
    assert!(matches!(ControllerState::decode(&header.encode()), Err(DecodeError::Limit { .. })));
    let mut formats = [0; IDENTIFY_BYTES];
    formats[..2].copy_from_slice(&[255, 255]);
    assert!(matches!(StateFormats::decode(&formats), Err(DecodeError::Truncated { .. })));
}

#[test]
fn lists_that_do_not_ascend_are_refused() {
    let twice = encode_namespace_list(&[3, 3]);
    assert!(decode_namespace_list(&twice).is_err());
    assert!(decode_controller_list(&encode_controller_list(&[4, 2]).unwrap()).is_err());
    let entry = |scid| SecondaryController { scid, ..Default::default() };
    assert!(decode_secondary_list(&encode_secondary_list(&[entry(2), entry(1)])).is_err());
}

#[test]
fn formats_are_found_by_what_they_are() {
    let formats = StateFormats { versions: vec![4, 0], uuids: vec![[1; 16], [2; 16]] };
    assert_eq!(formats.index_of(0, Some(&[2; 16])), Some(FormatIndex { version: 2, uuid: 2 }));
    assert_eq!(formats.index_of(4, None), Some(FormatIndex { version: 1, uuid: 0 }));
    assert_eq!(formats.index_of(9, None), None);
    assert_eq!(formats.index_of(0, Some(&[3; 16])), None);
}

#[test]
fn a_common_format_is_one_that_both_have_and_we_know() {
    let here = StateFormats { versions: vec![9, 0], uuids: vec![[1; 16], [2; 16]] };
    let there = StateFormats { versions: vec![0, 9], uuids: vec![[3; 16], [2; 16], [1; 16]] };
    assert_eq!(here.common(&there), Some((0, Some([1; 16]))));
    assert_eq!(there.common(&here), Some((0, Some([2; 16]))));
    assert_eq!(here.common(&StateFormats { versions: vec![0], uuids: vec![] }), Some((0, None)));
    assert_eq!(here.common(&StateFormats { versions: vec![9], uuids: vec![[1; 16]] }), None);
}

fn sq() -> impl Strategy<Value = SqState> {
    any::<[u8; 24]>().prop_map(|bytes| SqState::decode(&bytes))
}

fn cq() -> impl Strategy<Value = CqState> {
    any::<[u8; 24]>().prop_map(|bytes| CqState::decode(&bytes))
}

fn controller_state() -> impl Strategy<Value = ControllerState> {
    (any::<bool>(), vec(sq(), 0..8), vec(cq(), 0..8), vec(any::<[u8; 4]>(), 0..40)).prop_map(
        |(suspended, mut submission_queues, mut completion_queues, vendor)| {
            (1..).zip(&mut submission_queues).for_each(|(qid, queue)| queue.qid = qid * 3);
            (1..).zip(&mut completion_queues).for_each(|(qid, queue)| queue.qid = qid * 2);
            ControllerState { suspended, submission_queues, completion_queues, vendor: vendor.concat() }
        },
    )
}

proptest! {
    #[test]
    fn controller_states_round_trip_and_no_truncation_passes(state in controller_state()) {
        let bytes = state.encode().unwrap();
        prop_assert_eq!(ControllerState::decode(&bytes).unwrap(), state);
        for len in 0..bytes.len() {
            prop_assert!(ControllerState::decode(&bytes[..len]).is_err());
        }
        let mut long = bytes;
        long.extend([0; 4]);
        let trailing = matches!(ControllerState::decode(&long), Err(DecodeError::Trailing { extra: 4, .. }));
        prop_assert!(trailing);
    }

    #[test]
    fn queues_out_of_order_are_refused(mut state in controller_state(), at: prop::sample::Index) {
        prop_assume!(state.submission_queues.len() > 1);
        let n = at.index(state.submission_queues.len() - 1);
        state.submission_queues.swap(n, n + 1);
        prop_assert!(ControllerState::decode(&state.encode().unwrap()).is_err());
    }

    #[test]
    fn track_ranges_round_trip(granularity: u8, raw in vec((any::<u64>(), any::<u32>()), 0..40)) {
        let ranges = raw.into_iter().map(|(address, len)| TrackRange { address, len }).collect();
        let data = TrackRanges { granularity, ranges };
        let bytes = data.encode().unwrap();
        prop_assert_eq!(bytes.len(), 8 + 12 * data.ranges.len());
        prop_assert_eq!(TrackRanges::decode(&bytes).unwrap(), data);
        for len in 0..bytes.len() {
            prop_assert!(TrackRanges::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn reports_round_trip(attributes: u8, cntlid: u16, raw in vec((any::<u64>(), any::<u32>()), 0..40), slack in 0usize..100) {
        let ranges: Vec<_> = raw.into_iter().map(|(address, len)| ChangedRange { address, len }).collect();
        let header = TrackedMemoryHeader { attributes, cntlid, count: ranges.len() as u32, ..Default::default() };
        let report = TrackedMemory { header, ranges };
        let mut bytes = report.encode();
        for len in 0..bytes.len() {
            prop_assert!(TrackedMemory::decode(&bytes[..len]).is_err());
        }
        prop_assert_eq!(TrackedMemory::capacity(bytes.len()), report.ranges.len());
        bytes.resize(bytes.len() + slack, 0xaa);
        prop_assert_eq!(TrackedMemory::decode(&bytes).unwrap(), report);
    }

    #[test]
    fn lists_round_trip(ids in proptest::collection::btree_set(1u16.., 0..2047)) {
        let ids: Vec<u16> = ids.into_iter().collect();
        prop_assert_eq!(&decode_controller_list(&encode_controller_list(&ids).unwrap()).unwrap(), &ids);
        let nsids: Vec<u32> = ids.iter().take(1024).map(|id| u32::from(*id)).collect();
        prop_assert_eq!(decode_namespace_list(&encode_namespace_list(&nsids)).unwrap(), nsids);
        let entries = ids.iter().take(127).map(|scid| SecondaryController { scid: *scid, scs: 1, ..Default::default() });
        let entries: Vec<_> = entries.collect();
        prop_assert_eq!(decode_secondary_list(&encode_secondary_list(&entries)).unwrap(), entries);
    }

    #[test]
    fn namespace_ids_round_trip(eui64: Option<[u8; 8]>, nguid: Option<[u8; 16]>, uuid: Option<[u8; 16]>, csi: Option<u8>) {
        let ids = NamespaceIds { eui64, nguid, uuid, csi };
        prop_assert_eq!(NamespaceIds::decode(&ids.encode()).unwrap(), ids);
    }

    #[test]
    fn state_formats_round_trip(versions in vec(any::<u16>(), 0..20), uuids in vec(any::<[u8; 16]>(), 0..20)) {
        let formats = StateFormats { versions, uuids };
        prop_assert_eq!(StateFormats::decode(&formats.encode().unwrap()).unwrap(), formats);
    }

    #[test]
    fn any_page_decodes_or_is_an_error(seed in vec(any::<u8>(), 64), fill: u8) {
        let mut page = [fill; IDENTIFY_BYTES];
        page[..64].copy_from_slice(&seed);
        let ctrl = IdentifyController::decode(&page);
        prop_assert_eq!(IdentifyController::decode(&ctrl.encode()), ctrl);
        prop_assert!(ctrl.max_transfer_bytes(1 << 20) <= 1 << 20);
        let _ = IdentifyNamespace::decode(&page).block_bytes();
        let _ = (NamespaceIds::decode(&page), StateFormats::decode(&page), decode_namespace_list(&page));
        let _ = (decode_controller_list(&page), decode_secondary_list(&page), PrimaryCapabilities::decode(&page));
    }

    #[test]
    fn any_bytes_decode_or_are_an_error(mut bytes in vec(any::<u8>(), 0..300), plausible: bool) {
        if plausible && bytes.len() > 48 {
            // Small sizes that may fit, so that more than the first check is reached.
            bytes[..2].fill(0);
            bytes[17..48].fill(0);
            bytes[32] = bytes[33] / 8;
        }
        let _ = ControllerState::decode(&bytes);
        let _ = TrackRanges::decode(&bytes);
        let _ = TrackedMemory::decode(&bytes);
    }
}
