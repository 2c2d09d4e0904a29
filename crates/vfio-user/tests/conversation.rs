//! What the server says to a client that asks, well or badly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
#[path = "client/rig.rs"]
mod rig;

use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use client::*;
use rig::{Kind, MEMORY, Rig};
use towline_core::bar::{Access, BarTarget, DefaultAction, Fill, Policy, Rule};
use towline_core::memory::GuestMemory;
use towline_linux::memory::memfd;
use towline_nvme::resources::{Resource, VirtualizationAction};
use towline_vfio_user::nvme::{NvmeFunction, NvmeFunctionError, NvmeFunctionOptions};
use towline_vfio_user::{ServerError, ServerOptions, VfioUserListener, VfioUserServer};

/// What QEMU asks before it accepts a device, in its order.
#[test]
fn what_a_stock_client_asks_at_first() {
    for kind in [Kind::Controlling, Kind::Pf, Kind::Vf, Kind::Siov] {
        let rig = Rig::new(kind);
        let client = rig.client(DmaLayout::Qemu);
        client.map(0, 0xa0000, 0, Some(rig.file.as_fd())).unwrap();
        client.map(0xc_0000, 0x2_0000, 0, None).unwrap();
        let info = client.call(GET_INFO, &le(&[(16, 4), (0, 4), (0, 4), (0, 4)]), &[]).unwrap();
        assert_eq!(info.len(), 16);
        assert_eq!((u32_at(&info, 4), u32_at(&info, 8), u32_at(&info, 12)), (3, 9, 5), "reset and PCI");
        let region = |index: u64| {
            let ask = le(&[(32, 4), (0, 4), (index, 4), (0, 4), (0, 8), (0, 8)]);
            client.call(REGION_INFO, &ask, &[]).map(|answer| (u32_at(&answer, 4), u64_at(&answer, 16)))
        };
        let bar0 = if kind == Kind::Controlling { rig.subsystem.parent_bar_bytes() } else { 0x2000 };
        assert_eq!(region(0), Ok((3, bar0)));
        assert_eq!(region(4), Ok((3, 0x2000)));
        assert_eq!(region(7), Ok((3, 4096)));
        for absent in [1, 2, 3, 5, 6, 8] {
            assert_eq!(region(absent), Ok((0, 0)));
        }
        assert_eq!(region(9), Err(EINVAL));
        let vectors = if matches!(kind, Kind::Vf | Kind::Siov) { 4 } else { 9 };
        let irq = |index: u64| {
            let answer = client.call(IRQ_INFO, &le(&[(16, 4), (0, 4), (index, 4), (0, 4)]), &[]);
            answer.map(|answer| u32_at(&answer, 12))
        };
        assert_eq!((0..6).map(irq).collect::<Vec<_>>(), [Ok(0), Ok(0), Ok(vectors), Err(EINVAL), Ok(0), Err(EINVAL)]);
        let config = client.read(7, 0, 4096).unwrap();
        assert_eq!(config[9..12], [0x02, 0x08, 0x01], "class");
        assert_eq!(config[0x3d], 0, "no pin");
        let msix = (0x40..0x100).find(|at| config[*at] == 0x11 && config[at + 1] == 0).unwrap();
        assert_eq!(u32::from(u16::from_le_bytes([config[msix + 2], config[msix + 3]])) + 1, vectors);
        assert!(config[0x100..].iter().all(|b| *b == 0));
        // CAP: the registers answer.
        assert_eq!(client.register32(4) & 1 << 5, 1 << 5, "NVM command set");
        assert_eq!(client.call(RESET, &[], &[]), Ok(vec![]));
        assert_eq!(rig.server.status().mapped_ranges, 1);
        assert_eq!(rig.server.status().message_ranges, 1);
    }
}

#[test]
fn what_is_not_there_is_refused_and_its_body_is_read() {
    let rig = Rig::new(Kind::Pf);
    let client = rig.client(DmaLayout::Specified);
    for command in [0, 6, DMA_READ, DMA_WRITE, 14, FEATURE, 17, 18, 19, 77, u16::MAX] {
        for len in [0, 8, 40, 5000] {
            assert_eq!(client.call(command, &vec![0xa5; len], &[]), Err(ENOTSUP), "command {command}");
        }
    }
    assert_eq!(client.call(VERSION, &le(&[(0, 2), (0, 2)]), &[]), Err(EINVAL), "once only");
    assert_eq!(client.call(RESET, &[1], &[]), Err(EINVAL));
    assert_eq!(client.config32(8) >> 8, 0x01_0802, "and the stream is still in step");
}

#[test]
fn wrong_lengths_regions_and_flags_are_refused() {
    let rig = Rig::new(Kind::Pf);
    let client = rig.client(DmaLayout::Specified);
    for command in [DMA_MAP, DMA_UNMAP, GET_INFO, REGION_INFO, IRQ_INFO, SET_IRQS, READ, WRITE, MULTI] {
        for len in [0, 1, 3, 7, 11, 15] {
            assert_eq!(client.call(command, &vec![0; len], &[]), Err(EINVAL), "command {command} of {len} bytes");
        }
    }
    assert_eq!(client.read(7, 4095, 2), Err(EINVAL), "beyond the end");
    assert_eq!(client.read(7, u64::MAX, 1), Err(EINVAL));
    assert_eq!(client.read(1, 0, 4), Err(EINVAL), "absent");
    assert_eq!(client.read(9, 0, 4), Err(EINVAL));
    assert_eq!(client.write(u32::MAX, 0, &[0]), Err(EINVAL));
    assert_eq!(client.write(0, 0x2000, &[0; 4]), Err(EINVAL));
    for (id, flags) in [(0x7000, 1 << 6), (0x7001, 1 << 31), (0x7002, 1 << 5)] {
        client.raw(&message(id, READ, flags, &le(&[(0, 8), (7, 4), (4, 4)])), &[]);
        assert_eq!(client.reply(id), Err(EINVAL), "flags {flags:#x}");
    }
    assert_eq!(client.config32(8) >> 8, 0x01_0802);
}

/// Bytes after which no message can be found: the connection ends, and the next client is served.
#[test]
fn what_is_no_message_ends_the_connection() {
    let rig = Rig::new(Kind::Pf);
    let header = |size: u64, flags: u64| le(&[(1, 2), (9, 2), (size, 4), (flags, 4), (0, 4)]);
    let fd = rig.file.as_fd();
    let many = vec![fd; 17];
    type Sends<'a> = Box<dyn Fn(&Client) + 'a>;
    let cases: Vec<(&str, bool, Sends<'_>)> = vec![
        ("a size below the header's", true, Box::new(|c| c.raw(&header(15, 0), &[]))),
        ("a size beyond the cap", true, Box::new(|c| c.raw(&header(2 << 20, 0), &[]))),
        ("a type that is none", true, Box::new(|c| c.raw(&header(16, 2), &[]))),
        ("an answer to nothing", true, Box::new(|c| c.raw(&header(16, 1), &[]))),
        ("too many descriptors", true, Box::new(|c| c.raw(&header(16, 0), &many))),
        ("no VERSION first", false, Box::new(|c| c.raw(&message(1, GET_INFO, 0, &[0; 16]), &[]))),
        ("another major version", false, Box::new(|c| c.raw(&message(1, VERSION, 0, &le(&[(1, 2), (0, 2)])), &[]))),
        ("a VERSION without numbers", false, Box::new(|c| c.raw(&message(1, VERSION, 0, &[0]), &[]))),
        ("capabilities that are none", false, Box::new(|c| c.raw(&message(1, VERSION, 0, b"\0\0\0\0{]\0"), &[]))),
    ];
    let clients = cases.len() as u64;
    for (what, greeted, send) in cases {
        let client = if greeted {
            rig.client(DmaLayout::Specified)
        } else {
            Arc::new(Client::silent(&rig.socket, None, DmaLayout::Specified))
        };
        send(&client);
        client.wait_gone();
        eventually(what, || !rig.server.status().connected);
        let error = rig.server.status().last_error.unwrap();
        assert!(!error.contains("has closed"), "{what}: {error}");
    }
    assert_eq!(rig.client(DmaLayout::Specified).config32(8) >> 8, 0x01_0802);
    assert_eq!(rig.server.status().clients, clients + 1);
}

#[test]
fn ranges_of_memory() {
    let rig = Rig::new(Kind::Pf);
    let client = rig.client(DmaLayout::Specified);
    let fd = Some(rig.file.as_fd());
    client.map(0x10000, 0x10000, 0, fd).unwrap();
    assert_eq!(client.map(0x1f000, 0x2000, 0, fd), Err(EEXIST));
    assert_eq!(client.map(0x8000, 0x9000, 0, None), Err(EEXIST));
    assert_eq!(client.map(0x40000, 0x1000, MEMORY, fd), Err(EINVAL), "beyond the file");
    client.map(0x20000, 0x1000, 0x5000, None).unwrap();
    let ranges = || rig.server.status().mapped_ranges + rig.server.status().message_ranges;
    for (address, size) in [(0x10000, 0xf000), (0x11000, 0x10000), (0x14000, 0x1000), (0xf000, 0x2000)] {
        assert_eq!(client.unmap(address, size), Err(EINVAL), "ranges are taken whole: {address:#x} {size:#x}");
    }
    assert_eq!(ranges(), 2);
    client.unmap(0x10000, 0x10000).unwrap();
    assert_eq!(ranges(), 1);
    client.unmap(0x10000, 0x10000).unwrap();
    assert_eq!(ranges(), 1, "nothing there is no error");
    // Several at once, as a guest's invalidation does it.
    client.map(0x21000, 0x1000, 0, fd).unwrap();
    client.map(0x30000, 0x1000, 0, None).unwrap();
    client.unmap(0, 0x30000).unwrap();
    assert_eq!(ranges(), 1);
    client.unmap(0, 1 << 48).unwrap();
    assert_eq!(ranges(), 0);
    // A file that can shrink is not mapped, and serves all the same.
    let shrinkable = tempfile();
    client.map(0x100_0000, 0x1000, 0, Some(shrinkable.as_fd())).unwrap();
    assert_eq!((rig.server.status().mapped_ranges, rig.server.status().message_ranges), (0, 1));
    // Everything at once.
    let all = le(&[(24, 4), (2, 4), (0, 8), (0, 8)]);
    assert_eq!(client.call(DMA_UNMAP, &all, &[]), Ok(all));
    assert_eq!((rig.server.status().mapped_ranges, rig.server.status().message_ranges), (0, 0));
    // As many as are allowed, and no more.
    for n in 0..4096 {
        client.map(n * 0x1000, 0x1000, 0, None).unwrap();
    }
    assert_eq!(client.map(4096 * 0x1000, 0x1000, 0, None), Err(28), "ENOSPC");
}

fn tempfile() -> std::fs::File {
    let path = std::env::temp_dir().join(format!("towline-vu-shrinkable-{}", std::process::id()));
    let file = std::fs::File::options().create(true).truncate(true).read(true).write(true).open(&path).unwrap();
    file.set_len(0x10000).unwrap();
    std::fs::remove_file(path).unwrap();
    file
}

/// The firmware of a PC unmaps and maps its memory again and again: that has to be cheap.
#[test]
fn remapping_is_cheap() {
    let rig = Rig::new(Kind::Pf);
    let client = rig.client(DmaLayout::Qemu);
    let start = std::time::Instant::now();
    for _ in 0..200 {
        client.map(0, MEMORY, 0, Some(rig.file.as_fd())).unwrap();
        client.unmap(0, MEMORY).unwrap();
    }
    assert!(start.elapsed() < std::time::Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn interrupts_are_wired_as_the_kernel_does_it() {
    let rig = Rig::new(Kind::Pf);
    let client = rig.client(DmaLayout::Specified);
    let events = client.wire(3);
    let count = |n: usize| {
        let mut raw = [0; 8];
        rustix::io::read(&events[n], &mut raw).map_or(0, |_| u64::from_ne_bytes(raw))
    };
    client.set_irqs(0x21, 2, 1, 2, &[]).unwrap();
    assert_eq!((count(0), count(1), count(2)), (0, 1, 1), "raised by software");
    let bools = [le(&[(23, 4), (0x22, 4), (2, 4), (0, 4), (3, 4)]), vec![1, 0, 1]].concat();
    client.call(SET_IRQS, &bools, &[]).unwrap();
    assert_eq!((count(0), count(1), count(2)), (1, 0, 1));
    // Taken away: pending, and shown by the pending bits.
    client.set_irqs(0x24, 2, 1, 1, &[]).unwrap();
    client.set_irqs(0x21, 2, 0, 9, &[]).unwrap();
    assert_eq!((count(0), count(1), count(2)), (1, 0, 1));
    assert_eq!(client.read(4, 0x1000, 8).unwrap(), [0xfa, 1, 0, 0, 0, 0, 0, 0]);
    let again = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
    client.set_irqs(0x24, 2, 1, 1, &[again.as_fd()]).unwrap();
    let mut raw = [0; 8];
    assert_eq!(rustix::io::read(&again, &mut raw), Ok(8), "what was pending");
    client.set_irqs(0x21, 2, 0, 0, &[]).unwrap();
    client.set_irqs(0x21, 2, 0, 1, &[]).unwrap();
    assert_eq!(count(0), 0, "all are disabled");
    for (flags, index, start, vectors) in
        [(0x24, 2, 0, 10), (0x24, 2, 9, 1), (0x21, 2, 10, 1), (0x24, 0, 0, 1), (0x24, 5, 0, 0)]
    {
        assert_eq!(client.set_irqs(flags, index, start, vectors, &[]), Err(EINVAL));
    }
    let (pipe, _writer) = std::io::pipe().unwrap();
    assert_eq!(client.set_irqs(0x24, 2, 0, 1, &[pipe.as_fd()]), Err(EINVAL), "no eventfd");
    assert_eq!(client.set_irqs(0x24, 2, 0, 2, &[again.as_fd()]), Err(EINVAL), "one is missing");
    assert_eq!(client.set_irqs(0x21 ^ 0x20 ^ 8, 2, 0, 1, &[]), Err(25), "ENOTTY: masks are in the table");
}

/// Vectors that were assigned while no client was there, before the first one and between two.
#[test]
fn a_client_finds_the_vectors_of_now() {
    let rig = Rig::new(Kind::Vf);
    let (admin, cntlid) = (rig.admin.as_ref().unwrap(), rig.controller.cntlid());
    for vectors in [6, 2, 5] {
        let manage = |action, resource, count| admin.virtualization_manage(action, cntlid, resource, count).unwrap();
        manage(VirtualizationAction::Offline, Resource::Queues, 0);
        manage(VirtualizationAction::Assign, Resource::Queues, 2);
        manage(VirtualizationAction::Assign, Resource::Interrupts, vectors);
        manage(VirtualizationAction::Online, Resource::Queues, 0);
        let client = rig.client(DmaLayout::Specified);
        let info = client.call(IRQ_INFO, &le(&[(16, 4), (0, 4), (2, 4), (0, 4)]), &[]).unwrap();
        assert_eq!(u32_at(&info, 12), u32::from(vectors));
        let mut at = client.config32(0x34) & 0xff;
        while client.config32(at.into()) & 0xff != 0x11 {
            at = client.config32(at.into()) >> 8 & 0xff;
            assert_ne!(at, 0, "no MSI-X capability");
        }
        assert_eq!((client.config32(at.into()) >> 16 & 0x7ff) + 1, u32::from(vectors), "MSI-X table size");
        drop(client);
        eventually("the client is gone", || !rig.server.status().connected);
    }
}

#[test]
fn posted_and_multiple_writes_keep_their_order() {
    let rig = Rig::new(Kind::Pf);
    let client = rig.client(DmaLayout::Specified);
    for n in 0..500u32 {
        client.post(0, 0x28, &(n << 12).to_le_bytes());
    }
    assert_eq!(client.register32(0x28), 499 << 12);
    let mut body = le(&[(3, 8)]);
    for (at, len, data) in [(0x28, 4, 0x1000), (0x2c, 4, 7), (0x30, 8, 0x9_8000)] {
        body.extend(le(&[(at, 8), (0, 4), (len, 4), (data, 8)]));
    }
    assert_eq!(client.call(MULTI, &body, &[]), Ok(le(&[(3, 8)])));
    assert_eq!(client.read(0, 0x28, 16).unwrap(), le(&[(0x7_0000_1000, 8), (0x9_8000, 8)]));
    // One that is wrong: nothing is written.
    let mut body = le(&[(2, 8)]);
    body.extend(le(&[(0x28, 8), (0, 4), (4, 4), (0, 8), (0x2000, 8), (0, 4), (4, 4), (0, 8)]));
    assert_eq!(client.call(MULTI, &body, &[]), Err(EINVAL));
    assert_eq!(client.register32(0x28), 0x1000);
}

#[test]
fn a_filter_stands_before_the_bar() {
    let build = |bytes: u64| {
        let hidden = Rule::deny("version", 8, 4, Fill::Zeros).on(Access::Read);
        let policy = Policy::new(bytes).otherwise(DefaultAction::Pass).rule(hidden);
        NvmeFunctionOptions { filter: Some(Arc::new(policy.compile().unwrap())), ..Default::default() }
    };
    let rig = Rig::with(Kind::Pf, &build(0x2000), ServerOptions::default());
    let client = rig.client(DmaLayout::Specified);
    assert_eq!(client.register32(8), 0);
    assert_ne!(client.register32(0), 0);
    let without = Rig::new(Kind::Pf);
    assert_ne!(without.client(DmaLayout::Specified).register32(8), 0, "it is the filter that hides it");
    let cntlid = without.controller.cntlid();
    let refused = NvmeFunction::new(&without.subsystem, cntlid, &build(0x4000)).err();
    assert!(matches!(refused, Some(NvmeFunctionError::FilterSize { filter_bytes: 0x4000, bar_bytes: 0x2000 })));
    let mapped = NvmeFunctionOptions { map_doorbells: true, ..Default::default() };
    let refused = NvmeFunction::new(&without.subsystem, cntlid, &mapped).err();
    assert!(matches!(refused, Some(NvmeFunctionError::MapDoorbells)));
    let refused = NvmeFunction::new(&without.subsystem, 999, &NvmeFunctionOptions::default()).err();
    assert!(matches!(refused, Some(NvmeFunctionError::NoController { cntlid: 999 })));
}

#[test]
fn the_socket() {
    let rig = Rig::new(Kind::Pf);
    assert_eq!(std::fs::metadata(&rig.socket).unwrap().permissions().mode() & 0o777, 0o600);
    let start = |path: &std::path::Path| {
        let other = NvmeFunction::new(&rig.subsystem, 1, &NvmeFunctionOptions::default()).unwrap();
        VfioUserServer::start(path, Arc::new(other), ServerOptions::default())
    };
    assert!(matches!(start(&rig.socket).err(), Some(ServerError::Exists { .. })), "somebody listens");
    assert!(matches!(start(&rig.disk).err(), Some(ServerError::Exists { .. })), "no socket");
    // One at a time: another one is told at once, the first does not notice, and afterwards the next is welcome.
    let client = rig.client(DmaLayout::Specified);
    let other = Client::silent(&rig.socket, None, DmaLayout::Specified);
    other.wait_gone();
    assert_eq!(client.config32(8) >> 8, 0x01_0802);
    drop(client);
    eventually("the first is gone", || !rig.server.status().connected);
    let client = rig.client(DmaLayout::Specified);
    // Closing ends the connection and takes the socket away; a dead process's socket is replaced.
    rig.server.close();
    client.wait_gone();
    assert!(!rig.socket.exists());
    drop(std::os::unix::net::UnixListener::bind(&rig.socket).unwrap());
    let second = start(&rig.socket).unwrap();
    // A file that somebody put there meanwhile is not ours to remove.
    std::fs::remove_file(&rig.socket).unwrap();
    std::fs::write(&rig.socket, "mine").unwrap();
    second.close();
    assert_eq!(std::fs::read(&rig.socket).unwrap(), b"mine");
    std::fs::remove_file(&rig.socket).unwrap();
}

/// Who comes at once after another one has gone is the next, whether or not the server has noticed yet.
#[test]
fn one_after_the_other_without_a_pause() {
    let rig = Rig::new(Kind::Vf);
    for round in 0..300 {
        let client = rig.client(DmaLayout::Specified);
        if round % 2 == 0 {
            // It leaves with answers under way.
            (0..8).for_each(|_| client.raw(&message(7, READ, 0, &le(&[(0, 8), (7, 4), (4, 4)])), &[]));
        }
    }
    assert_eq!(rig.server.status().clients, 300);
}

/// Sends messages until nobody takes them, then reads to the end. Answers how that was.
fn flood(socket: UnixStream) -> std::io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let asks = message(7, READ, 0, &le(&[(0, 8), (7, 4), (4, 4)])).repeat(64);
    let refused = loop {
        if let Err(error) = (&socket).write_all(&asks) {
            break error;
        }
    };
    // Whichever call is next is told of a reset.
    if refused.kind() != std::io::ErrorKind::BrokenPipe {
        return Err(refused);
    }
    std::io::copy(&mut &socket, &mut std::io::sink()).map(|_| ())
}

/// QEMU's client ends its guest where a connection ends with `ECONNRESET`, which the kernel says where something was left unread.
#[test]
fn whoever_is_sent_away_finds_the_end_of_the_stream() {
    let flooding = |socket: UnixStream| thread::spawn(move || flood(socket));
    for _ in 0..20 {
        let rig = Rig::new(Kind::Vf);
        let served = connect(&rig.socket);
        (&served).write_all(&message(1, VERSION, 0, &le(&[(0, 2), (0, 2)]))).unwrap();
        eventually("it is served", || rig.server.status().messages == 1);
        let turned_away: Vec<_> = (0..4).map(|_| flooding(connect(&rig.socket))).collect();
        for socket in turned_away {
            socket.join().unwrap().expect("turned away");
        }
        let served = flooding(served);
        eventually("its messages come in", || rig.server.status().messages > 1000);
        rig.server.close();
        served.join().unwrap().expect("served until the server was closed");
        // Those whom nobody has accepted.
        let listener = VfioUserListener::bind(&rig.socket).unwrap();
        let waiting: Vec<_> = (0..4).map(|_| flooding(connect(&rig.socket))).collect();
        thread::sleep(Duration::from_millis(1));
        drop(listener);
        for socket in waiting {
            socket.join().unwrap().expect("not accepted");
        }
    }
}

/// What can be refused is refused before the function is taken from whoever uses it.
#[test]
fn a_refused_socket_takes_no_function() {
    let rig = Rig::new(Kind::Vf);
    let used = || {
        let mut raw = [0; 4];
        BarTarget::read(&*rig.controller, 0x28, &mut raw);
        u32::from_le_bytes(raw)
    };
    BarTarget::write(&*rig.controller, 0x28, &0x7000u32.to_le_bytes());
    let cntlid = rig.controller.cntlid();
    let options = NvmeFunctionOptions::default();
    NvmeFunction::check(&rig.subsystem, cntlid, &options).unwrap();
    assert!(matches!(VfioUserListener::bind(&rig.socket).err(), Some(ServerError::Exists { .. })));
    let mapped = NvmeFunctionOptions { map_doorbells: true, ..Default::default() };
    assert!(matches!(NvmeFunction::check(&rig.subsystem, cntlid, &mapped), Err(NvmeFunctionError::MapDoorbells)));
    assert_eq!(used(), 0x7000, "nobody took it");
    // A listener that is not used leaves nothing behind; one that is used has kept who came meanwhile.
    let path = rig.socket.with_extension("other");
    drop(VfioUserListener::bind(&path).unwrap());
    assert!(!path.exists());
    let listener = VfioUserListener::bind(&path).unwrap();
    let early = connect(&path);
    let function = NvmeFunction::new(&rig.subsystem, cntlid, &options).unwrap();
    assert_eq!(used(), 0, "now it is taken, and was reset");
    let server = listener.serve(Arc::new(function), ServerOptions::default()).unwrap();
    eventually("who came early is served", || server.status().connected);
    drop(early);
    server.close();
    assert!(!path.exists());
}

#[test]
fn memory_of_the_client_is_handed_out() {
    let rig = Rig::new(Kind::Pf);
    assert!(rig.server.memory().is_none());
    let client = rig.client(DmaLayout::Specified);
    let file = memfd("ram", 0x4000).unwrap();
    client.map(0x8000, 0x4000, 0, Some(file.as_fd())).unwrap();
    let memory = rig.server.memory().unwrap();
    memory.write(0x9000, &[7; 8]).unwrap();
    let mut raw = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&std::fs::File::from(file), &mut raw, 0x1000).unwrap();
    assert_eq!(raw, [7; 8]);
    drop(client);
    eventually("the client is gone", || rig.server.memory().is_none());
    assert!(memory.read(0x9000, &mut raw).is_err(), "and its memory with it");
}

/// A small generator, so that a failure can be repeated by its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number that is likely to be a limit, or near one.
    fn number(&mut self) -> u64 {
        let near = [0, 1, 4, 7, 8, 16, 20, 24, 32, 0x1000, 0x2000, 1 << 20, 1 << 32, u64::MAX];
        match self.below(3) {
            0 => near[self.below(near.len() as u64) as usize],
            1 => near[self.below(near.len() as u64) as usize].wrapping_sub(self.below(3)).wrapping_add(1),
            _ => self.next() >> self.below(64),
        }
    }

    fn message(&mut self, id: u16) -> Vec<u8> {
        let command = if self.below(8) == 0 { self.next() as u16 } else { self.below(20) as u16 };
        let fields: Vec<(u64, usize)> =
            (0..self.below(8)).map(|_| (self.number(), [4, 8][self.below(2) as usize])).collect();
        let mut body = le(&fields);
        body.extend((0..self.below(4) * 8).map(|n| n as u8));
        let flags = if self.below(6) == 0 { self.next() as u32 & !15 } else { 0 };
        let mut message = message(id, command, flags, &body);
        // Now and then a header that is wrong.
        if self.below(60) == 0 {
            let at = self.below(16) as usize;
            message[at] = self.next() as u8;
        }
        message
    }
}

/// Thousands of messages that mean nothing, with and without descriptors: whatever they do, the next client is served.
#[test]
fn nonsense_does_no_harm() {
    let rig = Rig::new(Kind::Vf);
    let mut random = Random(0x5eed_1234_5678_9abc);
    let mut sent = 0;
    for _ in 0..150 {
        let socket = connect(&rig.socket);
        socket.set_read_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
        let mut hello = message(0, VERSION, 0, &le(&[(0, 2), (random.below(2), 2)]));
        for n in 1..=80 {
            let fds: Vec<_> = (0..random.below(20).saturating_sub(15)).map(|_| rig.file.as_fd()).collect();
            if try_send(&socket, &hello, &fds).is_err() {
                break;
            }
            sent += 1;
            hello = random.message(n);
        }
        // Whatever came back: nothing of it is waited for, and none of it may be left to fill the socket.
        let _ = std::io::Read::read(&mut &socket, &mut [0; 65536]);
    }
    assert!(sent > 2000, "{sent} messages");
    eventually("the last one is gone", || !rig.server.status().connected);
    let client = rig.client(DmaLayout::Specified);
    assert_eq!(client.config32(8) >> 8, 0x01_0802);
    assert_eq!((client.register32(0x14), client.register32(8)), (0, 0x2_0100));
    assert_eq!((rig.server.status().mapped_ranges, rig.server.status().message_ranges), (0, 0));
}
