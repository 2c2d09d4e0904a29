//! From PREPARED to running.

use std::time::Instant;

use towline_core::fsm::DeviceState;

use super::{DestinationSession, Step};
use crate::dialogue::Message;
use crate::error::{EngineError, FenceError};
use crate::fence::{Record, Role};
use crate::link::{NO_LIMIT, close};
use crate::session::{CommitBy, set_state};

impl DestinationSession {
    /// Waits for COMMIT, makes the commit durable and answers. When this returns `Ok`, this side owns the functions, whether the
    /// source could be told or not; nothing runs yet. What goes wrong once the commit is durable is no error of this call, as it would
    /// look like a rollback: [`DestinationSession::resume`] tells it.
    ///
    /// # Errors
    /// Before the commit is durable everything is rolled back, the refusal durable first. [`EngineError::CommitRefused`] where
    /// the fence refused. [`EngineError::Fence`] where it can't be told whether the commit is durable: the functions stay
    /// stopped, and the journal tells when it is opened again.
    pub fn wait_commit(&mut self) -> Result<u64, EngineError> {
        self.expect("wait_commit", &[Step::Prepared])?;
        if self.terms.commit != CommitBy::Session {
            return Err(self.misuse("wait_commit"));
        }
        let epoch = self.epoch;
        self.take(|s| {
            // The source's caller may look at everything for long.
            let idle_timeout = s.link.idle_timeout();
            s.link.set_idle_timeout(NO_LIMIT);
            loop {
                match s.receiver.message(s.link.as_mut(), "waiting for COMMIT")? {
                    Message::Commit { epoch: asked } if asked == epoch => {
                        s.link.set_idle_timeout(idle_timeout);
                        return Ok(());
                    }
                    Message::Commit { epoch: asked } => {
                        return Err(EngineError::Protocol {
                            during: "waiting for COMMIT",
                            what: format!("it commits epoch {asked}, the session has {epoch}"),
                        });
                    }
                    other => s.aside(other, "waiting for COMMIT")?,
                }
            }
        })
    }

    /// The caller has brought the source's intent of `epoch` over: makes the commit durable. When this returns `Ok`, this side owns the
    /// functions; nothing runs yet, and telling the source is the caller's.
    ///
    /// # Errors
    /// [`EngineError::Config`] for another epoch than the session's; nothing has changed then. Otherwise as
    /// [`DestinationSession::wait_commit`].
    pub fn commit_by_caller(&mut self, epoch: u64) -> Result<u64, EngineError> {
        self.expect("commit_by_caller", &[Step::Prepared])?;
        if self.terms.commit != CommitBy::Caller || self.restore.is_some() {
            return Err(self.misuse("commit_by_caller"));
        }
        if epoch != self.epoch {
            return Err(EngineError::Config {
                what: format!("epoch {epoch} is to be committed, the session has {}", self.epoch),
            });
        }
        self.take(|_| Ok(()))
    }

    /// Takes the functions over, once `commit` has come.
    pub(super) fn take(
        &mut self,
        commit: impl FnOnce(&mut Self) -> Result<(), EngineError>,
    ) -> Result<u64, EngineError> {
        let start = Instant::now();
        self.attempt(|s| {
            commit(s)?;
            s.config.points.hit("destination:commit-received")?;
            s.config.cancel.close()
        })
        .or_else(|error| self.refuse_commit(error))?;
        self.link.disarm();
        self.timings.add("wait-commit", start);
        let start = Instant::now();
        let (session, epoch) = (self.fence_session(), self.epoch);
        match self.config.fence.append(session, Role::Destination, Record::Committed { epoch }) {
            Ok(()) => {}
            Err(error @ FenceError::Refused { .. }) => {
                let reason = error.to_string();
                let _ = self.roll_back("ERR_TOWLINE_FENCED", &reason);
                return Err(EngineError::CommitRefused { epoch, reason });
            }
            Err(error) => {
                self.step = Step::Unknown;
                close(&mut self.link);
                return Err(error.into());
            }
        }
        self.timings.add("journal-commit", start);
        self.step = Step::Committed;
        // Ours, and so its memory too.
        if let Some(memory) = &self.passed {
            memory.open_gate();
        }
        self.note_late("destination:commit-durable");
        self.consume_checkpoint();
        // As if it had not come so far: the source asks later.
        if self.terms.commit == CommitBy::Session && self.late_error.is_none() {
            // Where this fails the source asks later; the ownership is decided.
            let journal_us = (self.timings.ms("journal-commit") * 1000.0) as u64;
            let _ = self.say(&Message::Committed { epoch, journal_us });
        }
        self.note_late("destination:committed-sent");
        Ok(epoch)
    }

    /// A failure after the commit: nothing is taken back for it.
    pub(super) fn note_late(&mut self, point: &'static str) {
        if let Err(error) = self.config.points.hit(point) {
            self.late_error.get_or_insert(error);
        }
    }

    /// The step has failed and was rolled back, durably; a source that has sent COMMIT is told so.
    fn refuse_commit(&mut self, error: EngineError) -> Result<(), EngineError> {
        let refused = self.config.fence.records(self.fence_session(), Role::Destination);
        if refused.is_ok_and(|r| matches!(r.last(), Some(Record::Aborted { .. } | Record::Refused { .. }))) {
            self.config.points.hit("destination:refusal-durable")?;
        }
        Err(error)
    }

    /// Starts the functions, all that can be started. Returns the instant (`CLOCK_MONOTONIC` in nanoseconds) from which the first may
    /// execute.
    ///
    /// # Errors
    /// [`EngineError::Channel`] of the first function that did not start; the others run. This side owns all of them;
    /// [`DestinationSession::running`] tells the source. Otherwise what went wrong since the commit was durable; the functions run
    /// then.
    pub fn resume(&mut self) -> Result<u64, EngineError> {
        self.expect("resume", &[Step::Committed])?;
        let start = Instant::now();
        let resumed_ns = towline_linux::clock::monotonic_ns();
        self.step = Step::Resumed;
        let result = self.start_functions();
        self.timings.add("resume", start);
        self.resume_us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Err(error) = result {
            self.resume_error = Some(error.to_string());
            return Err(error);
        }
        if let Some(error) = self.late_error.take() {
            return Err(error);
        }
        self.config.points.hit("destination:resumed")?;
        Ok(resumed_ns)
    }

    /// Nobody else will ever run them, so one that fails holds no other back.
    fn start_functions(&mut self) -> Result<(), EngineError> {
        let mut failed: Vec<(usize, EngineError)> = Vec::new();
        let several = self.functions.len() > 1;
        for (index, function) in self.functions.iter_mut().enumerate() {
            if several && function.channel.flags().has_p2p() {
                let result = set_state(function, DeviceState::RunningP2p, "resume, quiescent peer-to-peer");
                failed.extend(result.err().map(|e| (index, e)));
            }
        }
        for (index, function) in self.functions.iter_mut().enumerate() {
            if !failed.iter().any(|(i, _)| *i == index) {
                failed.extend(set_state(function, DeviceState::Running, "resume").err().map(|e| (index, e)));
            }
        }
        failed.into_iter().next().map_or(Ok(()), |(_, error)| Err(error))
    }

    /// Tells the source how resuming went. Returns whether it could be told: what it doesn't hear it asks for.
    ///
    /// # Errors
    /// [`EngineError::Misuse`].
    pub fn running(&mut self) -> Result<bool, EngineError> {
        self.expect("running", &[Step::Resumed])?;
        self.step = Step::Running;
        let error = self.resume_error.as_ref().map(|e| e.chars().take(1000).collect());
        let told = self.say(&Message::Running { error, resume_us: self.resume_us }).is_ok() && self.terms.duplex;
        self.config.points.hit("destination:running")?;
        Ok(told)
    }
}
