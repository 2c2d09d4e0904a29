//! What an errno of the IOMMU's interfaces means, in words.

use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind};

use crate::errno::errno_text;

fn kind(errno: Errno) -> ChannelErrorKind {
    match errno {
        Errno::NODEV | Errno::NXIO => ChannelErrorKind::Gone,
        Errno::NOTTY | Errno::OPNOTSUPP => ChannelErrorKind::Unsupported,
        Errno::NOMEM | Errno::NOSPC | Errno::TOOBIG | Errno::MSGSIZE | Errno::MFILE | Errno::NFILE => {
            ChannelErrorKind::Limit
        }
        Errno::BUSY | Errno::EXIST | Errno::ADDRINUSE => ChannelErrorKind::State,
        _ => ChannelErrorKind::Device,
    }
}

/// An error of a system call: what was tried, the errno by name, and what that means there (may be empty).
pub(crate) fn failed(what: &str, errno: Errno, meaning: &str) -> ChannelError {
    let mut message = format!("{what}: {} ({errno})", errno_text(errno.raw_os_error()));
    if !meaning.is_empty() {
        message.push_str(": ");
        message.push_str(meaning);
    }
    ChannelError { errno: Some(errno.raw_os_error()), ..ChannelError::new(kind(errno), message) }
}

/// A call that can't be right, whatever the kernel would say.
pub(crate) fn limit(message: impl Into<String>) -> ChannelError {
    ChannelError::new(ChannelErrorKind::Limit, message)
}

/// A call at the wrong time.
pub(crate) fn state(message: impl Into<String>) -> ChannelError {
    ChannelError::new(ChannelErrorKind::State, message)
}

/// What `ENOMEM` of a call that pins memory most often is.
pub(crate) const MEMLOCK: &str = "the kernel has no memory for it, or the process may lock no more (RLIMIT_MEMLOCK: \
    devices need all of guest memory locked)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_its_errno_and_says_what_it_means() {
        let error = failed("IOMMU_IOAS_MAP", Errno::NOMEM, MEMLOCK);
        assert_eq!(error.kind, ChannelErrorKind::Limit);
        assert_eq!(error.errno, Some(12));
        assert!(error.message.starts_with("IOMMU_IOAS_MAP: ENOMEM ("), "{error}");
        assert!(error.message.contains("RLIMIT_MEMLOCK"), "{error}");
        assert_eq!(failed("x", Errno::OPNOTSUPP, "").kind, ChannelErrorKind::Unsupported);
    }
}
