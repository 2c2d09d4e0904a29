//! File descriptors beside the bytes of a UNIX socket: `SCM_RIGHTS` (unix(7)).
//!
//! The kernel hands descriptors over with the first byte of the write that they were sent with, and a read never goes beyond such a write
//! (`unix_stream_read_generic`, net/unix/af_unix.c). Whoever has read the frame that names them has them, therefore, and none of another frame.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg, sockopt,
};
use rustix::process::geteuid;

/// The most descriptors of one write: `SCM_MAX_FD` (`include/net/scm.h`).
pub const MAX_DESCRIPTORS_PER_WRITE: usize = 253;

/// What one read of a UNIX socket gave.
pub(super) enum Read {
    /// So many bytes; 0 at the end.
    Bytes(usize),
    /// More descriptors came than there was room for, or than this process may open. They are closed.
    TooMany,
}

/// Reads bytes, and adds the descriptors that come with them to `held`, which never holds more than `room`.
pub(super) fn read(socket: &UnixStream, out: &mut [u8], held: &mut Vec<OwnedFd>, room: usize) -> io::Result<Read> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS_PER_WRITE))];
    // Without room for a control message the kernel makes no descriptor at all, and says that there was one.
    let most = if room == 0 { &mut [] } else { space.as_mut_slice() };
    let mut control = RecvAncillaryBuffer::new(most);
    let received = recvmsg(socket, &mut [IoSliceMut::new(out)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(more) = message {
            held.extend(more);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || held.len() > room {
        held.clear();
        return Ok(Read::TooMany);
    }
    Ok(Read::Bytes(received.bytes))
}

/// Writes some of `bufs`, at least one byte, with `descriptors` beside the first. Where this fails none was sent.
pub(super) fn write(socket: &UnixStream, bufs: &[IoSlice<'_>], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS_PER_WRITE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(Errno::INVAL.into());
    }
    Ok(sendmsg(socket, bufs, &mut control, SendFlags::NOSIGNAL)?)
}

/// Why descriptors are not passed to the peer, nor taken from it: `None` for a process of the same user, or of root.
///
/// What is passed here is a guest's memory. A user that has no name in our user namespace shows as the overflow user (`SO_PEERCRED`), and
/// so counts as another one.
pub(super) fn why_not(socket: &UnixStream) -> Option<String> {
    match sockopt::socket_peercred(socket) {
        Ok(peer) if peer.uid == geteuid() || peer.uid.is_root() => None,
        Ok(peer) => {
            Some(format!("the peer runs as user {} and this process as {}", peer.uid.as_raw(), geteuid().as_raw()))
        }
        Err(errno) => Some(format!("who the peer is can't be told (SO_PEERCRED: {errno})")),
    }
}

#[cfg(test)]
mod tests {
    use rustix::thread::set_thread_res_uid;

    use super::*;

    #[test]
    fn another_user_is_told_apart() {
        let (ours, _other) = UnixStream::pair().unwrap();
        assert_eq!(why_not(&ours), None);
        if !geteuid().is_root() {
            return eprintln!("skipped: only root can make a socket of another user");
        }
        // Of that thread alone (credentials(7)), which ends with it.
        let nobody = rustix::process::Uid::from_raw(65534);
        let made = std::thread::spawn(move || {
            set_thread_res_uid(nobody, nobody, nobody).unwrap();
            UnixStream::pair().unwrap()
        });
        let (theirs, _other) = made.join().unwrap();
        let why = why_not(&theirs).unwrap();
        assert!(why.contains("the peer runs as user 65534 and this process as 0"), "{why}");
    }
}
