//! Every status code that the commands of the controlling function name, in the case that they name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::type_complexity)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{DATA, Disk, Host, config, pf_host};
use towline_nvme::admin::{AdminClient, AdminTransport, Data, TransportError};
use towline_nvme::command::{AdminCommand, io_opcode, opcode};
use towline_nvme::identify::{cns, trattr};
use towline_nvme::migration::SuspendType;
use towline_nvme::model::{
    CommandSet, ControllerKind, EmbeddedAdmin, FaultAction, FaultRule, ModelError, NamespaceConfig, Subsystem,
    SubsystemConfig,
};
use towline_nvme::status::{Status, StatusCode};
use towline_nvme::track::{TrackRange, TrackRanges, TrackResources};
use towline_nvme::vendor_state::VENDOR_STATE_UUID;

const MIB: u64 = 1 << 20;

struct Rig {
    _disk: Disk,
    _private: Disk,
    subsystem: Arc<Subsystem>,
    admin: Arc<EmbeddedAdmin>,
    client: AdminClient,
}

/// Namespace 1 is shared, 2 is private.
fn rig() -> Rig {
    let (disk, private) = (Disk::new(MIB), Disk::new(MIB));
    let namespaces = vec![disk.config(1, true), private.config(2, false)];
    let subsystem = Subsystem::open(SubsystemConfig { namespaces, ..config(&disk) }).unwrap();
    let admin = Arc::new(EmbeddedAdmin::new(&subsystem).unwrap());
    let client = AdminClient::new(admin.clone());
    Rig { _disk: disk, _private: private, subsystem, admin, client }
}

impl Rig {
    fn send(&self, opcode: u8, dwords: [u32; 6], data: &[u8]) -> (Option<StatusCode>, u64) {
        let [cdw10, cdw11, cdw12, cdw13, cdw14, cdw15] = dwords;
        let cmd = AdminCommand { cdw10, cdw11, cdw12, cdw13, cdw14, cdw15, ..AdminCommand::new(opcode) };
        let mut buffer = data.to_vec();
        let data = match (opcode & 3, data.is_empty()) {
            (_, true) => Data::None,
            (1, _) => Data::FromHost(&buffer),
            _ => Data::ToHost(&mut buffer),
        };
        let done = self.admin.submit(&cmd, data, Duration::from_secs(5)).unwrap();
        (done.status.code(), done.result)
    }
}

#[test]
fn migration_and_tracking_commands() {
    let rig = rig();
    let (mut host, ..) = pf_host(&rig.subsystem, 1);
    let ranges = |granularity, count: usize, len| {
        TrackRanges { granularity, ranges: vec![TrackRange { address: 0, len }; count] }.encode().unwrap()
    };
    let one = ranges(0, 1, 4096);
    let state = [0u8; 64];
    use StatusCode as S;
    let none: &[u8] = &[];
    let table: &[(&str, u8, [u32; 6], &[u8], S)] = &[
        ("suspend of itself", 0x41, [0, 1 << 16 | 1, 0, 0, 0, 0], none, S::InvalidControllerIdentifier),
        ("suspend of nobody", 0x41, [0, 1 << 16 | 99, 0, 0, 0, 0], none, S::InvalidControllerIdentifier),
        ("suspend of a VF that is offline", 0x41, [0, 1 << 16 | 3, 0, 0, 0, 0], none, S::InvalidControllerIdentifier),
        ("suspend type", 0x41, [0, 2 << 16 | 2, 0, 0, 0, 0], none, S::InvalidField),
        ("suspend deletes a queue", 0x41, [0, 1 << 31 | 1 << 16 | 2, 0, 0, 0, 0], none, S::InvalidField),
        ("selection", 0x41, [9, 2, 0, 0, 0, 0], none, S::InvalidField),
        ("resume of itself", 0x41, [1, 1, 0, 0, 0, 0], none, S::InvalidControllerIdentifier),
        ("resume of one that runs", 0x41, [1, 2, 0, 0, 0, 0], none, S::ControllerNotSuspended),
        ("set of itself", 0x41, [3 << 16 | 2, 0x0101_0001, 0, 0, 0, 16], &state, S::InvalidControllerIdentifier),
        ("set of one that runs", 0x41, [3 << 16 | 2, 0x0101_0002, 0, 0, 0, 16], &state, S::ControllerNotSuspended),
        ("set of another version", 0x41, [3 << 16 | 2, 0x0102_0002, 0, 0, 0, 16], &state, S::InvalidField),
        ("set of another UUID", 0x41, [3 << 16 | 2, 0x0201_0002, 0, 0, 0, 16], &state, S::InvalidField),
        ("set of nothing", 0x41, [3 << 16 | 2, 0x0101_0002, 0, 0, 0, 0], none, S::InvalidField),
        ("set at an odd place", 0x41, [3 << 16 | 2, 0x0101_0002, 2, 0, 0, 16], &state, S::InvalidField),
        ("set of too much", 0x41, [3 << 16 | 2, 0x0101_0002, 0, 0, 0, 1 << 20], &state, S::InvalidField),
        ("get of itself", 0x42, [1 << 16, 1 << 16 | 1, 0, 0, 0, 15], &state, S::InvalidControllerIdentifier),
        ("get of nobody", 0x42, [1 << 16, 1 << 16 | 99, 0, 0, 0, 15], &state, S::InvalidControllerIdentifier),
        ("get of another version", 0x42, [2 << 16, 1 << 16 | 2, 0, 0, 0, 15], &state, S::InvalidField),
        ("get without a version", 0x42, [0, 1 << 16 | 2, 0, 0, 0, 15], &state, S::InvalidField),
        ("get beyond the end", 0x42, [1 << 16, 1 << 16 | 2, 0, 1, 0, 15], &state, S::InvalidField),
        ("get of too much", 0x42, [1 << 16, 1 << 16 | 2, 0, 0, 0, 1 << 20], &state, S::InvalidField),
        ("get selection", 0x42, [1 << 16 | 1, 1 << 16 | 2, 0, 0, 0, 15], &state, S::InvalidField),
        ("tracking of itself", 0x3d, [0x1_0001, 1, 0, 0, 0, 0], &one, S::InvalidControllerIdentifier),
        ("tracking of nobody", 0x3d, [0x1_0001, 99, 0, 0, 0, 0], &one, S::InvalidControllerIdentifier),
        ("tracking of user data", 0x3d, [0x1_0000, 0, 0, 0, 0, 0], &one, S::InvalidField),
        ("tracking of nothing", 0x3d, [0x1_0001, 2, 0, 0, 0, 0], &[0; 8], S::InvalidField),
        ("tracking of an empty range", 0x3d, [0x1_0001, 2, 0, 0, 0, 0], &ranges(0, 1, 0), S::InvalidField),
        ("tracking in another version", 0x3d, [0x1_0001, 2, 0, 0, 0, 0], &[1, 0, 0, 0, 1, 0, 0, 0], S::InvalidField),
        ("report of itself", 0x3e, [0, 1, 15, 0, 0, 0], &state, S::InvalidControllerIdentifier),
        ("report without tracking", 0x3e, [0, 2, 15, 0, 0, 0], &state, S::InvalidField),
        ("report without room", 0x3e, [0, 2, 2, 0, 0, 0], &state, S::InvalidField),
        ("data queue", 0x45, [0, 2, 0, 0, 0, 0], none, S::InvalidOpcode),
        ("sanitize", 0x84, [1, 0, 0, 0, 0, 0], none, S::InvalidOpcode),
    ];
    for (what, opcode, dwords, data, code) in table {
        assert_eq!(rig.send(*opcode, *dwords, data).0, Some(*code), "{what}");
    }

    // 38h says what would be possible.
    let (code, result) = rig.send(0x3d, [0x1_0001, 2, 0, 0, 0, 0], &ranges(10, 1, 4096));
    assert_eq!(code, Some(S::NotEnoughResources));
    assert_eq!(TrackResources::from_result(result), TrackResources { granularity: 9, descriptors: 1024 });
    let (code, result) = rig.send(0x3d, [0x1_0001, 2, 0, 0, 0, 0], &ranges(0, 1025, 4096));
    assert_eq!(code, Some(S::NotEnoughResources));
    assert_eq!(TrackResources::from_result(result).descriptors, 1024);
    let huge: Vec<TrackRange> = (0..1024).map(|n| TrackRange { address: n << 32, len: !4095 }).collect();
    let huge = TrackRanges { granularity: 0, ranges: huge }.encode().unwrap();
    let (code, result) = rig.send(0x3d, [0x1_0001, 2, 0, 0, 0, 0], &huge);
    assert_eq!((code, TrackResources::from_result(result).granularity), (Some(S::NotEnoughResources), 9));

    // While suspended.
    rig.client.track_memory_start(2, 0, &[TrackRange { address: 0, len: 4096 }]).unwrap();
    rig.client.migration_suspend(2, SuspendType::Suspend).unwrap();
    assert_eq!(rig.send(0x3d, [1, 2, 0, 0, 0, 0], &[0; 8]).0, Some(S::ControllerSuspended));
    assert_eq!(
        rig.send(0x41, [3 << 16 | 2, 0x0101_0002, 0, 0, 0, 16], &state).0,
        Some(S::InvalidField),
        "I/O queues exist"
    );
    host.disable();
    rig.client.migration_suspend(2, SuspendType::Suspend).unwrap();
    for sequence in [0, 2] {
        let dwords = [sequence << 16 | 2, 0x0101_0002, 0, 0, 0, 16];
        assert_eq!(
            rig.send(0x41, dwords, &state).0,
            Some(S::CommandSequenceError),
            "sequence {sequence} without a first"
        );
    }
    assert_eq!(rig.send(0x41, [1 << 16 | 2, 0x0101_0002, 0, 0, 0, 16], &state).0, Some(S::Success));
    assert_eq!(rig.send(0x41, [1, 2, 0, 0, 0, 0], none).0, Some(S::CommandSequenceError), "not committed");
    assert_eq!(
        rig.send(0x41, [2 << 16 | 2, 0x0001_0002, 64, 0, 0, 16], &state).0,
        Some(S::InvalidField),
        "other format"
    );
}

#[test]
fn virtualization_management() {
    let rig = rig();
    rig.subsystem.set_num_vfs(1).unwrap();
    let siov = rig.subsystem.create_siov().unwrap();
    assert_eq!(siov, 7);
    use StatusCode as S;
    let send = |cntlid: u32, rt: u32, act: u32, count: u32| {
        rig.send(0x1c, [cntlid << 16 | rt << 8 | act, count, 0, 0, 0, 0], &[])
    };
    // (what, controller, resource type, action, count, status, NRM)
    let table = [
        ("a PF", 2, 0, 8, 2, S::InvalidControllerIdentifier),
        ("nobody", 99, 0, 8, 2, S::InvalidControllerIdentifier),
        ("itself", 1, 0, 9, 0, S::InvalidControllerIdentifier),
        ("primary allocation to a VF", 3, 0, 1, 1, S::InvalidControllerIdentifier),
        ("resource type", 3, 2, 8, 2, S::InvalidResourceIdentifier),
        ("action", 3, 0, 5, 2, S::InvalidField),
        ("more than a secondary may have", 3, 0, 8, 10, S::InvalidNumberOfControllerResources),
        ("more vectors than it may have", 3, 1, 8, 10, S::InvalidNumberOfControllerResources),
        ("more than the primary may have", 1, 0, 1, 73, S::InvalidNumberOfControllerResources),
        ("online without resources", 3, 0, 9, 0, S::InvalidSecondaryControllerState),
        ("one queue", 3, 0, 8, 1, S::Success),
        ("one vector", 3, 1, 8, 1, S::Success),
        ("online with the admin queue alone", 3, 0, 9, 0, S::InvalidSecondaryControllerState),
        ("two queues", 3, 0, 8, 2, S::Success),
        ("online", 3, 0, 9, 0, S::Success),
        ("online again", 3, 0, 9, 0, S::Success),
        ("assign while online", 3, 0, 8, 3, S::InvalidSecondaryControllerState),
        ("queues for a VF that is not enabled", 4, 0, 8, 2, S::Success),
        ("vectors for a VF that is not enabled", 4, 1, 8, 2, S::Success),
        ("online of a VF that is not enabled", 4, 0, 9, 0, S::InvalidSecondaryControllerState),
        ("queues for a SIOV-like function", siov.into(), 0, 8, 9, S::Success),
        ("vectors for it", siov.into(), 1, 8, 9, S::Success),
        ("it online", siov.into(), 0, 9, 0, S::Success),
        ("it offline", siov.into(), 0, 7, 0, S::Success),
        ("online without what offline took", siov.into(), 0, 9, 0, S::InvalidSecondaryControllerState),
        ("most of the rest to the primary", 1, 0, 1, 68, S::Success),
        ("more than is left", siov.into(), 0, 8, 1, S::InvalidNumberOfControllerResources),
    ];
    for (what, cntlid, rt, act, count, code) in table {
        let (got, nrm) = send(cntlid, rt, act, count);
        assert_eq!(got, Some(code), "{what}");
        if code == S::Success && matches!(act, 1 | 8) {
            assert_eq!(nrm, u64::from(count), "{what}");
        }
    }
    let caps = rig.client.primary_capabilities().unwrap();
    assert_eq!((caps.vqfrt, caps.vqrfa, caps.vqrfap, caps.vqprt, caps.virfa), (72, 4, 0, 9, 3));
    // Allocated to the primary from a function level reset on, not from a controller reset.
    let primary = rig.subsystem.controlling().unwrap();
    drop(EmbeddedAdmin::new(&rig.subsystem).unwrap());
    assert_eq!(primary.resources(), (9, 9));
    primary.flr();
    assert_eq!(primary.resources(), (77, 9));
}

#[test]
fn namespaces() {
    let rig = rig();
    use StatusCode as S;
    let attach = |nsid, ids: &[u16]| {
        rig.client.namespace_attach(nsid, ids).err().and_then(|e| e.status()).and_then(|s| s.code())
    };
    let detach = |nsid, ids: &[u16]| {
        rig.client.namespace_detach(nsid, ids).err().and_then(|e| e.status()).and_then(|s| s.code())
    };
    assert_eq!(attach(1, &[3, 4]), None);
    assert_eq!(attach(1, &[4, 5]), Some(S::NamespaceAlreadyAttached));
    assert_eq!(rig.client.attached_controllers(1).unwrap(), [1, 2, 3, 4]);
    assert_eq!(attach(2, &[3, 4]), Some(S::NamespaceIsPrivate));
    assert_eq!(attach(2, &[3]), None);
    assert_eq!(attach(2, &[4]), Some(S::NamespaceIsPrivate));
    assert_eq!(detach(2, &[4]), Some(S::NamespaceNotAttached));
    assert_eq!(detach(2, &[3]), None);
    assert_eq!(attach(9, &[3]), Some(S::InvalidNamespaceOrFormat));
    assert_eq!(attach(1, &[99]), Some(S::ControllerListInvalid));
    assert_eq!(attach(1, &[]), Some(S::ControllerListInvalid));
    let mut list = vec![0u8; 4096];
    list[..6].copy_from_slice(&[2, 0, 6, 0, 5, 0]);
    let cmd = AdminCommand { nsid: 1, ..AdminCommand::new(opcode::NAMESPACE_ATTACHMENT) };
    let done = rig.admin.submit(&cmd, Data::FromHost(&list), Duration::from_secs(5)).unwrap();
    assert_eq!(done.status.code(), Some(S::ControllerListInvalid), "unsorted");
    assert_eq!(rig.send(opcode::NAMESPACE_ATTACHMENT, [5, 0, 0, 0, 0, 0], &list).0, Some(S::InvalidField));
    assert_eq!(rig.send(opcode::NAMESPACE_MANAGEMENT, [0; 6], &list).0, Some(S::NamespaceInsufficientCapacity));
    assert_eq!(rig.send(opcode::NAMESPACE_MANAGEMENT, [1, 0, 0, 0, 0, 0], &list).0, Some(S::OperationDenied));
}

#[test]
fn what_the_controlling_function_says() {
    let rig = rig();
    let id = rig.client.identify_controller().unwrap();
    assert_eq!((id.trattr, id.maxmrtg, id.cmmrtd, id.hmpre), (trattr::HOST_MEMORY_CHANGES, 9, 1024, 0));
    let formats = rig.client.state_formats().unwrap();
    assert_eq!((formats.versions, formats.uuids), (vec![0], vec![VENDOR_STATE_UUID]));
    assert_eq!(rig.client.controllers().unwrap(), [1, 2, 3, 4, 5, 6]);
    let secondaries = rig.client.secondary_controllers().unwrap();
    assert_eq!(
        secondaries.iter().map(|s| (s.scid, s.pcid, s.vfn)).collect::<Vec<_>>(),
        [(3, 1, 1), (4, 1, 2), (5, 1, 3), (6, 1, 4)]
    );
    assert_eq!(rig.client.allocated_namespaces().unwrap(), [1, 2]);
    assert_eq!(rig.client.active_namespaces().unwrap(), [1]);
    // Others do not say it.
    let (mut host, ..) = pf_host(&rig.subsystem, 0);
    for selector in [cns::CONTROLLER_STATE_FORMATS, cns::PRIMARY_CAPABILITIES, cns::SECONDARY_CONTROLLERS, 0xee] {
        assert_eq!(host.identify(selector, 0).unwrap_err().code(), Some(StatusCode::InvalidField));
    }
}

#[test]
fn faults_do_what_they_say() {
    let rig = rig();
    let (mut host, ..) = pf_host(&rig.subsystem, 1);
    let faults = rig.subsystem.faults();
    let rule = |action| FaultRule {
        cntlid: Some(2),
        set: CommandSet::Io,
        opcode: Some(io_opcode::WRITE),
        nth: 2,
        count: 1,
        action,
    };
    let write = |host: &mut Host| host.transfer(1, io_opcode::WRITE, 0, 1, DATA);
    let wanted = Status { sct: 2, sc: 0x80, dnr: true };
    let id = faults.add(rule(FaultAction::Status(wanted)));
    assert_eq!([write(&mut host), write(&mut host), write(&mut host)], [Status::SUCCESS, wanted, Status::SUCCESS]);
    assert_eq!(faults.hits(id), Some(1));
    faults.clear();

    faults.add(FaultRule { nth: 1, ..rule(FaultAction::DropCompletion) });
    host.memory.poke(DATA, &[0x77; 4096]);
    let entry = host.transfer_entry(io_opcode::WRITE, 3, 1, DATA);
    host.submit(1, entry);
    host.silent(1, Duration::from_millis(30));
    assert_eq!(host.transfer(1, io_opcode::READ, 3, 1, DATA + 8192), Status::SUCCESS);
    assert_eq!(host.memory.peek(DATA + 8192, 4096), [0x77; 4096], "it was executed");
    faults.clear();

    faults.add(FaultRule { nth: 1, ..rule(FaultAction::Repeat) });
    let entry = host.transfer_entry(io_opcode::WRITE, 0, 1, DATA);
    let cid = host.submit(1, entry);
    assert_eq!((host.next(1).cid, host.next(1).cid), (cid, cid));
    faults.clear();

    faults.add(FaultRule { nth: 1, ..rule(FaultAction::DelayMs(50)) });
    let start = std::time::Instant::now();
    write(&mut host);
    assert!(start.elapsed() >= Duration::from_millis(50));
    faults.clear();

    // A command that hangs can be aborted, and deleting its queue ends it.
    let hang = faults.add(FaultRule { nth: 1, count: u64::MAX, ..rule(FaultAction::Hang) });
    let entry = host.transfer_entry(io_opcode::WRITE, 0, 1, DATA);
    let cids = [host.submit(1, entry), host.submit(1, entry)];
    Host::until("the hang", || faults.hits(hang) == Some(2));
    let command = |opcode, cdw10| towline_nvme::command::SubmissionEntry { opcode, cdw10, ..Default::default() };
    assert_eq!(host.admin_ok(command(opcode::ABORT, u32::from(cids[0]) << 16 | 1)), 0);
    assert_eq!(host.wait(1, cids[0]).status().code(), Some(StatusCode::AbortRequested));
    host.admin_ok(command(opcode::DELETE_IO_SQ, 1));
    assert_eq!(host.wait(1, cids[1]).status().code(), Some(StatusCode::AbortedSqDeletion));
    host.admin_ok(command(opcode::DELETE_IO_CQ, 1));
}

#[test]
fn the_admin_transport_times_out_and_recovers() {
    let rig = rig();
    let faults = rig.subsystem.faults();
    let rule = FaultRule {
        cntlid: Some(1),
        set: CommandSet::Admin,
        opcode: Some(opcode::GET_FEATURES),
        nth: 1,
        count: 20,
        action: FaultAction::Hang,
    };
    let id = faults.add(rule);
    let cmd = AdminCommand { cdw10: 4, ..AdminCommand::new(opcode::GET_FEATURES) };
    let short = Duration::from_millis(20);
    for _ in 0..8 {
        let error = rig.admin.submit(&cmd, Data::None, short).unwrap_err();
        assert!(matches!(error, TransportError::Timeout { opcode: opcode::GET_FEATURES, timeout_ms: 20 }));
    }
    // Every slot is held by a command that may still complete.
    assert!(rig.admin.submit(&AdminCommand::new(opcode::GET_FEATURES), Data::None, short).is_err());
    faults.remove(id);
    rig.client.identify_controller().unwrap();
    let error = rig.admin.submit(&AdminCommand::new(opcode::IDENTIFY), Data::FromHost(&[0; 4]), short).unwrap_err();
    assert!(matches!(error, TransportError::Unsendable { .. }));
}

#[test]
fn configurations_are_checked() {
    let disk = Disk::new(MIB);
    let good = config(&disk);
    let with = |change: fn(&mut SubsystemConfig)| {
        let mut config = good.clone();
        change(&mut config);
        Subsystem::open(config).err()
    };
    let changes: [(&str, fn(&mut SubsystemConfig)); 18] = [
        ("uuid", |c| c.uuid = [0; 16]),
        ("serial", |c| c.serial.clear()),
        ("serial", |c| c.serial = "x".repeat(21)),
        ("serial", |c| c.serial = "\u{e9}".into()),
        ("further_pfs", |c| c.further_pfs = 17),
        ("max_vfs + max_siov", |c| c.max_vfs = 124),
        ("pf_queues", |c| c.pf_queues = 1),
        ("pf_vectors", |c| c.pf_vectors = 0),
        ("flexible_queues", |c| c.flexible_queues = 65536),
        ("flexible_vectors", |c| c.flexible_vectors = u32::MAX),
        ("max_queues_per_function", |c| c.max_queues_per_function = 129),
        ("max_vectors_per_function", |c| c.max_vectors_per_function = 257),
        ("max_queue_entries", |c| c.max_queue_entries = 1),
        ("mdts", |c| c.mdts = 9),
        ("lba_size_bytes", |c| c.namespaces[0].lba_size_bytes = 1024),
        ("size_bytes", |c| c.namespaces[0].size_bytes = 1000),
        ("nguid", |c| c.namespaces[0].nguid = [0; 16]),
        ("uuid", |c| c.namespaces[0].uuid = [0; 16]),
    ];
    for (name, change) in changes {
        match with(change) {
            Some(ModelError::Config { field, .. }) => assert_eq!(field, name),
            other => panic!("{name}: {other:?}"),
        }
    }
    assert!(matches!(with(|c| c.namespaces[0].size_bytes *= 2), Some(ModelError::NamespaceShort { nsid: 1, .. })));
    assert!(matches!(with(|c| c.namespaces[0].path.push("x")), Some(ModelError::NamespaceFile { nsid: 1, .. })));
    let twice =
        |c: &SubsystemConfig| -> Vec<NamespaceConfig> { c.namespaces.iter().cycle().take(2).cloned().collect() };
    let config = SubsystemConfig { namespaces: twice(&good), ..good.clone() };
    assert!(matches!(Subsystem::open(config), Err(ModelError::Config { field: "namespaces", .. })));

    let subsystem = Subsystem::open(good).unwrap();
    assert!(matches!(subsystem.set_num_vfs(5), Err(ModelError::TooManyVfs { wanted: 5, max: 4 })));
    subsystem.set_num_vfs(2).unwrap();
    assert!(matches!(subsystem.set_num_vfs(3), Err(ModelError::VfsEnabled { enabled: 2 })));
    let made: Vec<u16> = (0..4).map(|_| subsystem.create_siov().unwrap()).collect();
    assert_eq!(made, [7, 8, 9, 10]);
    assert!(matches!(subsystem.create_siov(), Err(ModelError::TooManySiov { max: 4 })));
    subsystem.remove_siov(8).unwrap();
    assert_eq!(subsystem.create_siov().unwrap(), 8);
    assert!(matches!(subsystem.remove_siov(2), Err(ModelError::Controller { cntlid: 2, .. })));
    assert!(matches!(subsystem.remove_siov(77), Err(ModelError::Controller { cntlid: 77, .. })));
    assert_eq!(subsystem.controller(8).unwrap().kind(), ControllerKind::Siov);
    assert_eq!(subsystem.controller(8).unwrap().siov_doorbell_offset(), Some(0x1_1000));
    assert!(subsystem.parent_bar_bytes() >= 0x1_4000);
    subsystem.close();
    assert!(matches!(subsystem.create_siov(), Err(ModelError::Closed)));
    assert!(matches!(subsystem.set_num_vfs(0), Err(ModelError::Closed)));
}
