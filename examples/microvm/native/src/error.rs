//! What can go wrong, in words that reach JavaScript as the message of an `Error`.

use std::io;

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option or argument is out of its range.
    #[error("{0}")]
    Argument(String),
    /// A call that does not fit what the VM does at the time.
    #[error("{0}")]
    State(&'static str),
    /// A system call.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The device, or the way to it.
    #[error("device: {0}")]
    Device(String),
    /// A section of a saved VM.
    #[error("section {name}: {what}")]
    Section {
        /// Its name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// The bytes of a BAR filter.
    #[error("BAR filter: {0}")]
    Filter(&'static str),
}

/// What most functions here return.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The system call `what` failed as `errno` says.
    pub fn kvm(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |e| Self::System { what, source: io::Error::from_raw_os_error(e.errno()) }
    }

    /// The system call `what` failed.
    pub fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// The system call `what` failed as the thread's `errno` says.
    pub fn last(what: &'static str) -> Self {
        Self::System { what, source: io::Error::last_os_error() }
    }
}
