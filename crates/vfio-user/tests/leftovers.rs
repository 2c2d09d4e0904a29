//! What clients leave behind: nothing. These count the descriptors of the process, so they run one after the other.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod client;
#[path = "client/rig.rs"]
mod rig;
#[path = "client/work.rs"]
mod work;

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use client::*;
use rig::{Kind, Rig};
use towline_vfio_user::ServerStatus;
use work::{Memory, map, with_a_command_under_way, work};

static ONE: Mutex<()> = Mutex::new(());

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let _one = ONE.lock();
    let rig = Rig::new(Kind::Pf);
    let client = rig.client(DmaLayout::Specified);
    client.config32(0);
    let before = open_fds();
    let fd = rig.file.as_fd();
    let ask = le(&[(0, 8), (7, 4), (4, 4)]);
    for _ in 0..20 {
        assert!(client.call(READ, &ask, &[fd; 16]).is_ok());
        assert_eq!(client.call(DMA_MAP, &le(&[(32, 4), (3, 4), (0, 8), (0, 8), (4096, 8)]), &[fd; 2]), Err(EINVAL));
        assert_eq!(client.call(FEATURE, &[0; 8], &[fd]), Err(ENOTSUP));
    }
    assert_eq!(open_fds(), before);
    // The counterpart: one that is used stays open.
    client.map(0, 4096, 0, Some(fd)).unwrap();
    assert_eq!(open_fds(), before + 1);
    client.unmap(0, 4096).unwrap();
    assert_eq!(open_fds(), before);
}

/// Whatever a client leaves behind: the next one finds a function that was reset, and can work with it.
#[test]
fn clients_that_vanish_in_every_phase() {
    let _one = ONE.lock();
    let rig = Rig::new(Kind::Vf);
    let read = message(5, READ, 0, &le(&[(0, 8), (7, 4), (4, 4)]));
    let mut settled = None;
    for phase in 0..9 {
        let silent = || Client::silent(&rig.socket, None, DmaLayout::Specified);
        let client: Arc<Client> = match phase {
            0 => Arc::new(silent()),
            1 | 2 => {
                let client = silent();
                client.raw(&read[..if phase == 1 { 7 } else { 16 }], &[]);
                Arc::new(client)
            }
            3 => rig.client(DmaLayout::Specified),
            4 => {
                let client = rig.client(DmaLayout::Specified);
                client.raw(&read[..20], &[rig.file.as_fd()]);
                client
            }
            5 => rig.ready(DmaLayout::Specified, true),
            6 => with_a_command_under_way(&rig),
            7 => {
                let client = with_a_command_under_way(&rig);
                // A reset that is being waited for.
                client.raw(&message(900, RESET, 0, &[]), &[]);
                client
            }
            _ => {
                let client = rig.client(DmaLayout::Qemu);
                map(&rig, &client, Memory::Both);
                client.wire(4);
                client
            }
        };
        drop(client);
        // One that says nothing may be accepted only after it has gone.
        let gone = |status: &ServerStatus| status.clients == 2 * phase + 1 && !status.connected;
        eventually("the client is gone", || gone(&rig.server.status()));
        assert!(rig.server.memory().is_none());
        assert_eq!(*settled.get_or_insert_with(open_fds), open_fds(), "descriptors are left after phase {phase}");
        let client = rig.ready(DmaLayout::Specified, true);
        assert_eq!((client.register32(0x14), client.register32(0x1c)), (0, 0), "reset after phase {phase}");
        let outcome = work(&rig, &client, Duration::from_millis(100));
        assert_eq!((outcome.mismatches, outcome.errors, outcome.damaged), (0, 0, 0), "after phase {phase}");
        drop(client);
        eventually("the client is gone", || !rig.server.status().connected);
    }
    assert_eq!(rig.server.status().clients, 18);
}

/// Ticks of processor time that this process has used, of 10 ms.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Another client comes when there is no descriptor left to accept it: it waits, and the server does not spin meanwhile.
#[test]
fn no_descriptors_left() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let _one = ONE.lock();
    let rig = Rig::new(Kind::Pf);
    let client = rig.client(DmaLayout::Specified);
    client.config32(0);
    let other = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).unwrap();
    let limit = getrlimit(Resource::Nofile);
    let before = ticks();
    setrlimit(Resource::Nofile, Rlimit { current: Some(3), maximum: limit.maximum }).unwrap();
    let connected = rustix::net::connect(&other, &rustix::net::SocketAddrUnix::new(&rig.socket).unwrap());
    std::thread::sleep(Duration::from_secs(1));
    let served = client.read(7, 8, 4);
    setrlimit(Resource::Nofile, limit).unwrap();
    let used = ticks() - before;
    connected.unwrap();
    assert_eq!(served.unwrap()[1..], [2, 8, 1], "the first is served");
    assert!(used < 30, "{used} ticks of a second");
    // Now there are some: it is turned away.
    let other = std::os::unix::net::UnixStream::from(other);
    other.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(std::io::Read::read(&mut &other, &mut [0]).unwrap(), 0);
}
