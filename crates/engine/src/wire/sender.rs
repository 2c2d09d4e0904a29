//! Frames on their way out.

use std::fs::File;
use std::io::{self, BufWriter, IoSlice, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use towline_core::crc::crc32c;
use towline_core::stream::{
    FrameHeader, FrameRules, FrameType, Limits, OPTIONAL, PagesRun, RoundEnd, SectionBegin, SectionKind, StreamHeader,
    encode_pages_table,
};
use uuid::Uuid;

use super::{FILLER_TYPE, MEMORY_CHANNEL, stream_error};
use crate::dialogue::{Digest, Message};
use crate::error::{EngineError, LinkError};
use crate::link::Link;

/// The most that is held back.
pub(super) const HELD_BYTES: usize = 256 << 10;
/// Bytes of one frame of filler.
const FILLER_BYTES: usize = 256 << 10;

/// Writes one direction of a stream. The stream header goes out with the first frame.
pub(crate) struct Sender {
    session: Uuid,
    begun: bool,
    rules: FrameRules,
    wire_bytes: u64,
    /// Of these, filler.
    probe_bytes: u64,
    digests: Vec<Digest>,
    record: Option<(BufWriter<File>, PathBuf)>,
    table: Vec<u8>,
    page_size: u32,
    /// A write failed half-way: whatever followed would be taken for the rest of it.
    broken: bool,
    /// Rehearsal: the next frame is lost on its way.
    lose_next: bool,
    /// Frames that wait for others, so that they go in one write; see [`Sender::hold`].
    held: Option<Vec<u8>>,
}

/// A new file at `path`, in place of what is there. A recording holds guest memory: it is nobody else's to read, not even who has
/// the file open that was there before, and it goes nowhere else by a link.
fn recording(path: &Path, session: Uuid) -> io::Result<File> {
    match path.symlink_metadata() {
        Ok(there) if !there.is_file() => {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "there is something that is no regular file"));
        }
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{session}.new"));
    let fresh = path.with_file_name(name);
    let file = File::options().write(true).create_new(true).mode(0o600).open(&fresh)?;
    std::fs::rename(&fresh, path).inspect_err(|_| drop(std::fs::remove_file(&fresh)))?;
    Ok(file)
}

impl Sender {
    pub fn new(session: Uuid, record_to: Option<&Path>) -> Result<Self, EngineError> {
        let file_error = |path: &Path| {
            let path = path.display().to_string();
            move |source| EngineError::File { path, source }
        };
        let record = match record_to {
            None => None,
            Some(path) => Some((BufWriter::new(recording(path, session).map_err(file_error(path))?), path.to_owned())),
        };
        Ok(Self::with_record(session, record))
    }

    /// A sender that stands in for another one, and never sends.
    pub fn idle() -> Self {
        Self { broken: true, ..Self::with_record(Uuid::nil(), None) }
    }

    fn with_record(session: Uuid, record: Option<(BufWriter<File>, PathBuf)>) -> Self {
        Self {
            session,
            begun: false,
            rules: FrameRules::new(Limits::connection()),
            wire_bytes: 0,
            probe_bytes: 0,
            digests: Vec::new(),
            record,
            table: Vec::new(),
            page_size: 4096,
            broken: false,
            lose_next: false,
            held: None,
        }
    }

    /// From here on frames of sections wait for each other, up to [`HELD_BYTES`], until [`Sender::let_go`] or a message: each write by itself
    /// wakes the reader.
    pub fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// What the reader is to have now, after all that was held.
    fn at_once(
        &mut self,
        link: &mut dyn Link,
        write: impl FnOnce(&mut Self, &mut dyn Link) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let holds = self.held.is_some();
        self.let_go(link)?;
        write(self, link)?;
        if holds {
            self.hold();
        }
        Ok(())
    }

    /// Sends what was held, and holds nothing any more.
    pub fn let_go(&mut self, link: &mut dyn Link) -> Result<(), EngineError> {
        match self.held.take() {
            Some(held) if !held.is_empty() => self.send(link, &[&held], &[]),
            _ => Ok(()),
        }
    }

    /// The session, where it was not known when this was made. Before the first frame only.
    pub fn set_session(&mut self, session: Uuid) {
        self.session = session;
    }

    /// Bytes in a page, at most 1 MiB.
    pub fn set_page_size(&mut self, bytes: u64) {
        self.page_size = u32::try_from(bytes).unwrap_or(0);
    }

    /// Rehearsal: counts the next frame as sent, and does not send it.
    pub fn lose_next(&mut self) {
        self.lose_next = true;
    }

    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// Bytes of filler among them: they say something about the link, not about the migration.
    pub fn probe_bytes(&self) -> u64 {
        self.probe_bytes
    }

    /// The digests of all manifests so far.
    pub fn digests(&self) -> &[Digest] {
        &self.digests
    }

    pub fn message(&mut self, link: &mut dyn Link, message: &Message) -> Result<(), EngineError> {
        let json = message.encode()?;
        self.at_once(link, |s, link| s.opaque(link, FrameType::Dialogue, 0, &json))
    }

    /// A message with `descriptors` beside its first byte. A recording has the message only.
    pub fn message_with(
        &mut self,
        link: &mut dyn Link,
        message: &Message,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), EngineError> {
        let json = message.encode()?;
        let crc = crc32c(0, &json);
        self.at_once(link, |s, link| {
            let (header, raw) = s.header(FrameType::Dialogue.number(), 0, 0, json.len(), crc)?;
            s.rules.opaque_received(&header, crc).map_err(stream_error)?;
            s.write_with(link, &[&raw, &json], descriptors)
        })
    }

    pub fn section_begin(
        &mut self,
        link: &mut dyn Link,
        channel: u32,
        kind: SectionKind,
        name: &str,
    ) -> Result<(), EngineError> {
        let function = match kind {
            SectionKind::DeviceState => Uuid::try_parse(name).map(Uuid::into_bytes).unwrap_or_default(),
            _ => [0; 16],
        };
        let begin = SectionBegin { kind, function, format: [0; 16], format_version: 0, name };
        let mut payload = Vec::new();
        begin.encode(self.rules.limits(), &mut payload).map_err(|reason| stream_error(self.rules.locate(reason)))?;
        self.structured(link, FrameType::SectionBegin, channel, &payload)
    }

    pub fn state_chunk(&mut self, link: &mut dyn Link, channel: u32, data: &[u8]) -> Result<(), EngineError> {
        self.opaque(link, FrameType::StateChunk, channel, data)
    }

    pub fn section_data(&mut self, link: &mut dyn Link, channel: u32, data: &[u8]) -> Result<(), EngineError> {
        self.opaque(link, FrameType::SectionData, channel, data)
    }

    /// One batch of pages; `data` holds the bytes of its data runs, one after another.
    pub fn pages(&mut self, link: &mut dyn Link, runs: &[PagesRun], data: &[u8]) -> Result<(), EngineError> {
        if runs.is_empty() {
            return Ok(());
        }
        let mut table = std::mem::take(&mut self.table);
        table.clear();
        let summary = encode_pages_table(self.page_size, runs, self.rules.limits(), &mut table)
            .map_err(|reason| stream_error(self.rules.locate(reason)))?;
        let crc = crc32c(crc32c(0, &table), data);
        let length = table.len().saturating_add(data.len());
        let (header, raw) = self.header(FrameType::Pages.number(), 0, MEMORY_CHANNEL, length, crc)?;
        self.rules.pages_received(&header, &summary, crc).map_err(stream_error)?;
        self.write(link, &[&raw, &table, data])?;
        self.table = table;
        Ok(())
    }

    /// Ends a round; returns its number on the wire, from 0.
    pub fn round_end(&mut self, link: &mut dyn Link, is_final: bool) -> Result<u32, EngineError> {
        let Some(round) = self.rules.round(MEMORY_CHANNEL) else {
            return Err(EngineError::Misuse {
                call: "end of a round",
                state: "without a memory section",
                allowed: "none",
            });
        };
        let payload = RoundEnd { is_final, ..round }.encode();
        self.structured(link, FrameType::RoundEnd, MEMORY_CHANNEL, &payload)?;
        Ok(round.round)
    }

    /// Closes a section; `name` is for the digests that both sides compare.
    pub fn manifest(&mut self, link: &mut dyn Link, channel: u32, name: &str) -> Result<(), EngineError> {
        let digest = self.rules.section_digest(channel).unwrap_or_default();
        self.structured(link, FrameType::Manifest, channel, &digest.encode())?;
        self.digests.push(Digest { section: name.to_owned(), bytes: digest.bytes(), digest: digest.hash() });
        Ok(())
    }

    pub fn stream_end(&mut self, link: &mut dyn Link) -> Result<(), EngineError> {
        let digest = self.rules.stream_digest();
        self.structured(link, FrameType::StreamEnd, 0, &digest.encode())?;
        // What follows is dialogue, which is no part of what was migrated.
        if let Some((mut file, path)) = self.record.take() {
            file.flush().map_err(|source| EngineError::File { path: path.display().to_string(), source })?;
        }
        Ok(())
    }

    /// Bytes of no meaning; `pace` is told about each part before it is sent.
    pub fn filler(
        &mut self,
        link: &mut dyn Link,
        bytes: u64,
        pace: &mut dyn FnMut(u64) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let block: Vec<u8> = (0..FILLER_BYTES).map(|i| i as u8).collect();
        let crc = crc32c(0, &block);
        let mut left = bytes;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(FILLER_BYTES);
            let part = block.get(..n).unwrap_or_default();
            let crc = if n == FILLER_BYTES { crc } else { crc32c(0, part) };
            pace(n as u64)?;
            let (header, raw) = self.header(FILLER_TYPE, OPTIONAL, 0, n, crc)?;
            self.rules.opaque_received(&header, crc).map_err(stream_error)?;
            self.write(link, &[&raw, part])?;
            self.probe_bytes += (raw.len() + n) as u64;
            left -= n as u64;
        }
        Ok(())
    }

    fn opaque(&mut self, link: &mut dyn Link, kind: FrameType, channel: u32, data: &[u8]) -> Result<(), EngineError> {
        let crc = crc32c(0, data);
        let (header, raw) = self.header(kind.number(), 0, channel, data.len(), crc)?;
        self.rules.opaque_received(&header, crc).map_err(stream_error)?;
        self.write(link, &[&raw, data])
    }

    fn structured(
        &mut self,
        link: &mut dyn Link,
        kind: FrameType,
        channel: u32,
        data: &[u8],
    ) -> Result<(), EngineError> {
        let (header, raw) = self.header(kind.number(), 0, channel, data.len(), crc32c(0, data))?;
        self.rules.payload(&header, data, &mut Vec::new()).map_err(stream_error)?;
        self.write(link, &[&raw, data])
    }

    /// A header that a reader accepts as the next one.
    fn header(
        &self,
        frame_type: u16,
        flags: u16,
        channel: u32,
        length: usize,
        payload_crc: u32,
    ) -> Result<(FrameHeader, [u8; 24]), EngineError> {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let sequence = self.rules.next_sequence().unwrap_or(u32::MAX);
        let header = FrameHeader { frame_type, flags, channel, sequence, length, payload_crc };
        let raw = header.encode();
        self.rules.header(&raw).map_err(stream_error)?;
        Ok((header, raw))
    }

    fn write(&mut self, link: &mut dyn Link, parts: &[&[u8]]) -> Result<(), EngineError> {
        self.write_with(link, parts, &[])
    }

    fn write_with(
        &mut self,
        link: &mut dyn Link,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), EngineError> {
        if std::mem::take(&mut self.lose_next) {
            return Ok(());
        }
        self.whole(link)?;
        let head = if self.begun { None } else { Some(StreamHeader::new(self.session.into_bytes()).encode()) };
        self.begun = true;
        let head: &[u8] = head.as_ref().map_or(&[], |h| h.as_slice());
        if let Some((file, path)) = &mut self.record {
            for part in std::iter::once(&head).chain(parts) {
                file.write_all(part)
                    .map_err(|source| EngineError::File { path: path.display().to_string(), source })?;
            }
        }
        let bytes: usize = head.len() + parts.iter().map(|part| part.len()).sum::<usize>();
        self.wire_bytes += bytes as u64;
        if let Some(held) = &mut self.held {
            if held.len().saturating_add(bytes) <= HELD_BYTES {
                held.extend(std::iter::once(&head).chain(parts).flat_map(|part| part.iter()));
                return Ok(());
            }
            let held = std::mem::take(held);
            self.send(link, &[&held], &[])?;
        }
        let all: Vec<&[u8]> = std::iter::once(head).chain(parts.iter().copied()).collect();
        self.send(link, &all, descriptors)
    }

    /// Refuses a link to which a write failed.
    fn whole(&self, link: &dyn Link) -> Result<(), EngineError> {
        if self.broken { Err(LinkError::Closed { peer: link.peer().to_owned() }.into()) } else { Ok(()) }
    }

    fn send(
        &mut self,
        link: &mut dyn Link,
        parts: &[&[u8]],
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), EngineError> {
        self.whole(link)?;
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        self.broken = true;
        link.write_all_with(&mut slices, descriptors)?;
        self.broken = false;
        Ok(())
    }
}
