//! From the first frame of the stream to everything verified and loaded.

use std::time::Instant;

use towline_core::fsm::DeviceState;
use towline_core::stream::{Event, SectionKind};

use super::{DestinationSession, ReceiveProgress, Section, Step};
use crate::dialogue::{Digest, Message, Offer, epoch_step_limit};
use crate::error::EngineError;
use crate::fence::{Record, Role};
use crate::link::NO_LIMIT;
use crate::session::{MemoryBy, channel_error, set_state};
use crate::wire::{MEMORY_CHANNEL, function_channel, section_channel};

/// One section while it comes in; the rules of the stream see to order and contents, this to what was offered.
pub(crate) struct Expected {
    channel: u32,
    pub kind: SectionKind,
    /// As in the digests.
    pub label: String,
    /// As in its SECTION_BEGIN.
    pub name: String,
    pub begun: bool,
    pub done: bool,
}

impl Expected {
    /// Whether this is the caller's section of that name, and has not begun.
    pub(super) fn is_to_come(&self, name: &str) -> bool {
        self.kind == SectionKind::Caller && self.name == name && !self.begun
    }
}

impl DestinationSession {
    /// Receives until everything is verified and loaded: pages in guest memory, device state in functions that are in STOP, the
    /// caller's sections kept. Nothing runs. `progress` is called after every batch.
    ///
    /// # Errors
    /// Whatever went wrong; the source was told and the functions are reset then.
    pub fn receive(&mut self, progress: &mut dyn FnMut(&ReceiveProgress)) -> Result<(), EngineError> {
        self.expect("receive", &[Step::Answered, Step::Taken])?;
        if self.step == Step::Answered && self.terms.memory == MemoryBy::Passed {
            return Err(self.misuse("receive"));
        }
        self.attempt(|s| {
            let start = Instant::now();
            let Some(offer) = s.offer.clone() else {
                return Err(EngineError::Misuse { call: "receive", state: "new", allowed: "read_offer" });
            };
            if s.step == Step::Answered {
                s.open(&offer)?;
            }
            s.expect_descriptors();
            // The source's devices and hooks may take their time.
            let idle_timeout = s.link.idle_timeout();
            s.link.set_idle_timeout(NO_LIMIT);
            let mut sections = expected(&offer);
            // Events borrow from the receiver, so it is taken out for as long as the stream lasts.
            let mut receiver = std::mem::take(&mut s.receiver);
            let mut result = Ok(());
            while result.is_ok() && s.step < Step::Loaded {
                result = s.config.cancel.check().and_then(|()| {
                    let event = receiver.next(s.link.as_mut())?;
                    s.event(event, &mut sections)?;
                    s.refuse_stray_descriptors()?;
                    s.ping()
                });
                s.progress.wire_bytes = receiver.wire_bytes();
                progress(&s.progress);
            }
            s.receiver = receiver;
            s.link.set_idle_timeout(idle_timeout);
            result?;
            s.link.expect_descriptors(0);
            s.lend_link();
            s.timings.add("receive", start);
            let start = Instant::now();
            for function in &mut s.functions {
                set_state(function, DeviceState::Stop, "verify and load the device state")?;
            }
            s.timings.add("device-load", start);
            s.config.points.hit("destination:loaded")
        })
    }

    /// Waits for READY and takes the session into the fence.
    pub(super) fn open(&mut self, offer: &Offer) -> Result<(), EngineError> {
        let epoch = loop {
            match self.receiver.message_or_filler(self.link.as_mut(), "waiting for READY")? {
                None => {}
                Some(Message::Ready { epoch }) => break epoch,
                Some(other) => self.aside(other, "waiting for READY")?,
            }
        };
        self.epoch = epoch;
        // A restore that fails must not use up the checkpoint: it is in the fence from its claim on.
        if self.restore.is_some() {
            return self.empty_memory();
        }
        let functions: Vec<String> = offer.functions.iter().map(|f| f.id.clone()).collect();
        epoch_step_limit(epoch, self.config.fence.highest_epoch(&functions)?)?;
        let record = Record::Opened { session: offer.session, role: Role::Destination, functions, epoch, file: None };
        self.config.fence.append(offer.session, Role::Destination, record)?;
        self.opened = true;
        self.config.points.hit("destination:opened")
    }

    /// Handles what may be said in between.
    pub(super) fn aside(&mut self, message: Message, during: &'static str) -> Result<(), EngineError> {
        match message {
            Message::Ping { nonce } => self.say(&Message::Pong { nonce }),
            Message::Abort { code, reason } => Err(EngineError::PeerAborted { code, reason }),
            other => Err(EngineError::Protocol { during, what: format!("it said {:?} instead", other.name()) }),
        }
    }

    fn event(&mut self, event: Event<'_>, sections: &mut [Expected]) -> Result<(), EngineError> {
        match event {
            Event::Dialogue(json) => match Message::decode(json)? {
                Message::Descriptors { section, names } => self.section_descriptors(&section, names, sections),
                other => self.aside(other, "receiving the stream"),
            },
            Event::Pages { channel, pages } => {
                begun(sections, channel)?;
                let (Some(receiver), Some(memory)) = (&mut self.pages, &self.memory) else { return Ok(()) };
                receiver.write(memory.as_ref(), &pages)?;
                self.progress.pages = receiver.pages;
                self.progress.zero_pages = receiver.zero_pages;
                self.progress.memory_bytes = receiver.bytes;
                Ok(())
            }
            Event::RoundEnd { round, .. } => {
                if !round.is_final {
                    self.progress.rounds = self.progress.rounds.saturating_add(1);
                    self.config.points.hit("destination:memory-pass")?;
                    self.say(&Message::RoundDone { round: round.round })?;
                }
                Ok(())
            }
            Event::SectionBegin { channel, section } => {
                let expected = find(sections, channel)?;
                if expected.kind != section.kind || expected.name != section.name {
                    return Err(not_offered(channel));
                }
                expected.begun = true;
                if section.kind == SectionKind::DeviceState {
                    self.begin_state(section.name)?;
                }
                Ok(())
            }
            Event::StateChunk { channel, data } => self.state_chunk(begun(sections, channel)?, data),
            Event::SectionData { channel, data } => self.section_data(begun(sections, channel)?, data),
            Event::Manifest { channel, digest } => {
                let section = begun(sections, channel)?;
                section.done = true;
                // A section without data is one too.
                if section.kind == SectionKind::Caller && !self.sections.iter().any(|s| s.name == section.name) {
                    self.sections.push(Section { name: section.name.clone(), data: Vec::new() });
                }
                let (label, bytes) = (section.label.clone(), digest.bytes());
                self.digests.push(Digest { section: label, bytes, digest: digest.hash() });
                Ok(())
            }
            Event::StreamEnd { .. } => {
                if let Some(missing) = sections.iter().find(|s| !s.done) {
                    return Err(EngineError::Protocol {
                        during: "receiving the stream",
                        what: format!("it ends without {}", missing.label),
                    });
                }
                self.step = Step::Loaded;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Opens a function for its state.
    fn begin_state(&mut self, id: &str) -> Result<(), EngineError> {
        if !self.touched {
            self.config.points.hit("destination:state-loading")?;
            self.touched = true;
        }
        let start = Instant::now();
        if let Some(index) = self.functions.iter().position(|f| f.id == id) {
            self.lend_link();
            // In one step: some devices start anew when they pass STOP on the way.
            let open = |f| set_state(f, DeviceState::Resuming, "go to RESUMING");
            let result = self.functions.get_mut(index).map_or(Ok(()), open);
            self.take_link_back();
            result?;
        }
        self.timings.add("device-open", start);
        Ok(())
    }

    fn state_chunk(&mut self, section: &mut Expected, data: &[u8]) -> Result<(), EngineError> {
        let Some(function) = self.functions.iter_mut().find(|f| f.id == section.name) else {
            return Err(not_offered(section.channel));
        };
        let start = Instant::now();
        function.channel.write(data).map_err(channel_error(&function.id, "load device state"))?;
        self.timings.add("device-write", start);
        self.progress.state_bytes = self.progress.state_bytes.saturating_add(data.len() as u64);
        Ok(())
    }

    fn section_data(&mut self, section: &mut Expected, data: &[u8]) -> Result<(), EngineError> {
        let held: u64 = self.sections.iter().map(|s| s.data.len() as u64).sum();
        let total = held.saturating_add(data.len() as u64);
        if total > self.config.max_section_bytes {
            let limit = self.config.max_section_bytes;
            return Err(EngineError::Limit { what: "bytes of the caller's sections", value: total, limit });
        }
        match self.sections.iter_mut().find(|s| s.name == section.name) {
            Some(kept) => kept.data.extend_from_slice(data),
            None => self.sections.push(Section { name: section.name.clone(), data: data.to_vec() }),
        }
        Ok(())
    }

    /// The caller's sections, verified; to be loaded before [`DestinationSession::prepared`].
    #[must_use]
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Every section with its digest, as this side computed it: over a one-way link the callers compare them.
    #[must_use]
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    /// Tells the source that everything is loaded.
    ///
    /// # Errors
    /// Those of the link; the functions are reset then.
    pub fn prepared(&mut self) -> Result<(), EngineError> {
        self.expect("prepared", &[Step::Loaded])?;
        self.attempt(|s| {
            let digests = s.digests.clone();
            s.say(&Message::Prepared { digests })?;
            s.step = Step::Prepared;
            s.config.points.hit("destination:prepared")
        })
    }
}

/// Everything that has to come.
pub(crate) fn expected(offer: &Offer) -> Vec<Expected> {
    let new = |channel, kind, label, name: &str| Expected {
        channel,
        kind,
        label,
        name: name.to_owned(),
        begun: false,
        done: false,
    };
    let mut sections = Vec::new();
    if offer.terms.memory == MemoryBy::Engine {
        sections.push(new(MEMORY_CHANNEL, SectionKind::Memory, "memory".to_owned(), "memory"));
    }
    for (i, f) in offer.functions.iter().enumerate() {
        sections.push(new(function_channel(i), SectionKind::DeviceState, format!("state:{}", f.id), &f.id));
    }
    for (i, name) in offer.sections.iter().enumerate() {
        let channel = section_channel(offer.functions.len(), i);
        sections.push(new(channel, SectionKind::Caller, format!("section:{name}"), name));
    }
    sections
}

pub(crate) fn find(sections: &mut [Expected], channel: u32) -> Result<&mut Expected, EngineError> {
    sections.iter_mut().find(|s| s.channel == channel).ok_or_else(|| not_offered(channel))
}

/// A section that is open by the rules of the stream, and was offered.
pub(crate) fn begun(sections: &mut [Expected], channel: u32) -> Result<&mut Expected, EngineError> {
    find(sections, channel).and_then(|s| if s.begun && !s.done { Ok(s) } else { Err(not_offered(channel)) })
}

fn not_offered(channel: u32) -> EngineError {
    EngineError::Protocol {
        during: "receiving the stream",
        what: format!("the section on channel {channel} is not what was offered"),
    }
}
