//! Why a tenant cannot start or go on.

use towline_core::memory::MemoryError;

/// See the variants.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TenantError {
    /// The specification names what cannot be.
    #[error("tenant specification: {0}")]
    Spec(String),
    /// Guest memory holds no state of a tenant, or a damaged one.
    #[error("no valid tenant state at guest address {gpa:#x}: {what}")]
    NoState {
        /// Where it was looked for.
        gpa: u64,
        /// What is wrong.
        what: String,
    },
    /// The tenant's own memory is not there.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The controller cannot be driven: a capability is missing or it reports a fatal status.
    #[error("controller: {0}")]
    Controller(String),
    /// The controller did not answer in time.
    #[error("controller: no answer to {0} in time")]
    Timeout(&'static str),
    /// A command of the start failed.
    #[error("controller: {what} ended with status {status:#x}")]
    Command {
        /// Which command.
        what: &'static str,
        /// Status field of the completion without the phase bit: SCT << 8 | SC in the low 11 bits.
        status: u16,
    },
    /// The log's reader is gone, or writing to it failed. A tenant without a witness does not run.
    #[error("tenant log: {0}")]
    Log(std::io::Error),
    /// The thread of the tenant could not be started.
    #[error("tenant thread: {0}")]
    Thread(std::io::Error),
}
