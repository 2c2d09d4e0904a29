//! Waiting for a peer.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Address, LinkOptions, SocketLink};
use crate::cancel::Cancel;
use crate::error::LinkError;

enum Inner {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// A listening socket. A UNIX socket is mode 0600 and its file is removed when the listener is dropped.
pub struct Listener {
    inner: Inner,
    address: Address,
    options: LinkOptions,
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// [`LinkError::Address`] for a TCP address that is not loopback, unless [`LinkOptions::allow_remote_plaintext`], and
    /// for a path that holds something else than a dead socket; what the system said otherwise.
    pub fn bind(address: &Address, options: LinkOptions) -> Result<Self, LinkError> {
        let io = |attempted| move |source| LinkError::Io { peer: address.to_string(), attempted, source };
        match address {
            Address::Tcp { .. } => {
                let candidates = address.resolve()?;
                if !options.allow_remote_plaintext && candidates.iter().any(|a| !a.ip().is_loopback()) {
                    return Err(LinkError::Address {
                        address: address.to_string(),
                        what: "plain TCP listens on loopback only: whoever reaches the port could read and write guest memory; \
                               allow remote plaintext explicitly where the network is trusted"
                            .into(),
                    });
                }
                let listener = TcpListener::bind(candidates.as_slice()).map_err(io("listen"))?;
                listener.set_nonblocking(true).map_err(io("listen"))?;
                let local = listener.local_addr().map_err(io("listen"))?;
                let address = Address::Tcp { host: local.ip().to_string(), port: local.port() };
                Ok(Self { inner: Inner::Tcp(listener), address, options })
            }
            Address::Unix(path) => {
                remove_dead_socket(path)?;
                let listener = UnixListener::bind(path).map_err(io("listen"))?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io("chmod"))?;
                listener.set_nonblocking(true).map_err(io("listen"))?;
                Ok(Self { inner: Inner::Unix(listener, path.clone()), address: address.clone(), options })
            }
        }
    }

    /// Where it listens, with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Waits for a peer, at most `timeout`.
    ///
    /// # Errors
    /// [`LinkError::Timeout`], [`LinkError::Cancelled`], or what the system said.
    pub fn accept(&self, timeout: Duration, cancel: &Cancel) -> Result<SocketLink, LinkError> {
        let start = Instant::now();
        loop {
            let accepted = match &self.inner {
                Inner::Tcp(l) => l.accept().map(|(s, _)| SocketLink::tcp(s, &self.options)),
                Inner::Unix(l, _) => {
                    l.accept().map(|(s, _)| SocketLink::unix(s, format!("{} (peer)", self.address), &self.options))
                }
            };
            match accepted {
                Ok(link) => return link,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
                Err(source) => {
                    return Err(LinkError::Io { peer: self.address.to_string(), attempted: "accept", source });
                }
            }
            let waited = start.elapsed();
            if waited >= timeout {
                let waited_ms = u64::try_from(waited.as_millis()).unwrap_or(u64::MAX);
                return Err(LinkError::Timeout { address: self.address.to_string(), waited_ms });
            }
            cancel.sleep(Duration::from_millis(5)).map_err(|_| LinkError::Cancelled)?;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Inner::Unix(_, path) = &self.inner {
            // Best effort: a socket file that stays is recognised as dead by the next bind.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the socket file of a listener that died. Anything else at that path is left alone.
fn remove_dead_socket(path: &Path) -> Result<(), LinkError> {
    let address = format!("unix://{}", path.display());
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        Err(source) => Err(LinkError::Io { peer: address, attempted: "look at the path", source }),
        Ok(meta) if !meta.file_type().is_socket() => {
            Err(LinkError::Address { address, what: "the path exists and is no socket".into() })
        }
        Ok(_) => match UnixStream::connect(path) {
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)
                .map_err(|source| LinkError::Io { peer: address, attempted: "remove a dead socket", source }),
            _ => Err(LinkError::Address { address, what: "somebody listens there already".into() }),
        },
    }
}
