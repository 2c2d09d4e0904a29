//! The bytes of one connection, in and out. Reading waits; writing never does: what the client does not take yet is kept, up to a
//! limit, and sent by the reader when there is room. So neither a slow client nor one that is itself writing stops anybody.

use std::cell::Cell;
use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags, Shutdown, SocketFlags, accept_with,
    recv, recvmsg, send, shutdown,
};

use crate::control::Control;
use crate::protocol::{DecodeError, HEADER_BYTES, Header, MAX_FDS};

/// How long a failed accept is not tried again.
pub(crate) const PAUSE: Duration = Duration::from_millis(100);
/// How often it is looked whether clients may come again, or commands are done.
const LOOK: Duration = Duration::from_millis(2);
/// The most bytes that wait to be sent. A client that takes less is not reading any more.
pub(crate) const MAX_OUTGOING_BYTES: usize = 16 << 20;

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Ended {
    /// The client closed it between two messages.
    #[error("the client has closed the connection")]
    ByClient,
    /// It closed it within a message.
    #[error("the client has closed the connection within a message")]
    WithinMessage,
    /// The server is being closed.
    #[error("the server is being closed")]
    Stopped,
    /// Somebody else is to go on with the connection.
    #[error("the connection is being handed over")]
    Paused,
    /// A thread of the connection panicked.
    #[error("a fault of the server: its thread panicked")]
    Panicked,
    /// The client broke the protocol in a way that can't be answered.
    #[error("the client sent what is no vfio-user message: {0}")]
    Protocol(String),
    /// A system call failed.
    #[error("{call}: {errno}")]
    System {
        /// Its name.
        call: &'static str,
        /// Why.
        errno: Errno,
    },
}

impl From<DecodeError> for Ended {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}

fn system(call: &'static str) -> impl FnOnce(Errno) -> Ended {
    move |errno| Ended::System { call, errno }
}

/// An event that wakes a thread that waits in `poll`.
#[derive(Debug)]
pub(crate) struct Wake(OwnedFd);

impl Wake {
    pub(crate) fn new() -> Result<Self, Errno> {
        Ok(Self(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?))
    }

    pub(crate) fn set(&self) {
        // Full means that it is set already.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    fn clear(&self) {
        let _ = rustix::io::read(&self.0, &mut [0u8; 8]);
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug, Default)]
struct Outgoing {
    messages: VecDeque<Vec<u8>>,
    /// Bytes of the first message that are sent already.
    sent: usize,
    bytes: usize,
    broken: bool,
}

/// The sending half. Any thread may send; messages stay whole and in order.
#[derive(Debug)]
pub(crate) struct Outbox {
    socket: Arc<OwnedFd>,
    outgoing: Mutex<Outgoing>,
    wake: Arc<Wake>,
}

/// Nothing can be sent any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken;

impl Outbox {
    pub(crate) fn new(socket: Arc<OwnedFd>, wake: Arc<Wake>) -> Self {
        Self { socket, outgoing: Mutex::default(), wake }
    }

    fn lock(&self) -> MutexGuard<'_, Outgoing> {
        self.outgoing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a message, now or when there is room.
    pub(crate) fn send(&self, message: Vec<u8>) -> Result<(), Broken> {
        let mut outgoing = self.lock();
        if outgoing.broken || outgoing.bytes + message.len() > MAX_OUTGOING_BYTES {
            outgoing.broken = true;
            self.wake.set();
            return Err(Broken);
        }
        outgoing.bytes += message.len();
        outgoing.messages.push_back(message);
        self.push(&mut outgoing);
        if !outgoing.messages.is_empty() || outgoing.broken {
            self.wake.set();
        }
        if outgoing.broken { Err(Broken) } else { Ok(()) }
    }

    /// What was not sent yet.
    pub(crate) fn unsent(&self) -> Vec<u8> {
        let outgoing = self.lock();
        outgoing.messages.iter().flatten().skip(outgoing.sent).copied().collect()
    }

    /// Sends what another process has left, before everything else, once the connection goes on.
    pub(crate) fn resume(&self, unsent: Vec<u8>) {
        let mut outgoing = self.lock();
        if !unsent.is_empty() {
            outgoing.bytes += unsent.len();
            outgoing.messages.push_front(unsent);
        }
    }

    /// Sends what there is room for. Returns whether something is left.
    fn flush(&self) -> Result<bool, Broken> {
        let mut outgoing = self.lock();
        self.push(&mut outgoing);
        if outgoing.broken { Err(Broken) } else { Ok(!outgoing.messages.is_empty()) }
    }

    fn push(&self, outgoing: &mut Outgoing) {
        while let Some(message) = outgoing.messages.front() {
            let rest = message.get(outgoing.sent..).unwrap_or_default();
            match send(&*self.socket, rest, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(n) if n >= rest.len() => {
                    let len = message.len();
                    outgoing.messages.pop_front();
                    outgoing.sent = 0;
                    outgoing.bytes -= len;
                }
                Ok(n) => outgoing.sent += n,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => {
                    outgoing.broken = true;
                    return;
                }
            }
        }
    }
}

/// A message as it came in.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) header: Header,
    pub(crate) body: Vec<u8>,
    /// Descriptors that came along, at most [`MAX_FDS`]. Who does not want them drops them.
    pub(crate) fds: Vec<OwnedFd>,
}

/// The receiving half, and the one place where the connection's thread sleeps.
pub(crate) struct Inbox<'a> {
    pub(crate) socket: Arc<OwnedFd>,
    pub(crate) outbox: &'a Outbox,
    /// Further clients are turned away while this one is served.
    pub(crate) listener: &'a OwnedFd,
    pub(crate) wake: &'a Wake,
    pub(crate) stop: &'a dyn Fn() -> bool,
    /// Whether reading is to end between two messages, and if so whether it can end now.
    pub(crate) pause: &'a dyn Fn() -> Option<bool>,
    /// Who wants to know when everything that the client has sent is done.
    pub(crate) control: &'a Control,
    /// Whether everything that was received is done.
    pub(crate) idle: &'a dyn Fn() -> bool,
    /// Until when the listener is left alone: accepting failed, and would again.
    pub(crate) paused: Cell<Option<Instant>>,
}

impl Inbox<'_> {
    /// The next message.
    pub(crate) fn receive(&self) -> Result<Message, Ended> {
        // A client that never pauses is no reason to go on for ever.
        if (self.stop)() {
            return Err(Ended::Stopped);
        }
        if (self.pause)() == Some(true) {
            return Err(Ended::Paused);
        }
        let mut fds = Vec::new();
        let mut header = [0; HEADER_BYTES];
        self.fill(&mut header, &mut fds, true)?;
        let header = Header::decode(&header)?;
        let mut body = vec![0; header.body_bytes()];
        self.fill(&mut body, &mut fds, false)?;
        Ok(Message { header, body, fds })
    }

    fn fill(&self, out: &mut [u8], fds: &mut Vec<OwnedFd>, first: bool) -> Result<(), Ended> {
        let mut filled = 0;
        while let Some(rest) = out.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.receive_some(rest, fds)? {
                None => self.wait(first && filled == 0)?,
                Some(0) if first && filled == 0 => return Err(Ended::ByClient),
                Some(0) => return Err(Ended::WithinMessage),
                Some(n) => filled += n,
            }
        }
        Ok(())
    }

    /// `None` where nothing has come yet.
    fn receive_some(&self, out: &mut [u8], fds: &mut Vec<OwnedFd>) -> Result<Option<usize>, Ended> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = match recvmsg(&*self.socket, &mut [IoSliceMut::new(out)], &mut control, flags) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(None),
            Err(Errno::CONNRESET) => return Ok(Some(0)),
            Err(errno) => return Err(Ended::System { call: "recvmsg", errno }),
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(more) = message {
                fds.extend(more);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || fds.len() > MAX_FDS {
            return Err(Ended::Protocol(format!("more than {MAX_FDS} file descriptors with one message")));
        }
        Ok(Some(received.bytes))
    }

    /// Sleeps until something comes in; sends meanwhile what there is room for.
    fn wait(&self, between: bool) -> Result<(), Ended> {
        let mut seen = None;
        loop {
            // Cleared first: what is set from here on ends the sleep.
            self.wake.clear();
            if (self.stop)() {
                return Err(Ended::Stopped);
            }
            let pause = (self.pause)();
            if between && pause == Some(true) {
                return Err(Ended::Paused);
            }
            let wish = self.control.wish();
            let unsent = self.outbox.flush().map_err(|Broken| Ended::Protocol("its answers are not taken".into()))?;
            let interest = if unsent { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            let turned_away = self.paused.get().and_then(|until| until.checked_duration_since(Instant::now()));
            self.paused.set(self.paused.get().filter(|_| turned_away.is_some()));
            let mut fds = [
                PollFd::new(&*self.socket, interest),
                PollFd::new(self.wake, PollFlags::IN),
                PollFd::new(self.listener, if turned_away.is_some() { PollFlags::empty() } else { PollFlags::IN }),
            ];
            // Who waits for this client gets the first look at once, and the others soon.
            let look = wish.map(|wish| if seen == Some(wish) { LOOK } else { Duration::ZERO });
            let look = look.into_iter().chain(pause.map(|_| LOOK)).min();
            seen = wish;
            let limit = look.into_iter().chain(turned_away).min().and_then(|limit| Timespec::try_from(limit).ok());
            match poll(&mut fds, limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(Ended::System { call: "poll", errno }),
            }
            let [socket, _, listener] = fds.map(|fd| fd.revents());
            // One client at a time: another one is told at once rather than left waiting. Without a descriptor for it, it has to wait; and so
            // it does where this one has gone meanwhile: it is the next.
            if listener.contains(PollFlags::IN) && !hung_up(&self.socket) {
                match accept(self.listener) {
                    Ok(other) => other.iter().for_each(dismiss),
                    Err(_) => self.paused.set(Some(Instant::now() + PAUSE)),
                }
            }
            if socket.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                return Ok(());
            }
            if let Some(wish) = wish.filter(|_| (self.idle)()) {
                self.control.fulfil(wish);
            }
        }
    }
}

/// Whether the other end was closed. What it has sent before may still have to be read.
fn hung_up(socket: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Ends a connection from this side so that its client finds the end of the stream, after what was sent to it. Were something left unread when
/// the socket is closed, the client would find `ECONNRESET` instead, for which QEMU 11.1 aborts with all of its guest: the `vfio_user_recv_hdr`
/// of `hw/vfio-user/proxy.c` sets its error twice then.
pub(crate) fn dismiss(socket: &OwnedFd) {
    // First, so that nothing more comes in.
    let _ = shutdown(socket, Shutdown::Both);
    // Descriptors that came along are closed with it.
    let mut rest = [0; 4096];
    while matches!(recv(socket, &mut rest, RecvFlags::DONTWAIT), Ok((1.., _)) | Err(Errno::INTR)) {}
}

/// Ends the connections of those who wait to be accepted.
pub(crate) fn dismiss_waiting(listener: &OwnedFd) {
    while let Ok(Some(socket)) = accept(listener) {
        dismiss(&socket);
    }
}

/// Accepts a client, if there is one.
fn accept(listener: &OwnedFd) -> Result<Option<OwnedFd>, Errno> {
    match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
        Ok(socket) => Ok(Some(socket)),
        Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Waits for a client. `None` once `stop` says so. While `closed` says so nobody is accepted: who connects waits.
pub(crate) fn wait_for_client(
    listener: &OwnedFd,
    wake: &Wake,
    stop: &dyn Fn() -> bool,
    closed: &dyn Fn() -> bool,
) -> Result<Option<OwnedFd>, Ended> {
    loop {
        wake.clear();
        if stop() {
            return Ok(None);
        }
        if closed() {
            let limit = Timespec::try_from(LOOK).ok();
            match poll(&mut [PollFd::new(wake, PollFlags::IN)], limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => continue,
                Err(errno) => return Err(Ended::System { call: "poll", errno }),
            }
        }
        if let Some(socket) = accept(listener).map_err(system("accept"))? {
            return Ok(Some(socket));
        }
        let mut fds = [PollFd::new(listener, PollFlags::IN), PollFd::new(wake, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Ended::System { call: "poll", errno }),
        }
    }
}
