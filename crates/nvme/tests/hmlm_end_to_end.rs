//! A controller under I/O moves from one embedded subsystem to another, by the state channel and the dirty source that a
//! migration uses: as a PF, as a VF and as a SIOV-like function.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use common::{Bars, DATA, Disk, Host, Interrupts, MEMORY, Memory, config};
use towline_core::channel::{ChannelError, ChannelErrorKind, DirtySink, DirtySource, ReadOutcome, StateChannel};
use towline_core::fsm::DeviceState;
use towline_core::memory::{GuestMemory, MemoryRange};
use towline_nvme::admin::AdminClient;
use towline_nvme::command::{SubmissionEntry, io_opcode, opcode};
use towline_nvme::hmlm::{HmlmChannel, HmlmConfig, TrackConfig, TrackReceiveSource};
use towline_nvme::model::{CommandSet, Controller, ControllerKind, EmbeddedAdmin, FaultAction, FaultRule, Subsystem};
use towline_nvme::resources::{Resource, VirtualizationAction};
use towline_nvme::status::{Status, StatusCode};

const MIB: u64 = 1 << 20;
const QUEUES: u16 = 2;

/// One host machine: a subsystem, its controlling function, and one function for the guest.
struct Side {
    subsystem: Arc<Subsystem>,
    client: AdminClient,
    controller: Arc<Controller>,
    interrupts: Arc<Interrupts>,
}

impl Side {
    fn new(disk: &Disk, kind: ControllerKind, memory: Arc<Memory>) -> Self {
        let subsystem = Subsystem::open(config(disk)).unwrap();
        let client = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
        let cntlid = match kind {
            ControllerKind::Vf => {
                subsystem.set_num_vfs(2).unwrap();
                let secondaries = client.secondary_controllers().unwrap();
                secondaries.iter().find(|secondary| secondary.vfn == 2).unwrap().scid
            }
            ControllerKind::Siov => subsystem.create_siov().unwrap(),
            _ => 2,
        };
        let controller = subsystem.controller(cntlid).unwrap();
        assert_eq!(controller.kind(), kind);
        if kind != ControllerKind::Pf {
            let manage = |action, resource, n| client.virtualization_manage(action, cntlid, resource, n).unwrap();
            manage(VirtualizationAction::Offline, Resource::Queues, 0);
            assert_eq!(manage(VirtualizationAction::Assign, Resource::Queues, QUEUES + 1), QUEUES + 1);
            assert_eq!(manage(VirtualizationAction::Assign, Resource::Interrupts, QUEUES + 1), QUEUES + 1);
            client.namespace_attach(1, &[cntlid]).unwrap();
            manage(VirtualizationAction::Online, Resource::Queues, 0);
            let online = client.secondary_controllers().unwrap();
            assert!(online.iter().any(|secondary| secondary.scid == cntlid && secondary.online()));
        }
        let interrupts = Arc::new(Interrupts::default());
        controller.attach(memory, interrupts.clone());
        Self { subsystem, client, controller, interrupts }
    }

    fn bars(&self) -> Bars {
        match self.controller.kind() {
            ControllerKind::Siov => Bars::of_siov(&self.subsystem, &self.controller),
            _ => Bars::of(&self.controller),
        }
    }

    fn channel(&self) -> HmlmChannel {
        let controller = Arc::clone(&self.controller);
        let reset = move || -> Result<(), ChannelError> {
            controller.flr();
            Ok(())
        };
        HmlmChannel::open(self.client.clone(), HmlmConfig::new(self.controller.cntlid()), Box::new(reset)).unwrap()
    }

    fn source(&self) -> TrackReceiveSource {
        TrackReceiveSource::new(self.client.clone(), TrackConfig::new(self.controller.cntlid()))
    }
}

/// Pages that a source reported.
#[derive(Default)]
struct Pages(BTreeSet<u64>);

impl DirtySink for Pages {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.extend(gpa / 4096..=(gpa + len - 1) / 4096);
    }
    fn merge_bitmap(&mut self, _: u64, _: u64, _: &[u8]) {
        panic!("this source reports ranges");
    }
}

fn read_all(channel: &mut HmlmChannel) -> Vec<u8> {
    let mut payload = Vec::new();
    let mut buffer = [0; 777];
    while let ReadOutcome::Bytes(n) = channel.read(&mut buffer).unwrap() {
        payload.extend_from_slice(&buffer[..n]);
    }
    payload
}

/// A guest that has done I/O so that its queues stand in the middle of a lap, with completions that it has not looked at and
/// an asynchronous event request outstanding.
fn busy_guest(side: &Side, memory: &Arc<Memory>) -> (Host, Vec<u16>) {
    let mut host = Host::new(memory.clone(), side.bars());
    host.enable();
    for qid in 1..=QUEUES {
        host.create_pair(qid, 16, qid);
    }
    host.submit(0, SubmissionEntry { opcode: opcode::ASYNC_EVENT_REQUEST, ..Default::default() });
    for round in 0..21 {
        host.verified(1 + round % QUEUES, u64::from(round) * 4, 2, round as u8);
    }
    let unread = (0..5).map(|n| {
        let entry = host.transfer_entry(io_opcode::READ, n, 1, DATA + n * 4096);
        host.submit(2, entry)
    });
    let unread = unread.collect();
    (host, unread)
}

fn moves(kind: ControllerKind) {
    let disk = Disk::new(16 * MIB);
    let memory = Memory::new(MEMORY);
    let here = Side::new(&disk, kind, memory.clone());
    let mut dirty = here.source();
    let mut pages = Pages::default();
    assert_eq!(dirty.start(&memory.ranges(), 4096).unwrap(), 4096);
    memory.written.lock().unwrap().clear();
    let (mut host, unread) = busy_guest(&here, &memory);
    dirty.harvest(&mut pages).unwrap();
    // The guest's CPU stands still from here on.
    let mut from = here.channel();
    from.set_state(DeviceState::Stop).unwrap();
    dirty.harvest(&mut pages).unwrap();
    assert!(dirty.is_complete());
    let written = memory.written.lock().unwrap().clone();
    assert!(written.len() > 4);
    assert_eq!(written.difference(&pages.0).collect::<Vec<_>>(), Vec::<&u64>::new(), "pages that were not reported");
    let copy = memory.copy();
    from.set_state(DeviceState::StopCopy).unwrap();
    let payload = read_all(&mut from);

    let there = Side::new(&disk, kind, copy.clone());
    let mut into = there.channel();
    // First a state that was cut: it is refused, and the function is usable after a reset.
    into.set_state(DeviceState::Resuming).unwrap();
    into.write(&payload[..payload.len() - 9]).unwrap();
    assert_eq!(into.set_state(DeviceState::Stop).unwrap_err().kind, ChannelErrorKind::BadState);
    into.reset().unwrap();
    into.set_state(DeviceState::Resuming).unwrap();
    payload.chunks(1000).for_each(|piece| into.write(piece).unwrap());
    into.set_state(DeviceState::Stop).unwrap();
    let cc = host.read32(0x14);
    into.set_state(DeviceState::Running).unwrap();

    // The same guest, on the other side: what it had not looked at is there, and it goes on in the middle of its laps.
    let mut moved = Host { memory: copy, bars: there.bars(), ..host.clone() };
    assert_eq!((moved.read32(0x14), moved.csts()), (cc, 1));
    for cid in unread {
        let done = moved.wait(2, cid);
        assert_eq!(done.status(), Status::SUCCESS);
    }
    let before = there.interrupts.count(1);
    for round in 0..40 {
        moved.verified(1 + round % QUEUES, 100 + u64::from(round) * 4, 3, round as u8);
    }
    assert!(there.interrupts.count(1) > before);
    moved.create_pair_again(2);
    moved.verified(2, 700, 1, 9);
    moved.silent(0, Duration::from_millis(5));

    // The source does nothing any more, whatever is rung there: no page and no block of the disk changes.
    host.memory.poke(DATA, &[0x5a; 4096]);
    let (memory_before, disk_before) = (memory.copy(), std::fs::read(&disk.path).unwrap());
    let entry = host.transfer_entry(io_opcode::WRITE, 0, 1, DATA);
    let stale = host.push(1, entry);
    let queue = host.pairs[&1].sq;
    memory_before.poke(queue, &memory.peek(queue, 16 * 64));
    host.ring(2, host.pairs[&1].tail.into());
    std::thread::sleep(Duration::from_millis(20));
    let changed = |gpa: &u64| memory.peek(*gpa, 4096) != memory_before.peek(*gpa, 4096);
    assert_eq!((0..MEMORY as u64).step_by(4096).find(changed), None);
    assert!(std::fs::read(&disk.path).unwrap() == disk_before);
    // That the command would have done something is seen once the source runs again, which nobody may do after a handoff.
    from.set_state(DeviceState::Running).unwrap();
    assert_eq!(host.wait(1, stale).status(), Status::SUCCESS);
    assert!((0..MEMORY as u64).step_by(4096).any(|gpa| changed(&gpa)));
    assert!(std::fs::read(&disk.path).unwrap() != disk_before);
    from.reset().unwrap();
    dirty.stop().unwrap();
}

trait CreateAgain {
    fn create_pair_again(&mut self, qid: u16);
}

impl CreateAgain for Host {
    /// Deletes and creates a queue pair: the admin queue works, and the restored queues are real ones.
    fn create_pair_again(&mut self, qid: u16) {
        for opcode in [opcode::DELETE_IO_SQ, opcode::DELETE_IO_CQ] {
            self.admin_ok(SubmissionEntry { opcode, cdw10: qid.into(), ..Default::default() });
        }
        self.create_pair(qid, 16, qid);
    }
}

#[test]
fn a_pf_moves() {
    moves(ControllerKind::Pf);
}

#[test]
fn a_vf_moves() {
    moves(ControllerKind::Vf);
}

#[test]
fn a_siov_like_function_moves() {
    moves(ControllerKind::Siov);
}

#[test]
fn a_source_that_was_read_out_goes_on() {
    let disk = Disk::new(16 * MIB);
    let memory = Memory::new(MEMORY);
    let here = Side::new(&disk, ControllerKind::Vf, memory.clone());
    let (mut host, unread) = busy_guest(&here, &memory);
    let mut channel = here.channel();
    let estimate = channel.pending().unwrap().stop_copy_bytes.unwrap();
    channel.set_state(DeviceState::StopCopy).unwrap();
    let payload = read_all(&mut channel);
    assert_eq!(payload.len() as u64, estimate);
    // A command that is rung while it is suspended waits ...
    let entry = host.transfer_entry(io_opcode::READ, 0, 1, DATA);
    let late = host.submit(1, entry);
    host.silent(1, Duration::from_millis(20));
    channel.set_state(DeviceState::Running).unwrap();
    // ... and is done after the rollback, like everything else.
    assert_eq!(host.wait(1, late).status(), Status::SUCCESS);
    for cid in unread {
        assert_eq!(host.wait(2, cid).status(), Status::SUCCESS);
    }
    host.verified(1, 50, 4, 3);
}

#[test]
fn a_function_with_queues_of_its_own_takes_no_state() {
    let disk = Disk::new(16 * MIB);
    let memory = Memory::new(MEMORY);
    let here = Side::new(&disk, ControllerKind::Vf, memory.clone());
    let (mut host, _) = busy_guest(&here, &memory);
    let mut channel = here.channel();
    channel.set_state(DeviceState::StopCopy).unwrap();
    let payload = read_all(&mut channel);
    channel.set_state(DeviceState::Resuming).unwrap();
    channel.write(&payload).unwrap();
    let error = channel.set_state(DeviceState::Stop).unwrap_err();
    assert_eq!((error.kind, error.nvme_status), (ChannelErrorKind::BadState, Some(0x002)));
    channel.reset().unwrap();
    host.enable();
    host.create_pair(1, 16, 1);
    host.verified(1, 9, 1, 1);
}

#[test]
fn a_guest_too_large_for_fine_pages_is_tracked_in_coarse_ones() {
    let disk = Disk::new(16 * MIB);
    let memory = Memory::new(MEMORY);
    let here = Side::new(&disk, ControllerKind::Pf, memory.clone());
    let mut dirty = here.source();
    let guest = [MemoryRange { gpa: 0, len: 3 << 30 }, MemoryRange { gpa: 4 << 30, len: (2 << 40) - (8 << 30) }];
    assert_eq!(dirty.start(&guest, 4096).unwrap(), 2 << 20);
    memory.written.lock().unwrap().clear();
    let _guest = busy_guest(&here, &memory);
    here.channel().set_state(DeviceState::Stop).unwrap();
    let mut pages = Pages::default();
    dirty.harvest(&mut pages).unwrap();
    assert!(memory.written.lock().unwrap().is_subset(&pages.0));
}

#[test]
fn injected_faults_end_in_a_known_state() {
    let disk = Disk::new(16 * MIB);
    let memory = Memory::new(MEMORY);
    let here = Side::new(&disk, ControllerKind::Vf, memory.clone());
    let (mut host, _) = busy_guest(&here, &memory);
    let mut channel = here.channel();
    let fail_next = |opcode| {
        here.subsystem.faults().clear();
        here.subsystem.faults().add(FaultRule {
            cntlid: None,
            set: CommandSet::Admin,
            opcode: Some(opcode),
            nth: 1,
            count: 1,
            action: FaultAction::Status(Status { dnr: true, ..StatusCode::InternalError.into() }),
        })
    };
    // Suspend: it runs on.
    let rule = fail_next(opcode::MIGRATION_SEND);
    let error = channel.set_state(DeviceState::Stop).unwrap_err();
    assert_eq!((error.nvme_status, error.state), (Some(0x006), Some(DeviceState::Running)));
    assert_eq!(here.subsystem.faults().hits(rule), Some(1));
    host.verified(1, 40, 1, 5);
    // The header of the state: it is stopped, and goes on after the rollback.
    channel.set_state(DeviceState::Stop).unwrap();
    fail_next(opcode::MIGRATION_RECEIVE);
    let error = channel.set_state(DeviceState::StopCopy).unwrap_err();
    assert_eq!((error.kind, error.state), (ChannelErrorKind::Device, Some(DeviceState::Stop)));
    // Resume: it stays stopped, and the second try works.
    fail_next(opcode::MIGRATION_SEND);
    assert_eq!(channel.set_state(DeviceState::Running).unwrap_err().state, Some(DeviceState::Stop));
    channel.set_state(DeviceState::Running).unwrap();
    host.verified(1, 44, 1, 6);
}

/// The comparison of pages above sees a source that misses some: shown by not asking it after the suspend.
#[test]
fn without_the_last_harvest_pages_are_missing() {
    let disk = Disk::new(16 * MIB);
    let memory = Memory::new(MEMORY);
    let here = Side::new(&disk, ControllerKind::Pf, memory.clone());
    let mut dirty = here.source();
    let mut pages = Pages::default();
    dirty.start(&memory.ranges(), 4096).unwrap();
    dirty.harvest(&mut pages).unwrap();
    memory.written.lock().unwrap().clear();
    let _guest = busy_guest(&here, &memory);
    here.channel().set_state(DeviceState::Stop).unwrap();
    let written = memory.written.lock().unwrap().clone();
    assert!(written.difference(&pages.0).next().is_some());
}
