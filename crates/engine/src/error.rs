//! What can go wrong in a migration, with what was attempted, where, and what mends it.

use std::io;

use thiserror::Error;
use towline_core::channel::ChannelError;
use towline_core::fsm::DeviceState;
use towline_core::memory::MemoryError;
use towline_core::stream::{StreamError, StreamErrorReason};
use uuid::Uuid;

use crate::dialogue::Mismatch;

/// Why a session, a link or a recovery failed. [`EngineError::code`] is stable; the text is for people.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The link to the peer failed or ended.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The peer, or a file, sent bytes which are no valid migration stream: damaged, cut, reordered or foreign.
    #[error("{0}; nothing of it was accepted, start the migration again")]
    Stream(#[from] StreamError),
    /// The peer sent a valid message at the wrong time, or with impossible contents.
    #[error("the peer broke the protocol while {during}: {what}")]
    Protocol {
        /// What this side was doing.
        during: &'static str,
        /// What the peer did.
        what: String,
    },
    /// A state channel refused.
    #[error("function {function}: {attempted} failed: {source}")]
    Channel {
        /// Identity of the function.
        function: String,
        /// What was attempted.
        attempted: &'static str,
        /// The state the function is in after the failure, where it can be told.
        state: Option<DeviceState>,
        /// What the channel said; keeps errno and NVMe status.
        source: ChannelError,
    },
    /// A dirty source refused.
    #[error("dirty source {name}: {attempted} failed: {source}")]
    DirtySource {
        /// The source's name as configured.
        name: String,
        /// What was attempted.
        attempted: &'static str,
        /// What the source said; keeps errno and NVMe status.
        source: ChannelError,
    },
    /// Guest memory refused an access.
    #[error("guest memory, while {during}: {source}")]
    Memory {
        /// What this side was doing.
        during: &'static str,
        /// The access.
        source: MemoryError,
    },
    /// The journal or an outside fence refused or failed.
    #[error(transparent)]
    Fence(#[from] FenceError),
    /// A session call out of order, or a second time.
    #[error("{call} is not possible now: the session is {state}; allowed is: {allowed}")]
    Misuse {
        /// The call.
        call: &'static str,
        /// The state of the session.
        state: &'static str,
        /// What may be called instead.
        allowed: &'static str,
    },
    /// A configuration that can't work.
    #[error("invalid configuration: {what}")]
    Config {
        /// What, and what would be valid.
        what: String,
    },
    /// The caller cancelled; before COMMIT-INTENT only.
    #[error("cancelled by the caller")]
    Cancelled,
    /// The destination listed reasons against the migration.
    #[error("the destination refuses the offer for {} reason(s), the first: {}", .0.len(), .0.first().map_or("none given", |m| m.message.as_str()))]
    Mismatch(Vec<Mismatch>),
    /// The peer gave up.
    #[error("the peer aborted: {reason} ({code})")]
    PeerAborted {
        /// The peer's error code.
        code: String,
        /// The peer's words.
        reason: String,
    },
    /// The destination refused the epoch: it can never commit any more. The source may resume.
    #[error("the destination refused to commit epoch {epoch}: {reason}; the source still owns the functions")]
    CommitRefused {
        /// The refused epoch.
        epoch: u64,
        /// The destination's words.
        reason: String,
    },
    /// COMMIT counts as sent, and its answer is not known. The source stays stopped and fenced.
    #[error(
        "session {session} is in doubt: COMMIT of epoch {epoch} may have arrived ({cause}); the source stays stopped until \
         the destination is asked (recover)"
    )]
    InDoubt {
        /// The session.
        session: Uuid,
        /// Its epoch.
        epoch: u64,
        /// What interrupted the commit.
        cause: Box<EngineError>,
    },
    /// A value from outside exceeds a limit.
    #[error("{what} is {value}, the limit is {limit}")]
    Limit {
        /// What was limited.
        what: &'static str,
        /// What it was.
        value: u64,
        /// The most it may be.
        limit: u64,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    File {
        /// The path.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// A checkpoint can't be written, or not be restored, for what is found at its path.
    #[error("{path}: {problem}")]
    Checkpoint {
        /// The path.
        path: String,
        /// What is the matter.
        problem: CheckpointProblem,
    },
    /// A rehearsed failure at a named point ([`crate::faultpoints`]).
    #[error("rehearsed failure at {point}")]
    Rehearsed {
        /// The point's name.
        point: &'static str,
    },
}

impl EngineError {
    /// A stable code for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Link(e) => e.code(),
            Self::Stream(StreamError { reason: StreamErrorReason::Version { .. }, .. }) => "ERR_TOWLINE_STREAM_VERSION",
            Self::Stream(_) => "ERR_TOWLINE_STREAM",
            Self::Protocol { .. } => "ERR_TOWLINE_PROTOCOL",
            Self::Channel { .. } => "ERR_TOWLINE_CHANNEL",
            Self::DirtySource { .. } => "ERR_TOWLINE_DIRTY_SOURCE",
            Self::Memory { .. } => "ERR_TOWLINE_MEMORY",
            Self::Fence(e) => e.code(),
            Self::Misuse { .. } => "ERR_TOWLINE_MISUSE",
            Self::Config { .. } => "ERR_TOWLINE_CONFIG",
            Self::Cancelled => "ERR_TOWLINE_CANCELLED",
            Self::Mismatch(_) => "ERR_TOWLINE_MISMATCH",
            Self::PeerAborted { .. } => "ERR_TOWLINE_PEER_ABORTED",
            Self::CommitRefused { .. } => "ERR_TOWLINE_COMMIT_REFUSED",
            Self::InDoubt { .. } => "ERR_TOWLINE_IN_DOUBT",
            Self::Limit { .. } => "ERR_TOWLINE_LIMIT",
            Self::File { .. } => "ERR_TOWLINE_FILE",
            Self::Checkpoint { problem, .. } => problem.code(),
            Self::Rehearsed { .. } => "ERR_TOWLINE_REHEARSED",
        }
    }

    /// `errno` of the system call behind this, where there is one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Link(LinkError::Io { source, .. } | LinkError::File { source, .. }) | Self::File { source, .. } => {
                source.raw_os_error()
            }
            Self::Fence(FenceError::Io { source, .. }) => source.raw_os_error(),
            Self::Channel { source, .. } | Self::DirtySource { source, .. } => source.errno,
            Self::InDoubt { cause, .. } => cause.errno(),
            _ => None,
        }
    }

    /// NVMe status (SCT << 8 | SC) behind this, where there is one.
    #[must_use]
    pub fn nvme_status(&self) -> Option<u16> {
        match self {
            Self::Channel { source, .. } | Self::DirtySource { source, .. } => source.nvme_status,
            Self::InDoubt { cause, .. } => cause.nvme_status(),
            _ => None,
        }
    }

    /// The function this is about, where it is about one.
    #[must_use]
    pub fn function(&self) -> Option<&str> {
        match self {
            Self::Channel { function, .. } => Some(function),
            _ => None,
        }
    }
}

/// See [`EngineError::Checkpoint`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CheckpointProblem {
    /// Something is there already.
    Exists,
    /// There is nothing.
    Missing,
    /// It is no regular file, has a name that can't be used, or more than one name.
    Unusable(&'static str),
    /// A process writes it or restores from it.
    Busy,
    /// It was restored, or is claimed by somebody whose records are elsewhere.
    Consumed(String),
    /// It is another file than before, or has another size.
    Changed,
}

impl CheckpointProblem {
    fn code(&self) -> &'static str {
        match self {
            Self::Exists => "ERR_TOWLINE_EXISTS",
            Self::Missing => "ERR_TOWLINE_NOT_FOUND",
            Self::Unusable(_) | Self::Changed => "ERR_TOWLINE_FILE",
            Self::Busy => "ERR_TOWLINE_BUSY",
            Self::Consumed(_) => "ERR_TOWLINE_FENCED",
        }
    }
}

impl std::fmt::Display for CheckpointProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exists => f.write_str("there is something already, which is replaced only where that is asked for"),
            Self::Missing => f.write_str("there is no such checkpoint"),
            Self::Unusable(why) => f.write_str(why),
            Self::Busy => f.write_str("a process writes this checkpoint, or restores from it, right now"),
            Self::Consumed(why) => f.write_str(why),
            Self::Changed => f.write_str("the file was changed or replaced while it was read"),
        }
    }
}

/// Why a link failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LinkError {
    /// A system call failed.
    #[error("{peer}: {attempted}: {source}")]
    Io {
        /// The peer.
        peer: String,
        /// What was attempted.
        attempted: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The peer closed the link.
    #[error("{peer}: the peer closed the link")]
    Closed {
        /// The peer.
        peer: String,
    },
    /// Nothing moved for longer than the idle timeout: the peer hangs, or the network swallowed it.
    #[error("{peer}: nothing moved for {idle_ms} ms while {attempted}; the peer hangs or the network is gone")]
    Idle {
        /// The peer.
        peer: String,
        /// What was attempted.
        attempted: &'static str,
        /// How long nothing moved, in milliseconds.
        idle_ms: u64,
    },
    /// Nobody connected, or nobody answered, in time.
    #[error("{address}: no connection within {waited_ms} ms")]
    Timeout {
        /// The address.
        address: String,
        /// How long was waited, in milliseconds.
        waited_ms: u64,
    },
    /// The address can't be used.
    #[error("address {address}: {what}")]
    Address {
        /// The address as given.
        address: String,
        /// What is wrong with it and what would be right.
        what: String,
    },
    /// File descriptors could not be passed, or the peer passed some that it must not.
    #[error("{peer}: file descriptors: {what}")]
    Descriptors {
        /// The peer.
        peer: String,
        /// What is wrong.
        what: String,
    },
    /// The file behind a one-way link can't be written or read.
    #[error("{path}: {attempted}: {source}")]
    File {
        /// The file.
        path: String,
        /// What was attempted.
        attempted: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The caller cancelled.
    #[error("cancelled by the caller")]
    Cancelled,
}

impl LinkError {
    /// A stable code for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } => "ERR_TOWLINE_LINK",
            Self::Closed { .. } => "ERR_TOWLINE_LINK_CLOSED",
            Self::Idle { .. } => "ERR_TOWLINE_LINK_IDLE",
            Self::Timeout { .. } => "ERR_TOWLINE_LINK_TIMEOUT",
            Self::Address { .. } => "ERR_TOWLINE_ADDRESS",
            Self::Descriptors { .. } => "ERR_TOWLINE_PROTOCOL",
            Self::File { .. } => "ERR_TOWLINE_FILE",
            Self::Cancelled => "ERR_TOWLINE_CANCELLED",
        }
    }
}

/// Why a fence refused or failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FenceError {
    /// A file operation of the journal failed. What was being written may or may not be durable.
    #[error("journal {path}: {attempted}: {source}")]
    Io {
        /// The file or directory.
        path: String,
        /// What was attempted.
        attempted: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Another process owns the journal.
    #[error("journal {path} is owned by another process; one journal has one owner")]
    Owned {
        /// The journal's directory.
        path: String,
    },
    /// A complete record is damaged: nothing may be concluded from this journal without a person.
    #[error("journal {path}: record {record} is damaged ({what}); ownership of this session can't be told from it")]
    Damaged {
        /// The file.
        path: String,
        /// Index of the record, from 0.
        record: usize,
        /// What is wrong with it.
        what: String,
        /// The functions of the session, as the records before say; none where nothing can be read.
        functions: Vec<String>,
    },
    /// The record contradicts what is already durable: the compare of the compare-and-set failed.
    #[error("session {session}: {refused} is refused: {why}")]
    Refused {
        /// The session.
        session: Uuid,
        /// The record that was refused.
        refused: &'static str,
        /// What it contradicts.
        why: String,
    },
    /// A write failed earlier, so the journal's end is unknown until it is opened again.
    #[error("journal {path} failed earlier and takes no more records; open it again")]
    Poisoned {
        /// The file.
        path: String,
    },
    /// An outside fence could not be reached, or said something else.
    #[error("fence: {what}")]
    Outside {
        /// Its words.
        what: String,
    },
}

impl FenceError {
    /// A stable code for programs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io { .. } | Self::Poisoned { .. } => "ERR_TOWLINE_JOURNAL",
            Self::Owned { .. } => "ERR_TOWLINE_JOURNAL_OWNED",
            Self::Damaged { .. } => "ERR_TOWLINE_JOURNAL_DAMAGED",
            Self::Refused { .. } => "ERR_TOWLINE_FENCED",
            Self::Outside { .. } => "ERR_TOWLINE_FENCE",
        }
    }
}
