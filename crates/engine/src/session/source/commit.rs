//! From the end of the stream to the release, and the ways back.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use towline_core::fsm::DeviceState;
use towline_core::stream::SectionKind;

use super::{SourceSession, Step, unexpected};
use crate::dialogue::{AskOutcome, Digest, MAX_DESCRIPTORS, MAX_SECTION_BYTES, Message, check_descriptor_names};
use crate::error::{EngineError, FenceError};
use crate::fence::{Record, Role};
use crate::link::{FAREWELL, close};
use crate::recover::{self, Verdict};
use crate::session::{CommitBy, FunctionOutcome, MemoryBy, SessionFunction, bring_back, set_state};
use crate::wire::{LastWords, MEMORY_CHANNEL, function_channel, section_channel};

/// What the destination has verified.
#[derive(Clone, Debug, PartialEq)]
pub struct PreparedInfo {
    /// Each section with its digest, as both sides computed it.
    pub digests: Vec<Digest>,
    /// Milliseconds from the last byte sent until everything was loaded at the destination.
    pub load_ms: f64,
}

/// How the commit went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CommitInfo {
    /// The epoch that the destination owns the functions by.
    pub epoch: u64,
    /// Milliseconds of making the intent durable.
    pub intent_ms: f64,
    /// Milliseconds from the first byte of COMMIT to the destination's answer.
    pub round_trip_ms: f64,
    /// Milliseconds of making the commit durable at the destination, by its own clock and words; part of the round trip. 0 where
    /// the caller carries the commit.
    pub peer_journal_ms: f64,
}

/// A section of the caller on its way.
#[derive(Clone, Copy, Debug)]
pub struct SectionOut<'a> {
    /// The next one that was offered.
    pub name: &'a str,
    /// Its bytes.
    pub data: &'a [u8],
    /// Its descriptors, by name.
    pub descriptors: &'a [(&'a str, BorrowedFd<'a>)],
}

impl SourceSession {
    /// Sends one of the caller's sections; all that were offered, in their order. At most [`MAX_SECTION_BYTES`] together.
    ///
    /// # Errors
    /// [`EngineError::Config`] for another name than the next one and [`EngineError::Limit`] where they are too large together: nothing
    /// has changed then. Those of the link.
    pub fn send_section(&mut self, name: &str, data: &[u8]) -> Result<(), EngineError> {
        self.send_section_with(name, data, &[])
    }

    /// Several of them, in few writes: each with its name, its bytes, and its descriptors as in [`SourceSession::send_section_with`].
    ///
    /// # Errors
    /// As [`SourceSession::send_section_with`]; those before the one that it is about were sent.
    pub fn send_sections(&mut self, sections: &[SectionOut<'_>]) -> Result<(), EngineError> {
        self.expect("send_section", &[Step::Final])?;
        self.sender.hold();
        let sent = sections.iter().try_for_each(|s| self.send_section_with(s.name, s.data, s.descriptors));
        let gone = if self.step == Step::Final { self.attempt(|s| s.sender.let_go(s.link.as_mut())) } else { Ok(()) };
        sent.and(gone)
    }

    /// As [`SourceSession::send_section`], with file descriptors by name, which stay the caller's: where [`crate::session::Terms::descriptors`]
    /// was agreed. At most [`crate::dialogue::MAX_SECTION_DESCRIPTORS`], and [`MAX_DESCRIPTORS`] in the whole session.
    ///
    /// # Errors
    /// As [`SourceSession::send_section`]; [`EngineError::Config`] and [`EngineError::Limit`] also for descriptors that can't go, and nothing has
    /// changed then.
    pub fn send_section_with(
        &mut self,
        name: &str,
        data: &[u8],
        descriptors: &[(&str, BorrowedFd<'_>)],
    ) -> Result<(), EngineError> {
        self.expect("send_section", &[Step::Final])?;
        if self.config.sections.get(self.sections_sent).map(String::as_str) != Some(name) {
            let next = self.config.sections.get(self.sections_sent).map_or("none", String::as_str);
            return Err(EngineError::Config {
                what: format!("section {name:?} is not the next that was offered, that is {next:?}"),
            });
        }
        let together = self.section_bytes.saturating_add(data.len() as u64);
        if together > MAX_SECTION_BYTES {
            let what = "bytes of the caller's sections";
            return Err(EngineError::Limit { what, value: together, limit: MAX_SECTION_BYTES });
        }
        let names: Vec<String> = descriptors.iter().map(|(name, _)| (*name).to_owned()).collect();
        let descriptors_together = self.section_descriptors.saturating_add(names.len());
        if !names.is_empty() {
            if !self.terms.descriptors {
                let what =
                    format!("section {name:?} has descriptors, and the session was not offered as one that passes any");
                return Err(EngineError::Config { what });
            }
            check_descriptor_names(&names)
                .map_err(|e| EngineError::Config { what: format!("the descriptors of section {name:?}: {e}") })?;
            if descriptors_together > MAX_DESCRIPTORS {
                let (value, limit) = (descriptors_together as u64, MAX_DESCRIPTORS as u64);
                return Err(EngineError::Limit { what: "descriptors of the caller's sections", value, limit });
            }
        }
        self.section_bytes = together;
        self.section_descriptors = descriptors_together;
        self.attempt(|s| {
            let start = Instant::now();
            if !names.is_empty() {
                let message = Message::Descriptors { section: name.to_owned(), names };
                let fds: Vec<BorrowedFd<'_>> = descriptors.iter().map(|(_, fd)| *fd).collect();
                s.sender.message_with(s.link.as_mut(), &message, &fds)?;
            }
            let channel = section_channel(s.config.functions.len(), s.sections_sent);
            s.sender.section_begin(s.link.as_mut(), channel, SectionKind::Caller, name)?;
            for chunk in data.chunks(crate::session::state_io::CHUNK_BYTES) {
                s.sender.section_data(s.link.as_mut(), channel, chunk)?;
            }
            s.sender.manifest(s.link.as_mut(), channel, &format!("section:{name}"))?;
            s.sections_sent += 1;
            s.timings.add("sections", start);
            Ok(())
        })
    }

    /// Ends the stream with every manifest and waits until the destination has verified and loaded all of it. Nothing runs
    /// anywhere then, and the caller may look at both sides. Over a one-way link this ends with the last byte sent: whether the
    /// destination is prepared, and by the same digests, its caller has to tell.
    ///
    /// # Errors
    /// [`EngineError::PeerAborted`] where the destination found something wrong; [`EngineError::Protocol`] where its digests
    /// are others than ours; [`EngineError::Config`] where an offered section was not sent, or a caller's memory can't be
    /// complete; nothing has changed then.
    pub fn prepare(&mut self) -> Result<PreparedInfo, EngineError> {
        self.expect("prepare", &[Step::Final])?;
        if let Some(missing) = self.config.sections.get(self.sections_sent) {
            return Err(EngineError::Config { what: format!("section {missing:?} was offered and not sent") });
        }
        self.check_caller_memory()?;
        self.attempt(|s| {
            let start = Instant::now();
            for (index, function) in s.config.functions.iter().enumerate() {
                let name = format!("state:{}", function.id);
                s.sender.manifest(s.link.as_mut(), function_channel(index), &name)?;
            }
            if s.terms.memory == MemoryBy::Engine {
                s.sender.manifest(s.link.as_mut(), MEMORY_CHANNEL, "memory")?;
            }
            s.sender.stream_end(s.link.as_mut())?;
            s.config.points.hit("source:stream-end")?;
            let digests = if s.terms.duplex {
                match s.hear("waiting for PREPARED")? {
                    Message::Prepared { digests } => digests,
                    other => return Err(unexpected("waiting for PREPARED", &other)),
                }
            } else {
                s.sender.digests().to_vec()
            };
            if digests != s.sender.digests() {
                return Err(EngineError::Protocol {
                    during: "waiting for PREPARED",
                    what: "it has received something else than was sent".into(),
                });
            }
            let load_ms = start.elapsed().as_secs_f64() * 1000.0;
            s.timings.add("prepare", start);
            s.step = Step::Prepared;
            s.config.points.hit("source:prepared")?;
            Ok(PreparedInfo { digests, load_ms })
        })
    }

    /// Commits: the intent is durable before the first byte of COMMIT leaves; from then on nothing can be cancelled.
    ///
    /// # Errors
    /// [`EngineError::InDoubt`] where COMMIT may have arrived and its answer didn't: the functions stay stopped until
    /// [`SourceSession::settle`]. [`EngineError::CommitRefused`]: the source still owns them, abort brings them back. Before
    /// the intent as for any other step.
    pub fn commit(&mut self) -> Result<CommitInfo, EngineError> {
        self.expect("commit", &[Step::Prepared])?;
        self.needs("commit", self.terms.commit == CommitBy::Session)?;
        let intent_ms = self.make_intent(Step::InDoubt)?;
        let start = Instant::now();
        let epoch = self.epoch;
        let answer = (|| {
            self.say(&Message::Commit { epoch })?;
            self.config.points.hit("source:commit-sent")?;
            self.receiver.message(self.link.as_mut(), "waiting for COMMITTED")
        })();
        self.timings.add("commit", start);
        let round_trip_ms = start.elapsed().as_secs_f64() * 1000.0;
        match answer {
            Ok(Message::Committed { epoch: committed, journal_us }) if committed == epoch => {
                self.step = Step::Committed;
                // Known and not undone by anything that follows.
                self.config.points.hit("source:committed")?;
                let peer_journal_ms = journal_us as f64 / 1000.0;
                Ok(CommitInfo { epoch, intent_ms, round_trip_ms, peer_journal_ms })
            }
            Ok(Message::Refused { epoch: refused, reason }) if refused == epoch => {
                self.step = Step::CommitRefused;
                Err(EngineError::CommitRefused { epoch, reason })
            }
            Ok(other) => Err(self.in_doubt(unexpected("waiting for COMMITTED", &other))),
            // A destination that gave up by itself has made that durable and said so before it closed the link.
            Err(EngineError::Link(cause)) => match self.receiver.last_words(self.link.as_mut(), &cause) {
                Some(LastWords::Refused { epoch: refused, reason }) if refused == epoch => {
                    self.step = Step::CommitRefused;
                    Err(EngineError::CommitRefused { epoch, reason })
                }
                _ => Err(self.in_doubt(cause.into())),
            },
            Err(cause) => Err(self.in_doubt(cause)),
        }
    }

    /// Makes the intent durable, where the caller carries the commit: from its return on the caller may tell the destination to commit
    /// this epoch, and nothing can be cancelled. The functions stay stopped until [`SourceSession::release`], or until the
    /// destination's refusal, which has to be durable there, is told by [`SourceSession::refused_by_caller`]. A caller that never
    /// learns which stays in doubt, as everybody does.
    ///
    /// # Errors
    /// [`EngineError::InDoubt`] where the intent is durable and the session ends all the same; before it as for any other step.
    pub fn intent(&mut self) -> Result<CommitInfo, EngineError> {
        self.expect("intent", &[Step::Prepared])?;
        self.needs("intent", self.terms.commit == CommitBy::Caller && self.terms.checkpoint.is_none())?;
        let intent_ms = self.make_intent(Step::Intended)?;
        Ok(CommitInfo { epoch: self.epoch, intent_ms, round_trip_ms: 0.0, peer_journal_ms: 0.0 })
    }

    fn make_intent(&mut self, next: Step) -> Result<f64, EngineError> {
        let intent_ms = self.attempt(|s| {
            s.config.points.hit("source:commit-intent")?;
            s.config.cancel.close()?;
            s.link.disarm();
            let start = Instant::now();
            // Should this fail, the intent may be durable or not, but COMMIT was not sent: aborting is right either way.
            s.config.fence.append(s.config.session, Role::Source, Record::Intent { epoch: s.epoch })?;
            s.timings.add("journal-intent", start);
            s.step = next;
            Ok(start.elapsed().as_secs_f64() * 1000.0)
        })?;
        self.config.points.hit("source:commit-intent-durable").map_err(|cause| self.in_doubt(cause))?;
        Ok(intent_ms)
    }

    /// The caller has heard that the destination refused this epoch, durably: the source still owns the functions, abort brings them
    /// back.
    ///
    /// # Errors
    /// [`EngineError::Misuse`].
    pub fn refused_by_caller(&mut self) -> Result<(), EngineError> {
        self.expect("refused_by_caller", &[Step::Intended])?;
        self.step = Step::CommitRefused;
        Ok(())
    }

    /// Lets go of the link: the destination then stops waiting, and the answer is asked for over another one.
    fn in_doubt(&mut self, cause: EngineError) -> EngineError {
        close(&mut self.link);
        EngineError::InDoubt { session: self.config.session, epoch: self.epoch, cause: Box::new(cause) }
    }

    /// Ends the doubt by the destination's answer ([`crate::recover::ask`]). The session may then be released or aborted, or
    /// stays in doubt.
    ///
    /// # Errors
    /// [`EngineError::Misuse`].
    pub fn settle(&mut self, answer: AskOutcome) -> Result<Verdict, EngineError> {
        self.expect("settle", &[Step::InDoubt, Step::Intended])?;
        let records = self.config.fence.records(self.config.session, Role::Source)?;
        let verdict = recover::decide(Role::Source, &records, Some(answer));
        match verdict {
            Verdict::Released => self.step = Step::Committed,
            Verdict::ResumeSource => self.step = Step::CommitRefused,
            _ => {}
        }
        Ok(verdict)
    }

    /// A person takes the functions back from a destination that is dead for good. They run again.
    ///
    /// # Errors
    /// [`EngineError::Fence`].
    pub fn declare_destination_dead(&mut self, reason: &str) -> Result<Vec<FunctionOutcome>, EngineError> {
        self.expect("declare_destination_dead", &[Step::InDoubt, Step::Intended])?;
        recover::declare_destination_dead(self.config.fence.as_ref(), self.config.session, reason)?;
        self.step = Step::Aborted;
        self.stop_tracking();
        Ok(self.config.functions.iter_mut().map(bring_back).collect())
    }

    /// Waits until the functions run at the destination; returns how long it took to resume them, in milliseconds. Whatever this
    /// says, the destination owns them.
    ///
    /// # Errors
    /// The link's, or [`EngineError::Protocol`] with the destination's words where it could not resume them.
    pub fn wait_running(&mut self) -> Result<f64, EngineError> {
        self.expect("wait_running", &[Step::Committed, Step::Intended])?;
        self.needs("wait_running", self.terms.duplex)?;
        let start = Instant::now();
        let message = self.receiver.message(self.link.as_mut(), "waiting for RUNNING")?;
        self.timings.add("resume", start);
        // RUNNING is said only once the commit is durable, so that it settles a commit that the caller carries.
        if self.step == Step::Intended && !matches!(message, Message::Running { .. }) {
            return match message {
                Message::Refused { epoch, reason } if epoch == self.epoch => {
                    self.step = Step::CommitRefused;
                    Err(EngineError::CommitRefused { epoch, reason })
                }
                other => Err(unexpected("waiting for RUNNING", &other)),
            };
        }
        self.step = Step::Acknowledged;
        match message {
            Message::Running { error: None, resume_us } => {
                self.config.points.hit("source:running")?;
                Ok(resume_us as f64 / 1000.0)
            }
            Message::Running { error: Some(error), .. } => Err(EngineError::Protocol {
                during: "waiting for RUNNING",
                what: format!("the destination owns the functions and could not resume them: {error}"),
            }),
            other => Err(unexpected("waiting for RUNNING", &other)),
        }
    }

    /// Makes the release durable, stops tracking and leaves every function in STOP. Outside of the downtime. A caller that carries the
    /// commit calls it once it has heard that the destination's commit is durable.
    ///
    /// # Errors
    /// [`EngineError::Fence`]; the functions stay stopped all the same.
    pub fn release(&mut self) -> Result<Vec<FunctionOutcome>, EngineError> {
        self.expect("release", &[Step::Intended, Step::Committed, Step::Acknowledged])?;
        let start = Instant::now();
        self.append_once(Record::Released)?;
        self.timings.add("journal-release", start);
        self.step = Step::Released;
        self.stop_tracking();
        let to = if self.config.points.run_after_release { DeviceState::Running } else { DeviceState::Stop };
        let outcomes: Vec<FunctionOutcome> = self
            .config
            .functions
            .iter_mut()
            .map(|function| {
                let error = set_state(function, to, "leave STOP_COPY").err().map(|e| e.to_string());
                FunctionOutcome {
                    id: function.id.clone(),
                    state: function.channel.state().ok(),
                    was_reset: false,
                    error,
                }
            })
            .collect();
        if self.config.points.run_after_release && outcomes.iter().any(|o| o.state == Some(DeviceState::Running)) {
            self.config.points.note_fired();
        }
        self.config.points.hit("source:released")?;
        Ok(outcomes)
    }

    /// Gives up, before COMMIT-INTENT or after the destination's refusal: every function runs again, tracking stops, the
    /// destination is told. A function that can't be brought back is reset and says so.
    ///
    /// # Errors
    /// [`EngineError::Misuse`] where it is too late or over; [`EngineError::Fence`] where the abort could not be made durable
    /// (the functions run all the same: without an intent nobody else can own them).
    pub fn abort(&mut self, reason: &str) -> Result<Vec<FunctionOutcome>, EngineError> {
        if !self.may_abort() {
            return Err(self.misuse("abort"));
        }
        let start = Instant::now();
        self.config.points.hit("source:aborting")?;
        let tell = self.step != Step::CommitRefused && self.step != Step::New;
        self.step = Step::Aborted;
        self.link.disarm();
        self.link.set_idle_timeout(FAREWELL);
        // What was never opened was not touched either. It may be in doubt by another session, and then it must not run.
        let back = if self.opened { bring_back } else { as_it_is };
        let outcomes = self.config.functions.iter_mut().map(back).collect();
        self.stop_tracking();
        if tell {
            let code = "ERR_TOWLINE_ABORTED".to_owned();
            // A destination that can't be told notices the end of the link.
            let _ = self.say(&Message::Abort { code, reason: reason.chars().take(1000).collect() });
        }
        close(&mut self.link);
        let recorded = match self.opened {
            true => self.append_once(Record::Aborted { reason: reason.to_owned() }),
            false => Ok(()),
        };
        self.drop_checkpoint(&recorded);
        recorded?;
        self.timings.add("abort", start);
        self.config.points.hit("source:aborted")?;
        Ok(outcomes)
    }

    /// Appends what a recovery beside this session may have made durable already.
    pub(super) fn append_once(&self, record: Record) -> Result<(), FenceError> {
        let records = self.config.fence.records(self.config.session, Role::Source)?;
        if records.last().is_some_and(|last| last.name() == record.name()) {
            return Ok(());
        }
        self.config.fence.append(self.config.session, Role::Source, record)
    }

    /// Whether [`SourceSession::abort`] may give up: no destination can own the functions.
    #[must_use]
    pub fn may_abort(&self) -> bool {
        self.step <= Step::CommitRefused
    }

    pub(super) fn stop_tracking(&mut self) {
        if std::mem::take(&mut self.tracking) {
            for named in &mut self.config.dirty_sources {
                // Whatever it says, tracking is considered stopped (see the trait).
                let _ = named.source.stop();
            }
        }
    }
}

fn as_it_is(function: &mut SessionFunction) -> FunctionOutcome {
    let state = function.channel.state();
    let error = state.as_ref().err().map(|e| e.message.clone());
    FunctionOutcome { id: function.id.clone(), state: state.ok(), was_reset: false, error }
}
