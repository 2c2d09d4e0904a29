//! Why an admin command gave nothing usable, and what that means to a migration.

use towline_core::channel::{ChannelError, ChannelErrorKind};
use towline_core::fsm::DeviceState;

use super::TransportError;
use crate::status::{Status, StatusCode};
use crate::track::TrackResources;
use crate::wire::DecodeError;

/// Why an admin command gave nothing usable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AdminError {
    /// The controller completed it with another status than success.
    #[error("{command}: {status}")]
    Status {
        /// Which command.
        command: &'static str,
        /// What the controller said.
        status: Status,
        /// DW0 | DW1 << 32 of the completion.
        result: u64,
    },
    /// There was no completion.
    #[error("{command}: {source}")]
    Transport {
        /// Which command.
        command: &'static str,
        /// What the transport said.
        source: TransportError,
    },
    /// It completed, and what it returned is not what it should be.
    #[error("{command} answered with something unusable: {source}")]
    Answer {
        /// Which command.
        command: &'static str,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// What was asked cannot be put into the command. Nothing was sent.
    #[error("{command} cannot be asked for this: {message}")]
    Request {
        /// Which command.
        command: &'static str,
        /// Why not.
        message: String,
    },
}

impl AdminError {
    /// The status, where the controller gave one.
    #[must_use]
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Status { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether the controller refused with `code`.
    #[must_use]
    pub fn is(&self, code: StatusCode) -> bool {
        self.status().and_then(Status::code) == Some(code)
    }

    /// What a start of tracking that failed for want of resources says is possible.
    #[must_use]
    pub fn track_resources(&self) -> Option<TrackResources> {
        match self {
            Self::Status { result, .. } if self.is(StatusCode::NotEnoughResources) => {
                Some(TrackResources::from_result(*result))
            }
            _ => None,
        }
    }

    /// Whether the outcome of the command is unknown: it may have been executed.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Transport { source, .. } => !matches!(source, TransportError::Unsendable { .. }),
            Self::Status { .. } | Self::Answer { .. } | Self::Request { .. } => false,
        }
    }

    /// The same for callers of a channel; `state` is the state of the function after it.
    #[must_use]
    pub fn into_channel_error(self, state: Option<DeviceState>) -> ChannelError {
        let kind = match &self {
            Self::Status { status, .. } => match status.code() {
                Some(StatusCode::InvalidOpcode) => ChannelErrorKind::Unsupported,
                Some(
                    StatusCode::CommandSequenceError
                    | StatusCode::ControllerSuspended
                    | StatusCode::ControllerNotSuspended
                    | StatusCode::InvalidSecondaryControllerState,
                ) => ChannelErrorKind::State,
                Some(StatusCode::NotEnoughResources) => ChannelErrorKind::Limit,
                Some(StatusCode::InvalidControllerIdentifier) => ChannelErrorKind::Gone,
                _ => ChannelErrorKind::Device,
            },
            Self::Transport { source: TransportError::Gone { .. } | TransportError::Timeout { .. }, .. } => {
                ChannelErrorKind::Gone
            }
            Self::Transport { source: TransportError::Unsendable { .. }, .. } | Self::Request { .. } => {
                ChannelErrorKind::Limit
            }
            Self::Transport { .. } | Self::Answer { .. } => ChannelErrorKind::Device,
        };
        let errno = match &self {
            Self::Transport { source: TransportError::Io { errno, .. }, .. } => Some(*errno),
            _ => None,
        };
        let nvme_status = self.status().map(Status::sct_sc);
        ChannelError { errno, nvme_status, state, ..ChannelError::new(kind, self.to_string()) }
    }
}
