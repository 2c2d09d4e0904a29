//! What an errno of VFIO means to the engine.

use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind};
use towline_core::fsm::DeviceState;

use crate::errno::errno_text;

/// The kind where nothing more is known than the errno.
fn kind(errno: Errno) -> ChannelErrorKind {
    match errno {
        // The device was removed, or a data_fd was cut off from its device by a reset.
        Errno::NODEV | Errno::NXIO => ChannelErrorKind::Gone,
        Errno::NOTTY | Errno::OPNOTSUPP => ChannelErrorKind::Unsupported,
        Errno::TOOBIG | Errno::NOSPC => ChannelErrorKind::Limit,
        _ => ChannelErrorKind::Device,
    }
}

/// An error of a system call.
pub(super) fn failed(what: &str, errno: Errno) -> ChannelError {
    failed_as(kind(errno), what, errno)
}

/// An error of a system call, with what it means there; `meaning` may be empty.
pub(super) fn told(what: &str, errno: Errno, meaning: &str) -> ChannelError {
    let error = failed(what, errno);
    match meaning {
        "" => error,
        _ => ChannelError { message: format!("{}: {meaning}", error.message), ..error },
    }
}

/// An error of a system call whose kind the caller knows better.
pub(super) fn failed_as(kind: ChannelErrorKind, what: &str, errno: Errno) -> ChannelError {
    let number = errno.raw_os_error();
    // Its number is in the error, and its name says more.
    let words = errno.to_string();
    let words = words.split(" (os error").next().unwrap_or_default();
    let message = format!("{what}: {} ({words})", errno_text(number));
    ChannelError { errno: Some(number), ..ChannelError::new(kind, message) }
}

/// What a driver says to device state that it doesn't take. `mtty` has `EFAULT` for a wrong header and `ENOMEM` for too
/// much; others `EINVAL`, `EMSGSIZE` and `EPROTO`.
pub(super) fn refused(what: &str, errno: Errno) -> ChannelError {
    let bad = [Errno::INVAL, Errno::FAULT, Errno::NOMEM, Errno::MSGSIZE, Errno::PROTO, Errno::BADMSG, Errno::NOSPC];
    failed_as(if bad.contains(&errno) { ChannelErrorKind::BadState } else { kind(errno) }, what, errno)
}

/// The same error in a known state.
pub(super) fn in_state(error: ChannelError, state: DeviceState) -> ChannelError {
    ChannelError { state: Some(state), ..error }
}
