//! Admin commands of a controlling function, whatever carries them: an ioctl on `/dev/nvmeN`, or the admin queue of the
//! embedded controller.

mod client;
mod error;
mod limit;
mod migrate;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use client::{AdminClient, Timeouts};
pub use error::AdminError;

use crate::command::AdminCommand;
use crate::status::Status;

/// The data of a command. Its direction has to be the one that the opcode says.
#[derive(Debug)]
pub enum Data<'a> {
    /// No data.
    None,
    /// The controller reads these bytes.
    FromHost(&'a [u8]),
    /// The controller fills these bytes. It may write fewer: clear them first.
    ToHost(&'a mut [u8]),
}

impl Data<'_> {
    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::None => 0,
            Self::FromHost(bytes) => bytes.len(),
            Self::ToHost(bytes) => bytes.len(),
        }
    }

    /// Whether there is no data.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How a command ended. A status other than success is a completion too, not a [`TransportError`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// DW0 | DW1 << 32, also where the status is not success.
    pub result: u64,
    /// The status.
    pub status: Status,
}

/// Why a command has no completion. What it did is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// A system call failed.
    #[error("{message} (errno {errno})")]
    Io {
        /// The errno.
        errno: i32,
        /// What was attempted.
        message: String,
    },
    /// It did not complete in time. Linux resets the controller then, and with it every secondary controller.
    #[error("admin command {opcode:#04x} did not complete in {timeout_ms} ms")]
    Timeout {
        /// The opcode.
        opcode: u8,
        /// The time given, in milliseconds.
        timeout_ms: u64,
    },
    /// The controller is gone, disabled, or reports a fatal error.
    #[error("the controlling function is gone: {message}")]
    Gone {
        /// What says so.
        message: String,
    },
    /// The data is longer than [`AdminTransport::max_transfer_bytes`], or its direction is not the opcode's. Nothing was sent.
    #[error("the command cannot be carried: {message}")]
    Unsendable {
        /// Why.
        message: String,
    },
}

/// Carries admin commands to one controller.
pub trait AdminTransport: Send + Sync {
    /// Sends the command and waits until it completes, at most `timeout`.
    ///
    /// # Errors
    /// There is no completion. After [`TransportError::Timeout`] the controller may have been reset.
    fn submit(&self, cmd: &AdminCommand, data: Data<'_>, timeout: Duration) -> Result<Completion, TransportError>;

    /// The most bytes of data that one command carries, at least 4096.
    fn max_transfer_bytes(&self) -> u32;
}
