//! The whole file, read and judged before anything is touched for it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use towline_core::memory::MemoryRange;
use towline_core::stream::{Decoder, Event, Limits};
use uuid::Uuid;

use super::place::{file_error, problem};
use super::read::OpenCheckpoint;
use crate::cancel::Cancel;
use crate::dialogue::{Digest, MAX_MESSAGE_BYTES, MAX_SECTION_BYTES, Message, Offer};
use crate::error::{CheckpointProblem, EngineError};
use crate::session::{CheckpointMode, Expected, PageReceiver, Terms, begun, expected, find};

/// Bytes that are read at once.
const READ_BYTES: usize = 1 << 20;

/// A checkpoint that is whole, in order and in its checksums, and says what it offers.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified {
    /// What is offered.
    pub offer: Offer,
    /// The mode.
    pub mode: CheckpointMode,
    /// Bytes of the file.
    pub bytes: u64,
    /// Pages of guest memory in it, zero pages included, each counted as often as it is there.
    pub pages: u64,
    /// Every section with its digest.
    pub digests: Vec<Digest>,
}

/// Reads and checks the checkpoint at `path`. `progress` is told the bytes so far and in all.
///
/// # Errors
/// [`EngineError::Stream`] for a file that is cut, damaged, no stream or of another version; [`EngineError::Protocol`] and
/// [`EngineError::Limit`] for a stream that is no checkpoint; [`EngineError::Checkpoint`], [`EngineError::File`],
/// [`EngineError::Cancelled`].
pub fn verify(path: &Path, cancel: &Cancel, progress: &mut dyn FnMut(u64, u64)) -> Result<Verified, EngineError> {
    verify_open(&OpenCheckpoint::open(path)?, cancel, progress)
}

pub(crate) fn verify_open(
    checkpoint: &OpenCheckpoint,
    cancel: &Cancel,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Verified, EngineError> {
    let (path, bytes) = (checkpoint.path.as_path(), checkpoint.bytes);
    let mut decoder = Decoder::new(Limits::connection());
    let mut check = Check::default();
    let mut buffer = vec![0; READ_BYTES];
    let mut at = 0_u64;
    while at < bytes {
        cancel.check()?;
        let most = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(READ_BYTES);
        let n = read_at(&checkpoint.file, path, buffer.get_mut(..most).unwrap_or_default(), at)?;
        let mut judged = Ok(());
        decoder.push(buffer.get(..n).unwrap_or_default(), &mut |event| {
            if judged.is_ok() {
                judged = check.event(event);
            }
        })?;
        judged?;
        at = at.saturating_add(n as u64);
        progress(at, bytes);
    }
    decoder.finish()?;
    // Whoever writes it still has not finished it.
    checkpoint.check_size()?;
    let (Some(offer), Some(mode), Stage::Sealed) = (check.offer, check.mode, check.stage) else {
        return Err(protocol("it ends without its commit: it was never finished"));
    };
    Ok(Verified { offer, mode, bytes, pages: check.pages, digests: check.digests })
}

/// What the beginning of the file says about its mode; nothing of it is believed before all of it was checked.
pub(crate) fn peek(checkpoint: &OpenCheckpoint) -> Result<CheckpointMode, EngineError> {
    let mut decoder = Decoder::new(Limits::connection());
    let mut check = Check::default();
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0_u64;
    // The offer comes first, and is not larger than that.
    let bytes = checkpoint.bytes.min(2 * MAX_MESSAGE_BYTES as u64);
    while at < bytes && check.mode.is_none() {
        let most = usize::try_from(bytes - at).unwrap_or(usize::MAX).min(buffer.len());
        let n = read_at(&checkpoint.file, &checkpoint.path, buffer.get_mut(..most).unwrap_or_default(), at)?;
        let mut judged = Ok(());
        decoder.push(buffer.get(..n).unwrap_or_default(), &mut |event| {
            if judged.is_ok() && check.mode.is_none() {
                judged = check.event(event);
            }
        })?;
        judged?;
        at = at.saturating_add(n as u64);
    }
    match check.mode {
        Some(mode) => Ok(mode),
        None => decoder.finish().map_err(EngineError::from).and(Err(protocol("it has no offer"))),
    }
}

fn read_at(file: &File, path: &Path, out: &mut [u8], at: u64) -> Result<usize, EngineError> {
    loop {
        match file.read_at(out, at) {
            Ok(0) => return Err(problem(path, CheckpointProblem::Changed)),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other.map_err(file_error(path)),
        }
    }
}

fn protocol(what: &str) -> EngineError {
    EngineError::Protocol { during: "reading the checkpoint", what: what.to_owned() }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Begun,
    Offered,
    Streaming,
    Ended,
    Sealed,
}

/// What a restore would make of the stream, without doing it.
#[derive(Default)]
struct Check {
    stage: Stage,
    session: Option<Uuid>,
    offer: Option<Offer>,
    mode: Option<CheckpointMode>,
    sections: Vec<Expected>,
    memory: Option<PageReceiver>,
    pages: u64,
    section_bytes: u64,
    digests: Vec<Digest>,
}

impl Check {
    fn event(&mut self, event: Event<'_>) -> Result<(), EngineError> {
        if !matches!(event, Event::Header(_) | Event::Dialogue(_) | Event::Skipped { .. })
            && self.stage != Stage::Streaming
        {
            return Err(protocol("a part of the stream stands before its offer"));
        }
        match event {
            Event::Header(header) => self.session = Some(Uuid::from_bytes(header.session)),
            Event::Dialogue(json) => self.message(Message::decode(json)?)?,
            Event::SectionBegin { channel, section } => {
                let expected = find(&mut self.sections, channel)?;
                if expected.kind != section.kind || expected.name != section.name {
                    return Err(protocol("it holds a section that was not offered"));
                }
                expected.begun = true;
            }
            Event::Pages { channel, pages } => {
                begun(&mut self.sections, channel)?;
                let memory = self.memory.as_ref().ok_or_else(|| protocol("it holds pages and offers no memory"))?;
                memory.check_batch(&pages)?;
                self.pages = self.pages.saturating_add(pages.summary.pages);
            }
            Event::StateChunk { channel, .. } => {
                begun(&mut self.sections, channel)?;
            }
            Event::SectionData { channel, data } => {
                begun(&mut self.sections, channel)?;
                self.section_bytes = self.section_bytes.saturating_add(data.len() as u64);
                if self.section_bytes > MAX_SECTION_BYTES {
                    let what = "bytes of the caller's sections";
                    return Err(EngineError::Limit { what, value: self.section_bytes, limit: MAX_SECTION_BYTES });
                }
            }
            Event::Manifest { channel, digest } => {
                let section = begun(&mut self.sections, channel)?;
                section.done = true;
                let section = section.label.clone();
                self.digests.push(Digest { section, bytes: digest.bytes(), digest: digest.hash() });
            }
            Event::StreamEnd { .. } => {
                if let Some(missing) = self.sections.iter().find(|s| !s.done) {
                    return Err(protocol(&format!("it ends without {}", missing.label)));
                }
                self.stage = Stage::Ended;
            }
            _ => {}
        }
        Ok(())
    }

    fn message(&mut self, message: Message) -> Result<(), EngineError> {
        let epoch = self.offer.as_ref().map(|o| o.epoch);
        self.stage = match (self.stage, message) {
            (Stage::Begun, Message::Offer(offer)) => {
                self.offer(offer)?;
                Stage::Offered
            }
            (Stage::Offered, Message::Ready { epoch: ready }) if Some(ready) == epoch => Stage::Streaming,
            (Stage::Ended, Message::Commit { epoch: committed }) if Some(committed) == epoch => Stage::Sealed,
            (_, Message::Abort { reason, .. }) => return Err(protocol(&format!("it was given up: {reason}"))),
            (_, other) => return Err(protocol(&format!("it says {:?} where a checkpoint does not", other.name()))),
        };
        Ok(())
    }

    fn offer(&mut self, offer: Offer) -> Result<(), EngineError> {
        if self.session != Some(offer.session) {
            return Err(protocol("its header names another session than its offer"));
        }
        let mode = offer.terms.checkpoint.ok_or_else(|| protocol("it is a recording of a migration, no checkpoint"))?;
        if offer.terms != Terms::checkpoint(mode) || offer.functions.is_empty() {
            return Err(protocol("its terms are those of no checkpoint"));
        }
        let ranges: Vec<MemoryRange> = offer.memory.iter().map(|r| MemoryRange { gpa: r.gpa, len: r.len }).collect();
        self.memory = Some(PageReceiver::new(&ranges, offer.page_size_bytes, false)?);
        self.sections = expected(&offer);
        self.mode = Some(mode);
        self.offer = Some(offer);
        Ok(())
    }
}
