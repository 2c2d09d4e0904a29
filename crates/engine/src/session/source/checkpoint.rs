//! A source whose other end is a file: what comes in place of PREPARED, COMMIT and their answers.

use std::path::Path;
use std::time::Instant;

use super::{SourceConfig, SourceSession, Step};
use crate::checkpoint::CheckpointFile;
use crate::dialogue::Message;
use crate::error::{EngineError, FenceError};
use crate::fence::{Record, Role};
use crate::link::close;
use crate::session::{CheckpointMode, FunctionOutcome, Terms, bring_back};

impl SourceSession {
    /// Makes a session that writes a checkpoint to `path`, under a temporary name until [`SourceSession::seal`]. Steps are those of any
    /// session over a one-way link up to `prepare`; then `seal` and `release` for a move, `resume_copied` and `seal` for a copy. Whatever
    /// ends it before removes the file.
    ///
    /// # Errors
    /// As [`SourceSession::new`] and [`CheckpointFile::create`].
    pub fn checkpoint(
        config: SourceConfig,
        path: &Path,
        mode: CheckpointMode,
        overwrite: bool,
    ) -> Result<Self, EngineError> {
        config.points.check()?;
        let file = CheckpointFile::create(path, config.session, overwrite)?;
        config.points.hit("checkpoint:created")?;
        let link = file.link();
        let mut session = Self::with_terms(config, Terms::checkpoint(mode), link)?;
        // Whoever restores it begins with empty memory, or empties it.
        session.peer_memory_is_fresh = true;
        session.checkpoint = Some(file);
        Ok(session)
    }

    /// The path that the fence records for a checkpoint.
    pub(super) fn checkpoint_path(&self) -> Option<String> {
        self.checkpoint.as_ref().map(|file| file.path().display().to_string())
    }

    fn is(&self, mode: CheckpointMode) -> bool {
        self.terms.checkpoint == Some(mode)
    }

    /// Copy: everything is in the file, which is not durable yet. The functions run again here; outside of their pause the file is sealed.
    ///
    /// # Errors
    /// As for any other step. A function that did not come back says so in its outcome.
    pub fn resume_copied(&mut self) -> Result<Vec<FunctionOutcome>, EngineError> {
        self.expect("resume_copied", &[Step::Prepared])?;
        self.needs("resume_copied", self.is(CheckpointMode::Copy))?;
        self.config.cancel.check()?;
        let start = Instant::now();
        let outcomes = self.config.functions.iter_mut().map(bring_back).collect();
        self.stop_tracking();
        self.step = Step::Copied;
        self.timings.add("resume", start);
        Ok(outcomes)
    }

    /// Makes the file durable and gives it its name; from then on it is a checkpoint. Returns its bytes.
    ///
    /// Move: the intent is durable before the commit is in the file. What fails takes the commit back, durably, before this returns: the
    /// functions are then brought back by [`SourceSession::abort`]. Copy: what fails removes the file; the functions run.
    ///
    /// # Errors
    /// [`EngineError::File`] and [`EngineError::Checkpoint`]. [`EngineError::InDoubt`] where a failed commit could not be taken back:
    /// [`crate::checkpoint::recover`] settles it.
    pub fn seal(&mut self) -> Result<u64, EngineError> {
        let step = if self.is(CheckpointMode::Copy) { Step::Copied } else { Step::Prepared };
        self.expect("seal", &[step])?;
        self.needs("seal", self.terms.checkpoint.is_some())?;
        if step == Step::Copied { self.seal_copy() } else { self.seal_move() }
    }

    fn seal_copy(&mut self) -> Result<u64, EngineError> {
        let start = Instant::now();
        let resumed = self.config.points.hit("checkpoint:resumed");
        let synced = resumed.and_then(|()| self.sync()).and_then(|()| self.config.cancel.check());
        let sealed = synced.and_then(|()| self.publish());
        self.timings.add("sync", start);
        close(&mut self.link);
        if let Some(file) = self.checkpoint.as_mut().filter(|_| sealed.is_err()) {
            // What can't be taken back is a whole copy, and nobody's function.
            let _ = file.withdraw();
        }
        self.checkpoint = None;
        self.step = Step::Aborted;
        let reason = if sealed.is_ok() { "a copy was taken; the functions go on here" } else { "no copy was taken" };
        let recorded = self.append_once(Record::Aborted { reason: reason.into() });
        sealed?;
        recorded?;
        Ok(self.sender.wire_bytes())
    }

    fn seal_move(&mut self) -> Result<u64, EngineError> {
        let start = Instant::now();
        self.attempt(|s| {
            // As much as can fail does so while failing is cheap.
            s.sync()?;
            s.timings.add("sync", start);
            s.config.points.hit("source:commit-intent")?;
            s.config.cancel.close()?;
            s.link.disarm();
            let start = Instant::now();
            s.config.fence.append(s.config.session, Role::Source, Record::Intent { epoch: s.epoch })?;
            s.timings.add("journal-intent", start);
            s.step = Step::InDoubt;
            Ok(())
        })?;
        let start = Instant::now();
        let published = self.publish();
        self.timings.add("commit", start);
        close(&mut self.link);
        let Err(cause) = published else {
            self.checkpoint = None;
            self.step = Step::Committed;
            return Ok(self.sender.wire_bytes());
        };
        match self.checkpoint.as_mut().map_or(Ok(()), CheckpointFile::withdraw) {
            Ok(()) => {
                self.step = Step::CommitRefused;
                Err(cause)
            }
            Err(_) => {
                self.keep_checkpoint();
                Err(EngineError::InDoubt { session: self.config.session, epoch: self.epoch, cause: Box::new(cause) })
            }
        }
    }

    fn sync(&mut self) -> Result<(), EngineError> {
        if let Some(file) = &self.checkpoint {
            file.sync()?;
        }
        self.config.points.hit("checkpoint:synced")
    }

    /// The commit into the file, then its name.
    fn publish(&mut self) -> Result<(), EngineError> {
        if self.is(CheckpointMode::Move) {
            self.config.points.hit("source:commit-intent-durable")?;
        }
        let epoch = self.epoch;
        self.say(&Message::Commit { epoch })?;
        let Some(file) = self.checkpoint.as_mut() else { return Ok(()) };
        file.sync()?;
        self.config.points.hit("checkpoint:commit-written")?;
        file.publish()?;
        self.config.points.hit("checkpoint:renamed")?;
        file.sync_folder()?;
        self.config.points.hit("checkpoint:durable")?;
        file.keep();
        Ok(())
    }

    /// The file stays as it is: only who recovers may decide about it.
    pub(super) fn keep_checkpoint(&mut self) {
        if let Some(mut file) = self.checkpoint.take() {
            file.keep();
        }
    }

    /// After an abort: the file goes, unless the fence does not know of the abort. Then it is what a recovery concludes from.
    pub(super) fn drop_checkpoint(&mut self, recorded: &Result<(), FenceError>) {
        if recorded.is_err() {
            self.keep_checkpoint();
        }
        self.checkpoint = None;
    }
}
