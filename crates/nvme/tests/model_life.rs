//! What outlives a reset, a shutdown, going offline and losing guest memory, and what does not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Bars, DATA, Disk, Host, Interrupts, MEMORY, Memory, config, pf_host};
use towline_core::bar::BarTarget;
use towline_nvme::admin::AdminClient;
use towline_nvme::command::{SubmissionEntry, feature, io_opcode, opcode};
use towline_nvme::migration::{FormatIndex, SuspendType};
use towline_nvme::model::{EmbeddedAdmin, Rates, Subsystem, SubsystemConfig};
use towline_nvme::resources::{Resource, VirtualizationAction};
use towline_nvme::status::{Status, StatusCode};
use towline_nvme::track::TrackRange;

const MIB: u64 = 1 << 20;
const FORMAT: FormatIndex = FormatIndex { version: 1, uuid: 1 };
const CSTS_CFS: u32 = 2;
const SHUTDOWN_COMPLETE: u32 = 2 << 2;
/// CC with SHN = normal shutdown and EN = 0.
const CC_SHUT_DOWN: u32 = 6 << 16 | 4 << 20 | 1 << 14;

fn client(subsystem: &Arc<Subsystem>) -> AdminClient {
    AdminClient::new(Arc::new(EmbeddedAdmin::new(subsystem).unwrap()))
}

#[test]
fn the_mask_of_a_vector_outlives_a_controller_reset() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, controller, interrupts) = pf_host(&subsystem, 0);
    controller.mask_vector(1, true);
    host.disable();
    host.enable();
    host.create_pair(1, 16, 1);
    host.verified(1, 0, 1, 1);
    Host::until("the pending bit", || controller.vector_pending(1));
    assert_eq!(interrupts.count(1), 0, "raised although it is masked");
    // What is pending does not outlive it.
    host.disable();
    assert!(!controller.vector_pending(1));
    controller.mask_vector(1, false);
    // A function level reset clears the table of the function with the rest of it.
    controller.mask_vector(1, true);
    controller.flr();
    host.enable();
    host.create_pair(1, 16, 1);
    host.verified(1, 0, 1, 2);
    Host::until("the interrupt", || interrupts.count(1) > 0);
}

#[test]
fn a_failed_controller_completes_its_shutdown() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let controller = subsystem.controller(2).unwrap();
    let memory = Memory::new(MEMORY);
    controller.attach(memory.clone(), Arc::new(Interrupts::default()));
    let mut host = Host::new(memory.clone(), Bars::of(&controller));
    host.enable();
    let bytes = memory.remove(0).unwrap();
    host.ring(0, 1);
    Host::until("CSTS.CFS", || host.csts() & CSTS_CFS != 0);
    host.write32(0x14, CC_SHUT_DOWN | 1);
    Host::until("CSTS.SHST", || host.csts() & SHUTDOWN_COMPLETE != 0);
    assert_eq!(host.csts() & CSTS_CFS, CSTS_CFS, "the failure stays until a reset");
    memory.put(0, bytes);
    host.disable();
    assert_eq!(host.csts(), 0);
    host.enable();
    host.create_pair(1, 16, 1);
    host.verified(1, 0, 1, 1);
}

#[test]
fn a_disabled_controller_shuts_down_and_comes_back() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, ..) = pf_host(&subsystem, 1);
    host.disable();
    for _ in 0..2 {
        host.write32(0x14, CC_SHUT_DOWN);
        Host::until("CSTS.SHST", || host.csts() == SHUTDOWN_COMPLETE);
        host.write32(0x14, CC_SHUT_DOWN & !(3 << 14));
        Host::until("CSTS.SHST = 0", || host.csts() == 0);
    }
    // Enabled with the shutdown still asked for, it shuts down as an enabled one does.
    host.write32(0x14, CC_SHUT_DOWN);
    Host::until("CSTS.SHST", || host.csts() == SHUTDOWN_COMPLETE);
    host.write32(0x14, CC_SHUT_DOWN | 1);
    Host::until("CSTS.RDY", || host.csts() == SHUTDOWN_COMPLETE | 1);
    host.disable();
    // And from a shutdown straight to work.
    host.write32(0x14, CC_SHUT_DOWN);
    Host::until("CSTS.SHST", || host.csts() == SHUTDOWN_COMPLETE);
    host.enable();
    host.create_pair(1, 16, 1);
    host.verified(1, 0, 1, 1);
}

#[test]
fn tracking_does_not_outlive_the_tenant() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let client = client(&subsystem);
    let range = [TrackRange { address: 0, len: MEMORY as u32 }];
    let manage = |action, resource, n| client.virtualization_manage(action, 3, resource, n).unwrap();
    let online = || {
        assert_eq!(manage(VirtualizationAction::Assign, Resource::Queues, 2), 2);
        assert_eq!(manage(VirtualizationAction::Assign, Resource::Interrupts, 2), 2);
        manage(VirtualizationAction::Online, Resource::Queues, 0);
    };
    let track = || {
        client.track_memory_start(3, 0, &range).unwrap();
        client.track_receive(3).unwrap();
    };
    let not_tracked = |what: &str| {
        let error = client.track_receive(3).expect_err(what);
        assert!(error.is(StatusCode::InvalidField), "{what}: {error}");
    };
    subsystem.set_num_vfs(1).unwrap();
    online();
    track();
    manage(VirtualizationAction::Offline, Resource::Queues, 0);
    online();
    not_tracked("tracked after it was offline");
    track();
    subsystem.set_num_vfs(0).unwrap();
    subsystem.set_num_vfs(1).unwrap();
    online();
    not_tracked("tracked after its VF was disabled");
    // Its own resets are the tenant's: what it writes afterwards counts.
    track();
    subsystem.controller(3).unwrap().flr();
    client.track_receive(3).unwrap();
}

#[test]
fn a_report_says_how_coarse_it_is() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let client = client(&subsystem);
    for granularity in [9, 0, 3] {
        client.track_memory_start(2, granularity, &[TrackRange { address: 0, len: 4 << 20 }]).unwrap();
        assert_eq!(client.track_receive(2).unwrap().header.page_granularity, u16::from(granularity));
    }
}

/// Every vector with its own configuration, and other features beside them.
#[test]
fn a_function_with_the_most_vectors_is_saved() {
    let disk = Disk::new(MIB);
    let most = || Subsystem::open(SubsystemConfig { pf_vectors: 256, ..config(&disk) }).unwrap();
    let (source, target) = (most(), most());
    let (from, to) = (client(&source), client(&target));
    let (mut host, ..) = pf_host(&source, 1);
    let set = |fid: u8, cdw11: u32| SubmissionEntry {
        opcode: opcode::SET_FEATURES,
        cdw10: fid.into(),
        cdw11,
        ..Default::default()
    };
    for vector in 0..256 {
        host.admin_ok(set(feature::INTERRUPT_VECTOR_CONFIGURATION, 1 << 16 | vector));
    }
    host.admin_ok(set(feature::TEMPERATURE_THRESHOLD, 320));
    host.admin_ok(set(feature::ARBITRATION, 3));
    from.migration_suspend(2, SuspendType::Suspend).unwrap();
    let (state, _) = from.migration_get_state(2, FORMAT).unwrap();
    let there = target.controller(2).unwrap();
    there.attach(host.memory.clone(), Arc::new(Interrupts::default()));
    to.migration_suspend(2, SuspendType::Suspend).unwrap();
    to.migration_set_state(2, FORMAT, &state).unwrap();
    to.migration_resume(2).unwrap();
    host.bars = Bars::of(&there);
    let get = |fid: u8, cdw11: u32| SubmissionEntry { opcode: opcode::GET_FEATURES, ..set(fid, cdw11) };
    assert_eq!(host.admin_ok(get(feature::INTERRUPT_VECTOR_CONFIGURATION, 255)), 1 << 16 | 255);
    assert_eq!(host.admin_ok(get(feature::TEMPERATURE_THRESHOLD, 0)), 320);
}

/// Memory goes and comes while 32 commands are delayed, at every moment of their delay.
#[test]
fn delayed_commands_complete_after_memory_came_back() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    subsystem.faults().set_rates(Rates { io_latency_us: 20_000, ..Rates::default() });
    let (mut host, controller, interrupts) = pf_host(&subsystem, 1);
    for pause_ms in [0, 2, 10, 19, 20, 21, 40] {
        let cids: Vec<u16> = (0..32)
            .map(|n| {
                let entry = host.transfer_entry(io_opcode::READ, n, 1, DATA + n * 4096);
                host.submit(1, entry)
            })
            .collect();
        std::thread::sleep(Duration::from_millis(pause_ms));
        controller.detach();
        let before = host.memory.peek(0, MEMORY);
        std::thread::sleep(Duration::from_millis(30));
        assert!(host.memory.peek(0, MEMORY) == before, "DMA after the detach");
        controller.attach(host.memory.clone(), interrupts.clone());
        for cid in cids {
            assert_eq!(host.wait(1, cid).status(), Status::SUCCESS, "after {pause_ms} ms");
        }
        let seen = interrupts.count(1);
        host.verified(1, 0, 1, pause_ms as u8);
        Host::until("an interrupt", || interrupts.count(1) > seen);
    }
    let mut raw = [0; 4];
    controller.read(0x1c, &mut raw);
    assert_eq!(u32::from_le_bytes(raw), 1);
}
