//! The tenant moves with its controller from one subsystem to another: the state of the controller by HMLM, its memory by a
//! plain copy. What a migration forgets has to show here, or no test of a migration by this tenant is worth anything.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use std::time::Duration;

use rig::{Function, Judgement, Rig, judge};
use towline_core::channel::{ReadOutcome, StateChannel};
use towline_core::fsm::DeviceState;
use towline_core::memory::GuestMemory;
use towline_nvme::hmlm::{HmlmChannel, HmlmConfig};
use towline_tenant::record::{Kind, Record};
use towline_tenant::{TenantHandle, TenantStats};

fn sleep(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn channel(rig: &Rig) -> HmlmChannel {
    let controller = rig.controller.clone();
    let reset = move || {
        controller.flr();
        Ok(())
    };
    HmlmChannel::open(rig.admin.clone(), HmlmConfig::new(rig.controller.cntlid()), Box::new(reset)).unwrap()
}

/// Takes the state out of the controller, which stays stopped.
fn save(rig: &Rig) -> Vec<u8> {
    let mut channel = channel(rig);
    channel.set_state(DeviceState::StopCopy).unwrap();
    let (mut state, mut part) = (Vec::new(), vec![0; 65536]);
    loop {
        match channel.read(&mut part).unwrap() {
            ReadOutcome::Bytes(n) => state.extend_from_slice(&part[..n]),
            ReadOutcome::End => return state,
            ReadOutcome::EmptyForNow => panic!("nothing for now, while stopped"),
        }
    }
}

/// Puts a state into the controller and lets it run.
fn load(rig: &Rig, state: &[u8]) {
    let mut channel = channel(rig);
    channel.set_state(DeviceState::Resuming).unwrap();
    channel.write(state).unwrap();
    channel.set_state(DeviceState::Running).unwrap();
}

/// Stops the tenant and its controller here and has them go on there. `memory` makes what is copied.
fn hop(from: &Rig, tenant: &TenantHandle, to: &Rig, memory: impl FnOnce(&Rig) -> Vec<u8>) -> TenantStats {
    let paused = tenant.pause();
    let state = save(from);
    to.memory.write(0, &memory(from)).unwrap();
    load(to, &state);
    paused
}

fn moves(function: Function, lba_size_bytes: u32) {
    let first = Rig::new(function, lba_size_bytes);
    // So slow that much is in flight whenever it stops.
    let slow = towline_nvme::model::Rates { io_latency_us: 3_000, ..Default::default() };
    first.subsystem.faults().set_rates(slow);
    let (mut tenant, log) = first.run(first.boot(first.spec()), 1);
    let mut logs = vec![log];
    let mut rigs = vec![first];
    for tag in 2..=4 {
        sleep(150);
        let from = rigs.last().unwrap();
        let to = from.beside(function, lba_size_bytes);
        to.subsystem.faults().set_rates(slow);
        let paused = hop(from, &tenant, &to, Rig::snapshot);
        assert!(paused.in_flight > 0, "nothing was in flight: the hop proves little");
        tenant.stop();
        let (next, log) = to.run(to.attach(), tag);
        tenant = next;
        logs.push(log);
        rigs.push(to);
    }
    sleep(150);
    assert_eq!(tenant.drain(Duration::from_secs(20)).pending, 0);
    let stats = tenant.stop();
    let records: Vec<Record> = logs.into_iter().flat_map(rig::Log::records).collect();
    assert_eq!(judge(&rigs[0], &records), Judgement::default());
    assert_eq!((stats.epoch, stats.mismatches, stats.duplicates, stats.errors), (4, 0, 0, 0));
    // Commands of one epoch that were completed in the next.
    assert!(records.iter().any(|r| r.kind == Kind::Write && r.found_epoch < r.epoch));
}

#[test]
fn a_pf_moves_three_times() {
    moves(Function::Pf, 512);
}

#[test]
fn a_vf_moves_three_times() {
    moves(Function::Vf, 4096);
}

#[test]
fn a_siov_like_function_moves_three_times() {
    moves(Function::Siov, 512);
}

/// The oracle trips: memory as it was a moment before the stop, everything else right.
#[test]
fn old_memory_does_not_go_unnoticed() {
    let first = Rig::new(Function::Pf, 4096);
    let (tenant, log) = first.run(first.boot(first.spec()), 1);
    sleep(150);
    let old = first.snapshot();
    sleep(100);
    let second = first.beside(Function::Pf, 4096);
    hop(&first, &tenant, &second, |_| old);
    tenant.stop();
    let mut records = log.records();
    let (tenant, log) = second.run(second.attach(), 2);
    sleep(200);
    tenant.drain(Duration::from_millis(300));
    tenant.stop();
    records.extend(log.records());
    assert_ne!(judge(&first, &records), Judgement::default());
}
