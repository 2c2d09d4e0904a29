//! The tenant on the embedded controller.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod rig;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rig::{Function, Judgement, Rig, judge};
use towline_core::channel::{DirtySink, DirtySource};
use towline_core::dirty::MarkLog;
use towline_core::memory::{GuestMemory, MemoryRange};
use towline_nvme::model::{CommandSet, FaultAction, FaultRule};
use towline_nvme::status::Status;
use towline_tenant::record::{Kind, Record};
use towline_tenant::{RunOptions, TenantError, TenantSpec};

const PATIENCE: Duration = Duration::from_secs(20);

fn sleep(ms: u64) {
    std::thread::sleep(Duration::from_millis(ms));
}

fn works_on(function: Function, lba_size_bytes: u32) {
    let rig = Rig::new(function, lba_size_bytes);
    let (tenant, log) = rig.run(rig.boot(rig.spec()), 1);
    sleep(700);
    let drained = tenant.drain(PATIENCE);
    let stats = tenant.stop();
    let records = log.records();
    assert_eq!(drained.pending, 0);
    assert_eq!(judge(&rig, &records), Judgement::default());
    assert_eq!((stats.mismatches, stats.errors, stats.duplicates, stats.epoch), (0, 0, 0, 1));
    assert!(stats.writes > 50 && stats.reads > 50 && stats.flushes > 0, "{stats:?}");
    assert!(stats.smart_polls > 5 && stats.cpu_pages_written > 100, "{stats:?}");
    // PRP1 alone, PRP2 as an address, PRP lists: all were used.
    for units in [1, 2, 16] {
        assert!(records.iter().any(|r| r.kind == Kind::Write && r.units == units), "no write of {units} units");
    }
    let found = |r: &Record| r.kind == Kind::Read && r.found_seq != 0;
    assert!(records.iter().any(found), "nothing written was ever read");
    let at = tenant_layout(&rig.spec()).telemetry();
    let mut smart = [0; 512];
    rig.memory.read(at.gpa, &mut smart).unwrap();
    assert_ne!(smart, [0; 512], "the device never wrote its telemetry");
}

fn tenant_layout(spec: &TenantSpec) -> towline_tenant::Layout {
    towline_tenant::Layout::new(spec).unwrap()
}

#[test]
fn works_on_a_pf() {
    works_on(Function::Pf, 512);
}

#[test]
fn works_on_a_vf() {
    works_on(Function::Vf, 4096);
}

#[test]
fn works_on_a_siov_like_function() {
    works_on(Function::Siov, 512);
}

#[test]
fn goes_on_from_memory_alone() {
    let rig = Rig::new(Function::Pf, 4096);
    let (first, log) = rig.run(rig.boot(rig.spec()), 1);
    sleep(300);
    let paused = first.pause();
    first.stop();
    let mut records = log.records();
    assert_eq!(records.last().unwrap().kind, Kind::Stopped);
    assert_eq!(records.last().unwrap().next_seq, paused.next_seq);

    let (second, log) = rig.run(rig.attach(), 2);
    sleep(300);
    second.drain(PATIENCE);
    let stats = second.stop();
    records.extend(log.records());
    assert_eq!(judge(&rig, &records), Judgement::default());
    assert_eq!((stats.epoch, stats.mismatches, stats.duplicates), (2, 0, 0));
    assert!(stats.next_seq > paused.next_seq && stats.writes > paused.writes);
    let tags: BTreeSet<_> = records.iter().map(|r| (r.host_tag, r.epoch)).collect();
    assert_eq!(tags.into_iter().collect::<Vec<_>>(), [(1, 1), (2, 2)]);
}

#[test]
fn a_pause_leaves_what_is_in_flight_and_writes_nothing_more() {
    let rig = Rig::new(Function::Pf, 4096);
    rig.subsystem.faults().set_rates(towline_nvme::model::Rates { io_latency_us: 20_000, ..Default::default() });
    let (tenant, log) = rig.run(rig.boot(rig.spec()), 1);
    sleep(200);
    let started = Instant::now();
    let stats = tenant.pause();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert!(stats.in_flight > 0, "nothing was in flight");
    // The device finishes what it has; from then on every byte stays.
    let mut before = rig.snapshot();
    for turn in 0.. {
        sleep(100);
        let after = rig.snapshot();
        if after == before {
            break;
        }
        assert!(turn < 50, "memory keeps changing while the tenant is paused");
        before = after;
    }
    tenant.resume();
    sleep(200);
    assert_eq!(tenant.drain(PATIENCE).pending, 0);
    tenant.stop();
    let records = log.records();
    assert_eq!(judge(&rig, &records), Judgement::default());
    let around: Vec<_> = records.iter().filter(|r| matches!(r.kind, Kind::Started | Kind::Stopped)).collect();
    assert_eq!(around.len(), 4, "{around:?}");
    assert!(records.iter().filter(|r| r.seq != 0).all(|r| r.t_ns <= around[1].t_ns || r.t_ns >= around[2].t_ns));
}

#[test]
fn every_order_of_pause_drain_and_resume_comes_back() {
    let rig = Rig::new(Function::Pf, 4096);
    let (tenant, log) = rig.run(rig.boot(rig.spec()), 1);
    for _ in 0..20 {
        tenant.pause();
        tenant.pause();
        tenant.resume();
        tenant.pause();
        assert_eq!(tenant.drain(PATIENCE).pending, 0);
        assert_eq!(tenant.drain(PATIENCE).pending, 0);
        tenant.pause();
        tenant.resume();
        tenant.resume();
        sleep(2);
    }
    tenant.drain(PATIENCE);
    tenant.stop();
    tenant.stop();
    assert_eq!(judge(&rig, &log.records()), Judgement::default());
}

#[test]
fn a_lost_completion_stays_in_flight() {
    let rig = Rig::new(Function::Pf, 4096);
    let action = FaultAction::DropCompletion;
    let rule = FaultRule { cntlid: None, set: CommandSet::Io, opcode: Some(1), nth: 20, count: 1, action };
    rig.subsystem.faults().add(rule);
    let (tenant, log) = rig.run(rig.boot(rig.spec()), 1);
    sleep(400);
    let drained = tenant.drain(Duration::from_millis(300));
    tenant.stop();
    assert_eq!(drained.pending, 1);
    let judgement = judge(&rig, &log.records());
    assert_eq!(judgement.missing.len(), 1);
    assert_eq!(Judgement { missing: vec![], ..judgement }, Judgement::default());
}

#[test]
fn a_repeated_completion_is_noticed_and_ignored() {
    let rig = Rig::new(Function::Pf, 4096);
    let action = FaultAction::Repeat;
    let rule = FaultRule { cntlid: None, set: CommandSet::Io, opcode: Some(1), nth: 20, count: 1, action };
    rig.subsystem.faults().add(rule);
    let (tenant, log) = rig.run(rig.boot(rig.spec()), 1);
    sleep(400);
    assert_eq!(tenant.drain(PATIENCE).pending, 0);
    tenant.stop();
    assert_eq!(judge(&rig, &log.records()), Judgement { duplicates: 1, ..Judgement::default() });
}

#[test]
fn a_damaged_disk_is_noticed_by_reads() {
    let rig = Rig::new(Function::Pf, 4096);
    let (tenant, log) = rig.run(rig.boot(rig.spec()), 1);
    sleep(300);
    // Another writer to the same disk: a command that fails is not needed for this, only one that lies.
    rig.damage(256);
    sleep(500);
    tenant.drain(PATIENCE);
    let stats = tenant.stop();
    assert!(stats.mismatches > 0, "{stats:?}");
    assert!(!judge(&rig, &log.records()).wrong.is_empty());
}

#[test]
fn an_error_status_is_told() {
    let rig = Rig::new(Function::Pf, 4096);
    // Unrecovered Read Error.
    let action = FaultAction::Status(Status { sct: 2, sc: 0x81, dnr: false });
    let rule = FaultRule { cntlid: None, set: CommandSet::Io, opcode: Some(2), nth: 5, count: 1, action };
    rig.subsystem.faults().add(rule);
    let (tenant, log) = rig.run(rig.boot(rig.spec()), 1);
    sleep(300);
    tenant.drain(PATIENCE);
    tenant.stop();
    let records = log.records();
    let errors: Vec<_> = records.iter().filter(|r| r.kind == Kind::Error).collect();
    assert_eq!((errors.len(), errors[0].status & 0x7ff, errors[0].flags), (1, 0x281, 0x20));
    assert_eq!(judge(&rig, &records).missing, [errors[0].seq]);
}

#[test]
fn a_slow_reader_loses_no_record() {
    let rig = Rig::new(Function::Pf, 4096);
    let tenant = rig.boot(TenantSpec { target_iops: 50_000, ..rig.spec() });
    let options = RunOptions { host_tag: 1, flush_only: false };
    let (tenant, log) = rig.run_with(tenant, options, Duration::from_millis(2));
    sleep(500);
    assert_eq!(tenant.drain(PATIENCE).pending, 0);
    tenant.stop();
    assert_eq!(judge(&rig, &log.records()), Judgement::default());
}

#[test]
fn flushing_only_touches_no_data() {
    let rig = Rig::new(Function::Pf, 4096);
    let options = RunOptions { host_tag: 1, flush_only: true };
    let (tenant, log) = rig.run_with(rig.boot(rig.spec()), options, Duration::ZERO);
    sleep(200);
    tenant.drain(PATIENCE);
    let stats = tenant.stop();
    assert!(stats.flushes > 10);
    assert_eq!((stats.writes, stats.reads, stats.cpu_pages_written, stats.smart_polls), (0, 0, 0, 0));
    assert_eq!(judge(&rig, &log.records()), Judgement::default());
}

#[derive(Default)]
struct Pages(BTreeSet<u64>);

impl DirtySink for Pages {
    fn mark(&mut self, gpa: u64, len: u64) {
        self.0.extend(gpa / 4096..(gpa + len).div_ceil(4096));
    }

    fn merge_bitmap(&mut self, _: u64, _: u64, _: &[u8]) {
        panic!("marks are ranges");
    }
}

/// Pages that changed while the tenant ran, without those that the device writes, and how many of them `marks` does not know of.
fn changed_and_unmarked(rig: &Rig, marks: &Arc<MarkLog>) -> (usize, usize) {
    let (tenant, _log) = rig.run(rig.boot(rig.spec()), 1);
    sleep(100);
    tenant.pause();
    rig.controller.detach();
    let before = rig.snapshot();
    let mut source = marks.source();
    source.start(&[MemoryRange { gpa: 0, len: rig::MEMORY }], 4096).unwrap();
    rig.plug(rig.interrupts.clone());
    tenant.resume();
    sleep(300);
    tenant.pause();
    rig.controller.detach();
    let after = rig.snapshot();
    let mut marked = Pages::default();
    source.harvest(&mut marked).unwrap();
    let layout = tenant_layout(&rig.spec());
    let device = |gpa: u64| {
        let inside = |range: MemoryRange| gpa >= range.gpa && gpa - range.gpa < range.len;
        gpa == layout.admin_cq()
            || (1..=2).any(|qid| gpa == layout.io_cq(qid))
            || inside(layout.telemetry())
            || inside(layout.buffers())
    };
    assert!(!marked.0.contains(&(layout.telemetry().gpa / 4096)), "the tenant touched the telemetry");
    let pages = before.chunks(4096).zip(after.chunks(4096));
    let changed: Vec<u64> =
        (0..).zip(pages).filter(|(page, (a, b))| a != b && !device(page * 4096)).map(|(page, _)| page).collect();
    (changed.len(), changed.iter().filter(|page| !marked.0.contains(page)).count())
}

#[test]
fn every_write_to_memory_is_marked() {
    let rig = Rig::new(Function::Pf, 4096);
    let (changed, unmarked) = changed_and_unmarked(&rig, &rig.marks);
    assert!(changed > 100, "{changed}");
    assert_eq!(unmarked, 0, "of {changed}");
}

/// That the check above can fail: a log that the tenant does not mark knows of nothing.
#[test]
fn a_write_that_is_not_marked_is_noticed() {
    let rig = Rig::new(Function::Pf, 4096);
    let (changed, unmarked) = changed_and_unmarked(&rig, &Arc::default());
    assert_eq!(unmarked, changed);
}

#[test]
fn a_tenant_without_a_witness_does_not_run() {
    let rig = Rig::new(Function::Pf, 4096);
    let tenant = rig.boot(rig.spec());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let options = RunOptions { host_tag: 1, flush_only: false };
    let tenant = tenant.run(writer.into(), rig.marks.clone(), rig.interrupts.clone(), options).unwrap();
    tenant.pause();
    assert!(tenant.failure().is_some_and(|why| why.contains("log")));
}

#[test]
fn a_controller_that_cannot_be_driven_is_refused() {
    let rig = Rig::new(Function::Pf, 4096);
    let boot = |spec| {
        let (registers, doorbells) = (rig.view.registers.clone(), rig.view.doorbells.clone());
        towline_tenant::Tenant::boot(rig.memory.clone(), registers, doorbells, spec).err()
    };
    assert!(matches!(boot(TenantSpec { units: rig::UNITS + 1, ..rig.spec() }), Some(TenantError::Spec(_))));
    assert!(matches!(
        boot(TenantSpec { nsid: 7, ..rig.spec() }),
        Some(TenantError::Command { .. } | TenantError::Controller(_))
    ));
    assert!(matches!(boot(TenantSpec { doorbell_stride: 8, ..rig.spec() }), Some(TenantError::Controller(_))));
    rig.subsystem.close();
    assert!(matches!(boot(rig.spec()), Some(TenantError::Controller(_))));
}
