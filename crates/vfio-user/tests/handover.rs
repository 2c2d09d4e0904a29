//! A server whose socket and client go to another one while the guest is at work: nothing is lost, nothing comes twice.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
#[path = "client/moving.rs"]
mod moving;
#[path = "client/rig.rs"]
mod rig;
#[path = "client/work.rs"]
mod work;

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use client::*;
use moving::{check_disk, device_state, load, run};
use rig::{Kind, Rig};
use towline_core::channel::StateChannel;
use towline_core::fsm::DeviceState;
use towline_tenant::Tenant;
use towline_vfio_user::nvme::{NvmeFunction, NvmeFunctionOptions};
use towline_vfio_user::{Handover, HandoverError, ServerOptions, VfioUserServer};
use work::{Memory, map, pump, spec};

/// The function of `to`, for a server that comes from elsewhere.
fn adopt(to: &Rig, handover: Handover) -> Result<VfioUserServer, HandoverError> {
    let function = NvmeFunction::new(&to.subsystem, to.controller.cntlid(), &NvmeFunctionOptions::default()).unwrap();
    VfioUserServer::adopt(handover, Arc::new(function), ServerOptions::default())
}

/// Hands `server`, which serves the function of `from`, to the process that has `to`. Where `fails`, that process goes before it has run
/// anything.
fn hand_over(from: &Rig, server: &VfioUserServer, to: &Rig, fails: bool) -> Option<VfioUserServer> {
    let mut source = from.channel();
    source.set_state(DeviceState::Stop).unwrap();
    let handover = server.detach().unwrap();
    let section = server.save_section().unwrap();
    let state = device_state(&mut source);
    let mut channel = to.channel();
    let there = adopt(to, handover).unwrap();
    load(&mut channel, &state);
    there.restore_section(&section).unwrap();
    if fails {
        drop(there);
        channel.reset().unwrap();
        source.set_state(DeviceState::Running).unwrap();
        server.resume().unwrap();
        return None;
    }
    channel.set_state(DeviceState::Running).unwrap();
    there.resume().unwrap();
    server.surrender().unwrap();
    Some(there)
}

fn under_load(memory: Memory) {
    let here = Rig::new(Kind::Vf);
    let there = here.beside(Kind::Vf);
    there.server.close();
    let client = here.client(DmaLayout::Specified);
    map(&here, &client, memory);
    let events = client.wire(2);
    let bar = Arc::new(Bar(client.clone()));
    let tenant = Tenant::boot(here.memory.clone(), bar.clone(), bar, spec()).unwrap();
    let guest = run(tenant, 1);
    let (stopped, answers) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| pump(&events, &guest.interrupts, &stopped));
        // Each answer has to come once: the client takes none twice.
        scope.spawn(|| {
            while !stopped.load(Ordering::SeqCst) {
                assert_eq!(client.register32(8), 0x20100);
                answers.fetch_add(1, Ordering::SeqCst);
            }
        });
        let mut server: Option<VfioUserServer> = None;
        for round in 0..6 {
            let (from, to) = if round % 2 == 0 { (&here, &there) } else { (&there, &here) };
            let (writes, asked, raised) =
                (guest.tenant.stats().writes, answers.load(Ordering::SeqCst), guest.interrupts.raised());
            eventually("the guest works", || {
                guest.tenant.stats().writes > writes + 10
                    && answers.load(Ordering::SeqCst) > asked + 10
                    && guest.interrupts.raised() > raised
            });
            let now = server.as_ref().unwrap_or(&here.server);
            assert!(hand_over(from, now, to, true).is_none());
            let next = hand_over(from, server.as_ref().unwrap_or(&here.server), to, false);
            server = next;
        }
        assert_eq!(guest.tenant.drain(Duration::from_secs(20)).pending, 0, "a command without completion");
        let stats = guest.tenant.stop();
        stopped.store(true, Ordering::SeqCst);
        assert_eq!((stats.mismatches, stats.errors), (0, 0));
        let server = server.unwrap();
        assert_eq!(client.dma_messages() > 0, memory != Memory::Mapped);
        assert!(server.status().connected && here.socket.exists());
        server.close();
        client.wait_gone();
        assert!(!here.socket.exists(), "the last one takes the name away");
    });
    check_disk(&here);
}

#[test]
fn a_guest_at_work_with_mapped_memory_notices_nothing() {
    under_load(Memory::Mapped);
}

#[test]
fn a_guest_at_work_with_memory_by_messages_notices_nothing() {
    under_load(Memory::Messages);
}

/// A client that does not read: its answers go along, in their order, each once.
#[test]
fn answers_that_were_not_taken_go_along() {
    let (here, there) = two();
    let socket = connect(&here.socket);
    let mut hello = le(&[(0, 2), (1, 2)]);
    hello.extend(b"{\"capabilities\":{}}\0");
    send_with(&socket, &message(0, VERSION, 0, &hello), &[]);
    receive(&socket).unwrap();
    // Each answer has 4 KiB, and the socket takes some hundred KiB.
    let asked = 400u16;
    for id in 1..=asked {
        send_with(&socket, &message(id, READ, 0, &le(&[(0, 8), (7, 4), (4096, 4)])), &[]);
    }
    let settled = || here.server.status().messages == u64::from(asked) + 1;
    eventually("all were received", settled);
    let server = hand_over(&here, &here.server, &there, false).unwrap();
    send_with(&socket, &message(asked + 1, READ, 0, &le(&[(0, 8), (7, 4), (4, 4)])), &[]);
    for id in 1..=asked + 1 {
        let (header, body) = receive(&socket).unwrap();
        assert_eq!((u16::from_le_bytes([header[0], header[1]]), u32_at(&header, 8)), (id, 1));
        assert_eq!(body.len(), if id > asked { 20 } else { 16 + 4096 });
        assert_eq!(u32_at(&body, 16) & 0xffff, 0x1234);
    }
    server.close();
}

fn two() -> (Rig, Rig) {
    let here = Rig::new(Kind::Vf);
    let there = here.beside(Kind::Vf);
    there.server.close();
    (here, there)
}

#[test]
fn a_server_without_a_client_goes_with_its_listener() {
    let (here, there) = two();
    let server = hand_over(&here, &here.server, &there, false).unwrap();
    let client = Arc::new(Client::new(&here.socket, None, DmaLayout::Specified));
    assert_eq!(client.register32(8), 0x20100);
    assert_eq!((server.status().clients, here.server.status().clients), (1, 0));
    assert!(matches!(here.server.detach(), Err(HandoverError::Closed)));
    assert!(matches!(here.server.resume(), Err(HandoverError::Closed)));
    drop(server);
    client.wait_gone();
}

#[test]
fn a_hand_over_that_fails_leaves_the_first_one_serving() {
    let (here, there) = two();
    let other = here.beside(Kind::Siov);
    other.server.close();
    let client = here.ready(DmaLayout::Specified, true);
    let events = client.wire(3);
    assert!(matches!(here.server.detach(), Err(HandoverError::NotStopped(_))), "it runs");
    let mut channel = here.channel();
    channel.set_state(DeviceState::Stop).unwrap();
    // Half a message: its end comes to whom it was sent.
    let whole = message(900, READ, 0, &le(&[(8, 8), (0, 4), (4, 4)]));
    client.raw(&whole[..20], &[]);
    eventually("half a message holds it back", || match here.server.detach() {
        Err(error) => matches!(error, HandoverError::Busy(_)),
        // The half lay in the socket still, and would have gone along with it.
        Ok(_) => here.server.resume().is_err(),
    });
    client.raw(&whole[20..], &[]);
    assert_eq!(u32_at(&client.reply(900).unwrap(), 16), 0x20100);
    let fresh = || here.server.detach().unwrap();
    let Handover { fds, bytes } = fresh();
    assert!(matches!(here.server.detach(), Err(HandoverError::Closed)), "once");
    // Listener, connection, memory, three vectors.
    assert_eq!(fds.len(), 6);
    let copy = |fds: &[std::os::fd::OwnedFd]| fds.iter().map(|fd| fd.try_clone().unwrap()).collect::<Vec<_>>();
    for at in 0..bytes.len() {
        let mut wrong = bytes.clone();
        wrong[at] ^= 4;
        let result = adopt(&there, Handover { fds: copy(&fds), bytes: wrong });
        assert!(matches!(result, Err(HandoverError::Format(_))), "byte {at}");
    }
    for (what, fds) in [
        ("one too few", copy(&fds[..5])),
        ("one too many", copy(&fds).into_iter().chain(copy(&fds[..1])).collect()),
        ("in another order", copy(&fds).into_iter().rev().collect()),
    ] {
        assert!(adopt(&there, Handover { fds, bytes: bytes.clone() }).is_err(), "{what}");
    }
    let adopted = adopt(&there, Handover { fds: copy(&fds), bytes: bytes.clone() }).unwrap();
    assert_eq!((adopted.status().mapped_ranges, adopted.status().connected), (1, true));
    drop(adopted);
    assert!(here.socket.exists());
    // Not surrendered, and goes on: with its memory, its interrupts, its client.
    here.server.resume().unwrap();
    assert!(matches!(here.server.surrender(), Err(HandoverError::NotStopped(_))));
    channel.set_state(DeviceState::Running).unwrap();
    client.set_irqs(0x21, 2, 2, 1, &[]).unwrap();
    let mut raw = [0; 8];
    rustix::io::read(events[2].as_fd(), &mut raw).unwrap();
    assert_eq!(raw, 1u64.to_ne_bytes());
    // After its section it is too late: what the client does since is not in the state.
    channel.set_state(DeviceState::Stop).unwrap();
    here.server.save_section().unwrap();
    assert!(matches!(here.server.detach(), Err(HandoverError::NotStopped(_))));
    channel.set_state(DeviceState::Running).unwrap();
    assert_eq!(client.register32(8), 0x20100);
}
