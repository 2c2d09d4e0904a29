//! The bytes of version 1, as they were when it was fixed. A reader has to go on reading them; a change here is a new version.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use towline_core::crc::crc32c;
use towline_nvme::hmlm::payload::{Epilogue, Prologue};
use towline_nvme::state::{ControllerState, CqState, MAX_STATE_BYTES, SqState};
use towline_nvme::vendor_state::{
    AdminQueueState, AsyncEventState, Compatibility, FeatureValue, InterruptState, MsixEntry, NamespaceIdentity,
    RegisterState, VENDOR_STATE_UUID, VendorState,
};

const GOLDEN: &[u8] = include_bytes!("golden/payload-v1.bin");

fn vendor() -> VendorState {
    VendorState {
        registers: RegisterState { cc: 0x0046_0001, csts: 1, intms: 0, power_state: 2 },
        admin_queue: AdminQueueState {
            asq: 0x1_0000_0000,
            acq: 0x1_0000_1000,
            aqa: 0x001f_001f,
            sq_head: 7,
            sq_tail: 8,
            cq_head: 5,
            cq_tail: 6,
            cq_phase: 1,
        },
        features: vec![
            FeatureValue { fid: 7, value: 0x0001_0001, ..Default::default() },
            FeatureValue { fid: 0x0e, nsid: 1, selector: 2, value: 3, data: vec![1, 2, 3, 4, 5] },
        ],
        async_events: AsyncEventState {
            outstanding: vec![0x11, 0x22, 0x33],
            waiting: vec![0x0102_0304_0506_0708],
            masked_types: 2,
        },
        interrupts: Some(InterruptState {
            enabled: true,
            function_mask: false,
            table: vec![MsixEntry { address: 0xfee0_0000, data: 0x4021, control: 1 }, MsixEntry::default()],
            pending: vec![2],
        }),
        namespaces: vec![NamespaceIdentity { nsid: 1, block_shift: 9, blocks: 32768, nguid: [0xab; 16] }],
        compatibility: Some(Compatibility { cap: 0x20_0f01_03ff, vs: 0x0002_0100, io_queues: 2, vectors: 3, mdts: 7 }),
    }
}

fn state() -> ControllerState {
    let sq = SqState { prp1: 0x10_0000, size: 63, qid: 1, cqid: 1, attributes: 1, head: 9, tail: 12 };
    let cq = CqState { prp1: 0x10_8000, size: 63, qid: 1, head: 3, tail: 9, attributes: 0x0001_0007 };
    ControllerState {
        suspended: true,
        submission_queues: vec![sq],
        completion_queues: vec![cq],
        vendor: vendor().encode().unwrap(),
    }
}

fn payload() -> Vec<u8> {
    let state = state().encode().unwrap();
    let prologue = Prologue { state_version: 0, uuid: Some(VENDOR_STATE_UUID), state_bytes: state.len() as u64 };
    let mut payload = prologue.encode().to_vec();
    payload.extend(state);
    payload.extend(Epilogue::new(crc32c(0, &payload)).encode());
    payload
}

#[test]
fn version_1_is_written_as_it_was() {
    let now = payload();
    let differs = now.iter().zip(GOLDEN).position(|(now, then)| now != then);
    assert_eq!((now.len(), differs), (GOLDEN.len(), None));
}

#[test]
fn version_1_is_read_as_it_was() {
    let (prologue, rest) = GOLDEN.split_first_chunk::<{ Prologue::SIZE }>().unwrap();
    let prologue = Prologue::decode(prologue, MAX_STATE_BYTES).unwrap();
    assert_eq!(prologue.uuid, Some(VENDOR_STATE_UUID));
    let (body, epilogue) = rest.split_at(usize::try_from(prologue.state_bytes).unwrap());
    let crc = crc32c(0, &GOLDEN[..GOLDEN.len() - Epilogue::SIZE]);
    assert!(Epilogue::decode_prefix(epilogue).unwrap().matches(crc));
    let decoded = ControllerState::decode(body).unwrap();
    assert_eq!(decoded, state());
    assert_eq!(VendorState::decode(&decoded.vendor).unwrap(), vendor());
}
