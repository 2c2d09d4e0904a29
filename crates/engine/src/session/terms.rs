//! What a session leaves to its caller: memory, the commit, and a stream that answers.
//!
//! Both sides name the same terms. Whatever they are, the records of the handoff and their order are the same.

use serde::{Deserialize, Serialize};

use crate::error::EngineError;

/// Who moves guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryBy {
    /// The session: memory passes over its link.
    #[default]
    Engine,
    /// The caller, by its own means. The session only tracks: its ledger says which pages to move.
    Caller,
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
}

impl Default for Terms {
    fn default() -> Self {
        Self { memory: MemoryBy::Engine, commit: CommitBy::Session, duplex: true }
    }
}

impl Terms {
    /// Whether the engine does all of it.
    #[must_use]
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Checks the terms against each other.
    ///
    /// # Errors
    /// [`EngineError::Config`]: over a one-way link only the caller can carry the commit.
    pub fn check(self) -> Result<(), EngineError> {
        if !self.duplex && self.commit == CommitBy::Session {
            return Err(EngineError::Config {
                what: "over a one-way link no commit can be answered: the caller has to carry it".into(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_one_way_link_needs_the_callers_commit() {
        assert!(Terms::default().is_default() && Terms::default().check().is_ok());
        let one_way = Terms { duplex: false, ..Terms::default() };
        assert!(matches!(one_way.check(), Err(EngineError::Config { .. })));
        assert!(Terms { commit: CommitBy::Caller, ..one_way }.check().is_ok());
    }
}
