//! How far a source session is, and what may be called then.

use crate::session::{CheckpointMode, CommitBy, MemoryBy, Terms};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::session) enum Step {
    New,
    Offered,
    Tracking,
    Quiesced,
    Stopped,
    Final,
    Prepared,
    /// A step failed; nothing is left but to abort.
    Failed,
    CommitRefused,
    InDoubt,
    /// The intent is durable, and the caller carries the commit.
    Intended,
    Committed,
    Acknowledged,
    /// Everything is in the file, and the functions run again.
    Copied,
    Released,
    Aborted,
}

impl Step {
    /// For errors.
    pub fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Offered => "offered",
            Self::Tracking => "tracking",
            Self::Quiesced => "quiesced",
            Self::Stopped => "stopped",
            Self::Final => "sent",
            Self::Prepared => "prepared",
            Self::Failed => "failed",
            Self::CommitRefused => "refused by the destination",
            Self::InDoubt => "in doubt",
            Self::Intended => "intended: the caller carries the commit",
            Self::Committed => "committed",
            Self::Acknowledged => "running at the destination",
            Self::Copied => "copied: the functions run again",
            Self::Released => "released",
            Self::Aborted => "aborted",
        }
    }

    /// The calls that are possible now.
    pub fn allowed(self, terms: Terms) -> &'static str {
        let by_caller = terms.memory == MemoryBy::Caller;
        let passed = terms.memory == MemoryBy::Passed;
        match self {
            Self::Tracking if passed => "precopy_state, quiesce, stop, ping, abort",
            Self::Stopped if passed => "save_state, abort",
            Self::New => "offer, abort",
            Self::Offered if !terms.duplex => "start_tracking, abort",
            Self::Offered => "start_tracking, ping, abort",
            Self::Tracking if by_caller => "harvest, precopy_state, quiesce, stop, abort",
            Self::Tracking => "memory_pass, precopy_state, quiesce, stop, ping, abort",
            Self::Quiesced if by_caller => "harvest, stop, abort",
            Self::Quiesced => "stop, abort",
            Self::Stopped if by_caller => "harvest, save_state, abort",
            Self::Stopped => "final_pass, abort",
            Self::Final if by_caller => "harvest, send_section, prepare, abort",
            Self::Final => "send_section, prepare, abort",
            Self::Prepared if terms.checkpoint == Some(CheckpointMode::Move) => "seal, abort",
            Self::Prepared if terms.checkpoint == Some(CheckpointMode::Copy) => "resume_copied, abort",
            Self::Copied => "seal",
            Self::Prepared if terms.commit == CommitBy::Caller => "intent, abort",
            Self::Prepared => "commit, ping, abort",
            Self::Intended if terms.duplex => {
                "wait_running, release, refused_by_caller, settle, declare_destination_dead"
            }
            Self::Intended => "release, refused_by_caller, settle, declare_destination_dead",
            Self::Failed | Self::CommitRefused => "abort",
            Self::InDoubt => "settle, declare_destination_dead",
            Self::Committed if !terms.duplex => "release",
            Self::Committed => "wait_running, release",
            Self::Acknowledged => "release",
            Self::Released | Self::Aborted => "nothing, it is over",
        }
    }
}
