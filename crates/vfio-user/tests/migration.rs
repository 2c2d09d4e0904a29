//! A function on a socket that is migrated: its exposure's section, what happens to accesses meanwhile, and what becomes of interrupts.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
#[path = "client/moving.rs"]
mod moving;
#[path = "client/rig.rs"]
mod rig;
#[path = "client/work.rs"]
mod work;

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use client::*;
use moving::{check_disk, device_state, load, run};
use rig::{Kind, MEMORY, Rig};
use rustix::event::{EventfdFlags, eventfd};
use towline_core::channel::StateChannel;
use towline_core::fsm::DeviceState;
use towline_core::memory::GuestMemory;
use towline_nvme::hmlm::HmlmChannel;
use towline_tenant::Tenant;
use towline_vfio_user::{ExposureSection, SectionError};
use work::{pump, spec};

/// What an eventfd has counted since the last look.
fn count(fd: &OwnedFd) -> u64 {
    let mut raw = [0; 8];
    rustix::io::read(fd, &mut raw).map_or(0, |_| u64::from_ne_bytes(raw))
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

fn wire_one(client: &Client, vector: u32, fd: &OwnedFd) {
    client.set_irqs(0x24, 2, vector, 1, &[fd.as_fd()]).unwrap();
}

/// Raises a vector as the function does.
fn raise(client: &Client, vector: u32) {
    client.set_irqs(0x21, 2, vector, 1, &[]).unwrap();
}

fn pending(client: &Client) -> u8 {
    client.read(4, 0x1000, 1).unwrap()[0]
}

/// Stops the function of `from` and takes all that a session would take.
fn stop(from: &Rig) -> (HmlmChannel, Vec<u8>, Vec<u8>) {
    let mut channel = from.channel();
    channel.set_state(DeviceState::Stop).unwrap();
    let section = from.server.save_section().unwrap();
    let state = device_state(&mut channel);
    (channel, section, state)
}

fn copy_memory(from: &Rig, to: &Rig) {
    let mut page = vec![0; 1 << 20];
    for at in (0..MEMORY).step_by(page.len()) {
        from.memory.read(at, &mut page).unwrap();
        to.memory.write(at, &page).unwrap();
    }
}

const CONFIG: u32 = 7;
const BAR0: [u8; 8] = [0, 0, 0, 0xfe, 1, 0, 0, 0];

/// The guest has set something everywhere, vector 0 is wired, and 1, 2 and 3 are pending, of which 1 was masked by its VMM.
fn prepared(from: &Rig) -> Arc<Client> {
    let client = from.ready(DmaLayout::Specified, true);
    client.write(CONFIG, 0x10, &BAR0).unwrap();
    client.write(CONFIG, 0x3c, &[11]).unwrap();
    client.write(CONFIG, 0xb2, &[0, 0x80]).unwrap();
    wire_one(&client, 0, &event());
    let masked = event();
    wire_one(&client, 1, &masked);
    raise(&client, 1);
    assert_eq!(count(&masked), 1);
    client.set_irqs(0x24, 2, 1, 1, &[]).unwrap();
    (1..4).for_each(|vector| raise(&client, vector));
    assert_eq!(pending(&client), 0b1110);
    client
}

/// What a guest finds at the destination; the oracle of both orders.
fn found(client: &Client) -> (Vec<u8>, Vec<u8>, u32, u32) {
    let read = |at, len| client.read(CONFIG, at, len).unwrap();
    (read(0x10, 8), read(0x3c, 1), u32_at(&read(4, 4), 0) & 0xffff, u32_at(&read(0xb0, 4), 0) >> 16)
}

#[test]
fn a_client_that_is_there_before_finds_the_function_as_it_was() {
    for kind in [Kind::Pf, Kind::Vf, Kind::Siov] {
        let from = Rig::new(kind);
        let to = from.beside(kind);
        assert_eq!(from.server.section_format(), to.server.section_format(), "{kind:?}");
        let guest = prepared(&from);
        let before = found(&guest);
        // Memory and eventfds are there before the state is.
        let other = to.client(DmaLayout::Specified);
        other.map(0, MEMORY, 0, Some(to.file.as_fd())).unwrap();
        let wired = [event(), event(), event()];
        wired.iter().zip(0..).for_each(|(fd, vector)| wire_one(&other, vector, fd));
        let (_source, section, state) = stop(&from);
        let mut channel = to.channel();
        assert!(matches!(to.server.restore_section(&section), Err(SectionError::NotStopped(_))), "it runs");
        load(&mut channel, &state);
        to.server.restore_section(&section).unwrap();
        assert_eq!(wired.each_ref().map(count), [0, 0, 0], "nothing fires before the function runs");
        channel.set_state(DeviceState::Running).unwrap();
        // In their order: the others have fired by now.
        eventually("pending vectors fire", || pending(&other) == 0b1000);
        assert_eq!(wired.each_ref().map(count), [0, 1, 1], "each once, and none else");
        let late = event();
        wire_one(&other, 3, &late);
        assert_eq!((count(&late), pending(&other)), (1, 0), "the last one fires when it is wired");
        assert_eq!(found(&other), before, "{kind:?}");
        assert_eq!(before.0, [4, 0, 0, 0xfe, 1, 0, 0, 0]);
    }
}

#[test]
fn a_client_that_comes_later_finds_the_function_as_it_was() {
    let from = Rig::new(Kind::Vf);
    let to = from.beside(Kind::Vf);
    let guest = prepared(&from);
    let before = found(&guest);
    let (_source, section, state) = stop(&from);
    let mut channel = to.channel();
    load(&mut channel, &state);
    to.server.restore_section(&section).unwrap();
    channel.set_state(DeviceState::Running).unwrap();
    let other = to.client(DmaLayout::Specified);
    other.map(0, MEMORY, 0, Some(to.file.as_fd())).unwrap();
    assert_eq!(found(&other), before);
    let wired = [event(), event(), event(), event()];
    wired.iter().zip(0..).for_each(|(fd, vector)| wire_one(&other, vector, fd));
    assert_eq!(wired.each_ref().map(count), [0; 4], "it does nothing before its client says that memory is there");
    // As a VMM does once it has restored everything.
    other.write(CONFIG, 4, &(before.2 as u16).to_le_bytes()).unwrap();
    let mut fired = [0; 4];
    eventually("each has fired", || {
        fired.iter_mut().zip(&wired).for_each(|(sum, fd)| *sum += count(fd));
        fired == [0, 1, 1, 1]
    });
    // The next client finds it reset, as ever.
    drop(other);
    eventually("the client is gone", || !to.server.status().connected);
    let next = to.client(DmaLayout::Specified);
    assert_eq!(found(&next), (vec![4, 0, 0, 0, 0, 0, 0, 0], vec![0], 0, before.3 & 0x7ff));
}

/// The counterpart: a section that loses a masked vector which is pending is noticed by the same look, and damage is refused.
#[test]
fn a_vector_that_is_lost_is_noticed_and_damage_is_refused() {
    let from = Rig::new(Kind::Vf);
    let to = from.beside(Kind::Vf);
    // A client that has gone leaves nothing behind for the section.
    drop(prepared(&from));
    eventually("the client is gone", || !from.server.status().connected);
    let (mut source, section, _) = stop(&from);
    let left = ExposureSection::decode(&section).unwrap();
    assert_eq!((left.config.command, left.config.bar0, left.pending), (0, 4, vec![0]));
    source.set_state(DeviceState::Running).unwrap();
    let client = prepared(&from);
    let (_source, section, state) = stop(&from);
    let mut channel = to.channel();
    load(&mut channel, &state);
    let other = to.ready(DmaLayout::Specified, true);
    for at in 0..section.len() {
        let mut wrong = section.clone();
        wrong[at] ^= 0x10;
        assert!(matches!(to.server.restore_section(&wrong), Err(SectionError::Format(_))), "byte {at}");
    }
    let decoded = ExposureSection::decode(&section).unwrap();
    assert_eq!((decoded.wired.clone(), decoded.pending.clone()), (vec![1], vec![0b1110]));
    let mut misfits = vec![decoded.clone(); 3];
    misfits[0].identity.vectors += 1;
    misfits[1].identity.device ^= 1;
    misfits[2].config.bar0 |= 0x10;
    for misfit in misfits {
        assert!(matches!(to.server.restore_section(&misfit.encode()), Err(SectionError::Mismatch(_))), "{misfit:?}");
    }
    assert_eq!(found(&other).0, [4, 0, 0, 0, 0, 0, 0, 0], "nothing has changed");
    let lossy = ExposureSection { pending: vec![0b1100], ..decoded };
    to.server.restore_section(&lossy.encode()).unwrap();
    channel.set_state(DeviceState::Running).unwrap();
    eventually("some are pending", || pending(&other) != 0);
    assert_ne!(pending(&other), pending(&client), "one was lost");
}

/// A destination that rolls back: the function is as after a reset, and can be offered again.
#[test]
fn a_section_can_be_taken_back() {
    let from = Rig::new(Kind::Vf);
    let to = from.beside(Kind::Vf);
    let client = prepared(&from);
    let other = to.client(DmaLayout::Specified);
    let reset = found(&other);
    for _ in 0..2 {
        let (mut source, section, state) = stop(&from);
        let mut channel = to.channel();
        load(&mut channel, &state);
        to.server.restore_section(&section).unwrap();
        assert_ne!(found(&other), reset);
        channel.reset().unwrap();
        to.server.forget_section();
        assert_eq!((found(&other), pending(&other)), (reset.clone(), 0));
        source.set_state(DeviceState::Running).unwrap();
        assert_eq!(pending(&client), 0b1110, "nothing is lost at the source");
    }
}

/// Sets the controller going, by its registers.
fn enable(client: &Client) {
    client.write(0, 0x24, &0x001f_001fu32.to_le_bytes()).unwrap();
    client.write(0, 0x28, &le(&[(0x10000, 8), (0x20000, 8)])).unwrap();
    client.write(0, 0x14, &0x0046_0001u32.to_le_bytes()).unwrap();
    eventually("CSTS.RDY", || client.register32(0x1c) & 1 == 1);
}

/// Puts Identify Controller into slot `n` of the admin queue, without its doorbell.
fn identify(rig: &Rig, n: u64) {
    let mut entry = vec![0; 64];
    entry[0] = 6;
    entry[2] = n as u8 + 1;
    entry[24..32].copy_from_slice(&0x30000u64.to_le_bytes());
    entry[40] = 1;
    rig.memory.write(0x10000 + n * 64, &entry).unwrap();
}

fn completed(rig: &Rig, n: u64) -> bool {
    let mut entry = [0; 16];
    rig.memory.read(0x20000 + n * 16, &mut entry).unwrap();
    entry[12] == n as u8 + 1
}

#[test]
fn what_is_written_while_it_is_stopped_is_done_once_it_runs_again() {
    let rig = Rig::new(Kind::Vf);
    let client = rig.ready(DmaLayout::Specified, true);
    enable(&client);
    let (mut channel, ..) = stop(&rig);
    identify(&rig, 0);
    client.post(0, 0x1000, &1u32.to_le_bytes());
    client.write(0, 0x0c, &0x10u32.to_le_bytes()).unwrap();
    assert_eq!(client.register32(0x0c), 0, "registers are as they were");
    // Config space, interrupts and memory are served.
    client.write(CONFIG, 0x3c, &[7]).unwrap();
    assert_eq!(client.config32(0x3c) & 0xff, 7);
    client.wire(2);
    client.map(1 << 32, 0x1000, 0, None).unwrap();
    client.unmap(1 << 32, 0x1000).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!completed(&rig, 0), "nothing is executed");
    channel.set_state(DeviceState::Running).unwrap();
    eventually("the doorbell was not lost", || completed(&rig, 0));
    assert_eq!(client.register32(0x0c), 0x10);
    // And once more: nothing of the first time is left.
    let (mut channel, ..) = stop(&rig);
    channel.set_state(DeviceState::Running).unwrap();
    identify(&rig, 1);
    client.post(0, 0x1000, &2u32.to_le_bytes());
    eventually("it goes on", || completed(&rig, 1));
}

#[test]
fn resets_wait_and_nobody_else_gets_in() {
    let rig = Rig::new(Kind::Vf);
    let client = rig.ready(DmaLayout::Specified, true);
    enable(&client);
    let (mut channel, ..) = stop(&rig);
    let answered = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (client, done) = (&client, &answered);
        scope.spawn(move || {
            client.call(RESET, &[], &[]).unwrap();
            done.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(Duration::from_millis(50));
        assert!(!answered.load(Ordering::SeqCst) && rig.controller.suspended());
        channel.set_state(DeviceState::Running).unwrap();
    });
    assert_eq!(client.register32(0x1c), 0, "now it is reset");
    client.bus_master(true);
    enable(&client);
    // A client that goes meanwhile: its function keeps what it is about to give away.
    let (mut channel, _, state) = stop(&rig);
    drop(client);
    eventually("the client is gone", || !rig.server.status().connected);
    let clients = rig.server.status().clients;
    let next = connect(&rig.socket);
    send_with(&next, &message(1, VERSION, 0, &le(&[(0, 2), (1, 2)])), &[]);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(rig.server.status().clients, clients, "nobody is let in");
    assert_eq!(device_state(&mut channel), state);
    channel.set_state(DeviceState::Running).unwrap();
    receive(&next).unwrap();
    assert_eq!(rig.server.status().clients, clients + 1);
    eventually("it was reset for the next one", || !rig.controller.suspended());
    let mut csts = [0xff; 4];
    rig.controller.synthesised_registers().read(0x1c, &mut csts);
    assert_eq!(csts, [0; 4]);
}

#[test]
fn after_a_commit_the_source_executes_nothing() {
    let from = Rig::new(Kind::Vf);
    let to = from.beside(Kind::Vf);
    let client = from.ready(DmaLayout::Specified, true);
    enable(&client);
    let (_source, section, state) = stop(&from);
    let mut channel = to.channel();
    load(&mut channel, &state);
    to.server.restore_section(&section).unwrap();
    channel.set_state(DeviceState::Running).unwrap();
    identify(&from, 0);
    client.post(0, 0x1000, &1u32.to_le_bytes());
    client.post(0, 0x14, &0u32.to_le_bytes());
    client.post(0, 0x14, &0x0046_0001u32.to_le_bytes());
    client.post(0, 0x1000, &1u32.to_le_bytes());
    assert_eq!(client.register32(0x1c) & 1, 1);
    from.server.close();
    client.wait_gone();
    assert!(!completed(&from, 0));
    assert!(try_connect(&from.socket).is_err(), "its socket is gone");
}

/// A tenant whose vCPU never stops loses nothing by a migration that is rolled back, five times over; then it is paused and goes.
#[test]
fn a_tenant_at_work_is_rolled_back_and_then_moved() {
    let from = Rig::new(Kind::Vf);
    let to = from.beside(Kind::Vf);
    let client = from.ready(DmaLayout::Specified, true);
    let events = client.wire(2);
    let bar = Arc::new(Bar(client.clone()));
    let tenant = Tenant::boot(from.memory.clone(), bar.clone(), bar, spec()).unwrap();
    let stopped = AtomicBool::new(false);
    let guest = run(tenant, 1);
    std::thread::scope(|scope| {
        scope.spawn(|| pump(&events, &guest.interrupts, &stopped));
        for _ in 0..5 {
            let before = guest.tenant.stats().writes;
            eventually("the tenant works", || guest.tenant.stats().writes > before + 20);
            let (mut channel, ..) = stop(&from);
            std::thread::sleep(Duration::from_millis(20));
            channel.set_state(DeviceState::Running).unwrap();
        }
        // It rings its last doorbells without waiting for anybody.
        guest.tenant.pause();
        let (_source, section, state) = stop(&from);
        stopped.store(true, Ordering::SeqCst);
        copy_memory(&from, &to);
        let other = to.client(DmaLayout::Specified);
        other.map(0, MEMORY, 0, Some(to.file.as_fd())).unwrap();
        let events = other.wire(2);
        let mut channel = to.channel();
        load(&mut channel, &state);
        to.server.restore_section(&section).unwrap();
        let bar = Arc::new(Bar(other.clone()));
        let moved = Tenant::attach(to.memory.clone(), bar.clone(), bar, 0, spec().doorbell_base).unwrap();
        channel.set_state(DeviceState::Running).unwrap();
        let (there, stopped) = (run(moved, 2), AtomicBool::new(false));
        std::thread::scope(|scope| {
            scope.spawn(|| pump(&events, &there.interrupts, &stopped));
            eventually("the tenant works there", || there.tenant.stats().writes > 20);
            assert_eq!(there.tenant.drain(Duration::from_secs(20)).pending, 0, "a command without completion");
            let stats = there.tenant.stop();
            stopped.store(true, Ordering::SeqCst);
            assert_eq!((stats.mismatches, stats.errors), (0, 0));
        });
        let stats = guest.tenant.stop();
        assert_eq!((stats.mismatches, stats.errors), (0, 0));
    });
    check_disk(&to);
}
