//! Commands: the exact dwords of the specification, round trips, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use proptest::prelude::*;
use towline_nvme::command::AdminCommand;
use towline_nvme::identify::IdentifyCommand;
use towline_nvme::migration::{FormatIndex, MigrationReceive, MigrationSend, Sequence, SuspendType};
use towline_nvme::resources::{NamespaceAttachment, Resource, VirtualizationAction, VirtualizationManagement};
use towline_nvme::status::StatusCode;
use towline_nvme::track::{TrackReceive, TrackResources, TrackSend};

/// Opcode and dwords 10 to 15.
fn dwords(cmd: &AdminCommand) -> (u8, [u32; 6]) {
    (cmd.opcode, [cmd.cdw10, cmd.cdw11, cmd.cdw12, cmd.cdw13, cmd.cdw14, cmd.cdw15])
}

#[test]
fn the_dwords_of_a_migration() {
    let send = |cmd: MigrationSend| dwords(&cmd.encode().unwrap());
    let notify = MigrationSend::Suspend { cntlid: 5, kind: SuspendType::Notification, delete_queue: false };
    assert_eq!(send(notify), (0x41, [0, 5, 0, 0, 0, 0]));
    let suspend = MigrationSend::Suspend { cntlid: 5, kind: SuspendType::Suspend, delete_queue: true };
    assert_eq!(send(suspend), (0x41, [0, 1 << 31 | 1 << 16 | 5, 0, 0, 0, 0]));
    assert_eq!(send(MigrationSend::Resume { cntlid: 5 }), (0x41, [1, 5, 0, 0, 0, 0]));
    let set = MigrationSend::SetState {
        cntlid: 5,
        sequence: Sequence::Last,
        format: FormatIndex { version: 2, uuid: 3 },
        offset: 0x1_0000_1000,
        data_bytes: 48,
        uuid_index: 4,
    };
    // NUMD is 1's-based here: 12 dwords are 12 ...
    assert_eq!(send(set), (0x41, [2 << 16 | 2, 3 << 24 | 2 << 16 | 5, 0x1000, 1, 4, 12]));
    let get = MigrationReceive {
        cntlid: 5,
        format: FormatIndex { version: 2, uuid: 3 },
        uuid_parameter: 9,
        offset: 0x1_0000_1000,
        data_bytes: 48,
        uuid_index: 4,
    };
    // ... and 0's-based here: 12 dwords are 11.
    assert_eq!(dwords(&get.encode().unwrap()), (0x42, [2 << 16, 9 << 24 | 3 << 16 | 5, 0x1000, 1, 4, 11]));
    let track = |start| dwords(&TrackSend::TrackMemory { start, cntlid: 5 }.encode());
    assert_eq!(track(true), (0x3d, [0x1_0001, 5, 0, 0, 0, 0]));
    assert_eq!(track(false), (0x3d, [1, 5, 0, 0, 0, 0]));
    let log = TrackSend::LogUserData { start: true, cdqid: 6 };
    assert_eq!(dwords(&log.encode()), (0x3d, [0x1_0000, 6, 0, 0, 0, 0]));
    let receive = TrackReceive { cntlid: 5, data_bytes: 4096 };
    assert_eq!(dwords(&receive.encode().unwrap()), (0x3e, [0, 5, 1023, 0, 0, 0]));
}

#[test]
fn the_dwords_of_provisioning() {
    let manage =
        |action, resource, count| dwords(&VirtualizationManagement { cntlid: 6, action, resource, count }.encode());
    use Resource::{Interrupts, Queues};
    use VirtualizationAction::{AllocatePrimary, Assign, Offline, Online};
    assert_eq!(manage(Offline, Queues, 0), (0x1c, [6 << 16 | 7, 0, 0, 0, 0, 0]));
    assert_eq!(manage(Assign, Interrupts, 4), (0x1c, [6 << 16 | 1 << 8 | 8, 4, 0, 0, 0, 0]));
    assert_eq!(manage(Assign, Queues, 5), (0x1c, [6 << 16 | 8, 5, 0, 0, 0, 0]));
    assert_eq!(manage(Online, Queues, 0), (0x1c, [6 << 16 | 9, 0, 0, 0, 0, 0]));
    assert_eq!(manage(AllocatePrimary, Interrupts, 2), (0x1c, [6 << 16 | 1 << 8 | 1, 2, 0, 0, 0, 0]));
    let attach = NamespaceAttachment { nsid: 3, attach: true }.encode();
    assert_eq!((attach.nsid, dwords(&attach)), (3, (0x15, [0; 6])));
    assert_eq!(dwords(&NamespaceAttachment { nsid: 3, attach: false }.encode()), (0x15, [1, 0, 0, 0, 0, 0]));
    let identify = IdentifyCommand { cns: 0x15, cntid: 7, ..Default::default() }.encode();
    assert_eq!(dwords(&identify), (0x06, [7 << 16 | 0x15, 0, 0, 0, 0, 0]));
}

#[test]
fn what_a_controller_refuses() {
    let cmd = |opcode, cdw10, cdw11| AdminCommand { cdw10, cdw11, ..AdminCommand::new(opcode) };
    assert_eq!(MigrationSend::decode(&cmd(0x41, 3, 0)), Err(StatusCode::InvalidField));
    assert_eq!(MigrationSend::decode(&cmd(0x41, 0, 2 << 16)), Err(StatusCode::InvalidField));
    let no_data = |sequence: u32| MigrationSend::decode(&cmd(0x41, sequence << 16 | 2, 0));
    assert!(no_data(2).is_ok(), "the last part may be empty");
    for sequence in [0, 1, 3] {
        assert_eq!(no_data(sequence), Err(StatusCode::InvalidField));
    }
    let misaligned = AdminCommand { cdw12: 2, cdw15: 1, ..cmd(0x41, 2, 0) };
    assert_eq!(MigrationSend::decode(&misaligned), Err(StatusCode::InvalidField));
    assert_eq!(MigrationReceive::decode(&AdminCommand { cdw12: 2, ..cmd(0x42, 0, 0) }), Err(StatusCode::InvalidField));
    assert_eq!(MigrationReceive::decode(&cmd(0x42, 1, 0)), Err(StatusCode::InvalidField));
    assert_eq!(TrackSend::decode(&cmd(0x3d, 2, 0)), Err(StatusCode::InvalidField));
    assert_eq!(TrackSend::decode(&cmd(0x3d, 2 << 16 | 1, 0)), Err(StatusCode::InvalidField));
    assert_eq!(TrackReceive::decode(&cmd(0x3e, 1, 0)), Err(StatusCode::InvalidField));
    assert_eq!(NamespaceAttachment::decode(&cmd(0x15, 2, 0)), Err(StatusCode::InvalidField));
    assert_eq!(VirtualizationManagement::decode(&cmd(0x1c, 2, 0)), Err(StatusCode::InvalidField));
    let resource = VirtualizationManagement::decode(&cmd(0x1c, 2 << 8 | 8, 0));
    assert_eq!(resource, Err(StatusCode::InvalidResourceIdentifier));
}

#[test]
fn what_cannot_be_asked() {
    let set = |offset, data_bytes| MigrationSend::SetState {
        cntlid: 1,
        sequence: Sequence::Only,
        format: FormatIndex::default(),
        offset,
        data_bytes,
        uuid_index: 0,
    };
    assert!(set(2, 4).encode().is_err());
    assert!(set(0, 5).encode().is_err());
    assert!(set(0, 1 << 34).encode().is_err());
    assert!(TrackReceive { cntlid: 1, data_bytes: 0 }.encode().is_err());
    assert!(TrackReceive { cntlid: 1, data_bytes: 18 }.encode().is_err());
}

fn sequence() -> impl Strategy<Value = Sequence> {
    prop_oneof![Just(Sequence::Middle), Just(Sequence::First), Just(Sequence::Last), Just(Sequence::Only)]
}

proptest! {
    #[test]
    fn set_state_round_trips(cntlid: u16, sequence in sequence(), version: u8, uuid: u8, at in 0u64..1 << 62, dwords in 1u64..1 << 32, uuid_index in 0u8..128) {
        let format = FormatIndex { version, uuid };
        let cmd = MigrationSend::SetState { cntlid, sequence, format, offset: at * 4, data_bytes: dwords * 4, uuid_index };
        match cmd.encode() {
            Ok(encoded) => prop_assert_eq!(MigrationSend::decode(&encoded), Ok(cmd)),
            Err(_) => prop_assert!(dwords > u64::from(u32::MAX)),
        }
    }

    #[test]
    fn get_state_round_trips(cntlid: u16, version: u8, uuid: u8, uuid_parameter: u8, at in 0u64..1 << 62, dwords in 1u64..=1 << 32, uuid_index in 0u8..128) {
        let format = FormatIndex { version, uuid };
        let cmd = MigrationReceive { cntlid, format, uuid_parameter, offset: at * 4, data_bytes: dwords * 4, uuid_index };
        prop_assert_eq!(MigrationReceive::decode(&cmd.encode().unwrap()), Ok(cmd));
    }

    #[test]
    fn small_commands_round_trip(cntlid: u16, nsid: u32, flag: bool, count: u16, dwords in 1u64..=1 << 32, cns: u8, csi: u8, cnssid: u16, uuid_index in 0u8..128) {
        let suspend = MigrationSend::Suspend { cntlid, kind: SuspendType::Suspend, delete_queue: flag };
        prop_assert_eq!(MigrationSend::decode(&suspend.encode().unwrap()), Ok(suspend));
        let track = TrackSend::TrackMemory { start: flag, cntlid };
        prop_assert_eq!(TrackSend::decode(&track.encode()), Ok(track));
        let receive = TrackReceive { cntlid, data_bytes: dwords * 4 };
        prop_assert_eq!(TrackReceive::decode(&receive.encode().unwrap()), Ok(receive));
        let attach = NamespaceAttachment { nsid, attach: flag };
        prop_assert_eq!(NamespaceAttachment::decode(&attach.encode()), Ok(attach));
        let manage = VirtualizationManagement { cntlid, action: VirtualizationAction::Assign, resource: Resource::Interrupts, count };
        prop_assert_eq!(VirtualizationManagement::decode(&manage.encode()), Ok(manage));
        let identify = IdentifyCommand { cns, cntid: cntlid, nsid, csi, cnssid, uuid_index };
        prop_assert_eq!(IdentifyCommand::decode(&identify.encode()), identify);
        let resources = TrackResources { granularity: cntlid, descriptors: nsid };
        prop_assert_eq!(TrackResources::from_result(resources.to_result()), resources);
    }

    /// A controller decodes whatever a host sends.
    #[test]
    fn any_dwords_decode_to_a_command_or_a_status(cdw10: u32, cdw11: u32, cdw12: u32, cdw13: u32, cdw14: u32, cdw15: u32) {
        let cmd = AdminCommand { cdw10, cdw11, cdw12, cdw13, cdw14, cdw15, ..AdminCommand::new(0) };
        let _ = (MigrationSend::decode(&cmd), MigrationReceive::decode(&cmd), TrackSend::decode(&cmd));
        let _ = (TrackReceive::decode(&cmd), VirtualizationManagement::decode(&cmd), IdentifyCommand::decode(&cmd));
    }
}
