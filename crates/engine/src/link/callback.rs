//! A caller's own byte stream, as a pair of callbacks.

use std::io::{self, ErrorKind, IoSlice};
use std::time::{Duration, Instant};

use super::patience::Patience;
use super::{Link, LinkOptions};
use crate::cancel::Cancel;
use crate::error::LinkError;

/// The receiving half of a caller's byte stream.
pub trait ByteSource: Send {
    /// Reads some bytes, at least one; 0 means that the stream ended. [`ErrorKind::WouldBlock`] and [`ErrorKind::TimedOut`] give
    /// the engine a chance to look for cancellation: return one at least every 100 ms while nothing comes.
    ///
    /// # Errors
    /// Whatever the stream says.
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize>;
}

/// The sending half of a caller's byte stream.
pub trait ByteSink: Send {
    /// Writes some of `data`, at least one byte. The stream ends when this is dropped. Errors as for [`ByteSource::read`].
    ///
    /// # Errors
    /// Whatever the stream says.
    fn write(&mut self, data: &[u8]) -> io::Result<usize>;
}

/// A link over a caller's callbacks.
pub struct CallbackLink {
    source: Box<dyn ByteSource>,
    sink: Box<dyn ByteSink>,
    peer: String,
    patience: Patience,
}

impl CallbackLink {
    /// A link that reads from `source` and writes to `sink`; `peer` names the peer in messages.
    #[must_use]
    pub fn new(source: Box<dyn ByteSource>, sink: Box<dyn ByteSink>, peer: String, options: &LinkOptions) -> Self {
        Self { source, sink, peer, patience: Patience::new(options.idle_timeout) }
    }

    fn wait(&self, since: Instant, attempted: &'static str, error: io::Error) -> Result<(), LinkError> {
        match error.kind() {
            ErrorKind::Interrupted | ErrorKind::WouldBlock | ErrorKind::TimedOut => {}
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof => {
                return Err(LinkError::Closed { peer: self.peer.clone() });
            }
            _ => return Err(LinkError::Io { peer: self.peer.clone(), attempted, source: error }),
        }
        self.patience.check_wait(&self.peer, since, attempted)
    }
}

impl Link for CallbackLink {
    fn read(&mut self, out: &mut [u8]) -> Result<usize, LinkError> {
        if out.is_empty() {
            return Ok(0);
        }
        let since = Instant::now();
        loop {
            self.patience.check_cancel()?;
            match self.source.read(out) {
                Ok(0) => return Err(LinkError::Closed { peer: self.peer.clone() }),
                // A callback that claims more than it was given room for is not believed.
                Ok(n) if n > out.len() => {
                    let source =
                        io::Error::new(ErrorKind::InvalidData, "the callback returned more than it was asked for");
                    return Err(LinkError::Io { peer: self.peer.clone(), attempted: "read", source });
                }
                Ok(n) => return Ok(n),
                Err(e) => self.wait(since, "reading", e)?,
            }
        }
    }

    fn write_all(&mut self, bufs: &mut [IoSlice<'_>]) -> Result<(), LinkError> {
        for buf in bufs {
            let mut rest: &[u8] = buf;
            let mut since = Instant::now();
            while !rest.is_empty() {
                self.patience.check_cancel()?;
                match self.sink.write(rest) {
                    Ok(0) => return Err(LinkError::Closed { peer: self.peer.clone() }),
                    Ok(n) => {
                        rest = rest.get(n..).ok_or_else(|| LinkError::Io {
                            peer: self.peer.clone(),
                            attempted: "write",
                            source: io::Error::new(
                                ErrorKind::InvalidData,
                                "the callback claims to have written more than it got",
                            ),
                        })?;
                        since = Instant::now();
                    }
                    Err(e) => self.wait(since, "writing", e)?,
                }
            }
        }
        Ok(())
    }

    fn arm(&mut self, cancel: &Cancel) {
        self.patience.cancel = Some(cancel.clone());
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
}
