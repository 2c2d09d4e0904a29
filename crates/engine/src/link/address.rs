//! `tcp://host:port` and `unix:///path`.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::LinkError;

/// Where a peer listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `tcp://host:port`; an IPv6 address stands in brackets.
    Tcp {
        /// Name or address.
        host: String,
        /// Port; 0 lets the system choose one when listening.
        port: u16,
    },
    /// `unix:///path`, at most 107 bytes of path (`sun_path`, unix(7)).
    Unix(PathBuf),
}

impl Address {
    /// The socket addresses of a TCP address, in the resolver's order.
    pub(super) fn resolve(&self) -> Result<Vec<SocketAddr>, LinkError> {
        let Self::Tcp { host, port } = self else { return Ok(Vec::new()) };
        let found: Vec<SocketAddr> = (host.as_str(), *port)
            .to_socket_addrs()
            .map_err(|source| LinkError::Io { peer: self.to_string(), attempted: "resolve", source })?
            .collect();
        if found.is_empty() {
            return Err(LinkError::Address { address: self.to_string(), what: "the name has no address".into() });
        }
        Ok(found)
    }
}

impl FromStr for Address {
    type Err = LinkError;

    fn from_str(text: &str) -> Result<Self, LinkError> {
        let bad = |what: &str| LinkError::Address { address: text.into(), what: what.into() };
        if let Some(rest) = text.strip_prefix("tcp://") {
            let (host, port) = rest.rsplit_once(':').ok_or_else(|| bad("a port is missing: tcp://host:port"))?;
            let port = port.parse().map_err(|_| bad("the port is not a number from 0 to 65535"))?;
            let bracketed = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
            if bracketed.is_none() && host.contains(':') {
                return Err(bad("an IPv6 address stands in brackets: tcp://[::1]:port"));
            }
            let host = bracketed.unwrap_or(host);
            if host.is_empty() {
                return Err(bad("the host is missing: tcp://host:port"));
            }
            Ok(Self::Tcp { host: host.into(), port })
        } else if let Some(path) = text.strip_prefix("unix://") {
            if !path.starts_with('/') {
                return Err(bad("the path is absolute: unix:///run/towline.sock"));
            }
            if path.len() > 107 || path.contains('\0') {
                return Err(bad("the path has at most 107 bytes and no NUL"));
            }
            Ok(Self::Unix(path.into()))
        } else {
            Err(bad("an address begins with tcp:// or unix://"))
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "tcp://{host}:{port}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_back() {
        for text in ["tcp://127.0.0.1:4711", "tcp://[::1]:0", "tcp://host.example:65535", "unix:///run/a b.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for text in ["", "tcp://", "tcp://host", "tcp://:1", "tcp://h:65536", "tcp://::1:5", "unix://rel", "http://x:1"]
        {
            assert!(matches!(text.parse::<Address>(), Err(LinkError::Address { .. })), "{text}");
        }
        assert!(format!("unix:///{}", "x".repeat(107)).parse::<Address>().is_err());
    }
}
