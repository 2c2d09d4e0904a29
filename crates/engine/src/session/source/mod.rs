//! The sending side: its configuration, its states, and the opening dialogue.

mod checkpoint;
mod commit;
mod measure;
mod memory;
mod passed;
mod sample;
mod step;
mod steps;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use towline_core::dirty::Ledger;
use towline_core::memory::{GuestMemory, MemoryRange};
use towline_core::stream::SectionKind;
use towline_linux::memory::MappedMemory;
use uuid::Uuid;

use self::step::Step;
use super::deaf::deafen;
use super::keeper::KEEPALIVE;
use super::pages_out::{BATCH_BYTES, PageSender, mark_first_pass};
use super::state_io::{CHUNK_BYTES, StateDigest};
use super::terms::cannot_pass;
use super::{MemoryBy, NamedSource, SessionFunction, Terms, Timings};
use crate::cancel::Cancel;
use crate::checkpoint::CheckpointFile;
use crate::dialogue::{
    DIALOGUE_VERSION, MAX_EPOCH, Message, Mismatch, Offer, OfferedFunction, OfferedRange, epoch_step_limit,
};
use crate::error::{EngineError, FenceError};
use crate::faultpoints::FaultPoints;
use crate::fence::{Fence, Record, Role, not_ours};
use crate::link::Link;
use crate::pacer::Pacer;
use crate::wire::{LastWords, MEMORY_CHANNEL, Receiver, Sender};

pub use commit::{CommitInfo, PreparedInfo, SectionOut};
pub use measure::Measured;
pub use memory::HarvestStats;
pub use sample::{DirtySample, SourcePages, SourceSample};
pub use steps::{FinalStats, PrecopyStats, StateStats, Stopped};

/// What a source session is made of.
pub struct SourceConfig {
    /// Name of the session; `Uuid::new_v4()` unless the caller has one.
    pub session: Uuid,
    /// The functions that move, RUNNING or stopped. At least one.
    pub functions: Vec<SessionFunction>,
    /// Guest memory. Its ranges must not change while the session lasts.
    pub memory: Arc<dyn GuestMemory>,
    /// Everything that writes guest memory, each told by some source.
    pub dirty_sources: Vec<NamedSource>,
    /// Granularity of memory transfer, a power of two from 512 B to 1 MiB.
    pub page_size_bytes: u64,
    /// Names of the caller's sections, in the order in which they will be sent.
    pub sections: Vec<String>,
    /// Where ownership is durable.
    pub fence: Arc<dyn Fence>,
    /// Ends every wait until COMMIT-INTENT.
    pub cancel: Cancel,
    /// Limit of memory passes before the stop, in bytes of page content per second. The final pass is not limited.
    pub bandwidth_limit_bytes_per_s: Option<u64>,
    /// What is rehearsed.
    pub points: Arc<FaultPoints>,
    /// Keeps a copy of everything sent in this file.
    pub record_to: Option<PathBuf>,
}

/// What the destination says to the offer.
#[derive(Clone, Debug, PartialEq)]
pub struct OfferOutcome {
    /// Every reason against the migration; with any, the session is over and nothing was touched.
    pub mismatches: Vec<Mismatch>,
    /// One round trip of a message, in milliseconds.
    pub rtt_ms: f64,
    /// The highest epoch that the destination has seen for these functions.
    pub peer_epoch: u64,
}

/// The code of a destination that gave up after it had everything.
const REFUSED: &str = "ERR_TOWLINE_COMMIT_REFUSED";

/// The sending side of one migration. See [`super`] for the order of calls.
pub struct SourceSession {
    pub(super) config: SourceConfig,
    pub(super) terms: Terms,
    pub(super) link: Box<dyn Link>,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
    pub(super) step: Step,
    pub(super) epoch: u64,
    pub(super) opened: bool,
    pub(super) tracking: bool,
    pub(super) peer_memory_is_fresh: bool,
    /// Guest memory that is passed; see [`SourceSession::set_passed_memory`].
    pub(super) passed: Option<Arc<MappedMemory>>,
    /// Epochs from here on; see [`SourceSession::set_least_epoch`].
    pub(super) least_epoch: u64,
    /// Every dirty source was harvested after the stop.
    pub(super) harvested_last: bool,
    pub(super) ledger: Arc<Ledger>,
    /// Pages that each source dirtied since they were last asked for.
    pub(super) dirtied: Vec<u64>,
    pub(super) ranges: Vec<MemoryRange>,
    pub(super) pages: PageSender,
    pub(super) pacer: Pacer,
    pub(super) round: u32,
    pub(super) hole_pages: u64,
    pub(super) state: Vec<StateDigest>,
    pub(super) sections_sent: usize,
    pub(super) section_bytes: u64,
    pub(super) section_descriptors: usize,
    pub(super) timings: Timings,
    pub(super) chunk: Vec<u8>,
    pub(super) nonce: u64,
    /// The file behind the link, where that is a checkpoint.
    pub(super) checkpoint: Option<CheckpointFile>,
}

impl SourceSession {
    /// Makes a session over a connected link. Nothing is sent and nothing touched yet.
    ///
    /// # Errors
    /// [`EngineError::Config`] and [`EngineError::Limit`] for what can't be migrated; [`EngineError::File`] for the recording.
    pub fn new(config: SourceConfig, link: Box<dyn Link>) -> Result<Self, EngineError> {
        Self::with_terms(config, Terms::default(), link)
    }

    /// As [`SourceSession::new`], with a part of the work left to the caller.
    ///
    /// # Errors
    /// As [`SourceSession::new`].
    pub fn with_terms(mut config: SourceConfig, terms: Terms, mut link: Box<dyn Link>) -> Result<Self, EngineError> {
        let invalid = |what: String| EngineError::Config { what };
        terms.check()?;
        config.points.check()?;
        if config.functions.is_empty() {
            return Err(invalid("a session needs at least one function".into()));
        }
        for function in &config.functions {
            if !function.channel.flags().can_migrate() {
                return Err(invalid(format!("function {} has no STOP_COPY: its state can't be read", function.id)));
            }
        }
        if !config.page_size_bytes.is_power_of_two() || !(512..=BATCH_BYTES).contains(&config.page_size_bytes) {
            return Err(invalid("the page size is no power of two from 512 B to 1 MiB".into()));
        }
        let ranges = config.memory.ranges();
        // What is passed is not tracked.
        let tracked: &[MemoryRange] = if terms.memory == MemoryBy::Passed { &[] } else { &ranges };
        let ledger = Ledger::new(tracked, config.page_size_bytes).map_err(|e| invalid(e.to_string()))?;
        let mut sender = Sender::new(config.session, config.record_to.as_deref())?;
        sender.set_page_size(config.page_size_bytes);
        link.arm(&config.cancel);
        config.dirty_sources = deafen(config.dirty_sources, &config.points);
        let pages = PageSender::new(config.page_size_bytes);
        let pacer = Pacer::new(config.bandwidth_limit_bytes_per_s);
        let session = config.session;
        let state = config.functions.iter().map(|_| StateDigest::default()).collect();
        Ok(Self {
            config,
            terms,
            link,
            sender,
            receiver: Receiver::new(Some(session)),
            step: Step::New,
            epoch: 0,
            opened: false,
            tracking: false,
            peer_memory_is_fresh: false,
            passed: None,
            least_epoch: 1,
            harvested_last: false,
            ledger: Arc::new(ledger),
            dirtied: Vec::new(),
            ranges,
            pages,
            pacer,
            round: 0,
            hole_pages: 0,
            state,
            sections_sent: 0,
            section_bytes: 0,
            section_descriptors: 0,
            timings: Timings::default(),
            chunk: Vec::new(),
            nonce: 0,
            checkpoint: None,
        })
    }

    /// Takes an epoch of at least `epoch`, where the caller knows what the destination has seen: over a one-way link nobody else can
    /// tell. Before the offer.
    ///
    /// # Errors
    /// [`EngineError::Misuse`] and [`EngineError::Limit`].
    pub fn set_least_epoch(&mut self, epoch: u64) -> Result<(), EngineError> {
        self.expect("set_least_epoch", &[Step::New])?;
        if epoch > MAX_EPOCH {
            return Err(EngineError::Limit { what: "epoch", value: epoch, limit: MAX_EPOCH });
        }
        self.least_epoch = epoch;
        Ok(())
    }

    /// The caller, which moves memory, says that the destination's was never written: then pages that were never written here are not
    /// dirty at first. Before the offer.
    ///
    /// # Errors
    /// [`EngineError::Misuse`].
    pub fn destination_memory_is_fresh(&mut self) -> Result<(), EngineError> {
        self.expect("destination_memory_is_fresh", &[Step::New])?;
        self.needs("destination_memory_is_fresh", self.terms.memory == MemoryBy::Caller)?;
        self.peer_memory_is_fresh = true;
        Ok(())
    }

    /// Offers the migration; `descriptor` is the callers' own description of the functions. Stops nothing.
    ///
    /// With mismatches the session is over. Over a one-way link there are none to be heard: the destination's caller has them.
    ///
    /// # Errors
    /// [`EngineError::Link`], [`EngineError::Protocol`], [`EngineError::Fence`], [`EngineError::Cancelled`].
    pub fn offer(&mut self, descriptor: Value) -> Result<OfferOutcome, EngineError> {
        self.expect("offer", &[Step::New])?;
        self.attempt(|s| s.do_offer(descriptor))
    }

    fn do_offer(&mut self, descriptor: Value) -> Result<OfferOutcome, EngineError> {
        let start = Instant::now();
        self.check_passed()?;
        let ids = self.function_ids();
        if let Some(owner) = not_ours(self.config.fence.as_ref(), &ids)? {
            let (session, why) = (self.config.session, owner.to_string());
            return Err(FenceError::Refused { session, refused: "opened", why }.into());
        }
        self.epoch = self.config.fence.highest_epoch(&ids)?.saturating_add(1).max(self.least_epoch);
        let offer = Offer {
            version: DIALOGUE_VERSION,
            session: self.config.session,
            epoch: self.epoch,
            functions: self
                .config
                .functions
                .iter()
                .map(|f| OfferedFunction { id: f.id.clone(), flags: f.channel.flags().0 })
                .collect(),
            memory: match self.terms.memory {
                MemoryBy::Engine | MemoryBy::Passed => {
                    self.ranges.iter().map(|r| OfferedRange { gpa: r.gpa, len: r.len }).collect()
                }
                MemoryBy::Caller => Vec::new(),
            },
            page_size_bytes: self.config.page_size_bytes,
            sections: self.config.sections.clone(),
            descriptor,
            terms: self.terms,
        };
        offer.check_limits()?;
        self.say(&Message::Offer(offer))?;
        if !self.terms.duplex {
            self.step = Step::Offered;
            self.config.points.hit("source:offered")?;
            self.timings.add("offer", start);
            return Ok(OfferOutcome { mismatches: Vec::new(), rtt_ms: 0.0, peer_epoch: 0 });
        }
        let answer = match self.hear("waiting for the answer")? {
            Message::Answer(answer) => answer,
            other => return Err(unexpected("waiting for the answer", &other)),
        };
        let mut outcome = OfferOutcome { mismatches: answer.mismatches, rtt_ms: 0.0, peer_epoch: answer.epoch_seen };
        epoch_step_limit(answer.epoch_seen, self.epoch)?;
        let accepted = outcome.mismatches.is_empty();
        // A destination that sees a UNIX socket can't know that somebody in between sees none.
        for found in cannot_pass(self.terms, self.link.as_ref()) {
            if !outcome.mismatches.iter().any(|m| m.code == found.code) {
                outcome.mismatches.push(found);
            }
        }
        if accepted && !outcome.mismatches.is_empty() {
            // It waits for what never comes.
            let reason = outcome.mismatches.iter().map(|m| m.message.as_str()).collect::<Vec<_>>().join("; ");
            self.say(&Message::Abort { code: "ERR_TOWLINE_MISMATCH".into(), reason })?;
        }
        if outcome.mismatches.is_empty() {
            outcome.rtt_ms = self.round_trip()?;
            self.peer_memory_is_fresh |= answer.memory_is_fresh;
            self.epoch = self.epoch.max(answer.epoch_seen.saturating_add(1));
            self.step = Step::Offered;
            self.config.points.hit("source:offered")?;
        } else {
            self.step = Step::Aborted;
        }
        self.timings.add("offer", start);
        Ok(outcome)
    }

    /// Takes the session into both fences, starts every dirty source and marks what the first pass has to send. Where guest memory is
    /// passed, nothing is tracked: this passes it, and returns once the destination has mapped it and its caller has what it needs.
    ///
    /// # Errors
    /// [`EngineError::Fence`], [`EngineError::DirtySource`], and those of the link; [`EngineError::PeerAborted`] where the destination can't
    /// take the memory.
    pub fn start_tracking(&mut self) -> Result<(), EngineError> {
        self.expect("start_tracking", &[Step::Offered])?;
        self.attempt(|s| {
            let start = Instant::now();
            let functions = s.function_ids();
            let file = s.checkpoint_path();
            let record =
                Record::Opened { session: s.config.session, role: Role::Source, functions, epoch: s.epoch, file };
            s.config.fence.append(s.config.session, Role::Source, record)?;
            s.opened = true;
            s.timings.add("journal-open", start);
            s.say(&Message::Ready { epoch: s.epoch })?;
            let start = Instant::now();
            // Written here, so that its page faults (half a millisecond) are not a part of the downtime.
            s.chunk.resize(CHUNK_BYTES, 0);
            if s.terms.memory == MemoryBy::Passed {
                s.pass_memory()?;
                s.timings.add("pass-memory", start);
                s.step = Step::Tracking;
                return s.config.points.hit("source:tracking");
            }
            s.tracking = true;
            for named in &mut s.config.dirty_sources {
                named.source.start(&s.ranges, s.config.page_size_bytes).map_err(|source| EngineError::DirtySource {
                    name: named.name.clone(),
                    attempted: "start tracking",
                    source,
                })?;
            }
            // After tracking began: what is written from here on is reported, what was written before is marked now.
            let skip_holes = s.peer_memory_is_fresh;
            s.hole_pages = mark_first_pass(s.config.memory.as_ref(), &s.ledger, &s.ranges, skip_holes);
            s.timings.add("start-tracking", start);
            if s.terms.memory == MemoryBy::Engine {
                s.sender.section_begin(s.link.as_mut(), MEMORY_CHANNEL, SectionKind::Memory, "memory")?;
            }
            s.step = Step::Tracking;
            s.config.points.hit("source:tracking")
        })
    }

    /// Exchanges a ping with the destination; returns milliseconds. Callers that hold a session for long send one now and
    /// then, so that neither side takes the other for dead.
    ///
    /// # Errors
    /// Those of the link.
    pub fn ping(&mut self) -> Result<f64, EngineError> {
        self.expect("ping", &[Step::Offered, Step::Tracking, Step::Prepared])?;
        self.needs("ping", self.terms.duplex)?;
        self.attempt(Self::round_trip)
    }

    /// Where the marks of the caller's own writers may go directly.
    #[must_use]
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// The session's name.
    #[must_use]
    pub fn session(&self) -> Uuid {
        self.config.session
    }

    /// The epoch that this session has, or proposes.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// How long each phase took so far.
    #[must_use]
    pub fn timings(&self) -> &Timings {
        &self.timings
    }

    /// All bytes sent so far, headers and dialogue included, but not the filler that [`SourceSession::measure`] sends.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.sender.wire_bytes().saturating_sub(self.sender.probe_bytes())
    }

    pub(super) fn function_ids(&self) -> Vec<String> {
        self.config.functions.iter().map(|f| f.id.clone()).collect()
    }

    pub(super) fn expect(&self, call: &'static str, allowed: &[Step]) -> Result<(), EngineError> {
        if allowed.contains(&self.step) {
            return Ok(());
        }
        Err(self.misuse(call))
    }

    /// A call that the terms of this session have no use for is as much out of place as one out of order.
    pub(super) fn needs(&self, call: &'static str, granted: bool) -> Result<(), EngineError> {
        if granted { Ok(()) } else { Err(self.misuse(call)) }
    }

    pub(super) fn misuse(&self, call: &'static str) -> EngineError {
        EngineError::Misuse { call, state: self.step.name(), allowed: self.step.allowed(self.terms) }
    }

    /// Runs one step; a failure before COMMIT-INTENT leaves only the abort.
    pub(super) fn attempt<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let result = self.config.cancel.check().and_then(|()| step(self));
        result.map_err(|error| {
            if self.step < Step::Failed {
                self.step = Step::Failed;
            }
            self.explain(error)
        })
    }

    /// Cancelling shows itself as a broken link, and a peer that gave up as well: says what it was.
    fn explain(&mut self, error: EngineError) -> EngineError {
        let EngineError::Link(link_error) = error else { return error };
        if self.config.cancel.is_cancelled() {
            return EngineError::Cancelled;
        }
        match self.receiver.last_words(self.link.as_mut(), &link_error) {
            Some(LastWords::Aborted { code, reason }) => EngineError::PeerAborted { code, reason },
            Some(LastWords::Refused { reason, .. }) => EngineError::PeerAborted { code: REFUSED.to_owned(), reason },
            None => EngineError::Link(link_error),
        }
    }

    pub(super) fn say(&mut self, message: &Message) -> Result<(), EngineError> {
        self.sender.message(self.link.as_mut(), message)
    }

    /// The peer's next message; a ping is answered. An abort is an error.
    pub(super) fn hear(&mut self, during: &'static str) -> Result<Message, EngineError> {
        loop {
            match self.receiver.message(self.link.as_mut(), during)? {
                // Only there to be heard: an answer that nobody reads could cost the destination's last words.
                Message::Ping { nonce: KEEPALIVE } => {}
                Message::Ping { nonce } => self.say(&Message::Pong { nonce })?,
                Message::Abort { code, reason } => return Err(EngineError::PeerAborted { code, reason }),
                Message::Refused { reason, .. } => {
                    return Err(EngineError::PeerAborted { code: REFUSED.to_owned(), reason });
                }
                other => return Ok(other),
            }
        }
    }

    pub(super) fn round_trip(&mut self) -> Result<f64, EngineError> {
        let start = Instant::now();
        self.nonce = self.nonce.wrapping_add(1);
        let nonce = self.nonce;
        self.say(&Message::Ping { nonce })?;
        match self.hear("waiting for a pong")? {
            Message::Pong { nonce: back } if back == nonce => Ok(start.elapsed().as_secs_f64() * 1000.0),
            other => Err(unexpected("waiting for a pong", &other)),
        }
    }
}

impl Drop for SourceSession {
    fn drop(&mut self) {
        // Functions must not stay stopped because somebody forgot the session; whoever wants the outcome calls abort.
        if self.step <= Step::CommitRefused && self.step != Step::New {
            let _ = self.abort("the session was dropped");
        }
        // A session in doubt, or one whose release failed: its functions stay stopped, and who comes next tracks anew.
        self.stop_tracking();
    }
}

pub(super) fn unexpected(during: &'static str, message: &Message) -> EngineError {
    EngineError::Protocol { during, what: format!("it said {:?} instead", message.name()) }
}
