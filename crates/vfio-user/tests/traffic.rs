//! NVMe over the socket: a guest driver on the far side, its memory mapped or reached by messages.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
#[path = "client/rig.rs"]
mod rig;
#[path = "client/work.rs"]
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use client::*;
use rig::{Kind, MEMORY, Rig, short_timeout};
use rustix::event::{PollFd, PollFlags, poll};
use towline_core::dirty::MarkLog;
use towline_core::memory::GuestMemory;
use towline_tenant::{RunOptions, Tenant, TenantInterrupts};
use work::{Memory, map, spec, with_a_command_under_way, work};

fn works(kind: Kind, layout: DmaLayout, memory: Memory) {
    let rig = Rig::new(kind);
    let client = rig.client(layout);
    map(&rig, &client, memory);
    let outcome = work(&rig, &client, Duration::from_millis(500));
    assert!(outcome.commands > 60 && outcome.written > 20, "{} commands", outcome.commands);
    assert_eq!((outcome.mismatches, outcome.errors, outcome.damaged), (0, 0, 0), "{kind:?} {layout:?} {memory:?}");
    assert_eq!(client.dma_messages() > 100, memory != Memory::Mapped, "{} messages", client.dma_messages());
}

#[test]
fn every_kind_with_mapped_memory() {
    for kind in [Kind::Controlling, Kind::Pf, Kind::Vf, Kind::Siov] {
        works(kind, DmaLayout::Qemu, Memory::Mapped);
    }
}

#[test]
fn dma_by_messages_as_specified() {
    works(Kind::Vf, DmaLayout::Specified, Memory::Messages);
}

#[test]
fn dma_by_messages_as_qemu_has_it() {
    works(Kind::Siov, DmaLayout::Qemu, Memory::Messages);
}

#[test]
fn transfers_that_cross_from_one_to_the_other() {
    works(Kind::Pf, DmaLayout::Specified, Memory::Both);
    works(Kind::Pf, DmaLayout::Qemu, Memory::Both);
}

/// The counterpart of all of the above: memory that lies is noticed by the same oracles.
#[test]
fn one_wrong_bit_in_a_dma_message_is_noticed() {
    let rig = Rig::new(Kind::Vf);
    let client = rig.client(DmaLayout::Specified);
    map(&rig, &client, Memory::Messages);
    client.answering(Answering::Corrupt);
    let outcome = work(&rig, &client, Duration::from_millis(100));
    assert!(
        outcome.damaged > 0 && outcome.mismatches > 0,
        "{} damaged, {} mismatches",
        outcome.damaged,
        outcome.mismatches
    );
}

/// A client that proposes 0.0 and lays its messages out as specified, and one that proposes 0.1 and does not: found out by their answers.
#[test]
fn the_layout_is_found_by_what_comes_back() {
    for layout in [DmaLayout::Specified, DmaLayout::Qemu] {
        let rig = Rig::new(Kind::Pf);
        let client = Arc::new(Client::silent(&rig.socket, rig.guest(), layout));
        let minor = u64::from(layout == DmaLayout::Qemu);
        client.call(VERSION, &le(&[(0, 2), (minor, 2)]), &[]).unwrap();
        client.map(0, MEMORY, 0, None).unwrap();
        client.bus_master(true);
        let memory = rig.server.memory().unwrap();
        let mut data = [0xff; 24];
        memory.read(0x1000, &mut data).unwrap();
        assert_eq!(data, [0; 24], "all zero is the same in either");
        // Zero at both ends: only a second look can tell.
        rig.memory.write(0x2000, &[0, 0, 0, 0, 0, 0, 9, 0, 8, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let mut data = [0xff; 16];
        memory.read(0x2000, &mut data).unwrap();
        assert_eq!(data, [0, 0, 0, 0, 0, 0, 9, 0, 8, 0, 0, 0, 0, 0, 0, 0], "{layout:?}");
        memory.write(0x3000, &[1, 2, 3, 4, 5]).unwrap();
        let mut data = [0; 8];
        rig.memory.read(0x3000, &mut data).unwrap();
        assert_eq!(data, [1, 2, 3, 4, 5, 0, 0, 0], "{layout:?}");
        assert_eq!(memory.load_u32(0x3000).unwrap(), 0x0403_0201);
        memory.store_u32(0x3004, 0xa0b0_c0d0).unwrap();
        assert_eq!(rig.memory.load_u32(0x3004).unwrap(), 0xa0b0_c0d0);
    }
}

#[test]
fn long_transfers_are_cut_and_ranges_end() {
    let rig = Rig::new(Kind::Pf);
    let client = Arc::new(Client::silent(&rig.socket, rig.guest(), DmaLayout::Specified));
    let mut hello = le(&[(0, 2), (1, 2)]);
    hello.extend(b"{\"capabilities\":{\"max_data_xfer_size\":4096}}\0");
    client.call(VERSION, &hello, &[]).unwrap();
    client.map(0, 0x10_0000, 0, None).unwrap();
    let memory = rig.server.memory().unwrap();
    let data: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
    memory.write(0x100, &data).unwrap();
    assert_eq!(client.dma_messages(), 100_000usize.div_ceil(4096));
    let mut back = vec![0; data.len()];
    memory.read(0x100, &mut back).unwrap();
    assert_eq!(back, data);
    // The last byte, and one further.
    memory.read(0xf_fff0, &mut back[..16]).unwrap();
    let before = client.dma_messages();
    assert!(memory.read(0xf_fff0, &mut back[..17]).is_err());
    assert!(memory.write(0xf_fff0, &back[..17]).is_err());
    assert!(memory.read(u64::MAX, &mut back[..2]).is_err());
    assert_eq!(client.dma_messages(), before, "nothing of it was sent");
    client.answering(Answering::Refuse);
    assert!(memory.read(0, &mut back[..16]).is_err());
}

fn soon<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = call();
    assert!(start.elapsed() < Duration::from_secs(1), "{what} took {:?}", start.elapsed());
    result
}

/// A client that answers nothing before its own request is answered, as QEMU is while it holds its lock.
#[test]
fn no_deadlock_while_a_dma_message_is_unanswered() {
    for what in ["unmap", "unmap all", "FLR", "reset", "bus master"] {
        let rig = Rig::new(Kind::Pf);
        let client = with_a_command_under_way(&rig);
        soon(what, || match what {
            "unmap" => client.unmap(0, MEMORY).unwrap(),
            "unmap all" => {
                client.call(DMA_UNMAP, &le(&[(24, 4), (2, 4), (0, 8), (0, 8)]), &[]).unwrap();
            }
            "FLR" => client.flr().unwrap(),
            "reset" => {
                client.call(RESET, &[], &[]).unwrap();
            }
            _ => client.bus_master(false),
        });
        if what.starts_with("unmap") {
            // Not after the time that the client has to answer: what was under way has ended.
            soon("the end of the DMA", || eventually("CSTS.CFS", || client.register32(0x1c) & 2 == 2));
        }
        assert!(client.answer_held() > 0, "an answer that comes too late is dropped");
        assert_eq!(client.config32(8) >> 8, 0x01_0802, "and the connection lives");
        if what == "FLR" || what == "reset" {
            assert_eq!((client.register32(0x14), client.register32(0x1c)), (0, 0), "CC and CSTS");
            assert_eq!(client.config32(4) & 7, 0, "command register");
        }
        // All of it works again from the start.
        if what.starts_with("unmap") {
            client.map(0, MEMORY, 0, None).unwrap();
        }
        client.bus_master(true);
        let outcome = work(&rig, &client, Duration::from_millis(150));
        assert_eq!((outcome.mismatches, outcome.errors, outcome.damaged), (0, 0, 0), "after {what}");
    }
}

/// While DMA waits, registers answer at once: the reader waits for nobody.
#[test]
fn registers_answer_while_dma_waits() {
    let rig = Rig::new(Kind::Pf);
    let client = with_a_command_under_way(&rig);
    soon("300 reads", || (0..300).for_each(|_| assert_eq!(client.register32(0x1c) & 1, 1)));
    client.answer_held();
}

#[test]
fn a_client_that_never_answers_does_not_hold_the_function() {
    let rig = Rig::with(Kind::Pf, &Default::default(), short_timeout());
    let client = with_a_command_under_way(&rig);
    eventually("CSTS.CFS", || client.register32(0x1c) & 2 == 2);
    client.flr().unwrap();
    assert_eq!(client.register32(0x1c), 0);
}

/// After an unmapping was answered, nothing is written there, however busy the function is.
#[test]
fn nothing_is_written_to_what_was_unmapped() {
    for memory in [Memory::Mapped, Memory::Messages] {
        let rig = Rig::new(Kind::Pf);
        let client = rig.client(DmaLayout::Specified);
        map(&rig, &client, memory);
        let bar = Arc::new(Bar(client.clone()));
        let _events = client.wire(2);
        let tenant = Tenant::boot(rig.memory.clone(), bar.clone(), bar, spec()).unwrap();
        let log = std::fs::File::options().write(true).open("/dev/null").unwrap();
        let interrupts = Arc::new(TenantInterrupts::new());
        let options = RunOptions { host_tag: 1, flush_only: false };
        let handle = tenant.run(log.into(), Arc::new(MarkLog::new()), interrupts, options).unwrap();
        std::thread::sleep(Duration::from_millis(120));
        client.unmap(0, MEMORY).unwrap();
        handle.stop();
        let image = |rig: &Rig| {
            let mut bytes = vec![0; MEMORY as usize];
            rig.memory.read(0, &mut bytes).unwrap();
            bytes
        };
        let before = image(&rig);
        let messages = client.dma_messages();
        client.post(0, 0x1008, &3u32.to_le_bytes());
        client.post(0, 0x1000, &3u32.to_le_bytes());
        std::thread::sleep(Duration::from_millis(100));
        assert!(image(&rig) == before, "{memory:?}");
        assert_eq!(client.dma_messages(), messages, "{memory:?}");
        assert_eq!(client.register32(0x1c) & 2, 2, "the function noticed: CSTS.CFS");
    }
}

/// Without bus mastering nothing is fetched; with it, what was rung before is.
#[test]
fn bus_mastering_is_obeyed() {
    let rig = Rig::new(Kind::Pf);
    let client = rig.client(DmaLayout::Specified);
    client.map(0, MEMORY, 0, None).unwrap();
    client.write(0, 0x24, &0x001f_001fu32.to_le_bytes()).unwrap();
    client.write(0, 0x28, &le(&[(0x10000, 8), (0x20000, 8)])).unwrap();
    client.write(0, 0x14, &0x0046_0001u32.to_le_bytes()).unwrap();
    eventually("CSTS.RDY", || client.register32(0x1c) & 1 == 1);
    client.post(0, 0x1000, &1u32.to_le_bytes());
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(client.dma_messages(), 0);
    client.bus_master(true);
    eventually("the command is fetched", || client.dma_messages() > 0);
}

/// Closing a server while its function is at work.
#[test]
fn closing_ends_the_dma() {
    for held in [true, false] {
        let rig = Rig::new(Kind::Pf);
        let client = if held { with_a_command_under_way(&rig) } else { rig.ready(DmaLayout::Specified, false) };
        soon("closing", || rig.server.close());
        client.wait_gone();
        let messages = client.dma_messages();
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(client.dma_messages(), messages);
    }
}

/// A function that goes away under its client reads as a bus without an answer, and harms nobody.
#[test]
fn a_function_that_is_removed() {
    let rig = Rig::new(Kind::Siov);
    let client = rig.ready(DmaLayout::Specified, true);
    assert_ne!(client.register32(0), u32::MAX);
    rig.subsystem.remove_siov(rig.controller.cntlid()).unwrap();
    assert_eq!(client.register32(0), u32::MAX);
    client.flr().unwrap();
    client.call(RESET, &[], &[]).unwrap();
}

/// Fills an eventfd and makes it blocking, again and again until told to stop.
fn keep_full(fd: &std::os::fd::OwnedFd, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let flags = rustix::fs::fcntl_getfl(fd).unwrap();
        rustix::fs::fcntl_setfl(fd, flags - rustix::fs::OFlags::NONBLOCK).unwrap();
        // Waits until it is empty.
        let _ = rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes());
    }
}

/// A client that makes its eventfd blocking and keeps it full: neither who asks the controller something nor who closes waits for it.
#[test]
fn an_eventfd_that_blocks_stops_nobody() {
    for close in [false, true] {
        let rig = Rig::new(Kind::Vf);
        let client = rig.ready(DmaLayout::Specified, true);
        let events = client.wire(1);
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| keep_full(&events[0], &stop));
            let full = || {
                let mut fds = [PollFd::new(&events[0], PollFlags::OUT)];
                poll(&mut fds, Some(&rustix::event::Timespec::default())).unwrap() == 0
            };
            eventually("it is full", full);
            client.write(0, 0x24, &0x001f_001fu32.to_le_bytes()).unwrap();
            client.write(0, 0x28, &le(&[(0x10000, 8), (0x20000, 8)])).unwrap();
            client.write(0, 0x14, &0x0046_0001u32.to_le_bytes()).unwrap();
            eventually("CSTS.RDY", || client.register32(0x1c) & 1 == 1);
            // 20 commands that there are not: each completes, and raises vector 0.
            let before = rig.server.status().interrupts;
            client.post(0, 0x1000, &20u32.to_le_bytes());
            eventually("it is raised", || rig.server.status().interrupts > before);
            let (done, finished) = std::sync::mpsc::channel();
            let (server, controller) = (&rig.server, &rig.controller);
            scope.spawn(move || {
                // Waits for whoever holds the controller.
                controller.resources();
                if close {
                    server.close();
                }
                done.send(()).unwrap();
            });
            let finished = finished.recv_timeout(Duration::from_secs(10));
            let gone = if finished.is_ok() && !close {
                drop(client);
                let start = std::time::Instant::now();
                while rig.server.status().connected && start.elapsed() < Duration::from_secs(10) {
                    std::thread::sleep(Duration::from_millis(5));
                }
                !rig.server.status().connected
            } else {
                finished.is_ok()
            };
            // Everybody goes on, so that a failure is told.
            stop.store(true, Ordering::SeqCst);
            for _ in 0..100 {
                let mut fds = [PollFd::new(&events[0], PollFlags::IN)];
                if poll(&mut fds, Some(&rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 })).unwrap() > 0 {
                    let mut raw = [0; 8];
                    let raw = &mut [std::io::IoSliceMut::new(&mut raw)];
                    let _ = rustix::io::preadv2(&events[0], raw, u64::MAX, rustix::io::ReadWriteFlags::NOWAIT);
                }
            }
            assert!(finished.is_ok(), "the controller is held");
            assert!(gone, "the connection does not end");
        });
    }
}
