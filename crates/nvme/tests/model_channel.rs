//! The model behind the interfaces that a migration uses: state channel and dirty source.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::{Bars, DATA, Disk, Host, Interrupts, MEMORY, config, pf_host};
use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource, ReadOutcome, StateChannel};
use towline_core::fsm::DeviceState;
use towline_core::memory::MemoryRange;
use towline_nvme::admin::AdminClient;
use towline_nvme::command::io_opcode;
use towline_nvme::hmlm::{HmlmChannel, HmlmConfig, TrackConfig, TrackReceiveSource};
use towline_nvme::migration::FormatIndex;
use towline_nvme::model::{EmbeddedAdmin, Subsystem};
use towline_nvme::status::Status;

const MIB: u64 = 1 << 20;

fn open(disk: &Disk) -> (Arc<Subsystem>, AdminClient, HmlmChannel) {
    let subsystem = Subsystem::open(config(disk)).unwrap();
    let client = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
    let controller = subsystem.controller(2).unwrap();
    let reset = move || -> Result<(), ChannelError> {
        controller.flr();
        Ok(())
    };
    let channel = HmlmChannel::open(client.clone(), HmlmConfig::new(2), Box::new(reset)).unwrap();
    (subsystem, client, channel)
}

#[derive(Default)]
struct Pages(BTreeSet<u64>);

impl DirtySink for Pages {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.extend(gpa / 4096..(gpa + len).div_ceil(4096));
    }

    fn merge_bitmap(&mut self, _base: u64, _page_size_bytes: u64, _bitmap: &[u8]) {
        panic!("Track Receive gives ranges");
    }
}

fn state_of(channel: &mut HmlmChannel) -> Vec<u8> {
    let mut state = Vec::new();
    let mut buffer = [0; 100];
    loop {
        match channel.read(&mut buffer).unwrap() {
            ReadOutcome::Bytes(n) => state.extend_from_slice(&buffer[..n]),
            ReadOutcome::End => return state,
            ReadOutcome::EmptyForNow => panic!("there is no pre-copy"),
        }
    }
}

#[test]
fn through_state_channel_and_dirty_source() {
    let disk = Disk::new(4 * MIB);
    let (source, client, mut outgoing) = open(&disk);
    let (mut host, ..) = pf_host(&source, 2);
    let mut dirty = TrackReceiveSource::new(client, TrackConfig::new(2));
    dirty.start(&[MemoryRange { gpa: 0, len: MEMORY as u64 }], 4096).unwrap();
    // What a migration does: a full copy, then what was written since.
    host.memory.written.lock().unwrap().clear();
    let copy = host.memory.copy();
    for n in 0..40 {
        host.verified(1 + n % 2, u64::from(n), 2, n as u8);
    }
    let mut pages = Pages::default();
    dirty.harvest(&mut pages).unwrap();
    for n in 0..10 {
        host.verified(1 + n % 2, u64::from(n), 1, n as u8 + 50);
    }
    let entry = host.transfer_entry(io_opcode::READ, 3, 1, DATA);
    let late = host.submit(1, entry);
    outgoing.set_state(DeviceState::StopCopy).unwrap();
    dirty.harvest(&mut pages).unwrap();
    assert!(dirty.is_complete());
    let state = state_of(&mut outgoing);
    // Device pages come from tracking; what the test's CPU wrote is carried as a whole, as vCPU dirtying is another source.
    let now = host.memory.peek(0, MEMORY);
    let mut moved = copy.peek(0, MEMORY);
    let device = host.memory.written.lock().unwrap().clone();
    assert!(device.is_subset(&pages.0), "every page that the device wrote is known");
    for (page, bytes) in now.chunks(4096).enumerate() {
        if pages.0.contains(&(page as u64)) || !device.contains(&(page as u64)) {
            moved[page * 4096..(page + 1) * 4096].copy_from_slice(bytes);
        }
    }
    copy.poke(0, &moved);

    let (target, _, mut incoming) = open(&disk);
    let there = target.controller(2).unwrap();
    there.attach(copy.clone(), Arc::new(Interrupts::default()));
    incoming.set_state(DeviceState::Resuming).unwrap();
    state.chunks(37).for_each(|piece| incoming.write(piece).unwrap());
    incoming.set_state(DeviceState::Stop).unwrap();
    incoming.set_state(DeviceState::Running).unwrap();
    let mut moved = Host { memory: copy, bars: Bars::of(&there), ..host };
    assert_eq!(moved.wait(1, late).status(), Status::SUCCESS);
    for n in 0..20 {
        moved.verified(1 + n % 2, u64::from(n), 1, n as u8 + 150);
    }

    // The source rolls back as well, were it asked to.
    outgoing.set_state(DeviceState::Running).unwrap();
    assert_eq!(outgoing.state().unwrap(), DeviceState::Running);
    dirty.stop().unwrap();
}

#[test]
fn a_damaged_state_is_refused_and_the_function_stays_usable() {
    let disk = Disk::new(MIB);
    let (source, _, mut outgoing) = open(&disk);
    let (mut host, ..) = pf_host(&source, 1);
    outgoing.set_state(DeviceState::StopCopy).unwrap();
    let state = state_of(&mut outgoing);
    let (target, _, mut incoming) = open(&disk);
    let there = target.controller(2).unwrap();
    there.attach(host.memory.clone(), Arc::new(Interrupts::default()));
    for damage in [0, 60, state.len() / 2, state.len() - 1] {
        incoming.set_state(DeviceState::Resuming).unwrap();
        let mut bad = state.clone();
        bad[damage] ^= 0x10;
        let written = incoming.write(&bad);
        let error = written.and_then(|()| incoming.set_state(DeviceState::Stop)).expect_err("damaged");
        assert!(matches!(error.kind, ChannelErrorKind::BadState | ChannelErrorKind::Limit), "byte {damage}: {error:?}");
        incoming.reset().unwrap();
        assert_eq!(incoming.state().unwrap(), DeviceState::Running);
    }
    incoming.set_state(DeviceState::Resuming).unwrap();
    incoming.write(&state[..state.len() - 4]).unwrap();
    incoming.set_state(DeviceState::Stop).expect_err("cut");
    incoming.reset().unwrap();
    incoming.set_state(DeviceState::Resuming).unwrap();
    incoming.write(&state).unwrap();
    incoming.set_state(DeviceState::Running).unwrap();
    host.bars = Bars::of(&there);
    host.verified(1, 0, 1, 1);
}

#[test]
fn a_reset_behind_its_back_is_noticed() {
    let disk = Disk::new(MIB);
    let (source, client, mut channel) = open(&disk);
    let suspended = |client: &AdminClient| {
        let header = client.migration_get_state_header(2, FormatIndex { version: 1, uuid: 1 });
        header.unwrap().1
    };
    channel.set_state(DeviceState::Stop).unwrap();
    assert!(suspended(&client));
    source.controller(2).unwrap().flr();
    assert!(!suspended(&client));
    channel.set_state(DeviceState::Stop).unwrap();
    assert!(suspended(&client), "STOP was reported while it runs");
    // It is not what it was to go on with: that it runs is no success.
    source.controller(2).unwrap().flr();
    let error = channel.set_state(DeviceState::Running).unwrap_err();
    assert_eq!((error.kind, error.state), (ChannelErrorKind::State, Some(DeviceState::Running)));
    channel.set_state(DeviceState::Running).unwrap();
}
