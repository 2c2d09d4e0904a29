//! [`TrackError`]: why a dirty source over memory of this process could not be made or changed.

use towline_core::channel::ChannelError;

/// Why a dirty source over memory of this process could not be made, or its memory not be changed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrackError {
    /// An argument can't be.
    #[error("{0}")]
    Argument(String),
    /// What is to be added is there already.
    #[error("{0}")]
    Exists(String),
    /// What is to be removed is not there.
    #[error("{0}")]
    NotFound(String),
    /// The kernel refused, or can't do it.
    #[error(transparent)]
    Refused(#[from] ChannelError),
}
