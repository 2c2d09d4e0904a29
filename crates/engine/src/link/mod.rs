//! What carries a migration between two processes: TCP, UNIX sockets, a passed socket, or a caller's byte stream.
//!
//! A link is blocking, ordered and reliable. Nothing waits on it for ever: a wait ends by bytes, by the peer's close, by the
//! idle timeout ([`LinkOptions::idle_timeout`]) or by cancellation.

mod address;
mod callback;
mod descriptors;
mod listen;
mod patience;
mod socket;

use std::io::IoSlice;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

pub use address::Address;
pub use callback::{ByteSink, ByteSource, CallbackLink};
pub use descriptors::MAX_DESCRIPTORS_PER_WRITE;
pub use listen::Listener;
pub use socket::{SocketLink, connect};

use crate::cancel::Cancel;
use crate::error::LinkError;

/// A duplex byte stream to the peer.
pub trait Link: Send {
    /// Reads at least one byte into `out`.
    ///
    /// # Errors
    /// [`LinkError::Closed`] at the end; [`LinkError::Idle`] and [`LinkError::Cancelled`] where nothing came.
    fn read(&mut self, out: &mut [u8]) -> Result<usize, LinkError>;

    /// Writes all of `bufs`, advancing them.
    ///
    /// # Errors
    /// As [`Link::read`]. How much the peer got is then unknown.
    fn write_all(&mut self, bufs: &mut [IoSlice<'_>]) -> Result<(), LinkError>;

    /// Makes waits on this link end when `cancel` is set.
    fn arm(&mut self, cancel: &Cancel);

    /// Undoes [`Link::arm`]: what was cancelled still has to be told to the peer.
    fn disarm(&mut self);

    /// [`LinkOptions::idle_timeout`] as it is now.
    fn idle_timeout(&self) -> Duration;

    /// Changes [`LinkOptions::idle_timeout`]: what is only told out of politeness must not hold anybody up.
    fn set_idle_timeout(&mut self, timeout: Duration);

    /// The peer, for messages.
    fn peer(&self) -> &str;

    /// Why no file descriptors can be passed over this link; `None` where they can.
    fn why_no_descriptors(&self) -> Option<String> {
        Some(format!("{} is no UNIX socket of this process", self.peer()))
    }

    /// As [`Link::write_all`], with `descriptors` beside the first byte of `bufs`, which is not empty. They stay the caller's. At most
    /// [`MAX_DESCRIPTORS_PER_WRITE`].
    ///
    /// # Errors
    /// As [`Link::write_all`], and [`LinkError::Descriptors`] where there are too many, or [`Link::why_no_descriptors`] says why not.
    fn write_all_with(&mut self, bufs: &mut [IoSlice<'_>], descriptors: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        if descriptors.is_empty() {
            return self.write_all(bufs);
        }
        let what = self.why_no_descriptors().unwrap_or_else(|| "this kind of link passes none".into());
        Err(LinkError::Descriptors { peer: self.peer().to_owned(), what })
    }

    /// From here on at most `most` descriptors are held that nobody has taken; a peer that sends more breaks the protocol, and a read
    /// fails. Without this call none are.
    fn expect_descriptors(&mut self, most: usize) {
        let _ = most;
    }

    /// How many descriptors came that nobody has taken.
    fn descriptors_held(&self) -> usize {
        0
    }

    /// Takes the descriptors that came with what was read so far, in their order.
    fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        Vec::new()
    }
}

/// How a link behaves.
#[derive(Clone, Debug)]
pub struct LinkOptions {
    /// How long [`connect`] tries. Default 10 s.
    pub connect_timeout: Duration,
    /// A wait in which not one byte moves fails after this; default 60 s. A destination that loads, or whose caller looks at what was
    /// loaded, tells the source by pings that it is alive. What the source does with its functions and hooks once it has said READY
    /// may take any time: a destination then waits until the source ends, its host dies (keepalive) or somebody cancels. A device
    /// at the destination has to take each chunk of its state within this time.
    pub idle_timeout: Duration,
    /// TCP keepalive: a host that died is noticed after about twice this, in every phase. Default 10 s.
    pub keepalive: Duration,
    /// Plain TCP listens on loopback only, unless this is set: whoever can reach the port reads and writes guest memory.
    pub allow_remote_plaintext: bool,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            keepalive: Duration::from_secs(10),
            allow_remote_plaintext: false,
        }
    }
}

/// What a session holds once it has let go of its link, which is closed by that.
pub(crate) struct NoLink(pub String);

impl Link for NoLink {
    fn read(&mut self, _: &mut [u8]) -> Result<usize, LinkError> {
        Err(LinkError::Closed { peer: self.0.clone() })
    }

    fn write_all(&mut self, _: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        Err(LinkError::Closed { peer: self.0.clone() })
    }

    fn arm(&mut self, _: &Cancel) {}

    fn disarm(&mut self) {}

    fn idle_timeout(&self) -> Duration {
        Duration::ZERO
    }

    fn set_idle_timeout(&mut self, _: Duration) {}

    fn peer(&self) -> &str {
        &self.0
    }
}

/// Closes a link. What was sent arrives all the same; a peer that goes on sending notices at once.
pub(crate) fn close(link: &mut Box<dyn Link>) {
    let peer = link.peer().to_owned();
    *link = Box::new(NoLink(peer));
}

/// No idle timeout, where keepalive and cancelling are what ends a wait.
pub(crate) const NO_LIMIT: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long telling a peer that a session was given up may take.
pub(crate) const FAREWELL: Duration = Duration::from_secs(1);

/// How often a blocked system call looks whether it was cancelled or is idle for too long.
const SLICE: Duration = Duration::from_millis(100);
