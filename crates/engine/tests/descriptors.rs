//! File descriptors beside the bytes of a link: they come with the bytes that they were sent with, and only where they are expected.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod common;

use std::fs::File;
use std::io::{IoSlice, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use common::*;
use towline_engine::error::LinkError;
use towline_engine::link::{Link, MAX_DESCRIPTORS_PER_WRITE};
use towline_linux::memory::memfd;

fn file(mark: u8) -> OwnedFd {
    let fd = memfd("descriptors", 4096).unwrap();
    rustix::io::pwrite(&fd, &[mark], 0).unwrap();
    fd
}

fn mark_of(fd: OwnedFd) -> u8 {
    let mut file = File::from(fd);
    file.rewind().unwrap();
    let mut out = [0];
    file.read_exact(&mut out).unwrap();
    out[0]
}

fn send(link: &mut Box<dyn Link>, data: &[u8], fds: &[OwnedFd]) -> Result<(), LinkError> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    link.write_all_with(&mut [IoSlice::new(data)], &fds)
}

fn read(link: &mut Box<dyn Link>, bytes: usize) -> Result<Vec<u8>, LinkError> {
    let mut out = vec![0; bytes];
    let mut filled = 0;
    while filled < bytes {
        filled += link.read(&mut out[filled..])?;
    }
    Ok(out)
}

#[test]
fn they_come_with_the_bytes_that_they_were_sent_with() {
    let (mut a, mut b) = socket_pair();
    b.expect_descriptors(4);
    send(&mut a, b"plain", &[]).unwrap();
    send(&mut a, b"first", &[file(1), file(2)]).unwrap();
    send(&mut a, b"between", &[]).unwrap();
    send(&mut a, b"second", &[file(3)]).unwrap();
    assert_eq!(read(&mut b, 5).unwrap(), b"plain");
    assert_eq!(b.descriptors_held(), 0);
    // One byte of the write brings all of them, and nothing of the next write's.
    assert_eq!(read(&mut b, 1).unwrap(), b"f");
    let first: Vec<u8> = b.take_descriptors().into_iter().map(mark_of).collect();
    assert_eq!(first, [1, 2]);
    assert_eq!(read(&mut b, 4 + 7).unwrap(), b"irstbetween");
    assert_eq!(b.descriptors_held(), 0);
    assert_eq!(read(&mut b, 6).unwrap(), b"second");
    let second: Vec<u8> = b.take_descriptors().into_iter().map(mark_of).collect();
    assert_eq!(second, [3]);
}

#[test]
fn a_read_ends_where_descriptors_were_sent() {
    let (mut a, mut b) = socket_pair();
    b.expect_descriptors(2);
    send(&mut a, b"one", &[file(1)]).unwrap();
    send(&mut a, b"two", &[file(2)]).unwrap();
    let mut out = [0; 64];
    assert_eq!(b.read(&mut out).unwrap(), 3);
    assert_eq!(b.descriptors_held(), 1);
    assert_eq!(b.read(&mut out).unwrap(), 3);
    assert_eq!(b.descriptors_held(), 2);
}

#[test]
fn a_peer_that_sends_them_unasked_is_refused() {
    let (mut a, mut b) = socket_pair();
    send(&mut a, b"x", &[file(1)]).unwrap();
    assert!(matches!(read(&mut b, 1), Err(LinkError::Descriptors { .. })));
    assert_eq!(b.descriptors_held(), 0);

    let (mut a, mut b) = socket_pair();
    b.expect_descriptors(1);
    send(&mut a, b"x", &[file(1), file(2)]).unwrap();
    assert!(matches!(read(&mut b, 1), Err(LinkError::Descriptors { .. })));
    assert_eq!(b.descriptors_held(), 0);

    // Also those that come in parts.
    let (mut a, mut b) = socket_pair();
    b.expect_descriptors(1);
    send(&mut a, b"x", &[file(1)]).unwrap();
    send(&mut a, b"y", &[file(2)]).unwrap();
    assert!(matches!(read(&mut b, 2), Err(LinkError::Descriptors { .. })));
}

#[test]
fn as_many_as_the_kernel_takes_and_no_more() {
    let (mut a, mut b) = socket_pair();
    b.expect_descriptors(MAX_DESCRIPTORS_PER_WRITE);
    let all: Vec<OwnedFd> = (0..MAX_DESCRIPTORS_PER_WRITE).map(|i| file(i as u8)).collect();
    send(&mut a, b"x", &all).unwrap();
    read(&mut b, 1).unwrap();
    let marks: Vec<u8> = b.take_descriptors().into_iter().map(mark_of).collect();
    assert_eq!(marks, (0..MAX_DESCRIPTORS_PER_WRITE).map(|i| i as u8).collect::<Vec<_>>());
    let more: Vec<OwnedFd> = (0..=MAX_DESCRIPTORS_PER_WRITE).map(|_| file(0)).collect();
    assert!(matches!(send(&mut a, b"x", &more), Err(LinkError::Descriptors { .. })));
    // Nothing of it was sent.
    send(&mut a, b"z", &[]).unwrap();
    assert_eq!(read(&mut b, 1).unwrap(), b"z");
}

#[test]
fn they_are_closed_on_exec_and_with_the_link() {
    let (mut a, mut b) = socket_pair();
    b.expect_descriptors(2);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    send(&mut a, b"x", &[theirs.into()]).unwrap();
    send(&mut a, b"y", &[file(1)]).unwrap();
    read(&mut b, 2).unwrap();
    let mut held = b.take_descriptors();
    assert!(held.iter().all(|fd| rustix::io::fcntl_getfd(fd).unwrap().contains(rustix::io::FdFlags::CLOEXEC)));
    held.remove(0);
    // Held by nobody any more: its other end notices.
    assert_eq!((&ours).read(&mut [0]).unwrap(), 0);

    // What is held by the link goes with it.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    send(&mut a, b"x", &[theirs.into()]).unwrap();
    read(&mut b, 1).unwrap();
    drop(b);
    assert_eq!((&ours).read(&mut [0]).unwrap(), 0);
}

#[test]
fn only_unix_sockets_pass_them() {
    let (mut a, b) = link_pair("tcp://127.0.0.1:0");
    assert!(a.why_no_descriptors().unwrap().contains("no UNIX socket"), "{:?}", a.why_no_descriptors());
    assert!(b.why_no_descriptors().is_some());
    assert!(matches!(send(&mut a, b"x", &[file(1)]), Err(LinkError::Descriptors { .. })));
    let (a, b) = socket_pair();
    assert_eq!((a.why_no_descriptors(), b.why_no_descriptors()), (None, None));
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = link_pair(&format!("unix://{}/s", dir.path().display()));
    assert_eq!((a.why_no_descriptors(), b.why_no_descriptors()), (None, None));
}
