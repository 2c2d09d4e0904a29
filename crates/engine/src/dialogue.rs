//! What source and destination say to each other beside the stream: JSON messages in DIALOGUE frames.
//!
//! ```text
//!        source                                destination
//!   new  |  Offer{session, epoch, ...}   --->  |  new
//!        |  <---  Answer{mismatches, epoch_seen}
//! offered|                                     |  answered      (any mismatch: both sides end here)
//!        |  Ready{epoch}                 --->  |  receiving     both fences hold the session now
//!        |  memory, state, sections      --->  |              (passed memory: see below)
//!        |  <---  RoundDone{round}             |  after each ROUND_END but the last
//!        |  STREAM_END                   --->  |
//!        |  <---  Prepared{digests}            |  prepared      all verified and loaded, nothing runs
//!  intent|  (COMMIT-INTENT durable)            |
//!        |  Commit{epoch}                --->  |
//!        |  <---  Committed{epoch}             |  committed     durable; or Refused{epoch}, durable too
//!        |  <---  Running{}                    |  running
//! released                                     |
//! ```
//! Before Commit either side may say `Abort{code, reason}`; the session is then over and the source runs on. `Ping` is
//! answered with `Pong` in any phase in which its receiver waits; with nonce 0 it is not answered, and only says that a destination
//! which loads is alive.
//!
//! Where the callers carry the commit ([`crate::session::Terms`]), Commit, Committed and Refused after the intent go their way; the
//! records stay the same. Over a one-way link only the source speaks: Offer, Ready, the stream, and Abort.
//!
//! Where guest memory is passed ([`MemoryBy::Passed`]), no page follows Ready, but `Memory{regions}`: as often as it takes to name every range of
//! the offer, in its order, each with a file descriptor beside it (`SCM_RIGHTS`). Once the destination has mapped all of them and its caller has
//! built on it, it says `MemoryTaken`; only then the source may stop anything. `Descriptors{section, names}` goes right before a caller's
//! section that descriptors belong to. A descriptor that comes with anything else is refused.
//!
//! Recovery is a conversation of its own, over a link of its own: `Ask{session, epoch}` and `AskAnswer{outcome}`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use uuid::Uuid;

use crate::error::EngineError;
use crate::link::MAX_DESCRIPTORS_PER_WRITE;
use crate::session::{MemoryBy, Terms};

/// Version of the dialogue. A peer with another one is answered with a mismatch.
pub const DIALOGUE_VERSION: u32 = 1;

/// The largest message, in bytes of JSON.
pub const MAX_MESSAGE_BYTES: usize = 1 << 20;
/// The most functions one session has.
pub const MAX_FUNCTIONS: usize = 256;
/// The most ranges of guest memory one session has.
pub const MAX_RANGES: usize = 4096;
/// The most sections of the caller one session has.
pub const MAX_SECTIONS: usize = 1024;
/// The longest name of a function or a section, in bytes.
pub const MAX_NAME_BYTES: usize = 255;
/// The most bytes that the caller's sections of one session have together: they are held in memory on either side.
pub const MAX_SECTION_BYTES: u64 = 64 << 20;
/// The most ranges of guest memory that are passed by descriptor: as many as a process has open unless it asks for more.
pub const MAX_PASSED_REGIONS: usize = 1024;
/// The most descriptors that one of the caller's sections has.
pub const MAX_SECTION_DESCRIPTORS: usize = 64;
/// The most descriptors that the caller's sections of one session have together.
pub const MAX_DESCRIPTORS: usize = 1024;
/// The most characters of what a peer says to people: longer words are cut, control characters are left out.
pub const MAX_WORDS: usize = 4096;
/// The most mismatches an answer lists.
pub const MAX_MISMATCHES: usize = 1024;
/// Epochs stay exact in JavaScript numbers.
pub const MAX_EPOCH: u64 = (1 << 53) - 1;
/// How far a peer's epoch may be ahead of what this side has seen: a hostile peer can't use epochs up in one leap.
pub const MAX_EPOCH_STEP: u64 = 1 << 32;

/// A range of guest memory, as strings of hexadecimal digits with `0x`, since JSON numbers lose 64-bit values elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OfferedRange {
    /// First guest-physical address.
    #[serde(with = "hex")]
    pub gpa: u64,
    /// Length in bytes.
    #[serde(with = "hex")]
    pub len: u64,
}

mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's `with` passes a reference")]
    pub fn serialize<S: Serializer>(value: &u64, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(&format_args!("{value:#x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
        let text = String::deserialize(d)?;
        let digits = text.strip_prefix("0x").filter(|d| !d.starts_with('+'));
        digits.and_then(|d| u64::from_str_radix(d, 16).ok()).ok_or_else(|| D::Error::custom("not a number like 0x1000"))
    }
}

/// A range of guest memory whose descriptor comes with the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PassedRegion {
    /// First guest-physical address.
    #[serde(with = "hex")]
    pub gpa: u64,
    /// Length in bytes.
    #[serde(with = "hex")]
    pub len: u64,
    /// Where in its file the range begins, in bytes.
    #[serde(with = "hex")]
    pub fd_offset: u64,
    /// The guest does not write it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
}

/// A function as it is offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfferedFunction {
    /// Identity that the function keeps through migrations.
    pub id: String,
    /// Its migration capabilities, bits of `VFIO_DEVICE_FEATURE_MIGRATION`.
    pub flags: u64,
}

/// What the source would send.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    /// [`DIALOGUE_VERSION`].
    pub version: u32,
    /// Name of the session, made by the source.
    pub session: Uuid,
    /// The epoch that the source would take: above every epoch that it has seen for these functions.
    pub epoch: u64,
    /// All functions of the session, in the order of their state sections.
    pub functions: Vec<OfferedFunction>,
    /// Guest memory that the session moves; empty where its callers do.
    pub memory: Vec<OfferedRange>,
    /// Granularity of memory transfer in bytes, a power of two.
    pub page_size_bytes: u64,
    /// Names of the caller's sections that will come.
    pub sections: Vec<String>,
    /// The caller's own description of the functions (models, namespaces, formats); compared by the callers.
    pub descriptor: Value,
    /// What the session leaves to its callers; the destination compares it with its own. Not written where it is nothing.
    #[serde(default, skip_serializing_if = "Terms::is_default")]
    pub terms: Terms,
}

/// One reason against a migration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mismatch {
    /// Stable code.
    pub code: String,
    /// What differs.
    pub message: String,
    /// What would mend it.
    pub mend: String,
}

/// The destination's answer to an [`Offer`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Every reason against it at once; empty is consent.
    pub mismatches: Vec<Mismatch>,
    /// The highest epoch that the destination has seen for these functions.
    pub epoch_seen: u64,
    /// The destination's guest memory was never written, so holes need not be sent.
    pub memory_is_fresh: bool,
}

/// A verified section, as the destination saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// `state:<function>`, `section:<name>` or `memory`.
    pub section: String,
    /// Bytes of payload in it, tables included.
    pub bytes: u64,
    /// Digest over its frames ([`towline_core::stream::SectionDigest::hash`]).
    #[serde(with = "hex")]
    pub digest: u64,
}

/// What a destination answers when asked what became of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AskOutcome {
    /// It is durable that the destination owns the functions.
    Committed,
    /// It is durable that this epoch can never commit.
    Refused,
    /// The destination can't tell, and nothing may be concluded.
    Unknown,
}

/// All messages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case", rename_all_fields = "camelCase")]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields repeat the message; the module describes when each is said")]
pub enum Message {
    /// Opens a session.
    Offer(Offer),
    /// Answers it.
    Answer(Answer),
    /// The source goes ahead, with the epoch that both fences take.
    Ready { epoch: u64 },
    /// Guest memory itself: as many descriptors come with this message as it names regions, in their order.
    Memory { regions: Vec<PassedRegion> },
    /// All passed memory is mapped, and the destination's caller has what it needs of it.
    MemoryTaken,
    /// As many descriptors come with this message as it has names, in their order; they belong to the caller's section of that name.
    Descriptors { section: String, names: Vec<String> },
    /// A memory pass is in guest memory.
    RoundDone { round: u32 },
    /// Everything is verified and loaded; nothing runs.
    Prepared { digests: Vec<Digest> },
    /// The source's intent is durable: the destination may take over.
    Commit { epoch: u64 },
    /// The destination's commit is durable; making it so took `journal_us` microseconds.
    Committed {
        epoch: u64,
        #[serde(default)]
        journal_us: u64,
    },
    /// The destination's refusal is durable.
    Refused { epoch: u64, reason: String },
    /// The functions run at the destination; or they don't, and why: the destination owns them all the same.
    Running { error: Option<String>, resume_us: u64 },
    /// Gives up, before Commit only.
    Abort { code: String, reason: String },
    /// Asks what became of an epoch.
    Ask { session: Uuid, epoch: u64, functions: Vec<String> },
    /// Answers it.
    AskAnswer { outcome: AskOutcome },
    /// Are you there?
    Ping { nonce: u64 },
    /// Yes.
    Pong { nonce: u64 },
}

impl Message {
    /// The message's name, for errors.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Offer(_) => "offer",
            Self::Answer(_) => "answer",
            Self::Ready { .. } => "ready",
            Self::Memory { .. } => "memory",
            Self::MemoryTaken => "memory-taken",
            Self::Descriptors { .. } => "descriptors",
            Self::RoundDone { .. } => "round-done",
            Self::Prepared { .. } => "prepared",
            Self::Commit { .. } => "commit",
            Self::Committed { .. } => "committed",
            Self::Refused { .. } => "refused",
            Self::Running { .. } => "running",
            Self::Abort { .. } => "abort",
            Self::Ask { .. } => "ask",
            Self::AskAnswer { .. } => "ask-answer",
            Self::Ping { .. } => "ping",
            Self::Pong { .. } => "pong",
        }
    }

    /// As JSON.
    ///
    /// # Errors
    /// [`EngineError::Limit`] beyond [`MAX_MESSAGE_BYTES`].
    pub fn encode(&self) -> Result<Vec<u8>, EngineError> {
        let json = serde_json::to_vec(self)
            .map_err(|e| EngineError::Config { what: format!("a message can't be written as JSON: {e}") })?;
        if json.len() > MAX_MESSAGE_BYTES {
            return Err(EngineError::Limit {
                what: "size of a message in bytes",
                value: json.len() as u64,
                limit: MAX_MESSAGE_BYTES as u64,
            });
        }
        Ok(json)
    }

    /// From JSON, with every count and name checked against its limit.
    ///
    /// # Errors
    /// [`EngineError::Limit`] and [`EngineError::Protocol`].
    pub fn decode(json: &[u8]) -> Result<Self, EngineError> {
        limit("size of a message in bytes", json.len(), MAX_MESSAGE_BYTES)?;
        let mut message: Self = serde_json::from_slice(json).map_err(|e| EngineError::Protocol {
            during: "reading a message",
            what: format!("it sent a message that can't be read: {e}"),
        })?;
        message.tame();
        match &message {
            Self::Offer(offer) => offer.check_limits()?,
            Self::Answer(answer) => {
                limit("number of mismatches", answer.mismatches.len(), MAX_MISMATCHES)?;
                epoch_limit(answer.epoch_seen)?;
            }
            Self::Ask { functions, epoch, .. } => {
                limit("number of functions", functions.len(), MAX_FUNCTIONS)?;
                functions.iter().try_for_each(|f| name_limit(f))?;
                epoch_limit(*epoch)?;
            }
            Self::Ready { epoch }
            | Self::Commit { epoch }
            | Self::Committed { epoch, .. }
            | Self::Refused { epoch, .. } => {
                epoch_limit(*epoch)?;
            }
            Self::Memory { regions } => {
                limit("number of regions in one message", regions.len(), MAX_DESCRIPTORS_PER_WRITE)?;
            }
            Self::Descriptors { section, names } => {
                name_limit(section)?;
                check_descriptor_names(names)?;
            }
            Self::Prepared { digests } => {
                limit("number of digests", digests.len(), MAX_FUNCTIONS + MAX_SECTIONS + 1)?;
            }
            _ => {}
        }
        Ok(message)
    }

    /// What is shown to people says nothing to their terminals.
    fn tame(&mut self) {
        match self {
            Self::Answer(answer) => {
                for m in &mut answer.mismatches {
                    [&mut m.code, &mut m.message, &mut m.mend].into_iter().for_each(tame);
                }
            }
            Self::Abort { code, reason } => [code, reason].into_iter().for_each(tame),
            Self::Refused { reason, .. } => tame(reason),
            Self::Running { error: Some(error), .. } => tame(error),
            _ => {}
        }
    }
}

fn tame(words: &mut String) {
    if words.chars().any(char::is_control) || words.len() > MAX_WORDS {
        *words = words.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect();
    }
}

impl Offer {
    /// Checks every count and name against its limit, and the layout against itself.
    ///
    /// # Errors
    /// [`EngineError::Limit`] and [`EngineError::Protocol`].
    pub fn check_limits(&self) -> Result<(), EngineError> {
        limit("number of functions", self.functions.len(), MAX_FUNCTIONS)?;
        let most_ranges = if self.terms.memory == MemoryBy::Passed { MAX_PASSED_REGIONS } else { MAX_RANGES };
        limit("number of memory ranges", self.memory.len(), most_ranges)?;
        limit("number of sections", self.sections.len(), MAX_SECTIONS)?;
        self.functions.iter().try_for_each(|f| name_limit(&f.id))?;
        self.sections.iter().try_for_each(|s| name_limit(s))?;
        epoch_limit(self.epoch)?;
        let bad = |what: &str| EngineError::Protocol { during: "reading the offer", what: what.into() };
        if !self.page_size_bytes.is_power_of_two() || !(512..=1 << 20).contains(&self.page_size_bytes) {
            return Err(bad("its page size is no power of two from 512 B to 1 MiB"));
        }
        for range in &self.memory {
            let aligned = (range.gpa | range.len) % self.page_size_bytes == 0;
            if range.len == 0 || !aligned || range.gpa.checked_add(range.len).is_none() {
                return Err(bad("a memory range is empty, not aligned to pages, or overflows"));
            }
        }
        for (i, function) in self.functions.iter().enumerate() {
            if self.functions.iter().skip(i + 1).any(|f| f.id == function.id) {
                return Err(bad("it names a function twice"));
            }
        }
        for (i, section) in self.sections.iter().enumerate() {
            if self.sections.iter().skip(i + 1).any(|s| s == section) {
                return Err(bad("it names a section twice"));
            }
        }
        Ok(())
    }
}

fn limit(what: &'static str, value: usize, limit: usize) -> Result<(), EngineError> {
    if value > limit {
        return Err(EngineError::Limit { what, value: value as u64, limit: limit as u64 });
    }
    Ok(())
}

fn name_limit(name: &str) -> Result<(), EngineError> {
    limit("length of a name in bytes", name.len(), MAX_NAME_BYTES)?;
    if name.is_empty() || name.chars().any(char::is_control) {
        return Err(EngineError::Protocol {
            during: "reading a name",
            what: "a function or section has an empty name, or one with control characters".into(),
        });
    }
    Ok(())
}

/// At least one name, not too many, none twice.
pub(crate) fn check_descriptor_names<S: AsRef<str>>(names: &[S]) -> Result<(), EngineError> {
    limit("number of descriptors of one section", names.len(), MAX_SECTION_DESCRIPTORS)?;
    names.iter().try_for_each(|name| name_limit(name.as_ref()))?;
    let twice = names.iter().enumerate().any(|(i, a)| names.iter().skip(i + 1).any(|b| a.as_ref() == b.as_ref()));
    if names.is_empty() || twice {
        return Err(EngineError::Protocol {
            during: "reading the names of descriptors",
            what: "there is none, or one is there twice".into(),
        });
    }
    Ok(())
}

/// Refuses an epoch of the peer that is further ahead of `seen` than [`MAX_EPOCH_STEP`].
pub(crate) fn epoch_step_limit(epoch: u64, seen: u64) -> Result<(), EngineError> {
    let limit = seen.saturating_add(MAX_EPOCH_STEP);
    if epoch > limit {
        return Err(EngineError::Limit { what: "epoch of the peer", value: epoch, limit });
    }
    Ok(())
}

fn epoch_limit(epoch: u64) -> Result<(), EngineError> {
    if epoch > MAX_EPOCH {
        return Err(EngineError::Limit { what: "epoch", value: epoch, limit: MAX_EPOCH });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer() -> Offer {
        Offer {
            version: DIALOGUE_VERSION,
            session: Uuid::new_v4(),
            epoch: 7,
            functions: vec![OfferedFunction { id: "f".into(), flags: 3 }],
            memory: vec![OfferedRange { gpa: 1 << 63, len: 4096 }],
            page_size_bytes: 4096,
            sections: vec!["vcpu".into()],
            descriptor: serde_json::json!({"a": [1, 2]}),
            terms: Terms::default(),
        }
    }

    #[test]
    fn messages_round_trip() {
        let messages = [
            Message::Offer(offer()),
            Message::Answer(Answer { mismatches: vec![], epoch_seen: 3, memory_is_fresh: true }),
            Message::Ready { epoch: MAX_EPOCH },
            Message::Running { error: None, resume_us: 5 },
            Message::AskAnswer { outcome: AskOutcome::Refused },
            Message::Ask { session: Uuid::nil(), epoch: 1, functions: vec!["f".into()] },
        ];
        for message in messages {
            let json = message.encode().unwrap();
            assert_eq!(Message::decode(&json).unwrap(), message);
        }
    }

    #[test]
    fn a_peers_words_are_tamed() {
        let wild = format!("\u{1b}[2J{}\r\n\u{9b}", "x".repeat(2 * MAX_WORDS));
        let mismatch = Mismatch { code: wild.clone(), message: wild.clone(), mend: wild.clone() };
        let messages = [
            Message::Answer(Answer { mismatches: vec![mismatch], epoch_seen: 0, memory_is_fresh: false }),
            Message::Abort { code: wild.clone(), reason: wild.clone() },
            Message::Refused { epoch: 1, reason: wild.clone() },
            Message::Running { error: Some(wild.clone()), resume_us: 0 },
        ];
        for message in messages {
            let words = match Message::decode(&message.encode().unwrap()).unwrap() {
                Message::Answer(mut a) => a.mismatches.drain(..).flat_map(|m| [m.code, m.message, m.mend]).collect(),
                Message::Abort { code, reason } => vec![code, reason],
                Message::Refused { reason, .. } | Message::Running { error: Some(reason), .. } => vec![reason],
                other => panic!("{other:?}"),
            };
            for text in words {
                assert_eq!(text.chars().count(), MAX_WORDS);
                assert!(text.starts_with("[2Jxxx") && !text.chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn a_leap_of_the_epoch_is_refused() {
        assert!(epoch_step_limit(MAX_EPOCH_STEP + 7, 7).is_ok());
        assert!(epoch_step_limit(MAX_EPOCH_STEP + 8, 7).is_err());
        assert!(epoch_step_limit(MAX_EPOCH, MAX_EPOCH).is_ok());
    }

    #[test]
    fn excess_is_refused() {
        let refused = |change: &dyn Fn(&mut Offer)| {
            let mut o = offer();
            change(&mut o);
            let json = Message::Offer(o).encode().unwrap();
            assert!(Message::decode(&json).is_err());
        };
        refused(&|o| o.functions = vec![OfferedFunction { id: "f".into(), flags: 0 }; 2]);
        refused(&|o| o.functions.first_mut().unwrap().id = "x".repeat(MAX_NAME_BYTES + 1));
        refused(&|o| o.functions.first_mut().unwrap().id = String::new());
        refused(&|o| o.memory = vec![OfferedRange { gpa: 0, len: 4096 }; MAX_RANGES + 1]);
        refused(&|o| o.memory = vec![OfferedRange { gpa: u64::MAX - 4095, len: 4096 }]);
        refused(&|o| o.memory = vec![OfferedRange { gpa: 5, len: 4096 }]);
        refused(&|o| o.page_size_bytes = 3000);
        refused(&|o| o.epoch = MAX_EPOCH + 1);
        let mut big = offer();
        big.descriptor = Value::String("x".repeat(MAX_MESSAGE_BYTES));
        assert!(matches!(Message::Offer(big).encode(), Err(EngineError::Limit { .. })));
        assert!(Message::decode(br#"{"type":"ready","epoch":-1}"#).is_err());
        assert!(Message::decode(br#"{"type":"mystery"}"#).is_err());
    }
}
