//! What a session leaves to its caller: memory, the commit, and a stream that answers.
//!
//! Both sides name the same terms. Whatever they are, the records of the handoff and their order are the same.

use serde::{Deserialize, Serialize};

use crate::dialogue::Mismatch;
use crate::error::EngineError;
use crate::link::Link;

/// Who moves guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryBy {
    /// The session: memory passes over its link.
    #[default]
    Engine,
    /// The caller, by its own means. The session only tracks: its ledger says which pages to move.
    Caller,
    /// Nobody: the destination gets the descriptors of the files that guest memory lies in, and maps the same memory. Both sides are on one
    /// host and of one user, and their link is a UNIX socket. Nothing is tracked and no page is sent.
    Passed,
}

/// Who carries the commit from one side to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CommitBy {
    /// The session: COMMIT and COMMITTED over its link.
    #[default]
    Session,
    /// The caller, by its own means. What becomes durable, and when, stays as it is.
    Caller,
}

/// What a checkpoint is: a stream in a file, with nobody at its other end yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckpointMode {
    /// The functions move into the file: released here once it is durable, restorable once.
    Move,
    /// The functions go on here; the file is restored into other functions, as often as wished.
    Copy,
}

/// The terms of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Terms {
    /// Who moves guest memory.
    pub memory: MemoryBy,
    /// Who carries the commit.
    pub commit: CommitBy,
    /// The link goes both ways. Where it doesn't, nothing is ever answered: what the destination finds against the offer, it
    /// tells its own caller only.
    pub duplex: bool,
    /// At the source: file descriptors may come with the caller's sections. At the destination: it takes such; where none are offered
    /// that makes no difference.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub descriptors: bool,
    /// The stream is a checkpoint in a file. Not written where it is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<CheckpointMode>,
}

impl Default for Terms {
    fn default() -> Self {
        Self { memory: MemoryBy::Engine, commit: CommitBy::Session, duplex: true, descriptors: false, checkpoint: None }
    }
}

impl Terms {
    /// Those of a checkpoint: nobody answers, and the commit is in the file.
    #[must_use]
    pub fn checkpoint(mode: CheckpointMode) -> Self {
        Self {
            memory: MemoryBy::Engine,
            commit: CommitBy::Caller,
            duplex: false,
            descriptors: false,
            checkpoint: Some(mode),
        }
    }

    /// Whether the engine does all of it.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the terms against each other.
    ///
    /// # Errors
    /// [`EngineError::Config`]: over a one-way link only the caller can carry the commit, and nothing can be passed.
    pub fn check(self) -> Result<(), EngineError> {
        if !self.duplex && (self.memory == MemoryBy::Passed || self.descriptors) {
            return Err(EngineError::Config {
                what: "over a one-way link no descriptors can be passed: nobody could say that they have come".into(),
            });
        }
        if !self.duplex && self.commit == CommitBy::Session {
            return Err(EngineError::Config {
                what: "over a one-way link no commit can be answered: the caller has to carry it".into(),
            });
        }
        if let Some(mode) = self.checkpoint
            && self != Self::checkpoint(mode)
        {
            return Err(EngineError::Config {
                what: "a checkpoint goes one way, holds all of memory, and has its commit in the file".into(),
            });
        }
        Ok(())
    }
}

/// What is to be passed over `link` and can't be.
pub(super) fn cannot_pass(terms: Terms, link: &dyn Link) -> Vec<Mismatch> {
    let mut found = Vec::new();
    if terms.memory != MemoryBy::Passed && !terms.descriptors {
        return found;
    }
    let Some(why) = link.why_no_descriptors() else { return found };
    let mend = "link both sides by unix:///path, two processes of one user on one host";
    if terms.memory == MemoryBy::Passed {
        found.push(Mismatch {
            code: "memory-passing".into(),
            message: format!("guest memory can't be passed: {why}"),
            mend: format!("{mend}, or let memory be copied"),
        });
    }
    if terms.descriptors {
        found.push(Mismatch {
            code: "descriptor-passing".into(),
            message: format!("file descriptors can't be passed: {why}"),
            mend: mend.into(),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_one_way_link_needs_the_callers_commit() {
        assert!(Terms::default().is_default() && Terms::default().check().is_ok());
        let one_way = Terms { duplex: false, ..Terms::default() };
        assert!(matches!(one_way.check(), Err(EngineError::Config { .. })));
        let by_caller = Terms { commit: CommitBy::Caller, ..one_way };
        assert!(by_caller.check().is_ok());
        assert!(Terms { memory: MemoryBy::Passed, ..by_caller }.check().is_err());
        assert!(Terms { descriptors: true, ..by_caller }.check().is_err());
        assert!(Terms { memory: MemoryBy::Passed, descriptors: true, ..Terms::default() }.check().is_ok());
        let checkpoint = Terms::checkpoint(CheckpointMode::Copy);
        assert!(checkpoint.check().is_ok() && Terms { duplex: true, ..checkpoint }.check().is_err());
    }
}
