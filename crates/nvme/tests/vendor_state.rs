//! The vendor specific part of the controller state: round trips, every truncation, unknown records, damage.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use towline_nvme::vendor_state::{
    AdminQueueState, AsyncEventState, Compatibility, FeatureValue, InterruptState, MAX_FEATURES, MsixEntry,
    NamespaceIdentity, RegisterState, VendorState,
};
use towline_nvme::wire::DecodeError;

fn feature() -> impl Strategy<Value = FeatureValue> {
    (any::<u8>(), any::<u32>(), any::<u32>(), any::<u32>(), vec(any::<u8>(), 0..40))
        .prop_map(|(fid, nsid, selector, value, data)| FeatureValue { fid, nsid, selector, value, data })
}

fn interrupts() -> impl Strategy<Value = InterruptState> {
    let entry = (any::<u64>(), any::<u32>(), any::<u32>());
    let entry = entry.prop_map(|(address, data, control)| MsixEntry { address, data, control });
    (any::<bool>(), any::<bool>(), vec(entry, 0..20), vec(any::<u64>(), 0..3))
        .prop_map(|(enabled, function_mask, table, pending)| InterruptState { enabled, function_mask, table, pending })
}

fn namespace() -> impl Strategy<Value = NamespaceIdentity> {
    (any::<u32>(), any::<u8>(), any::<u64>(), any::<[u8; 16]>())
        .prop_map(|(nsid, block_shift, blocks, nguid)| NamespaceIdentity { nsid, block_shift, blocks, nguid })
}

prop_compose! {
    fn vendor_state()(
        registers in any::<[u8; 24]>(),
        admin_queue in any::<[u8; 48]>(),
        features in vec(feature(), 0..6),
        outstanding in vec(any::<u16>(), 0..9),
        waiting in vec(any::<u64>(), 0..9),
        masked_types: u32,
        interrupts in option::of(interrupts()),
        namespaces in vec(namespace(), 0..4),
        compatibility in option::of(any::<[u8; 24]>()),
    ) -> VendorState {
        VendorState {
            registers: RegisterState::decode(&registers),
            admin_queue: AdminQueueState::decode(&admin_queue),
            features,
            async_events: AsyncEventState { outstanding, waiting, masked_types },
            interrupts,
            namespaces,
            compatibility: compatibility.map(|bytes| Compatibility::decode(&bytes)),
        }
    }
}

/// A record of a type that does not exist, put after the header.
fn with_record(bytes: &[u8], flags: u16) -> Vec<u8> {
    let mut out = bytes[..8].to_vec();
    out.extend(0x4242u16.to_le_bytes());
    out.extend(flags.to_le_bytes());
    out.extend(3u32.to_le_bytes());
    out.extend([1, 2, 3, 0]);
    out.extend(&bytes[8..]);
    out
}

proptest! {
    #[test]
    fn round_trips_padded_or_not(state in vendor_state(), padding in 0usize..9) {
        let mut bytes = state.encode().unwrap();
        prop_assert!(bytes.len().is_multiple_of(4));
        bytes.resize(bytes.len() + padding, 0);
        prop_assert_eq!(VendorState::decode(&bytes).unwrap(), state);
    }

    #[test]
    fn no_truncation_passes(state in vendor_state()) {
        let bytes = state.encode().unwrap();
        for len in 0..bytes.len() {
            prop_assert!(VendorState::decode(&bytes[..len]).is_err(), "{} of {}", len, bytes.len());
        }
    }

    #[test]
    fn unknown_records_are_skipped_or_refused(state in vendor_state()) {
        let bytes = state.encode().unwrap();
        prop_assert_eq!(VendorState::decode(&with_record(&bytes, 0)).unwrap(), state);
        let refused = VendorState::decode(&with_record(&bytes, 1)).unwrap_err();
        prop_assert!(refused.to_string().contains("16962"), "{}", refused);
    }

    #[test]
    fn flipped_bits_never_panic(state in vendor_state(), at: prop::sample::Index, bit in 0u8..8) {
        let mut bytes = state.encode().unwrap();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let _ = VendorState::decode(&bytes);
    }

    #[test]
    fn any_bytes_decode_or_are_an_error(mut bytes in vec(any::<u8>(), 0..400), plausible: bool) {
        if plausible && bytes.len() > 16 {
            bytes[..8].copy_from_slice(&[b'T', b'L', b'V', b'S', 1, 0, 0, 0]);
            bytes[8] %= 9;
            bytes[9] = 0;
            bytes[13..16].fill(0);
        }
        let _ = VendorState::decode(&bytes);
    }
}

#[test]
fn a_record_twice_or_missing_is_refused() {
    let bytes = VendorState::default().encode().unwrap();
    // The registers are the first record: 8 bytes of record header and 24 of content.
    let twice = [&bytes[..40], &bytes[8..]].concat();
    assert!(VendorState::decode(&twice).unwrap_err().to_string().contains("twice"));
    let missing = [&bytes[..8], &bytes[40..]].concat();
    assert!(VendorState::decode(&missing).unwrap_err().to_string().contains("registers are missing"));
}

#[test]
fn another_version_magic_or_tail_is_refused() {
    let bytes = VendorState::default().encode().unwrap();
    let with = |at: usize, value: u8| {
        let mut changed = bytes.clone();
        changed[at] = value;
        VendorState::decode(&changed)
    };
    assert!(matches!(with(4, 2), Err(DecodeError::Version { version: 2, .. })));
    assert!(with(0, b'x').is_err());
    let mut tail = bytes.clone();
    tail.extend([0, 0, 0, 1]);
    assert!(VendorState::decode(&tail).is_err());
}

#[test]
fn lists_over_their_caps_are_refused_both_ways() {
    let over = VendorState { features: vec![FeatureValue::default(); MAX_FEATURES + 1], ..Default::default() };
    assert!(matches!(over.encode(), Err(DecodeError::Limit { .. })));
    let long = FeatureValue { data: vec![0; 4097], ..Default::default() };
    assert!(VendorState { features: vec![long], ..Default::default() }.encode().is_err());
    let events = AsyncEventState { outstanding: vec![0; 257], ..Default::default() };
    assert!(VendorState { async_events: events, ..Default::default() }.encode().is_err());
    let vectors = InterruptState { table: vec![MsixEntry::default(); 2049], ..Default::default() };
    assert!(VendorState { interrupts: Some(vectors), ..Default::default() }.encode().is_err());
    // A count of four billion in a record of a few bytes.
    let mut bytes = VendorState::default().encode().unwrap();
    let features = 8 + (8 + 24) + (8 + 48) + 8;
    bytes[features..features + 4].fill(0xff);
    assert!(matches!(VendorState::decode(&bytes), Err(DecodeError::Limit { .. })));
}

/// Interrupt Vector Configuration is one value for each vector, and the other features come beside it.
#[test]
fn the_most_features_round_trip() {
    let mut features: Vec<FeatureValue> = (0..2048u32)
        .map(|vector| FeatureValue { fid: 9, selector: vector, value: 1 << 16 | vector, ..Default::default() })
        .collect();
    features.extend((0..=255).map(|fid| FeatureValue { fid, nsid: 1, ..Default::default() }));
    assert_eq!(features.len(), MAX_FEATURES);
    let state = VendorState { features, ..Default::default() };
    assert_eq!(VendorState::decode(&state.encode().unwrap()).unwrap(), state);
}
