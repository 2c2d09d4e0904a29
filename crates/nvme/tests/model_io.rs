//! Bring-up, queues and I/O, as a host does them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Bars, DATA, Disk, Host, Interrupts, MEMORY, Memory, config, pf_host};
use towline_nvme::admin::AdminClient;
use towline_nvme::command::{SubmissionEntry, io_opcode, opcode};
use towline_nvme::identify::{IdentifyController, IdentifyNamespace, NamespaceIds, cns};
use towline_nvme::model::{EmbeddedAdmin, Subsystem};
use towline_nvme::status::{Status, StatusCode};

const MIB: u64 = 1 << 20;

#[test]
fn a_pf_comes_up_and_does_verified_io() {
    let disk = Disk::new(16 * MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, _controller, interrupts) = pf_host(&subsystem, 2);
    for (qid, pages) in [(1, 1), (2, 2), (1, 3), (2, 128)] {
        host.verified(qid, u64::from(qid) * 8, pages, pages as u8);
    }
    assert!(interrupts.count(1) >= 1 && interrupts.count(2) >= 1 && interrupts.count(0) >= 1);
    // The file has what was written, whoever looks.
    let file = std::fs::read(&disk.path).unwrap();
    assert!(file[16 * 4096..16 * 4096 + 4096] == host.memory.peek(DATA, 4096));
    assert_eq!(host.memory.outside.load(std::sync::atomic::Ordering::Relaxed), 0);
}

#[test]
fn queues_wrap_and_completion_queues_throttle() {
    let disk = Disk::new(4 * MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, ..) = pf_host(&subsystem, 0);
    host.create_pair(1, 4, 1);
    let read = |host: &mut Host, at| host.transfer_entry(io_opcode::READ, at, 1, DATA);
    for round in 0..37u64 {
        let cids: Vec<u16> = (0..3)
            .map(|n| {
                let e = read(&mut host, (round + n) % 64);
                host.push(1, e)
            })
            .collect();
        host.ring(2, host.pairs[&1].tail.into());
        for cid in cids {
            let done = host.next(1);
            assert_eq!((done.cid, done.status(), done.sq_id), (cid, Status::SUCCESS, 1));
        }
    }
}

#[test]
fn what_linux_asks() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, ..) = pf_host(&subsystem, 0);
    let id = IdentifyController::decode_prefix(&host.identify(cns::CONTROLLER, 0).unwrap()).unwrap();
    assert_eq!((id.cntlid, id.cntrltype, id.sqes, id.cqes, id.hmpre, id.sgls), (2, 1, 0x66, 0x44, 0, 0));
    assert_eq!(id.cmic & 2, 2);
    assert_eq!(id.oacs, 0, "only the controlling function migrates others");
    assert!(id.subnqn.starts_with(b"nqn.2014-08.org.nvmexpress:uuid:07070707-0707-0707-0707-070707070707\0"));
    let ns = IdentifyNamespace::decode_prefix(&host.identify(cns::NAMESPACE, 1).unwrap()).unwrap();
    assert_eq!((ns.nsze, ns.ncap, ns.block_bytes(), ns.nmic), (2048, 2048, Some(512), 1));
    let page = host.identify(cns::NAMESPACE_DESCRIPTORS, 1).unwrap();
    let ids = NamespaceIds::decode(page.as_slice().try_into().unwrap()).unwrap();
    assert_eq!((ids.nguid, ids.uuid, ids.csi), (Some([1; 16]), Some([0x81; 16]), Some(0)));
    let list = host.identify(cns::ACTIVE_NAMESPACES, 0).unwrap();
    assert_eq!(&list[..8], &[1, 0, 0, 0, 0, 0, 0, 0]);
    let queues = SubmissionEntry { opcode: opcode::SET_FEATURES, cdw10: 7, cdw11: 0x3_0003, ..Default::default() };
    assert_eq!(host.admin_ok(queues), 7 << 16 | 7);
    for lid in [1u32, 2, 3, 4, 5, 0, 0x12] {
        let log = SubmissionEntry {
            opcode: opcode::GET_LOG_PAGE,
            nsid: u32::MAX,
            prp1: DATA,
            cdw10: 127 << 16 | lid,
            ..Default::default()
        };
        host.admin_ok(log);
    }
}

#[test]
fn smart_counts() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, ..) = pf_host(&subsystem, 1);
    for _ in 0..5 {
        host.verified(1, 0, 1, 3);
    }
    let log = SubmissionEntry { opcode: opcode::GET_LOG_PAGE, prp1: DATA, cdw10: 127 << 16 | 2, ..Default::default() };
    host.admin_ok(log);
    let page = host.memory.peek(DATA, 512);
    assert_eq!((page[32], page[48], page[64], page[80]), (1, 1, 5, 5));
}

#[test]
fn flush_write_zeroes_and_deallocate() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, ..) = pf_host(&subsystem, 1);
    host.verified(1, 0, 4, 9);
    let entry = |opcode, cdw10, cdw11, cdw12| SubmissionEntry {
        opcode,
        nsid: 1,
        prp1: DATA,
        cdw10,
        cdw11,
        cdw12,
        ..Default::default()
    };
    for nsid in [1, u32::MAX] {
        let flush = SubmissionEntry { opcode: io_opcode::FLUSH, nsid, ..Default::default() };
        assert!(host.run(1, flush).status().is_success());
    }
    assert!(host.run(1, entry(io_opcode::WRITE_ZEROES, 0, 0, 7)).status().is_success());
    let mut ranges = vec![0u8; 16];
    ranges[4..8].copy_from_slice(&8u32.to_le_bytes());
    ranges[8..16].copy_from_slice(&16u64.to_le_bytes());
    host.memory.poke(DATA, &ranges);
    assert!(host.run(1, entry(io_opcode::DATASET_MANAGEMENT, 0, 4, 0)).status().is_success());
    let file = std::fs::read(&disk.path).unwrap();
    let zero = |page: usize| file[page * 4096..(page + 1) * 4096].iter().all(|byte| *byte == 0);
    assert_eq!([zero(0), zero(1), zero(2), zero(3)], [true, false, true, false]);
}

#[test]
fn the_embedded_admin_queue_speaks_to_the_controlling_pf() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let admin = Arc::new(EmbeddedAdmin::new(&subsystem).unwrap());
    let client = AdminClient::new(admin.clone());
    let id = client.identify_controller().unwrap();
    assert!(id.migrates_others());
    // Many threads, more than there are slots.
    std::thread::scope(|scope| {
        for _ in 0..12 {
            let client = client.clone();
            scope.spawn(move || (0..20).for_each(|_| assert_eq!(client.identify_controller().unwrap().cntlid, 1)));
        }
    });
    subsystem.close();
    subsystem.close();
    assert!(client.identify_controller().is_err());
    assert!(EmbeddedAdmin::new(&subsystem).is_err());
}

#[test]
fn reset_and_shutdown() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, controller, _) = pf_host(&subsystem, 1);
    host.verified(1, 0, 1, 1);
    host.disable();
    host.enable();
    host.create_pair(1, 16, 1);
    host.verified(1, 0, 1, 2);
    host.write32(0x14, 6 << 16 | 4 << 20 | 1 << 14 | 1);
    Host::until("CSTS.SHST", || host.csts() >> 2 & 3 == 2);
    let entry = host.transfer_entry(io_opcode::READ, 0, 1, DATA);
    host.submit(1, entry);
    host.silent(1, Duration::from_millis(30));
    host.disable();
    assert_eq!(host.csts(), 0);
    host.enable();
    controller.flr();
    assert_eq!((host.csts(), host.read32(0x14), host.read32(0x24)), (0, 0, 0));
    host.enable();
    host.create_pair(1, 16, 1);
    host.verified(1, 0, 1, 3);
}

#[test]
fn shared_by_two_subsystems() {
    let disk = Disk::new(MIB);
    let (a, b) = (Subsystem::open(config(&disk)).unwrap(), Subsystem::open(config(&disk)).unwrap());
    let (mut here, ..) = pf_host(&a, 1);
    let (mut there, ..) = pf_host(&b, 1);
    here.verified(1, 5, 1, 0x5a);
    assert_eq!(there.transfer(1, io_opcode::READ, 5, 1, DATA), Status::SUCCESS);
    assert!(there.memory.peek(DATA, 4096) == here.memory.peek(DATA, 4096));
}

#[test]
fn errors_of_io_and_queues() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, ..) = pf_host(&subsystem, 1);
    let read = SubmissionEntry { opcode: io_opcode::READ, nsid: 1, prp1: DATA, cdw12: 7, ..Default::default() };
    let table = [
        ("beyond the end", SubmissionEntry { cdw10: 2047, ..read }, StatusCode::LbaOutOfRange),
        ("absurd address", SubmissionEntry { cdw10: u32::MAX, cdw11: u32::MAX, ..read }, StatusCode::LbaOutOfRange),
        ("no such namespace", SubmissionEntry { nsid: 9, ..read }, StatusCode::InvalidNamespaceOrFormat),
        ("all namespaces", SubmissionEntry { nsid: u32::MAX, ..read }, StatusCode::InvalidNamespaceOrFormat),
        ("no such command", SubmissionEntry { opcode: 0x7e, ..read }, StatusCode::InvalidOpcode),
        ("fused", SubmissionEntry { flags: 1, ..read }, StatusCode::InvalidField),
        ("scatter list", SubmissionEntry { flags: 0x40, ..read }, StatusCode::InvalidField),
        ("longer than MDTS", SubmissionEntry { cdw12: 1024, ..read }, StatusCode::InvalidField),
        ("outside of memory", SubmissionEntry { prp1: 1 << 40, ..read }, StatusCode::DataTransferError),
        ("odd address", SubmissionEntry { prp1: DATA + 2, ..read }, StatusCode::InvalidPrpOffset),
        (
            "odd second page",
            SubmissionEntry { prp1: DATA + 8, prp2: DATA + 4104, ..read },
            StatusCode::InvalidPrpOffset,
        ),
        ("protection", SubmissionEntry { cdw12: 7 | 1 << 26, ..read }, StatusCode::InvalidField),
    ];
    for (what, entry, code) in table {
        assert_eq!(host.run(1, entry).status().code(), Some(code), "{what}");
    }
    let queue = |opcode, cdw10, cdw11, prp1| SubmissionEntry { opcode, cdw10, cdw11, prp1, ..Default::default() };
    let table = [
        ("CQ 0", queue(opcode::CREATE_IO_CQ, 15 << 16, 3, 0), StatusCode::InvalidQueueIdentifier),
        ("CQ again", queue(opcode::CREATE_IO_CQ, 15 << 16 | 1, 3, 0), StatusCode::InvalidQueueIdentifier),
        ("CQ beyond", queue(opcode::CREATE_IO_CQ, 15 << 16 | 9, 3, 0), StatusCode::InvalidQueueIdentifier),
        ("CQ of one entry", queue(opcode::CREATE_IO_CQ, 2, 3, 0), StatusCode::InvalidQueueSize),
        ("CQ too long", queue(opcode::CREATE_IO_CQ, 1024 << 16 | 2, 3, 0), StatusCode::InvalidQueueSize),
        ("CQ vector", queue(opcode::CREATE_IO_CQ, 15 << 16 | 2, 9 << 16 | 3, 0), StatusCode::InvalidInterruptVector),
        ("CQ not contiguous", queue(opcode::CREATE_IO_CQ, 15 << 16 | 2, 2, 0), StatusCode::InvalidField),
        ("CQ unaligned", queue(opcode::CREATE_IO_CQ, 15 << 16 | 2, 3, 0x800), StatusCode::InvalidPrpOffset),
        (
            "SQ without CQ",
            queue(opcode::CREATE_IO_SQ, 15 << 16 | 2, 2 << 16 | 1, 0),
            StatusCode::CompletionQueueInvalid,
        ),
        ("SQ again", queue(opcode::CREATE_IO_SQ, 15 << 16 | 1, 1 << 16 | 1, 0), StatusCode::InvalidQueueIdentifier),
        ("SQ to CQ 0", queue(opcode::CREATE_IO_SQ, 15 << 16 | 2, 1, 0), StatusCode::InvalidQueueIdentifier),
        ("CQ in use", queue(opcode::DELETE_IO_CQ, 1, 0, 0), StatusCode::InvalidQueueDeletion),
        ("no such SQ", queue(opcode::DELETE_IO_SQ, 5, 0, 0), StatusCode::InvalidQueueIdentifier),
        ("admin SQ", queue(opcode::DELETE_IO_SQ, 0, 0, 0), StatusCode::InvalidQueueIdentifier),
        ("no such log", queue(opcode::GET_LOG_PAGE, 0xc0, 0, DATA), StatusCode::InvalidLogPage),
        ("no such feature", queue(opcode::GET_FEATURES, 0xc0, 0, 0), StatusCode::InvalidField),
        ("saving", queue(opcode::SET_FEATURES, 1 << 31 | 1, 0, 0), StatusCode::FeatureNotSaveable),
        ("queues exist", queue(opcode::SET_FEATURES, 7, 1, 0), StatusCode::CommandSequenceError),
        ("migrates nobody", queue(opcode::MIGRATION_SEND, 0, 1, 0), StatusCode::InvalidOpcode),
        ("tracks nobody", queue(opcode::TRACK_SEND, 1, 1, 0), StatusCode::InvalidOpcode),
        ("no such opcode", queue(0xc1, 0, 0, 0), StatusCode::InvalidOpcode),
        ("no data queues", queue(opcode::CONTROLLER_DATA_QUEUE, 0, 0, 0), StatusCode::InvalidOpcode),
    ];
    for (what, entry, code) in table {
        assert_eq!(host.admin(entry).status().code(), Some(code), "{what}");
    }
    host.verified(1, 0, 1, 7);
}

#[test]
fn async_events_for_bad_doorbells_and_aborts() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, ..) = pf_host(&subsystem, 1);
    let aer = SubmissionEntry { opcode: opcode::ASYNC_EVENT_REQUEST, ..Default::default() };
    let cids: Vec<u16> = (0..4).map(|_| host.submit(0, aer)).collect();
    assert_eq!(host.admin(aer).status().code(), Some(StatusCode::AsyncEventLimitExceeded));
    host.ring(14, 1);
    let done = host.wait(0, cids[0]);
    assert_eq!((done.status(), done.result()), (Status::SUCCESS, 1 << 16));
    host.ring(2, 64);
    host.silent(0, Duration::from_millis(20));
    let log = SubmissionEntry { opcode: opcode::GET_LOG_PAGE, prp1: DATA, cdw10: 15 << 16 | 1, ..Default::default() };
    host.admin_ok(log);
    assert_eq!(host.wait(0, cids[1]).result(), 1 << 16 | 1 << 8);
    let abort = |cid: u16| SubmissionEntry { opcode: opcode::ABORT, cdw10: u32::from(cid) << 16, ..Default::default() };
    assert_eq!(host.admin_ok(abort(cids[2])), 0);
    assert_eq!(host.wait(0, cids[2]).status().code(), Some(StatusCode::AbortRequested));
    assert_eq!(host.admin_ok(abort(cids[2])), 1);
    host.verified(1, 0, 1, 1);
}

#[test]
fn without_memory_nothing_happens_and_then_it_does() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let (mut host, controller, interrupts) = pf_host(&subsystem, 1);
    controller.detach();
    let entry = host.transfer_entry(io_opcode::READ, 0, 1, DATA);
    let cid = host.submit(1, entry);
    host.silent(1, Duration::from_millis(30));
    assert_eq!(host.csts(), 1);
    controller.attach(host.memory.clone(), interrupts);
    assert_eq!(host.wait(1, cid).status(), Status::SUCCESS);
}

#[test]
fn a_queue_outside_of_memory_is_fatal_until_a_reset() {
    let disk = Disk::new(MIB);
    let subsystem = Subsystem::open(config(&disk)).unwrap();
    let controller = subsystem.controller(2).unwrap();
    let memory = Memory::new(MEMORY);
    controller.attach(memory.clone(), Arc::new(Interrupts::default()));
    let mut host = Host::new(memory.clone(), Bars::of(&controller));
    host.enable();
    let bytes = memory.remove(0).unwrap();
    host.ring(0, 1);
    Host::until("CSTS.CFS", || host.csts() & 2 != 0);
    memory.put(0, bytes);
    host.disable();
    assert_eq!(host.csts(), 0);
    host.enable();
    host.create_pair(1, 16, 1);
    host.verified(1, 0, 1, 1);
}
