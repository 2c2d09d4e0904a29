//! The driver of the controlling function when commands are lost: it says so, and goes on as long as it can.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Disk, config};
use towline_nvme::admin::{AdminTransport, Completion, Data, TransportError};
use towline_nvme::command::{AdminCommand, opcode};
use towline_nvme::model::{CommandSet, EmbeddedAdmin, FaultAction, FaultRule, Subsystem};

const SHORT: Duration = Duration::from_millis(60);

fn open(disk: &Disk) -> (Arc<Subsystem>, EmbeddedAdmin) {
    let subsystem = Subsystem::open(config(disk)).unwrap();
    let admin = EmbeddedAdmin::new(&subsystem).unwrap();
    (subsystem, admin)
}

fn fault(opcode: Option<u8>, action: FaultAction) -> FaultRule {
    FaultRule { cntlid: Some(1), set: CommandSet::Admin, opcode, nth: 1, count: u64::MAX, action }
}

fn identify(admin: &EmbeddedAdmin, timeout: Duration) -> Result<Completion, TransportError> {
    let cmd = AdminCommand { cdw10: 1, ..AdminCommand::new(opcode::IDENTIFY) };
    let mut page = vec![0; 4096];
    admin.submit(&cmd, Data::ToHost(&mut page), timeout)
}

#[test]
fn lost_completions_cost_no_slot() {
    let disk = Disk::new(1 << 20);
    let (subsystem, admin) = open(&disk);
    for action in [FaultAction::DropCompletion, FaultAction::Hang] {
        subsystem.faults().add(fault(Some(opcode::IDENTIFY), action));
        // More than there are slots.
        for n in 0..12 {
            let error = identify(&admin, SHORT).expect_err("it is lost");
            assert!(matches!(error, TransportError::Timeout { .. }), "{action:?} {n}: {error}");
        }
        subsystem.faults().clear();
        for _ in 0..9 {
            assert!(identify(&admin, Duration::from_secs(5)).unwrap().status.is_success());
        }
    }
}

#[test]
fn when_every_slot_is_lost_it_says_so() {
    let disk = Disk::new(1 << 20);
    let (subsystem, admin) = open(&disk);
    // The Abort is lost like what it is to abort.
    subsystem.faults().add(fault(None, FaultAction::DropCompletion));
    for n in 0..8 {
        assert!(matches!(identify(&admin, SHORT), Err(TransportError::Timeout { .. })), "{n}");
    }
    match identify(&admin, SHORT) {
        Err(TransportError::Gone { message }) => assert!(message.contains("abandoned"), "{message}"),
        other => panic!("{other:?}"),
    }
    subsystem.faults().clear();
    // Whoever takes the function over anew has all of it.
    let anew = EmbeddedAdmin::new(&subsystem).unwrap();
    assert!(identify(&anew, Duration::from_secs(5)).unwrap().status.is_success());
}

/// A guest gets the controlling function: whoever waits for a command hears it, and nothing of its queues is touched any more.
#[test]
fn a_revoked_driver_ends_and_leaves_the_registers_alone() {
    let disk = Disk::new(1 << 20);
    let (subsystem, admin) = open(&disk);
    subsystem.faults().add(fault(Some(opcode::IDENTIFY), FaultAction::Hang));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| identify(&admin, Duration::from_secs(60)));
        std::thread::sleep(SHORT);
        admin.revoke();
        assert!(matches!(waiting.join().unwrap(), Err(TransportError::Gone { .. })));
    });
    subsystem.faults().clear();
    assert!(matches!(identify(&admin, SHORT), Err(TransportError::Gone { .. })));
    // The next driver has the function to itself.
    let next = EmbeddedAdmin::new(&subsystem).unwrap();
    for _ in 0..9 {
        assert!(identify(&admin, SHORT).is_err());
        assert!(identify(&next, Duration::from_secs(5)).unwrap().status.is_success());
    }
}
