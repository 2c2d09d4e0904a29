//! What an errno of VFIO means to the engine.

use rustix::io::Errno;
use towline_core::channel::{ChannelError, ChannelErrorKind};
use towline_core::fsm::DeviceState;

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

/// An error of a system call whose kind the caller knows better.
pub(super) fn failed_as(kind: ChannelErrorKind, what: &str, errno: Errno) -> ChannelError {
    let message = format!("{what}: {errno}");
    ChannelError { errno: Some(errno.raw_os_error()), ..ChannelError::new(kind, message) }
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
