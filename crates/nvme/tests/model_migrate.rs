//! A running controller moves from one subsystem to another, and everything that could go wrong on the way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::type_complexity)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Bars, DATA, Disk, Host, Interrupts, MEMORY, Memory, config, pf_host};
use towline_core::memory::GuestMemory;
use towline_nvme::admin::AdminClient;
use towline_nvme::command::{SubmissionEntry, io_opcode, opcode};
use towline_nvme::migration::{FormatIndex, Sequence, SuspendType};
use towline_nvme::model::{
    CommandSet, Controller, ControllerKind, EmbeddedAdmin, FaultAction, FaultRule, Rates, Subsystem,
};
use towline_nvme::resources::{Resource, VirtualizationAction};
use towline_nvme::state::ControllerState;
use towline_nvme::status::{Status, StatusCode};
use towline_nvme::track::TrackRange;
use towline_nvme::vendor_state::VendorState;

const MIB: u64 = 1 << 20;
const FORMAT: FormatIndex = FormatIndex { version: 1, uuid: 1 };

struct Side {
    subsystem: Arc<Subsystem>,
    client: AdminClient,
}

fn side(disk: &Disk) -> Side {
    let subsystem = Subsystem::open(config(disk)).unwrap();
    let client = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
    Side { subsystem, client }
}

/// Gives a secondary controller queues, vectors and the namespace, and brings it online.
fn provision(side: &Side, cntlid: u16) -> Arc<Controller> {
    let manage = |action, resource, count| side.client.virtualization_manage(action, cntlid, resource, count).unwrap();
    assert_eq!(manage(VirtualizationAction::Assign, Resource::Queues, 4), 4);
    assert_eq!(manage(VirtualizationAction::Assign, Resource::Interrupts, 4), 4);
    side.client.namespace_attach(1, &[cntlid]).unwrap();
    manage(VirtualizationAction::Online, Resource::Queues, 0);
    let controller = side.subsystem.controller(cntlid).unwrap();
    assert!(controller.online());
    controller
}

/// A function of each kind, ready to be attached, with its BARs.
fn function(side: &Side, kind: ControllerKind) -> (Arc<Controller>, Bars) {
    match kind {
        ControllerKind::Vf => {
            side.subsystem.set_num_vfs(2).unwrap();
            let list = side.client.secondary_controllers().unwrap();
            let scid = list.iter().find(|entry| entry.vfn == 2).unwrap().scid;
            let controller = provision(side, scid);
            (controller.clone(), Bars::of(&controller))
        }
        ControllerKind::Siov => {
            let cntlid = side.subsystem.create_siov().unwrap();
            let controller = provision(side, cntlid);
            (controller.clone(), Bars::of_siov(&side.subsystem, &controller))
        }
        _ => {
            let controller = side.subsystem.controller(2).unwrap();
            (controller.clone(), Bars::of(&controller))
        }
    }
}

fn moves(kind: ControllerKind) {
    let disk = Disk::new(16 * MIB);
    let (source, target) = (side(&disk), side(&disk));
    let (here, bars) = function(&source, kind);
    let memory = Memory::new(MEMORY);
    here.attach(memory.clone(), Arc::new(Interrupts::default()));
    let mut host = Host::new(memory.clone(), bars);
    host.enable();
    for qid in 1..=2 {
        host.create_pair(qid, 8, qid);
    }
    let feature = SubmissionEntry { opcode: opcode::SET_FEATURES, cdw10: 4, cdw11: 320, ..Default::default() };
    host.admin_ok(feature);
    let aer = SubmissionEntry { opcode: opcode::ASYNC_EVENT_REQUEST, ..Default::default() };
    let aer = host.submit(0, aer);
    for n in 0..11 {
        host.verified(1 + n % 2, u64::from(n), 1, n as u8);
    }

    source.client.migration_suspend(here.cntlid(), SuspendType::Notification).unwrap();
    host.verified(1, 20, 1, 1);
    source.client.migration_suspend(here.cntlid(), SuspendType::Suspend).unwrap();
    source.client.migration_suspend(here.cntlid(), SuspendType::Suspend).unwrap();
    // Rung while suspended: not executed here, but there.
    let entry = host.transfer_entry(io_opcode::READ, 3, 1, DATA);
    let late = host.submit(2, entry);
    host.silent(2, Duration::from_millis(20));
    let (state, suspended) = source.client.migration_get_state(here.cntlid(), FORMAT).unwrap();
    assert!(suspended);

    let (there, bars) = function(&target, kind);
    let moved = memory.copy();
    let interrupts = Arc::new(Interrupts::default());
    there.attach(moved.clone(), interrupts.clone());
    target.client.migration_suspend(there.cntlid(), SuspendType::Suspend).unwrap();
    // In small parts and not in order.
    let (first, rest) = state.split_at(64);
    let (middle, last) = rest.split_at(rest.len() / 8 * 4);
    let part = |sequence, offset: usize, data: &[u8]| {
        target.client.migration_set_state_part(there.cntlid(), FORMAT, sequence, offset as u64, data)
    };
    part(Sequence::First, 0, first).unwrap();
    part(Sequence::Middle, 64 + middle.len(), last).unwrap();
    assert_eq!(
        target.client.migration_resume(there.cntlid()).unwrap_err().status().unwrap().code(),
        Some(StatusCode::CommandSequenceError)
    );
    part(Sequence::Middle, 64, middle).unwrap();
    part(Sequence::Last, 0, &[]).unwrap();
    let (again, _) = target.client.migration_get_state(there.cntlid(), FORMAT).unwrap();
    assert!(again == state, "what was put in comes out");

    let mut host = Host { memory: moved, bars, ..host };
    host.silent(2, Duration::from_millis(20));
    target.client.migration_resume(there.cntlid()).unwrap();
    assert_eq!(host.wait(2, late).status(), Status::SUCCESS);
    Host::until("the interrupt of the late read", || interrupts.count(2) > 0);
    for n in 0..23 {
        host.verified(1 + n % 2, u64::from(n), 1, n as u8 + 100);
    }
    let feature = SubmissionEntry { opcode: opcode::GET_FEATURES, cdw10: 4, ..Default::default() };
    assert_eq!(host.admin_ok(feature), 320);
    // The event request that was outstanding still is.
    host.ring(7, 1);
    assert_eq!(host.wait(0, aer).result(), 1 << 16);
    // The source is where it was, and can still be let go on.
    assert_eq!(source.client.migration_resume(here.cntlid()), Ok(()));
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

/// The completion queue phase is what [Q] gets wrong; every tail position, through several laps.
#[test]
fn the_phase_survives_at_every_position() {
    let disk = Disk::new(MIB);
    for count in 0..9u64 {
        let (source, target) = (side(&disk), side(&disk));
        let (mut host, here, _) = pf_host(&source.subsystem, 0);
        host.create_pair(1, 4, 1);
        for _ in 0..count {
            assert_eq!(host.transfer(1, io_opcode::READ, 0, 1, DATA), Status::SUCCESS);
        }
        source.client.migration_suspend(2, SuspendType::Suspend).unwrap();
        let (state, _) = source.client.migration_get_state(2, FORMAT).unwrap();
        here.detach();
        let there = target.subsystem.controller(2).unwrap();
        there.attach(host.memory.clone(), Arc::new(Interrupts::default()));
        target.client.migration_suspend(2, SuspendType::Suspend).unwrap();
        target.client.migration_set_state(2, FORMAT, &state).unwrap();
        target.client.migration_resume(2).unwrap();
        host.bars = Bars::of(&there);
        for _ in 0..9 {
            assert_eq!(host.transfer(1, io_opcode::READ, 0, 1, DATA), Status::SUCCESS, "after {count}");
        }
    }
}

/// The counterpart: with the phase bit turned the host sees nothing, so the test above can fail.
#[test]
fn a_wrong_phase_is_noticed() {
    let disk = Disk::new(MIB);
    let (source, target) = (side(&disk), side(&disk));
    let (mut host, here, _) = pf_host(&source.subsystem, 0);
    host.create_pair(1, 4, 1);
    assert_eq!(host.transfer(1, io_opcode::READ, 0, 1, DATA), Status::SUCCESS);
    source.client.migration_suspend(2, SuspendType::Suspend).unwrap();
    let (state, _) = source.client.migration_get_state(2, FORMAT).unwrap();
    let mut state = ControllerState::decode(&state).unwrap();
    state.completion_queues[0].attributes ^= 4;
    here.detach();
    let there = target.subsystem.controller(2).unwrap();
    there.attach(host.memory.clone(), Arc::new(Interrupts::default()));
    target.client.migration_suspend(2, SuspendType::Suspend).unwrap();
    target.client.migration_set_state(2, FORMAT, &state.encode().unwrap()).unwrap();
    target.client.migration_resume(2).unwrap();
    host.bars = Bars::of(&there);
    let entry = host.transfer_entry(io_opcode::READ, 0, 1, DATA);
    host.submit(1, entry);
    host.silent(1, Duration::from_millis(50));
}

#[test]
fn suspend_drains_what_was_fetched() {
    let disk = Disk::new(MIB);
    let side = side(&disk);
    let (mut host, ..) = pf_host(&side.subsystem, 1);
    let rule = FaultRule {
        cntlid: Some(2),
        set: CommandSet::Io,
        opcode: None,
        nth: 1,
        count: 3,
        action: FaultAction::DelayMs(60),
    };
    side.subsystem.faults().add(rule);
    let cids: Vec<u16> = (0..3)
        .map(|n| {
            let entry = host.transfer_entry(io_opcode::READ, n, 1, DATA);
            host.submit(1, entry)
        })
        .collect();
    std::thread::sleep(Duration::from_millis(10));
    side.client.migration_suspend(2, SuspendType::Suspend).unwrap();
    let done: Vec<u16> = (0..3).map(|_| host.poll(1).expect("drained before Suspend completes").cid).collect();
    assert_eq!(done, cids);
    let (state, suspended) = side.client.migration_get_state(2, FORMAT).unwrap();
    let state = ControllerState::decode(&state).unwrap();
    assert!(suspended && state.suspended);
    assert_eq!((state.submission_queues[0].head, state.submission_queues[0].tail), (3, 3));
    side.client.migration_resume(2).unwrap();
    host.verified(1, 0, 1, 1);
}

#[test]
fn a_hanging_command_holds_suspend_up_and_a_reset_ends_it() {
    let disk = Disk::new(MIB);
    let side = side(&disk);
    let (mut host, ..) = pf_host(&side.subsystem, 1);
    let rule =
        FaultRule { cntlid: None, set: CommandSet::Io, opcode: None, nth: 1, count: 1, action: FaultAction::Hang };
    let hang = side.subsystem.faults().add(rule);
    let entry = host.transfer_entry(io_opcode::READ, 0, 1, DATA);
    let cid = host.submit(1, entry);
    Host::until("the hang", || side.subsystem.faults().hits(hang) == Some(1));
    let done = Arc::new(AtomicBool::new(false));
    let suspend = |done: &Arc<AtomicBool>| {
        let (client, done) = (side.client.clone(), done.clone());
        std::thread::spawn(move || {
            let result = client.migration_suspend(2, SuspendType::Suspend);
            done.store(true, Ordering::Release);
            result
        })
    };
    let waiting = suspend(&done);
    std::thread::sleep(Duration::from_millis(50));
    assert!(!done.load(Ordering::Acquire), "Suspend waits for the command that hangs");
    // Meanwhile the controlling function answers others.
    side.client.identify_controller().unwrap();
    assert!(side.subsystem.faults().remove(hang));
    waiting.join().unwrap().unwrap();
    assert_eq!(host.wait(1, cid).status(), Status::SUCCESS);
    side.client.migration_resume(2).unwrap();

    // The same, and the tenant resets its controller in the middle.
    let hang = side.subsystem.faults().add(rule);
    let entry = host.transfer_entry(io_opcode::READ, 0, 1, DATA);
    host.submit(1, entry);
    Host::until("the hang", || side.subsystem.faults().hits(hang) == Some(1));
    let waiting = suspend(&done);
    std::thread::sleep(Duration::from_millis(50));
    host.disable();
    let error = waiting.join().unwrap().unwrap_err();
    assert!(error.is(StatusCode::ControllerNotSuspended), "{error}");
    side.subsystem.faults().clear();
    host.enable();
    host.create_pair(1, 16, 1);
    host.verified(1, 0, 1, 1);
}

#[test]
fn tracking_finds_every_page_that_was_written() {
    let disk = Disk::new(4 * MIB);
    let side = side(&disk);
    let (mut host, ..) = pf_host(&side.subsystem, 1);
    let all = [TrackRange { address: 0, len: MEMORY as u32 }];
    side.client.track_memory_start(2, 0, &all).unwrap();
    host.memory.written.lock().unwrap().clear();
    let receive = |pages: &mut std::collections::BTreeSet<u64>| {
        let report = side.client.track_receive(2).unwrap();
        for range in &report.ranges {
            pages.extend((range.address..range.address + u64::from(range.len)).step_by(4096).map(|gpa| gpa / 4096));
        }
        (report.header.more(), report.header.suspended())
    };
    let mut pages = std::collections::BTreeSet::new();
    for n in 0..20 {
        host.verified(1, n, 1 + n % 5, n as u8);
        host.identify(1, 0).unwrap();
        if n % 7 == 0 {
            receive(&mut pages);
        }
    }
    assert_eq!(receive(&mut pages), (false, false));
    side.client.migration_suspend(2, SuspendType::Suspend).unwrap();
    assert_eq!(receive(&mut pages), (false, true));
    let written = host.memory.written.lock().unwrap().clone();
    assert_eq!(pages, written, "data, completions and admin data; no more and no less");
    // The comparison notices a page that was written past the controller, and so was not tracked.
    host.memory.write(0x3f_0000, &[1]).unwrap();
    assert_ne!(pages, *host.memory.written.lock().unwrap());
    assert!(pages.contains(&1) && pages.contains(&(DATA / 4096)) && pages.contains(&0x18), "of each kind one");
    assert!(side.client.track_memory_stop(2).unwrap_err().is(StatusCode::ControllerSuspended));
    side.client.migration_resume(2).unwrap();
    side.client.track_memory_stop(2).unwrap();
    assert!(side.client.track_receive(2).unwrap_err().is(StatusCode::InvalidField));
}

#[test]
fn a_state_that_does_not_fit_changes_nothing() {
    let disk = Disk::new(MIB);
    let (source, target) = (side(&disk), side(&disk));
    let (mut host, ..) = pf_host(&source.subsystem, 2);
    host.verified(1, 0, 1, 1);
    source.client.migration_suspend(2, SuspendType::Suspend).unwrap();
    let (bytes, _) = source.client.migration_get_state(2, FORMAT).unwrap();
    let good = ControllerState::decode(&bytes).unwrap();
    let vendor = VendorState::decode(&good.vendor).unwrap();
    let there = target.subsystem.controller(2).unwrap();
    there.attach(host.memory.clone(), Arc::new(Interrupts::default()));
    target.client.migration_suspend(2, SuspendType::Suspend).unwrap();
    let (before, _) = target.client.migration_get_state(2, FORMAT).unwrap();

    type Change = fn(&mut ControllerState, &mut VendorState);
    let changes: [(&str, Change); 22] = [
        ("not suspended", |s, _| s.suspended = false),
        ("SQ of a queue that cannot be", |s, _| s.submission_queues[1].qid = 900),
        ("SQ without CQ", |s, _| s.submission_queues[0].cqid = 7),
        ("SQ head outside", |s, _| s.submission_queues[0].head = 64),
        ("SQ tail outside", |s, _| s.submission_queues[0].tail = u16::MAX),
        ("SQ not contiguous", |s, _| s.submission_queues[0].attributes = 0),
        ("SQ too long", |s, _| s.submission_queues[0].size = u16::MAX),
        ("SQ of one entry", |s, _| s.submission_queues[0].size = 0),
        ("SQ unaligned", |s, _| s.submission_queues[0].prp1 += 8),
        ("CQ vector", |s, _| s.completion_queues[0].attributes |= 0xffff_0000),
        ("CQ head outside", |s, _| s.completion_queues[1].head = 64),
        ("CQ missing", |s, _| s.completion_queues.truncate(1)),
        ("page size", |_, v| v.registers.cc |= 15 << 7),
        ("admin queue unaligned", |_, v| v.admin_queue.asq += 64),
        ("admin head outside", |_, v| v.admin_queue.sq_head = 32),
        ("admin tail outside", |_, v| v.admin_queue.cq_tail = 32),
        ("ready and not enabled", |_, v| v.registers.cc &= !1),
        ("feature unknown", |_, v| {
            v.features.push(towline_nvme::vendor_state::FeatureValue { fid: 0xc0, ..Default::default() })
        }),
        ("too many event requests", |_, v| v.async_events.outstanding = vec![0; 5]),
        ("namespace is another", |_, v| v.namespaces[0].nguid[0] ^= 1),
        ("more queues", |_, v| v.compatibility.as_mut().unwrap().io_queues += 1),
        ("other CAP", |_, v| v.compatibility.as_mut().unwrap().cap ^= 1),
    ];
    let try_one = |what: &str, bytes: &[u8]| {
        let error = target.client.migration_set_state(2, FORMAT, bytes).expect_err(what);
        assert!(error.is(StatusCode::InvalidField), "{what}: {error}");
        assert!(target.client.migration_resume(2).unwrap_err().is(StatusCode::CommandSequenceError), "{what}");
        let (after, _) = target.client.migration_get_state(2, FORMAT).unwrap();
        assert!(after == before, "{what}: nothing has changed");
    };
    for (what, change) in changes {
        let (mut state, mut part) = (good.clone(), vendor.clone());
        change(&mut state, &mut part);
        state.vendor = part.encode().unwrap();
        try_one(what, &state.encode().unwrap());
    }
    // Cut anywhere.
    for len in (4..bytes.len()).step_by(36) {
        try_one("cut", &bytes[..len / 4 * 4]);
    }
    target.client.migration_set_state(2, FORMAT, &bytes).unwrap();
    target.client.migration_resume(2).unwrap();
    host.bars = Bars::of(&there);
    host.verified(1, 0, 1, 9);
}

#[test]
fn the_tenant_resets_in_every_phase() {
    let disk = Disk::new(MIB);
    let side = side(&disk);
    let (mut host, here, interrupts) = pf_host(&side.subsystem, 1);
    type Disturb = fn(&mut Host, &Arc<Controller>);
    let disturbances: [(&str, Disturb); 4] = [
        ("CC.EN", |host, _| host.disable()),
        ("FLR", |_, controller| controller.flr()),
        ("shutdown", |host, _| {
            host.write32(0x14, 6 << 16 | 4 << 20 | 1 << 14 | 1);
            Host::until("SHST", || host.csts() >> 2 & 3 == 2);
        }),
        ("memory gone", |host, controller| {
            // The queues go while commands are rung.
            let bytes = host.memory.remove(0).unwrap();
            host.ring(2, 5);
            std::thread::sleep(Duration::from_millis(5));
            host.memory.put(0, bytes);
            let _ = controller;
        }),
    ];
    for (what, disturb) in disturbances {
        for phase in 0..4 {
            side.client.track_memory_start(2, 0, &[TrackRange { address: 0, len: MEMORY as u32 }]).unwrap();
            host.verified(1, 0, 1, 1);
            if phase >= 1 {
                side.client.migration_suspend(2, SuspendType::Suspend).unwrap();
            }
            let mut part = vec![0; 64];
            if phase >= 2 {
                side.client.migration_get_state_part(2, FORMAT, 0, &mut part).unwrap();
            }
            if phase >= 3 {
                // I/O queues exist, so this is refused; the state stays what it is.
                let error = side.client.migration_set_state(2, FORMAT, &part).unwrap_err();
                assert!(error.is(StatusCode::InvalidField));
            }
            disturb(&mut host, &here);
            // Whatever happened, the rest of the protocol answers.
            let (state, suspended) = side.client.migration_get_state(2, FORMAT).unwrap();
            assert_eq!(ControllerState::decode(&state).unwrap().suspended, suspended, "{what} in phase {phase}");
            side.client.track_receive(2).unwrap();
            if side.client.migration_resume(2).is_err() {
                assert!(!suspended, "{what} in phase {phase}");
            }
            here.flr();
            here.attach(host.memory.clone(), interrupts.clone());
            host.enable();
            host.create_pair(1, 64, 1);
            host.verified(1, 0, 1, 2);
            side.client.track_memory_stop(2).unwrap();
        }
    }
}

#[test]
fn a_reset_of_the_controlling_function_takes_secondaries_offline() {
    let disk = Disk::new(MIB);
    let side = side(&disk);
    let (controller, bars) = function(&side, ControllerKind::Vf);
    controller.attach(Memory::new(MEMORY), Arc::new(Interrupts::default()));
    let read = |bars: &Bars| {
        let mut raw = [0; 4];
        bars.registers.read(0x1c, &mut raw);
        u32::from_le_bytes(raw)
    };
    assert_eq!(read(&bars), 0);
    side.subsystem.controlling().unwrap().flr();
    assert!(!controller.online());
    assert_eq!((read(&bars), controller.resources()), (2, (0, 0)), "CFS without RDY");
    let side = Side { client: AdminClient::new(Arc::new(EmbeddedAdmin::new(&side.subsystem).unwrap())), ..side };
    let entry = side.client.secondary_controllers().unwrap();
    assert!(entry.iter().all(|entry| !entry.online() && entry.nvq == 0 && entry.nvi == 0));
    // Attachments survive, so attaching again is refused.
    let error = side.client.namespace_attach(1, &[controller.cntlid()]).unwrap_err();
    assert!(error.is(StatusCode::NamespaceAlreadyAttached));
    side.subsystem.set_num_vfs(0).unwrap();
    assert_eq!(read(&bars), u32::MAX, "a VF that is not enabled does not answer");
}

#[test]
fn a_slow_device_is_slow() {
    let disk = Disk::new(MIB);
    let side = side(&disk);
    let (mut host, ..) = pf_host(&side.subsystem, 1);
    let rates = Rates { save_latency_ms: 40, io_latency_us: 30_000, ..Rates::default() };
    side.subsystem.faults().set_rates(rates);
    let start = std::time::Instant::now();
    let entry = host.transfer_entry(io_opcode::READ, 0, 1, DATA);
    let cids: Vec<u16> = (0..8).map(|_| host.push(1, entry)).collect();
    host.ring(2, host.pairs[&1].tail.into());
    cids.into_iter().for_each(|cid| assert!(host.wait(1, cid).status().is_success()));
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(30) && took < Duration::from_millis(200),
        "latency, not throughput: {took:?}"
    );
    side.client.migration_suspend(2, SuspendType::Suspend).unwrap();
    let start = std::time::Instant::now();
    side.client.migration_get_state_header(2, FORMAT).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(40));
}
