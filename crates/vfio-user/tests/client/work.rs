//! A guest's driver at work through the socket.
#![allow(dead_code)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use towline_core::dirty::MarkLog;
use towline_tenant::block::{self, Found};
use towline_tenant::{RunOptions, Tenant, TenantInterrupts, TenantSpec};

use crate::client::{Answering, Bar, Client, DmaLayout, eventually, le};
use crate::rig::{MEMORY, Rig, UNITS};

/// How a client gives its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    Mapped,
    Messages,
    /// Mapped and by messages in turn, a few pages each, so that transfers cross the borders.
    Both,
}

pub fn map(rig: &Rig, client: &Client, memory: Memory) {
    let fd = Some(rig.file.as_fd());
    match memory {
        Memory::Mapped => client.map(0, MEMORY, 0, fd).unwrap(),
        Memory::Messages => client.map(0, MEMORY, 0, None).unwrap(),
        Memory::Both => {
            let piece = 0x3000;
            for (n, at) in (0..MEMORY).step_by(piece as usize).enumerate() {
                let fd = if n % 2 == 0 { fd } else { None };
                client.map(at, piece.min(MEMORY - at), at, fd).unwrap();
            }
        }
    }
    client.bus_master(true);
}

pub fn spec() -> TenantSpec {
    TenantSpec { memory_len: MEMORY, units: UNITS, working_set_pages: 64, target_iops: 1500, ..TenantSpec::default() }
}

/// Eventfds become the tenant's interrupts.
pub fn pump(events: &[OwnedFd], interrupts: &TenantInterrupts, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let mut fds: Vec<PollFd<'_>> = events.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        poll(&mut fds, Some(&timeout)).unwrap();
        for (n, fd) in fds.iter().enumerate() {
            if fd.revents().contains(PollFlags::IN) {
                rustix::io::read(&events[n], &mut [0; 8]).unwrap();
                interrupts.raise(n as u16);
            }
        }
    }
}

pub struct Outcome {
    pub commands: u64,
    pub mismatches: u64,
    pub errors: u64,
    /// Units of the disk with something that the tenant wrote, and with something else.
    pub written: usize,
    pub damaged: usize,
}

/// Boots a tenant through the socket, lets it work, and looks at its disk.
pub fn work(rig: &Rig, client: &Arc<Client>, time: Duration) -> Outcome {
    let bar = Arc::new(Bar(client.clone()));
    // A tenant expects a blank disk.
    let disk = std::fs::File::options().write(true).open(&rig.disk).unwrap();
    disk.set_len(0).unwrap();
    disk.set_len(UNITS * 4096).unwrap();
    let events = client.wire(2);
    let tenant = Tenant::boot(rig.memory.clone(), bar.clone(), bar, spec()).unwrap();
    let interrupts = Arc::new(TenantInterrupts::new());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| pump(&events, &interrupts, &stop));
        let log = std::fs::File::options().write(true).open("/dev/null").unwrap();
        let handle = tenant
            .run(
                log.into(),
                Arc::new(MarkLog::new()),
                interrupts.clone(),
                RunOptions { host_tag: 1, flush_only: false },
            )
            .unwrap();
        std::thread::sleep(time);
        // A busy machine gets the time that it needs.
        eventually("the tenant works", || {
            handle.stats().writes > 20 && handle.stats().reads > 20 && interrupts.raised() > 0
        });
        let drained = handle.drain(Duration::from_secs(20));
        let stats = handle.stop();
        stop.store(true, Ordering::SeqCst);
        assert_eq!(drained.pending, 0, "commands without completion");
        let bytes = std::fs::read(&rig.disk).unwrap();
        let units = bytes.as_chunks::<4096>().0.iter().zip(0..);
        let found: Vec<Found> = units.map(|(block, unit)| block::inspect(block, unit, spec().seed)).collect();
        Outcome {
            commands: stats.writes + stats.reads,
            mismatches: stats.mismatches,
            errors: stats.errors,
            written: found.iter().filter(|found| matches!(found, Found::Version(_))).count(),
            damaged: found.iter().filter(|found| matches!(found, Found::Invalid)).count(),
        }
    })
}

/// Sends a command that the function fetches by a DMA message which the client keeps.
pub fn with_a_command_under_way(rig: &Rig) -> Arc<Client> {
    let client = rig.ready(DmaLayout::Specified, false);
    client.answering(Answering::Hold);
    client.write(0, 0x24, &0x001f_001fu32.to_le_bytes()).unwrap();
    client.write(0, 0x28, &le(&[(0x10000, 8), (0x20000, 8)])).unwrap();
    client.write(0, 0x14, &0x0046_0001u32.to_le_bytes()).unwrap();
    eventually("CSTS.RDY", || client.register32(0x1c) & 1 == 1);
    client.post(0, 0x1000, &1u32.to_le_bytes());
    client.wait_held();
    client
}
