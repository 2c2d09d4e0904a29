//! The receiving side: its configuration, its states, and the opening dialogue.

mod checkpoint;
mod commit;
mod compare;
mod descriptors;
mod passed;
mod receive;

use std::sync::Arc;
use std::time::{Duration, Instant};

use towline_core::memory::{GuestMemory, MemoryRange};
use towline_linux::memory::MappedMemory;
use uuid::Uuid;

use self::checkpoint::Restore;
use self::compare::{compare, compare_terms};
use self::descriptors::SectionDescriptor;
use super::keeper::{KEEPALIVE, Keeper, every};
use super::pages_in::PageReceiver;
use super::{CommitBy, FunctionOutcome, MemoryBy, SessionFunction, Terms, Timings, bring_back};
use crate::cancel::Cancel;
use crate::dialogue::{Answer, AskOutcome, Digest, MAX_MISMATCHES, Message, Mismatch, Offer};
use crate::error::{EngineError, FenceError};
use crate::faultpoints::FaultPoints;
use crate::fence::{Fence, Record, Role};
use crate::link::{FAREWELL, Link, close};
use crate::wire::{Receiver, Sender};

pub(crate) use receive::{Expected, begun, expected, find};

/// What a destination session is made of before it knows what is offered.
pub struct DestinationConfig {
    /// Where ownership is durable.
    pub fence: Arc<dyn Fence>,
    /// Identities of the functions that a source may hand over here. A question about a session that this fence never heard of is
    /// answered only where it is about some of them: otherwise anybody who connects could fill the fence with refusals.
    pub expected: Vec<String>,
    /// Ends every wait until COMMIT has arrived.
    pub cancel: Cancel,
    /// What is rehearsed.
    pub points: Arc<FaultPoints>,
    /// The most bytes that the caller's sections may have together; they are held in memory.
    pub max_section_bytes: u64,
}

/// What an accepted offer is received into.
pub struct DestinationTarget {
    /// The functions, with the identities of the offer; their order is free. Not used by anybody.
    pub functions: Vec<SessionFunction>,
    /// Guest memory with the ranges of the offer, used by nobody. Looked at only where the session moves memory.
    pub memory: Arc<dyn GuestMemory>,
}

/// What came over a fresh link.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A migration is offered; answer it.
    Offer(Box<Offer>),
    /// Somebody asked what became of an epoch, and was answered. The session is over.
    Asked {
        /// The session that was asked about.
        session: Uuid,
        /// Its epoch.
        epoch: u64,
        /// What was answered; durable.
        outcome: AskOutcome,
    },
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Whether the migration goes on.
    pub accepted: bool,
    /// All mismatches, the caller's and the engine's.
    pub mismatches: Vec<Mismatch>,
}

/// A section of the caller, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Its name.
    pub name: String,
    /// Its bytes.
    pub data: Vec<u8>,
}

/// How far receiving is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReceiveProgress {
    /// Memory passes that are complete.
    pub rounds: u32,
    /// Pages in guest memory, each counted as often as it came.
    pub pages: u64,
    /// Of these, pages of zeros: only their address came.
    pub zero_pages: u64,
    /// Bytes of page content.
    pub memory_bytes: u64,
    /// Bytes of device state.
    pub state_bytes: u64,
    /// Bytes off the wire.
    pub wire_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    New,
    Offered,
    Answered,
    /// Passed memory is mapped; the caller builds on it.
    Mapped,
    /// The source knows that.
    Taken,
    Loaded,
    Prepared,
    Failed,
    Unknown,
    Committed,
    Resumed,
    Running,
    Over,
}

impl Step {
    fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Offered => "offered",
            Self::Answered => "answered",
            Self::Mapped => "having guest memory",
            Self::Taken => "taking part",
            Self::Loaded => "loaded",
            Self::Prepared => "prepared",
            Self::Failed => "failed",
            Self::Unknown => "unknown: its commit may or may not be durable",
            Self::Committed => "committed",
            Self::Resumed => "resumed",
            Self::Running => "running",
            Self::Over => "over",
        }
    }

    fn allowed(self, terms: Terms) -> &'static str {
        match self {
            Self::New => "read_offer (read_checkpoint), abort",
            Self::Offered => "answer (answer_checkpoint), refuse, abort",
            Self::Answered if terms.memory == MemoryBy::Passed => "receive_memory, abort",
            Self::Mapped => "memory_taken, abort",
            Self::Answered | Self::Taken => "receive, abort",
            Self::Loaded => "prepared, abort",
            Self::Prepared if terms.checkpoint.is_some() => "take_checkpoint, abort",
            Self::Prepared if terms.commit == CommitBy::Caller => "commit_by_caller, abort",
            Self::Prepared => "wait_commit, abort",
            Self::Failed => "abort",
            Self::Unknown => "nothing: open the journal again and recover",
            Self::Committed => "resume",
            Self::Resumed => "running",
            Self::Running if terms.checkpoint.is_some() => "empty_checkpoint",
            Self::Running | Self::Over => "nothing, it is over",
        }
    }
}

/// The receiving side of one migration. See [`super`] for the order of calls.
pub struct DestinationSession {
    pub(super) config: DestinationConfig,
    pub(super) terms: Terms,
    pub(super) link: Box<dyn Link>,
    /// Has link and sender while a device opens, and from the end of the stream to PREPARED.
    pub(super) keeper: Option<Keeper>,
    pub(super) ping_every: Duration,
    pub(super) pinged: Instant,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) step: Step,
    pub(super) offer: Option<Offer>,
    pub(super) functions: Vec<SessionFunction>,
    pub(super) memory: Option<Arc<dyn GuestMemory>>,
    pub(super) pages: Option<PageReceiver>,
    pub(super) sections: Vec<Section>,
    /// Guest memory that was passed: writes wait for the commit.
    pub(super) passed: Option<Arc<MappedMemory>>,
    descriptors: Vec<SectionDescriptor>,
    pub(super) digests: Vec<Digest>,
    pub(super) progress: ReceiveProgress,
    pub(super) epoch: u64,
    pub(super) opened: bool,
    /// The functions may hold foreign state.
    pub(super) touched: bool,
    pub(super) resume_error: Option<String>,
    /// What went wrong between the durable commit and the start of the functions.
    pub(super) late_error: Option<EngineError>,
    pub(super) resume_us: u64,
    pub(super) timings: Timings,
    /// The checkpoint behind the link, where it is one.
    pub(super) restore: Option<Box<Restore>>,
}

impl DestinationSession {
    /// Makes a session over an accepted link.
    ///
    /// # Errors
    /// [`EngineError::Config`].
    pub fn new(config: DestinationConfig, link: Box<dyn Link>) -> Result<Self, EngineError> {
        Self::with_terms(config, Terms::default(), link)
    }

    /// As [`DestinationSession::new`], with a part of the work left to the caller. An offer with other terms is a mismatch.
    ///
    /// # Errors
    /// [`EngineError::Config`].
    pub fn with_terms(config: DestinationConfig, terms: Terms, mut link: Box<dyn Link>) -> Result<Self, EngineError> {
        config.points.check()?;
        terms.check()?;
        link.arm(&config.cancel);
        Ok(Self {
            config,
            terms,
            ping_every: every(link.as_ref()),
            pinged: Instant::now(),
            link,
            keeper: None,
            sender: Sender::new(Uuid::nil(), None)?,
            receiver: Receiver::default(),
            step: Step::New,
            offer: None,
            functions: Vec::new(),
            memory: None,
            pages: None,
            sections: Vec::new(),
            passed: None,
            descriptors: Vec::new(),
            digests: Vec::new(),
            progress: ReceiveProgress::default(),
            epoch: 0,
            opened: false,
            touched: false,
            resume_error: None,
            late_error: None,
            resume_us: 0,
            timings: Timings::default(),
            restore: None,
        })
    }

    /// Reads what came over the link: an offer, or a question about an earlier session, which is answered at once.
    ///
    /// # Errors
    /// Those of the link, [`EngineError::Protocol`], [`EngineError::Stream`], [`EngineError::Limit`].
    pub fn read_offer(&mut self) -> Result<Incoming, EngineError> {
        self.expect("read_offer", &[Step::New])?;
        self.attempt(|s| match s.receiver.message(s.link.as_mut(), "waiting for an offer")? {
            Message::Offer(offer) => {
                s.check_session(offer.session)?;
                s.offer = Some(offer.clone());
                s.step = Step::Offered;
                s.config.points.hit("destination:offered")?;
                Ok(Incoming::Offer(Box::new(offer)))
            }
            Message::Ask { .. } if !s.terms.duplex => Err(EngineError::Protocol {
                during: "waiting for an offer",
                what: "it asks what became of an epoch, and over a one-way link nobody could answer".into(),
            }),
            Message::Ask { session, epoch, functions } => {
                s.check_session(session)?;
                let fence = s.config.fence.as_ref();
                // Where the fence can't tell, nothing may be concluded.
                let may_refuse = may_answer(fence, session, &functions, &s.config.expected).unwrap_or(false);
                let answer = if may_refuse { crate::recover::answer_ask(fence, session, epoch).ok() } else { None };
                let outcome = answer.unwrap_or(AskOutcome::Unknown);
                if outcome == AskOutcome::Refused {
                    s.config.points.hit("destination:refusal-durable")?;
                }
                s.step = Step::Over;
                s.sender.message(s.link.as_mut(), &Message::AskAnswer { outcome })?;
                close(&mut s.link);
                Ok(Incoming::Asked { session, epoch, outcome })
            }
            other => Err(EngineError::Protocol {
                during: "waiting for an offer",
                what: format!("it said {:?} instead", other.name()),
            }),
        })
    }

    /// Answers the offer with the caller's mismatches and the engine's own (identities, memory layout, capabilities). With any,
    /// nothing is touched and the session is over.
    ///
    /// # Errors
    /// Those of the link, [`EngineError::Fence`], [`EngineError::Limit`] for too many mismatches.
    pub fn answer(&mut self, target: DestinationTarget, mismatches: Vec<Mismatch>) -> Result<Answered, EngineError> {
        self.expect("answer", &[Step::Offered])?;
        self.attempt(|s| s.do_answer(Some(target), mismatches))
    }

    /// Refuses the offer, without having made anything for it. `mismatches` is not empty.
    ///
    /// # Errors
    /// As [`DestinationSession::answer`].
    pub fn refuse(&mut self, mismatches: Vec<Mismatch>) -> Result<Answered, EngineError> {
        self.expect("refuse", &[Step::Offered])?;
        if mismatches.is_empty() {
            return Err(EngineError::Config { what: "a refusal needs at least one reason".into() });
        }
        self.attempt(|s| s.do_answer(None, mismatches))
    }

    fn do_answer(
        &mut self,
        target: Option<DestinationTarget>,
        mut mismatches: Vec<Mismatch>,
    ) -> Result<Answered, EngineError> {
        let start = Instant::now();
        let Some(offer) = self.offer.clone() else { return Ok(Answered { accepted: false, mismatches }) };
        let ids: Vec<String> = offer.functions.iter().map(|f| f.id.clone()).collect();
        let epoch_seen = self.config.fence.highest_epoch(&ids)?;
        mismatches.extend(compare_terms(&offer, self.terms, self.link.as_ref(), epoch_seen));
        let mut memory_is_fresh = false;
        if let Some(mut target) = target {
            mismatches.extend(compare(&offer, &target, self.terms));
            if mismatches.is_empty() {
                // State sections come in the order of the offer.
                target.functions.sort_by_key(|f| offer.functions.iter().position(|o| o.id == f.id));
                if self.terms.memory == MemoryBy::Engine {
                    let ranges: Vec<MemoryRange> = target.memory.ranges();
                    memory_is_fresh = ranges.iter().all(|r| target.memory.populated(*r).is_empty());
                    self.pages = Some(PageReceiver::new(&ranges, offer.page_size_bytes, memory_is_fresh)?);
                    self.memory = Some(target.memory);
                }
                self.functions = target.functions;
            }
        }
        if mismatches.len() > MAX_MISMATCHES {
            return Err(EngineError::Limit {
                what: "number of mismatches",
                value: mismatches.len() as u64,
                limit: MAX_MISMATCHES as u64,
            });
        }
        let accepted = mismatches.is_empty();
        let answer = Answer { mismatches: mismatches.clone(), epoch_seen, memory_is_fresh };
        self.say(&Message::Answer(answer))?;
        if accepted {
            self.step = Step::Answered;
            self.config.points.hit("destination:answered")?;
        } else {
            self.step = Step::Over;
            close(&mut self.link);
        }
        self.timings.add("answer", start);
        Ok(Answered { accepted, mismatches })
    }

    /// Says something to the source, where it can hear it.
    pub(super) fn say(&mut self, message: &Message) -> Result<(), EngineError> {
        if self.terms.duplex { self.sender.message(self.link.as_mut(), message) } else { Ok(()) }
    }

    /// The stream header and the message speak of the same session; answers carry it too.
    fn check_session(&mut self, session: Uuid) -> Result<(), EngineError> {
        self.sender.set_session(session);
        if self.receiver.session() == Some(session) {
            return Ok(());
        }
        Err(EngineError::Protocol {
            during: "waiting for an offer",
            what: format!("its stream header names another session than {session}"),
        })
    }

    /// Gives up, before the commit: the refusal becomes durable, the source is told, functions that were touched are reset.
    ///
    /// # Errors
    /// [`EngineError::Misuse`] once committed; [`EngineError::Fence`] where the refusal could not be made durable: then the
    /// functions are left stopped, as nobody may run them.
    pub fn abort(&mut self, reason: &str) -> Result<Vec<FunctionOutcome>, EngineError> {
        if self.step >= Step::Unknown {
            return Err(self.misuse("abort"));
        }
        self.roll_back("ERR_TOWLINE_ABORTED", reason)
    }

    /// The session as the fence has it.
    pub(super) fn fence_session(&self) -> Uuid {
        let restored = self.restore.as_ref().and_then(|r| r.session);
        restored.or(self.offer.as_ref().map(|o| o.session)).unwrap_or_default()
    }

    /// How long each phase took so far.
    #[must_use]
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// How far receiving is.
    #[must_use]
    pub fn progress(&self) -> ReceiveProgress {
        self.progress
    }

    pub(super) fn expect(&self, call: &'static str, allowed: &[Step]) -> Result<(), EngineError> {
        if allowed.contains(&self.step) {
            return Ok(());
        }
        Err(self.misuse(call))
    }

    pub(super) fn misuse(&self, call: &'static str) -> EngineError {
        EngineError::Misuse { call, state: self.step.name(), allowed: self.step.allowed(self.terms) }
    }

    /// Runs one step before the commit; a failure rolls back: the source is told, the functions are reset.
    pub(super) fn attempt<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        self.take_link_back();
        let result = self.config.cancel.check().and_then(|()| step(self));
        result.map_err(|error| {
            let error = match error {
                EngineError::Link(_) if self.config.cancel.is_cancelled() => EngineError::Cancelled,
                other => other,
            };
            if self.step < Step::Failed {
                // What fails in here can't be helped any more, and must not hide why it was needed.
                let _ = self.roll_back(error.code(), &error.to_string());
            }
            error
        })
    }

    /// From here on the peer hears from this session that it is alive, until the next step.
    pub(super) fn lend_link(&mut self) {
        if self.terms.duplex {
            self.keeper = Keeper::start(&mut self.link, &mut self.sender, self.ping_every);
        }
    }

    pub(super) fn take_link_back(&mut self) {
        self.pinged = Instant::now();
        if let Some(keeper) = self.keeper.take() {
            keeper.stop(&mut self.link, &mut self.sender);
        }
    }

    /// Between the devices' calls: a source that has sent all waits already.
    pub(super) fn ping(&mut self) -> Result<(), EngineError> {
        if self.pinged.elapsed() < self.ping_every {
            return Ok(());
        }
        self.pinged = Instant::now();
        self.say(&Message::Ping { nonce: KEEPALIVE })
    }

    fn roll_back(&mut self, code: &str, reason: &str) -> Result<Vec<FunctionOutcome>, EngineError> {
        self.take_link_back();
        let start = Instant::now();
        let tell = self.step != Step::Over;
        // A source that knows everything to be loaded may have its intent durable: only a refusal frees it then.
        let refuse = self.step == Step::Prepared;
        self.step = Step::Over;
        self.link.disarm();
        self.link.set_idle_timeout(FAREWELL);
        if self.opened {
            // First of all: from here on this epoch can't commit, whatever arrives.
            let record = Record::Aborted { reason: reason.to_owned() };
            let appended = match self.config.fence.append(self.fence_session(), Role::Destination, record) {
                // Somebody asked and was refused meanwhile: that is durable and says the same. A commit can't be there.
                Err(FenceError::Refused { .. }) => Ok(()),
                other => other,
            };
            if let Err(error) = appended {
                close(&mut self.link);
                return Err(error.into());
            }
        }
        self.unclaim();
        if tell {
            let reason: String = reason.chars().take(1000).collect();
            let message = if refuse {
                Message::Refused { epoch: self.epoch, reason }
            } else {
                Message::Abort { code: code.to_owned(), reason }
            };
            // A source that can't be told notices the end of the link.
            let _ = self.say(&message);
        }
        close(&mut self.link);
        // Nobody will ever ask for them.
        self.descriptors.clear();
        let outcomes =
            if std::mem::take(&mut self.touched) { self.functions.iter_mut().map(reset).collect() } else { Vec::new() };
        self.timings.add("abort", start);
        self.config.points.hit("destination:aborted")?;
        Ok(outcomes)
    }
}

/// The most sessions that are refused without ever having been opened here.
const MAX_UNOPENED: usize = 1024;

/// Whether a question may cost a record: the session is known, or it is about functions that are expected here, all of them, and there
/// were not too many of its kind.
fn may_answer(fence: &dyn Fence, session: Uuid, functions: &[String], expected: &[String]) -> Result<bool, FenceError> {
    if !fence.records(session, Role::Destination)?.is_empty() {
        return Ok(true);
    }
    if functions.is_empty() || !functions.iter().all(|f| expected.contains(f)) {
        return Ok(false);
    }
    let mut unopened = 0;
    for (session, role) in fence.sessions()? {
        if role == Role::Destination {
            let records = fence.records(session, role);
            unopened += usize::from(records.is_ok_and(|r| matches!(r.first(), Some(Record::Refused { .. }))));
        }
    }
    Ok(unopened < MAX_UNOPENED)
}

impl Drop for DestinationSession {
    fn drop(&mut self) {
        if self.step < Step::Unknown && self.step != Step::New {
            let _ = self.roll_back("ERR_TOWLINE_ABORTED", "the session was dropped");
        }
    }
}

/// Foreign state must not run: a reset, not a way back to RUNNING with it.
fn reset(function: &mut SessionFunction) -> FunctionOutcome {
    let error = function.channel.reset().err().map(|e| e.message);
    if error.is_some() {
        return FunctionOutcome {
            id: function.id.clone(),
            state: function.channel.state().ok(),
            was_reset: true,
            error,
        };
    }
    FunctionOutcome { was_reset: true, ..bring_back(function) }
}
