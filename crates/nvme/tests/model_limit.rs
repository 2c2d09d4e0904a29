//! The controlling function limits what another controller does in a second: it is delayed, never failed, and nothing else is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bars, DATA, Disk, Host, Interrupts, config, pf_host};
use towline_nvme::admin::AdminClient;
use towline_nvme::command::{AdminCommand, SubmissionEntry, feature, io_opcode, opcode};
use towline_nvme::limit::RateLimit;
use towline_nvme::migration::{FormatIndex, SuspendType};
use towline_nvme::model::{EmbeddedAdmin, Subsystem};
use towline_nvme::resources::{Resource, VirtualizationAction};
use towline_nvme::status::{Status, StatusCode};

const MIB: u64 = 1 << 20;
/// A byte a second: whoever owes anything waits for hours.
const STANDSTILL: RateLimit = RateLimit { bytes_per_s: 1, commands_per_s: 0 };
const FORMAT: FormatIndex = FormatIndex { version: 1, uuid: 1 };

fn open(disk: &Disk) -> (Arc<Subsystem>, AdminClient) {
    let subsystem = Subsystem::open(config(disk)).unwrap();
    let client = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
    assert!(client.has_rate_limit().unwrap());
    (subsystem, client)
}

/// Puts the controller into debt: the first command is carried out, what follows waits.
fn spend(host: &mut Host) {
    assert_eq!(host.transfer(1, io_opcode::READ, 0, 1, DATA), Status::SUCCESS);
}

#[test]
fn commands_wait_and_none_fails() {
    let disk = Disk::new(MIB);
    let (subsystem, client) = open(&disk);
    let (mut host, controller, _) = pf_host(&subsystem, 2);
    client.set_rate_limit(controller.cntlid(), STANDSTILL).unwrap();
    assert_eq!(client.rate_limit(controller.cntlid()).unwrap(), STANDSTILL);
    spend(&mut host);
    let read = host.transfer_entry(io_opcode::READ, 1, 1, DATA);
    let waiting: Vec<(u16, u16)> = [1, 2, 1].into_iter().map(|qid| (qid, host.submit(qid, read))).collect();
    host.silent(1, Duration::from_millis(30));
    host.silent(2, Duration::from_millis(1));
    // The admin queue is not held up.
    host.admin_ok(SubmissionEntry { opcode: opcode::GET_FEATURES, cdw10: 1, ..Default::default() });
    client.set_rate_limit(controller.cntlid(), RateLimit::NONE).unwrap();
    for (qid, cid) in waiting {
        assert_eq!(host.wait(qid, cid).status(), Status::SUCCESS);
    }
    assert_eq!(client.rate_limit(controller.cntlid()).unwrap(), RateLimit::NONE);
}

#[test]
fn the_rate_is_kept_by_bytes_and_by_commands() {
    let disk = Disk::new(MIB);
    let (subsystem, client) = open(&disk);
    let (mut host, controller, _) = pf_host(&subsystem, 1);
    // 16 commands of 4 KiB at what takes at least a tenth of a second. No upper bound: the machine may be busy.
    let limits = [
        RateLimit { bytes_per_s: 512 << 10, commands_per_s: 0 },
        RateLimit { bytes_per_s: 0, commands_per_s: 128 },
        RateLimit { bytes_per_s: 512 << 10, commands_per_s: 1_000_000 },
    ];
    for limit in limits {
        client.set_rate_limit(controller.cntlid(), limit).unwrap();
        let start = Instant::now();
        for _ in 0..16 {
            assert_eq!(host.transfer(1, io_opcode::READ, 0, 1, DATA), Status::SUCCESS);
        }
        // The bucket held 20 ms worth, and the last command is not waited for.
        assert!(start.elapsed() >= Duration::from_millis(90), "{limit:?}: {:?}", start.elapsed());
    }
}

#[test]
fn suspend_does_not_wait_for_the_limit_and_it_stays_behind() {
    let disk = Disk::new(MIB);
    let (source, here) = open(&disk);
    let (target, there) = open(&disk);
    let (mut host, controller, _) = pf_host(&source, 1);
    let cntlid = controller.cntlid();
    here.set_rate_limit(cntlid, STANDSTILL).unwrap();
    spend(&mut host);
    let read = host.transfer_entry(io_opcode::READ, 1, 1, DATA);
    let late = host.submit(1, read);
    here.migration_suspend(cntlid, SuspendType::Suspend).unwrap();
    assert_eq!(here.rate_limit(cntlid).unwrap(), STANDSTILL, "suspended or not");
    let (state, suspended) = here.migration_get_state(cntlid, FORMAT).unwrap();
    assert!(suspended);
    // Back here it still waits.
    here.migration_resume(cntlid).unwrap();
    host.silent(1, Duration::from_millis(30));
    here.migration_suspend(cntlid, SuspendType::Suspend).unwrap();
    // There it does not, and its command is done at once.
    let memory = host.memory.copy();
    let other = target.controller(2).unwrap();
    other.attach(memory.clone(), Arc::new(Interrupts::default()));
    there.migration_suspend(2, SuspendType::Suspend).unwrap();
    there.migration_set_state(2, FORMAT, &state).unwrap();
    there.migration_resume(2).unwrap();
    assert_eq!(there.rate_limit(2).unwrap(), RateLimit::NONE);
    let mut moved = Host { memory, bars: Bars::of(&other), ..host.clone() };
    assert_eq!(moved.wait(1, late).status(), Status::SUCCESS);
}

#[test]
fn it_survives_the_tenants_resets_and_goes_with_the_function() {
    let disk = Disk::new(MIB);
    let (subsystem, client) = open(&disk);
    let (mut host, controller, _) = pf_host(&subsystem, 1);
    client.set_rate_limit(controller.cntlid(), STANDSTILL).unwrap();
    host.disable();
    host.enable();
    controller.flr();
    assert_eq!(client.rate_limit(controller.cntlid()).unwrap(), STANDSTILL, "the tenant can't shake it off");
    // A VF that goes offline and online again is another tenant's.
    subsystem.set_num_vfs(1).unwrap();
    let vf = client.secondary_controllers().unwrap().iter().find(|entry| entry.vfn == 1).unwrap().scid;
    let manage = |action, resource, count| client.virtualization_manage(action, vf, resource, count).unwrap();
    let bring_up = || {
        manage(VirtualizationAction::Assign, Resource::Queues, 2);
        manage(VirtualizationAction::Assign, Resource::Interrupts, 2);
        manage(VirtualizationAction::Online, Resource::Queues, 0);
    };
    let code = |result: Result<(), towline_nvme::admin::AdminError>| result.unwrap_err().status().unwrap().code();
    assert_eq!(code(client.set_rate_limit(vf, STANDSTILL)), Some(StatusCode::InvalidSecondaryControllerState));
    bring_up();
    client.set_rate_limit(vf, STANDSTILL).unwrap();
    manage(VirtualizationAction::Offline, Resource::Queues, 0);
    bring_up();
    assert_eq!(client.rate_limit(vf).unwrap(), RateLimit::NONE);
    // The controlling function's own reset lifts every limit, as it ends all tracking.
    subsystem.controlling().unwrap().flr();
    let again = AdminClient::new(Arc::new(EmbeddedAdmin::new(&subsystem).unwrap()));
    assert_eq!(again.rate_limit(controller.cntlid()).unwrap(), RateLimit::NONE);
}

#[test]
fn only_the_controlling_function_has_it() {
    let disk = Disk::new(MIB);
    let (subsystem, client) = open(&disk);
    let (mut host, controller, _) = pf_host(&subsystem, 1);
    let entry =
        |opcode, cdw11| SubmissionEntry { opcode, cdw10: feature::RATE_LIMIT.into(), cdw11, ..Default::default() };
    for op in [opcode::SET_FEATURES, opcode::GET_FEATURES] {
        let done = host.admin(entry(op, u32::from(controller.cntlid())));
        assert_eq!(done.status().code(), Some(StatusCode::InvalidField), "as for any feature that does not exist");
    }
    let submit = |cmd: AdminCommand| {
        let data = towline_nvme::admin::Data::None;
        client.submit("test", &cmd, data, Duration::from_secs(10)).map_err(|e| e.status().unwrap().code().unwrap())
    };
    let set = |cdw11| AdminCommand { cdw11, ..STANDSTILL.encode(0) };
    assert_eq!(submit(set(1)), Err(StatusCode::InvalidControllerIdentifier), "itself");
    assert_eq!(submit(set(4711)), Err(StatusCode::InvalidControllerIdentifier));
    assert_eq!(submit(set(2 | 1 << 16)), Err(StatusCode::InvalidField));
    assert_eq!(
        submit(AdminCommand { cdw10: STANDSTILL.encode(2).cdw10 | 1 << 31, ..set(2) }),
        Err(StatusCode::FeatureNotSaveable)
    );
    let get = AdminCommand::new(opcode::GET_FEATURES);
    let fid = u32::from(feature::RATE_LIMIT);
    assert_eq!(submit(AdminCommand { cdw10: fid, cdw11: 2 | 2 << 16, ..get }), Err(StatusCode::InvalidField));
    assert_eq!(submit(AdminCommand { cdw10: fid | 3 << 8, cdw11: 2, ..get }), Ok(4), "changeable");
    assert_eq!(submit(AdminCommand { cdw10: fid | 1 << 8, cdw11: 2, ..get }), Ok(0), "the default is no limit");
}

/// The counterpart: without a limit nothing waits, so that the tests above mean something.
#[test]
fn without_a_limit_nothing_waits() {
    let disk = Disk::new(MIB);
    let (subsystem, client) = open(&disk);
    let (mut host, controller, _) = pf_host(&subsystem, 1);
    assert_eq!(client.rate_limit(controller.cntlid()).unwrap(), RateLimit::NONE);
    for _ in 0..64 {
        spend(&mut host);
    }
}
