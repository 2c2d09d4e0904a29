use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use towline_core::channel::{ChannelError, ChannelErrorKind, ReadOutcome, StateChannel};
use towline_core::fsm::DeviceState;

use super::device::{CNTLID, Device, Fault, state};
use crate::admin::TransportError;
use crate::command::opcode;
use crate::hmlm::payload::{Epilogue, Prologue};
use crate::hmlm::{HmlmChannel, HmlmConfig};
use crate::migration::Sequence;
use crate::status::StatusCode;
use crate::vendor_state::VENDOR_STATE_UUID;

use DeviceState::{Error, Resuming, Running, Stop, StopCopy};

fn open(device: &Arc<Device>) -> HmlmChannel {
    let of_reset = Arc::clone(device);
    let reset = move || -> Result<(), ChannelError> {
        of_reset.with(|inner| {
            inner.suspended = false;
            inner.staged = None;
        });
        Ok(())
    };
    HmlmChannel::open(device.client(), HmlmConfig::new(CNTLID), Box::new(reset)).unwrap()
}

fn source(vendor_bytes: usize, max_transfer: u32) -> (Arc<Device>, HmlmChannel) {
    let device = Device::new(max_transfer);
    device.with(|inner| inner.state = state(vendor_bytes));
    let channel = open(&device);
    (device, channel)
}

/// A destination has no queues and knows the formats in another order.
fn destination(max_transfer: u32) -> (Arc<Device>, HmlmChannel) {
    let device = Device::new(max_transfer);
    device.with(|inner| {
        inner.state = state(0);
        inner.formats.uuids.reverse();
        inner.formats.versions = vec![3, 0];
    });
    let channel = open(&device);
    (device, channel)
}

fn read_all(channel: &mut HmlmChannel, piece: usize) -> Result<Vec<u8>, ChannelError> {
    let mut all = Vec::new();
    let mut buffer = vec![0; piece];
    loop {
        match channel.read(&mut buffer)? {
            ReadOutcome::Bytes(n) => {
                assert!(n > 0 && n <= piece);
                all.extend_from_slice(&buffer[..n]);
            }
            ReadOutcome::EmptyForNow => panic!("STOP_COPY has no such thing"),
            ReadOutcome::End => return Ok(all),
        }
    }
}

fn payload(vendor_bytes: usize) -> Vec<u8> {
    let (_, mut channel) = source(vendor_bytes, 4096);
    channel.set_state(StopCopy).unwrap();
    read_all(&mut channel, 100_000).unwrap()
}

fn load(channel: &mut HmlmChannel, payload: &[u8], piece: usize) -> Result<(), ChannelError> {
    channel.set_state(Resuming)?;
    payload.chunks(piece.max(1)).try_for_each(|piece| channel.write(piece))?;
    channel.set_state(Stop)
}

#[test]
fn a_state_moves_whatever_the_sizes_of_parts_and_pieces() {
    for vendor_bytes in [0, 4, 3968, 4000, 8192, 70_000] {
        for (out_transfer, in_transfer) in [(4096, 4096), (4096, 65536), (65536, 4096), (1 << 20, 1 << 20)] {
            for (out_piece, in_piece) in [(1, 1), (7, 4096), (65536, 3), (1 << 20, 1 << 20)] {
                let (from, mut out) = source(vendor_bytes, out_transfer);
                let (to, mut into) = destination(in_transfer);
                out.set_state(StopCopy).unwrap();
                let expected = out.pending().unwrap().stop_copy_bytes.unwrap();
                let payload = read_all(&mut out, out_piece).unwrap();
                assert_eq!(payload.len() as u64, expected);
                assert_eq!(out.pending().unwrap().stop_copy_bytes, Some(0));
                load(&mut into, &payload, in_piece).unwrap();
                assert_eq!(into.state().unwrap(), Stop);
                let moved = to.with(|inner| {
                    assert_eq!(inner.commits, 1);
                    // Found by version and UUID: the other way round on this side.
                    let format = inner.set_format.unwrap();
                    assert_eq!((format.version, format.uuid), (2, 1));
                    inner.state.clone()
                });
                assert_eq!(moved, from.with(|inner| inner.state.clone()));
                into.set_state(Running).unwrap();
                assert!(to.with(|inner| !inner.suspended));
            }
        }
    }
}

#[test]
fn parts_are_marked_first_middle_last_and_only() {
    for (vendor_bytes, expected) in [
        (100, vec![Sequence::Only]),
        (5000, vec![Sequence::First, Sequence::Last]),
        (10_000, vec![Sequence::First, Sequence::Middle, Sequence::Last]),
    ] {
        let (to, mut into) = destination(4096);
        load(&mut into, &payload(vendor_bytes), 1000).unwrap();
        assert_eq!(to.with(|inner| inner.sequences.clone()), expected);
    }
}

#[test]
fn every_truncation_is_refused_before_the_device_commits() {
    let payload = payload(5000);
    for len in 0..payload.len() {
        let (to, mut into) = destination(4096);
        let error = load(&mut into, &payload[..len], 4096).unwrap_err();
        assert_eq!(error.kind, ChannelErrorKind::BadState, "{len}: {error}");
        assert_eq!(to.with(|inner| inner.commits), 0, "{len}");
        assert_eq!(into.state().unwrap(), Resuming);
        assert!(into.set_state(Running).is_err());
        // The instance is still usable after a reset.
        into.reset().unwrap();
        assert_eq!(into.state().unwrap(), Running);
        if len % 1000 == 0 {
            load(&mut into, &payload, 4096).unwrap();
            assert_eq!(to.with(|inner| inner.commits), 1);
        }
    }
}

#[test]
fn every_flipped_bit_is_refused_before_the_device_commits() {
    let payload = payload(300);
    for bit in 0..payload.len() * 8 {
        let mut damaged = payload.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        let (to, mut into) = destination(4096);
        let error = load(&mut into, &damaged, 4096).unwrap_err();
        assert_eq!(error.kind, ChannelErrorKind::BadState, "bit {bit}: {error}");
        assert_eq!(to.with(|inner| inner.commits), 0, "bit {bit}");
    }
}

/// The two tests above see a device that commits too early: shown by committing too early.
#[test]
fn a_state_that_goes_around_the_channel_is_committed_damaged() {
    let (to, _) = destination(4096);
    let mut damaged = state(300);
    *damaged.last_mut().unwrap() ^= 1;
    let client = to.client();
    client.migration_set_state(CNTLID, crate::migration::FormatIndex { version: 1, uuid: 1 }, &damaged).unwrap();
    assert_eq!(to.with(|inner| inner.commits), 1);
}

#[test]
fn bytes_after_the_end_are_refused() {
    let (to, mut into) = destination(4096);
    let mut long = payload(64);
    long.push(0);
    assert_eq!(load(&mut into, &long, 4096).unwrap_err().kind, ChannelErrorKind::BadState);
    assert_eq!(to.with(|inner| inner.commits), 0);
}

#[test]
fn a_foreign_format_is_refused_by_name() {
    let (_, mut into) = destination(4096);
    let mut foreign = payload(64);
    let prologue = Prologue { state_version: 0, uuid: Some([0xab; 16]), state_bytes: 184 };
    foreign[..48].copy_from_slice(&prologue.encode());
    let error = load(&mut into, &foreign, 4096).unwrap_err();
    assert_eq!(error.kind, ChannelErrorKind::BadState);
    assert!(error.message.contains("abababab"), "{error}");
    let (_, mut into) = destination(4096);
    let prologue = Prologue { state_version: 77, uuid: Some(VENDOR_STATE_UUID), state_bytes: 184 };
    assert!(load(&mut into, &prologue.encode(), 48).unwrap_err().message.contains("version 77"));
}

#[test]
fn a_state_over_the_cap_is_refused_both_ways() {
    let device = Device::new(4096);
    device.with(|inner| inner.state = state(5000));
    let config = HmlmConfig { max_state_bytes: 4096, ..HmlmConfig::new(CNTLID) };
    let mut channel = HmlmChannel::open(device.client(), config, Box::new(|| Ok(()))).unwrap();
    assert_eq!(channel.pending().unwrap_err().kind, ChannelErrorKind::Limit);
    let error = channel.set_state(StopCopy).unwrap_err();
    assert_eq!((error.kind, error.state), (ChannelErrorKind::Limit, Some(Stop)));
    channel.set_state(Resuming).unwrap();
    assert_eq!(channel.write(&payload(5000)).unwrap_err().kind, ChannelErrorKind::BadState);
}

#[test]
fn a_source_that_was_stopped_goes_on() {
    let (device, mut channel) = source(9000, 4096);
    assert_eq!(channel.state().unwrap(), Running);
    channel.set_state(StopCopy).unwrap();
    let first = read_all(&mut channel, 5000).unwrap();
    channel.set_state(Stop).unwrap();
    // A second pass starts from the beginning.
    channel.set_state(StopCopy).unwrap();
    assert_eq!(read_all(&mut channel, 1 << 20).unwrap(), first);
    assert!(matches!(channel.read(&mut [0; 8]), Ok(ReadOutcome::End)));
    channel.set_state(Running).unwrap();
    assert!(device.with(|inner| !inner.suspended));
}

#[test]
fn calls_in_the_wrong_state_are_refused_and_change_nothing() {
    let (device, mut channel) = source(10, 4096);
    let before = device.with(|inner| inner.log.len());
    assert_eq!(channel.read(&mut [0; 8]).unwrap_err().kind, ChannelErrorKind::State);
    assert_eq!(channel.write(&[0; 8]).unwrap_err().kind, ChannelErrorKind::State);
    for to in [Error, DeviceState::PreCopy, DeviceState::RunningP2p, DeviceState::PreCopyP2p] {
        let error = channel.set_state(to).unwrap_err();
        assert_eq!((error.kind, error.state), (ChannelErrorKind::State, Some(Running)));
    }
    assert_eq!(device.with(|inner| inner.log.len()), before);
    channel.set_state(Running).unwrap();
    channel.set_state(StopCopy).unwrap();
    assert_eq!(channel.read(&mut []).unwrap_err().kind, ChannelErrorKind::Limit);
}

#[test]
fn a_controller_that_does_not_migrate_others_is_refused() {
    let device = Device::new(4096);
    device.with(|inner| inner.state = state(0));
    let itself = HmlmChannel::open(device.client(), HmlmConfig::new(0), Box::new(|| Ok(())));
    assert_eq!(itself.unwrap_err().kind, ChannelErrorKind::Unsupported);
    let config = HmlmConfig { format: Some((0, Some([1; 16]))), ..HmlmConfig::new(CNTLID) };
    let lacking = HmlmChannel::open(device.client(), config, Box::new(|| Ok(())));
    assert_eq!(lacking.unwrap_err().kind, ChannelErrorKind::Unsupported);
}

#[test]
fn a_state_that_was_not_frozen_is_refused() {
    let (device, mut channel) = source(9000, 4096);
    device.with(|inner| inner.lies_about_suspend = true);
    let error = channel.set_state(StopCopy).unwrap_err();
    assert_eq!((error.kind, error.state), (ChannelErrorKind::Device, Some(Stop)));
    device.with(|inner| inner.lies_about_suspend = false);
    channel.set_state(StopCopy).unwrap();
    device.with(|inner| inner.lies_about_suspend = true);
    channel.read(&mut [0; 48]).unwrap();
    assert_eq!(channel.read(&mut [0; 48]).unwrap_err().kind, ChannelErrorKind::Device);
    // Nothing was lost: once the device is sane, reading goes on where it was.
    device.with(|inner| inner.lies_about_suspend = false);
    let rest = read_all(&mut channel, 1 << 20).unwrap();
    assert_eq!(rest, payload(9000)[48..]);
}

#[test]
fn a_failed_suspend_leaves_it_running_and_says_why() {
    let (device, mut channel) = source(10, 4096);
    device.with(|inner| inner.faults.push((opcode::MIGRATION_SEND, 0, Fault::Status(StatusCode::InternalError))));
    let error = channel.set_state(StopCopy).unwrap_err();
    assert_eq!((error.kind, error.nvme_status, error.state), (ChannelErrorKind::Device, Some(0x006), Some(Running)));
    channel.set_state(Stop).unwrap();
}

#[test]
fn after_a_lost_completion_the_controller_itself_is_asked() {
    let timeout = || TransportError::Timeout { opcode: opcode::MIGRATION_SEND, timeout_ms: 1 };
    for (fault, expected) in [(Fault::Lost(timeout()), Running), (Fault::LostAfter(timeout()), Stop)] {
        let (device, mut channel) = source(10, 4096);
        device.with(|inner| inner.faults.push((opcode::MIGRATION_SEND, 0, fault)));
        let error = channel.set_state(Stop).unwrap_err();
        assert_eq!((error.kind, error.state), (ChannelErrorKind::Gone, Some(expected)));
        assert_eq!(channel.state().unwrap(), expected);
    }
}

#[test]
fn a_controlling_function_that_is_gone_leaves_error_behind() {
    let gone = || Fault::Lost(TransportError::Gone { message: "unplugged".into() });
    let (device, mut channel) = source(10, 4096);
    device.with(|inner| {
        inner.faults.push((opcode::MIGRATION_SEND, 0, gone()));
        inner.faults.push((opcode::MIGRATION_RECEIVE, 0, gone()));
    });
    let error = channel.set_state(Stop).unwrap_err();
    assert_eq!((error.kind, error.state), (ChannelErrorKind::Gone, Some(Error)));
    assert_eq!(channel.set_state(Running).unwrap_err().kind, ChannelErrorKind::State);
    assert_eq!(channel.pending().unwrap_err().kind, ChannelErrorKind::State);
    channel.reset().unwrap();
    assert_eq!(channel.state().unwrap(), Running);
}

#[test]
fn a_commit_without_completion_is_neither_done_nor_undone() {
    let (device, mut channel) = destination(4096);
    let lost = TransportError::Io { errno: 4, message: "ioctl".into() };
    // Suspend is the first Migration Send, the only part of the state the second.
    device.with(|inner| inner.faults.push((opcode::MIGRATION_SEND, 1, Fault::LostAfter(lost))));
    let error = load(&mut channel, &payload(64), 4096).unwrap_err();
    assert_eq!((error.errno, error.state), (Some(4), Some(Error)));
}

#[test]
fn a_state_that_the_device_refuses_is_a_bad_state() {
    let (device, mut channel) = destination(4096);
    device.with(|inner| inner.faults.push((opcode::MIGRATION_SEND, 2, Fault::Status(StatusCode::InvalidField))));
    let error = load(&mut channel, &payload(5000), 4096).unwrap_err();
    assert_eq!((error.kind, error.nvme_status), (ChannelErrorKind::BadState, Some(0x002)));
    assert_eq!(channel.state().unwrap(), Resuming);
    // A state that was begun cannot be run, whatever the caller tries; a reset ends it.
    assert_eq!(channel.write(&[0]).unwrap_err().kind, ChannelErrorKind::State);
    channel.reset().unwrap();
    load(&mut channel, &payload(5000), 4096).unwrap();
    channel.set_state(Running).unwrap();
}

#[test]
fn a_controller_that_was_resumed_behind_our_back_is_noticed() {
    let (device, mut channel) = source(10, 4096);
    channel.set_state(Stop).unwrap();
    device.with(|inner| inner.suspended = false);
    let error = channel.set_state(Running).unwrap_err();
    assert_eq!((error.nvme_status, error.state), (Some(0x13a), Some(Running)));
    channel.set_state(StopCopy).unwrap();
    device.with(|inner| inner.suspended = false);
    assert_eq!(channel.state().unwrap(), Running);
    // No command of the way itself would have told: it is asked.
    for to in [Stop, StopCopy] {
        channel.set_state(to).unwrap();
        device.with(|inner| inner.suspended = false);
        channel.set_state(to).unwrap();
        assert!(device.with(|inner| inner.suspended), "{to:?} was reported while it runs");
    }
    channel.set_state(Running).unwrap();
    device.with(|inner| inner.suspended = true);
    channel.set_state(Running).unwrap();
    assert!(device.with(|inner| !inner.suspended), "RUNNING was reported while it is suspended");
}

#[test]
fn a_reset_that_fails_or_does_nothing_is_an_error() {
    let (device, _) = source(10, 4096);
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let reset = move || match counted.fetch_add(1, Ordering::SeqCst) {
        0 => Err(ChannelError::new(ChannelErrorKind::Device, "no FLR")),
        _ => Ok(()),
    };
    let mut channel = HmlmChannel::open(device.client(), HmlmConfig::new(CNTLID), Box::new(reset)).unwrap();
    channel.set_state(Stop).unwrap();
    assert_eq!(channel.reset().unwrap_err().message, "no FLR");
    assert_eq!(channel.state().unwrap(), Error);
    assert!(channel.reset().unwrap_err().message.contains("still suspended"));
    assert_eq!(channel.state().unwrap(), Error);
    device.with(|inner| inner.suspended = false);
    channel.reset().unwrap();
    assert_eq!(channel.state().unwrap(), Running);
}

#[test]
fn what_the_device_gave_is_carried_as_it_is() {
    // The checksum covers what the device gave; damage inside of the device is for the device's own format to find.
    let (device, mut channel) = source(9000, 4096);
    device.with(|inner| inner.corrupts = true);
    channel.set_state(StopCopy).unwrap();
    let got = read_all(&mut channel, 1 << 20).unwrap();
    assert_ne!(got, payload(9000));
    let crc = towline_core::crc::crc32c(0, &got[..got.len() - 8]);
    assert!(Epilogue::decode_prefix(&got[got.len() - 8..]).unwrap().matches(crc));
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600), piece in 1usize..300) {
        let (to, mut into) = destination(4096);
        prop_assert!(load(&mut into, &bytes, piece).is_err());
        prop_assert_eq!(to.with(|inner| inner.commits), 0);
    }

    #[test]
    fn prologues_round_trip(state_version: u16, uuid: Option<[u8; 16]>, dwords in 12u64..1 << 20) {
        let prologue = Prologue { state_version, uuid, state_bytes: dwords * 4 };
        prop_assert_eq!(Prologue::decode(&prologue.encode(), 1 << 30), Ok(prologue));
    }
}
