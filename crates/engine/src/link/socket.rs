//! TCP and UNIX stream sockets, made here or passed in.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::descriptors::{self, MAX_DESCRIPTORS_PER_WRITE};
use super::patience::Patience;
use super::{Address, Link, LinkOptions, SLICE};
use crate::cancel::{Cancel, Wake};
use crate::error::LinkError;

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    fn read(&self, out: &mut [u8], held: &mut Vec<OwnedFd>, room: usize) -> io::Result<descriptors::Read> {
        match self {
            Self::Tcp(s) => (&*s).read(out).map(descriptors::Read::Bytes),
            Self::Unix(s) => descriptors::read(s, out, held, room),
        }
    }

    fn write_vectored(&self, bufs: &[IoSlice<'_>], with: &[BorrowedFd<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(s) => (&*s).write_vectored(bufs),
            Self::Unix(s) if with.is_empty() => (&*s).write_vectored(bufs),
            Self::Unix(s) => descriptors::write(s, bufs, with),
        }
    }

    fn shutdown(&self, how: Shutdown) {
        // A socket that the peer has closed already refuses this; there is nothing left to shut down then.
        let _ = match self {
            Self::Tcp(s) => s.shutdown(how),
            Self::Unix(s) => s.shutdown(how),
        };
    }

    fn prepare(&self, options: &LinkOptions) -> io::Result<()> {
        match self {
            Self::Tcp(s) => {
                s.set_nonblocking(false)?;
                s.set_read_timeout(Some(SLICE))?;
                s.set_write_timeout(Some(SLICE))?;
                s.set_nodelay(true)?;
                sockopt::set_socket_keepalive(s, true)?;
                sockopt::set_tcp_keepidle(s, options.keepalive.max(Duration::from_secs(1)))?;
                sockopt::set_tcp_keepintvl(s, (options.keepalive / 4).max(Duration::from_secs(1)))?;
                sockopt::set_tcp_keepcnt(s, 4)?;
            }
            Self::Unix(s) => {
                s.set_nonblocking(false)?;
                s.set_read_timeout(Some(SLICE))?;
                s.set_write_timeout(Some(SLICE))?;
            }
        }
        Ok(())
    }
}

/// Ends a blocked read on cancellation. Weak, so that a cancel flag which outlives the link doesn't keep the socket open.
struct Waker(Weak<Socket>);

impl Wake for Waker {
    fn wake(&self) {
        if let Some(socket) = self.0.upgrade() {
            // Only the reading half: the abort still has to be told to the peer. A blocked write looks every 100 ms.
            socket.shutdown(Shutdown::Read);
        }
    }
}

/// A link over a stream socket.
pub struct SocketLink {
    socket: Arc<Socket>,
    peer: String,
    patience: Patience,
    /// Descriptors that came and were not taken, at most `room`.
    held: Vec<OwnedFd>,
    room: usize,
}

impl SocketLink {
    pub(super) fn tcp(stream: TcpStream, options: &LinkOptions) -> Result<Self, LinkError> {
        let peer = stream.peer_addr().map_or_else(|_| "tcp peer".into(), |a| format!("tcp://{a}"));
        Self::new(Socket::Tcp(stream), peer, options)
    }

    pub(super) fn unix(stream: UnixStream, peer: String, options: &LinkOptions) -> Result<Self, LinkError> {
        Self::new(Socket::Unix(stream), peer, options)
    }

    /// A link over a connected stream socket that somebody else made, TCP or UNIX.
    ///
    /// # Errors
    /// [`LinkError::Address`] where the descriptor is something else.
    pub fn from_fd(fd: OwnedFd, options: &LinkOptions) -> Result<Self, LinkError> {
        let refuse = |what: &str| LinkError::Address { address: "passed fd".into(), what: what.into() };
        let kind = sockopt::socket_type(&fd).map_err(|_| refuse("it is no socket; pass a connected stream socket"))?;
        if kind != SocketType::STREAM {
            return Err(refuse("it is no stream socket; pass a connected TCP or UNIX stream socket"));
        }
        match sockopt::socket_domain(&fd) {
            Ok(AddressFamily::INET | AddressFamily::INET6) => Self::tcp(TcpStream::from(fd), options),
            Ok(AddressFamily::UNIX) => Self::unix(UnixStream::from(fd), "passed UNIX socket".into(), options),
            _ => Err(refuse("its address family is neither INET, INET6 nor UNIX")),
        }
    }

    fn new(socket: Socket, peer: String, options: &LinkOptions) -> Result<Self, LinkError> {
        socket.prepare(options).map_err(|source| LinkError::Io {
            peer: peer.clone(),
            attempted: "set socket options",
            source,
        })?;
        let patience = Patience::new(options.idle_timeout);
        Ok(Self { socket: Arc::new(socket), peer, patience, held: Vec::new(), room: 0 })
    }

    fn failed(&self, attempted: &'static str, source: io::Error) -> LinkError {
        match source.kind() {
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted => {
                LinkError::Closed { peer: self.peer.clone() }
            }
            _ => LinkError::Io { peer: self.peer.clone(), attempted, source },
        }
    }
}

impl Link for SocketLink {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, LinkError> {
        if out.is_empty() {
            return Ok(0);
        }
        let since = Instant::now();
        loop {
            match self.socket.read(out, &mut self.held, self.room) {
                // Cancelling shuts the reading half down, which looks like an end.
                Ok(descriptors::Read::Bytes(0)) => {
                    self.patience.check_cancel()?;
                    return Err(LinkError::Closed { peer: self.peer.clone() });
                }
                Ok(descriptors::Read::Bytes(n)) => return Ok(n),
                Ok(descriptors::Read::TooMany) => {
                    let what = format!(
                        "more of them came than the {} that were expected, or than this process may have open",
                        self.room
                    );
                    return Err(LinkError::Descriptors { peer: self.peer.clone(), what });
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::TimedOut => {
                    self.patience.check_wait(&self.peer, since, "reading")?;
                }
                Err(e) => return Err(self.failed("read", e)),
            }
        }
    }

    fn write_all(&mut self, bufs: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        self.write_all_with(bufs, &[])
    }

    fn write_all_with(
        &mut self,
        mut bufs: &mut [IoSlice<'_>],
        mut descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), LinkError> {
        if !descriptors.is_empty() {
            let what = match self.why_no_descriptors() {
                None if descriptors.len() > MAX_DESCRIPTORS_PER_WRITE => {
                    Some(format!("at most {MAX_DESCRIPTORS_PER_WRITE} go at once, these are {}", descriptors.len()))
                }
                other => other,
            };
            if let Some(what) = what {
                return Err(LinkError::Descriptors { peer: self.peer.clone(), what });
            }
        }
        let mut since = Instant::now();
        // Drops empty slices at the front, so that an empty write isn't taken for a closed peer.
        IoSlice::advance_slices(&mut bufs, 0);
        while !bufs.is_empty() {
            self.patience.check_cancel()?;
            // At most IOV_MAX (1024) slices are taken by one call; the rest follows in the next.
            match self.socket.write_vectored(bufs.get(..1024).unwrap_or(bufs), descriptors) {
                Ok(0) => return Err(LinkError::Closed { peer: self.peer.clone() }),
                Ok(n) => {
                    IoSlice::advance_slices(&mut bufs, n);
                    // They have left with the first byte.
                    descriptors = &[];
                    since = Instant::now();
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock || e.kind() == ErrorKind::TimedOut => {
                    self.patience.check_wait(&self.peer, since, "writing")?;
                }
                Err(e) => return Err(self.failed("write", e)),
            }
        }
        Ok(())
    }

    fn arm(&mut self, cancel: &Cancel) {
        self.patience.cancel = Some(cancel.clone());
        cancel.register(Arc::new(Waker(Arc::downgrade(&self.socket))));
    }

    fn disarm(&mut self) {
        self.patience.cancel = None;
    }

    fn idle_timeout(&self) -> Duration {
        self.patience.idle_timeout
    }

    fn set_idle_timeout(&mut self, timeout: Duration) {
        self.patience.idle_timeout = timeout;
    }

    fn peer(&self) -> &str {
        &self.peer
    }

    fn why_no_descriptors(&self) -> Option<String> {
        match self.socket.as_ref() {
            Socket::Tcp(_) => Some(format!("{} is no UNIX socket", self.peer)),
            Socket::Unix(socket) => descriptors::why_not(socket),
        }
    }

    fn expect_descriptors(&mut self, most: usize) {
        self.room = most;
    }

    fn descriptors_held(&self) -> usize {
        self.held.len()
    }

    fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.held)
    }
}

/// Connects to a listening peer, trying again until [`LinkOptions::connect_timeout`], as the peer may still be starting.
///
/// # Errors
/// [`LinkError::Timeout`] where nobody listens, [`LinkError::Address`], [`LinkError::Cancelled`].
pub fn connect(address: &Address, options: &LinkOptions, cancel: &Cancel) -> Result<SocketLink, LinkError> {
    let start = Instant::now();
    loop {
        let attempt = match address {
            Address::Tcp { .. } => connect_tcp(address, options),
            Address::Unix(path) => UnixStream::connect(path)
                .map_err(|source| LinkError::Io { peer: address.to_string(), attempted: "connect", source })
                .and_then(|s| SocketLink::unix(s, address.to_string(), options)),
        };
        let error = match attempt {
            Ok(link) => return Ok(link),
            Err(error) => error,
        };
        let retry = matches!(&error, LinkError::Io { source, .. }
            if matches!(source.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound | ErrorKind::TimedOut));
        if !retry {
            return Err(error);
        }
        let waited = start.elapsed();
        if waited >= options.connect_timeout {
            let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
            return Err(LinkError::Timeout { address: address.to_string(), waited_ms });
        }
        cancel.sleep(Duration::from_millis(20)).map_err(|_| LinkError::Cancelled)?;
    }
}

fn connect_tcp(address: &Address, options: &LinkOptions) -> Result<SocketLink, LinkError> {
    let mut last = LinkError::Address { address: address.to_string(), what: "the name has no address".into() };
    for to in address.resolve()? {
        match TcpStream::connect_timeout(&to, options.connect_timeout.max(Duration::from_millis(1))) {
            Ok(stream) => return SocketLink::tcp(stream, options),
            Err(source) => last = LinkError::Io { peer: format!("tcp://{to}"), attempted: "connect", source },
        }
    }
    Err(last)
}
