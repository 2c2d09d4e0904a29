//! [`FrameRules`]: which frame may follow which. Both directions and the fast path use this one book.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use super::digest::{DIGEST_BYTES, SectionDigest};
use super::error::{StreamError, StreamErrorReason};
use super::event::{Disposition, Event};
use super::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameType};
use super::header::STREAM_HEADER_BYTES;
use super::limits::Limits;
use super::pages::{Pages, PagesRun, PagesSummary, decode_pages_table};
use super::section::{RoundEnd, SectionBegin, SectionKind};
use crate::crc::crc32c;

/// The state of one direction of a stream, after its header.
///
/// For each frame: [`FrameRules::header`] with its 24 bytes, then, once the payload has come, one of
/// [`FrameRules::payload`], [`FrameRules::pages_received`] and [`FrameRules::opaque_received`]. After an error the stream is void.
#[derive(Clone, Debug)]
pub struct FrameRules {
    limits: Limits,
    offset: u64,
    /// `None` after 2^32 frames.
    sequence: Option<u32>,
    sections: BTreeMap<u32, Section>,
    open: u32,
    total: SectionDigest,
    ended: bool,
}

#[derive(Clone, Debug)]
struct Section {
    /// `None`: of an unknown kind, passed over.
    kind: Option<SectionKind>,
    closed: bool,
    digest: SectionDigest,
    round: u32,
    pages: u64,
    bytes: u64,
    final_round: bool,
}

impl FrameRules {
    /// The rules right after the stream header.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            offset: STREAM_HEADER_BYTES as u64,
            sequence: Some(0),
            sections: BTreeMap::new(),
            open: 0,
            total: SectionDigest::new(),
            ended: false,
        }
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Bytes of the stream up to the next frame.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether STREAM_END was reached.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// The sequence number of the next frame; `None` after 2^32 frames.
    #[must_use]
    pub fn next_sequence(&self) -> Option<u32> {
        self.sequence
    }

    /// `reason`, at the frame that is being handled.
    #[must_use]
    pub fn locate(&self, reason: StreamErrorReason) -> StreamError {
        StreamError { offset: self.offset, sequence: self.sequence, reason }
    }

    /// Checks the header of the next frame: everything that can be told before its payload.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn header(&self, raw: &[u8; FRAME_HEADER_BYTES]) -> Result<(FrameHeader, Disposition), StreamError> {
        let header = FrameHeader::decode(raw, &self.limits).map_err(|reason| self.locate(reason))?;
        let disposition = self.check(&header).map_err(|reason| self.locate(reason))?;
        Ok((header, disposition))
    }

    fn check(&self, header: &FrameHeader) -> Result<Disposition, StreamErrorReason> {
        use StreamErrorReason as Reason;
        let Some(expected) = self.sequence else { return Err(Reason::SequenceExhausted) };
        if header.sequence != expected {
            return Err(Reason::Sequence { expected, found: header.sequence });
        }
        let known = FrameType::from_number(header.frame_type);
        if self.ended && !(self.limits.dialogue_after_end && known == Some(FrameType::Dialogue)) {
            return Err(Reason::AfterEnd);
        }
        let Some(frame_type) = known else {
            if !header.is_optional() {
                return Err(Reason::UnknownType(header.frame_type));
            }
            if header.channel != 0 {
                self.section(header.channel)?;
            }
            return Ok(Disposition::Skip);
        };
        if header.is_optional() && frame_type != FrameType::SectionBegin {
            return Err(Reason::FrameFlags(header.flags));
        }
        let of_stream = matches!(frame_type, FrameType::Dialogue | FrameType::StreamEnd);
        if of_stream != (header.channel == 0) {
            return Err(Reason::ChannelWrong(header.channel));
        }
        let length_fits = match frame_type {
            FrameType::Manifest | FrameType::StreamEnd => header.length as usize == DIGEST_BYTES,
            FrameType::SectionData => true,
            _ => header.length != 0,
        };
        if !length_fits {
            return Err(Reason::PayloadLength { frame_type: header.frame_type, length: header.length });
        }
        match frame_type {
            FrameType::Dialogue => {}
            FrameType::StreamEnd if self.open != 0 => return Err(Reason::SectionsOpen(self.open)),
            FrameType::StreamEnd => {}
            FrameType::SectionBegin if self.sections.contains_key(&header.channel) => {
                return Err(Reason::ChannelUsed(header.channel));
            }
            FrameType::SectionBegin if self.sections.len() >= self.limits.max_sections as usize => {
                return Err(Reason::TooManySections(self.limits.max_sections));
            }
            FrameType::SectionBegin => {}
            _ => return self.check_in_section(header, frame_type),
        }
        Ok(Disposition::Known(frame_type))
    }

    fn check_in_section(&self, header: &FrameHeader, frame_type: FrameType) -> Result<Disposition, StreamErrorReason> {
        let section = self.section(header.channel)?;
        let is_manifest = frame_type == FrameType::Manifest;
        match section.kind {
            None if is_manifest => {}
            None => return Ok(Disposition::Skip),
            Some(kind) if !is_manifest && !kind.holds(frame_type) => {
                return Err(StreamErrorReason::NotInSection { frame_type: header.frame_type, channel: header.channel });
            }
            // Only the manifest follows the final round, and nothing else goes before it.
            Some(SectionKind::Memory) if section.final_round != is_manifest => {
                return Err(StreamErrorReason::RoundOrder(header.channel));
            }
            Some(_) => {}
        }
        Ok(Disposition::Known(frame_type))
    }

    fn section(&self, channel: u32) -> Result<&Section, StreamErrorReason> {
        self.sections.get(&channel).filter(|s| !s.closed).ok_or(StreamErrorReason::ChannelNotOpen(channel))
    }

    /// Takes a whole payload: checks it, counts it and says what it is. `header` is what [`FrameRules::header`] returned
    /// last; `runs` is space for the runs of a PAGES frame.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn payload<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &'a [u8],
        runs: &'a mut Vec<PagesRun>,
    ) -> Result<Event<'a>, StreamError> {
        self.apply(header, payload, runs).map_err(|reason| self.locate(reason)).inspect(|_| self.advance(header))
    }

    fn apply<'a>(
        &mut self,
        header: &FrameHeader,
        payload: &'a [u8],
        runs: &'a mut Vec<PagesRun>,
    ) -> Result<Event<'a>, StreamErrorReason> {
        let channel = header.channel;
        let disposition = self.check(header)?;
        if payload.len() != header.length as usize {
            return Err(StreamErrorReason::PayloadLength { frame_type: header.frame_type, length: header.length });
        }
        self.check_crc(header, crc32c(0, payload))?;
        let Disposition::Known(frame_type) = disposition else {
            self.count(header);
            return Ok(Event::Skipped { frame_type: header.frame_type, channel, length: header.length });
        };
        match frame_type {
            FrameType::SectionBegin => {
                let section = SectionBegin::decode(payload, header.is_optional(), &self.limits)?;
                self.open_section(channel, section.map(|s| s.kind));
                self.count(header);
                Ok(match section {
                    Some(section) => Event::SectionBegin { channel, section },
                    None => Event::Skipped { frame_type: header.frame_type, channel, length: header.length },
                })
            }
            FrameType::StateChunk => {
                self.count(header);
                Ok(Event::StateChunk { channel, data: payload })
            }
            FrameType::SectionData => {
                self.count(header);
                Ok(Event::SectionData { channel, data: payload })
            }
            FrameType::Pages => {
                let summary = decode_pages_table(payload, header.length, &self.limits, runs)?;
                self.count_pages(header, &summary);
                let data = payload.get(summary.table_bytes..).unwrap_or(&[]);
                Ok(Event::Pages { channel, pages: Pages { summary, runs, data } })
            }
            FrameType::RoundEnd => {
                let round = RoundEnd::decode(payload)?;
                self.end_round(channel, &round)?;
                self.count(header);
                Ok(Event::RoundEnd { channel, round })
            }
            FrameType::Manifest => {
                let digest = self.section(channel)?.digest;
                if !digest.matches(payload) {
                    return Err(StreamErrorReason::ManifestMismatch(channel));
                }
                self.close_section(channel);
                self.count(header);
                Ok(Event::Manifest { channel, digest })
            }
            FrameType::Dialogue => Ok(Event::Dialogue(payload)),
            FrameType::StreamEnd => {
                if !self.total.matches(payload) {
                    return Err(StreamErrorReason::EndMismatch);
                }
                self.ended = true;
                Ok(Event::StreamEnd { digest: self.total })
            }
        }
    }

    /// Takes a PAGES frame whose data went straight to memory. `summary` comes from [`decode_pages_table`] (or
    /// [`super::encode_pages_table`]) for this frame, `payload_crc` is the CRC32C of table and data as they were received.
    ///
    /// # Errors
    /// [`StreamError`]; memory then holds bytes that must not be used.
    pub fn pages_received(
        &mut self,
        header: &FrameHeader,
        summary: &PagesSummary,
        payload_crc: u32,
    ) -> Result<(), StreamError> {
        let checked = self.check(header).and_then(|disposition| {
            let total = summary.table_bytes as u64 + summary.data_bytes;
            if disposition != Disposition::Known(FrameType::Pages) || total != u64::from(header.length) {
                return Err(StreamErrorReason::PayloadLength { frame_type: header.frame_type, length: header.length });
            }
            self.check_crc(header, payload_crc)
        });
        checked.map_err(|reason| self.locate(reason))?;
        self.count_pages(header, summary);
        self.advance(header);
        Ok(())
    }

    /// Takes a STATE_CHUNK, SECTION_DATA, DIALOGUE or skipped frame whose payload was handled in pieces.
    ///
    /// # Errors
    /// [`StreamError`]; `PayloadLength` for types whose payload has to be read.
    pub fn opaque_received(&mut self, header: &FrameHeader, payload_crc: u32) -> Result<(), StreamError> {
        let checked = self.check(header).and_then(|disposition| match disposition {
            Disposition::Skip
            | Disposition::Known(FrameType::StateChunk | FrameType::SectionData | FrameType::Dialogue) => {
                self.check_crc(header, payload_crc)
            }
            Disposition::Known(_) => {
                Err(StreamErrorReason::PayloadLength { frame_type: header.frame_type, length: header.length })
            }
        });
        checked.map_err(|reason| self.locate(reason))?;
        if header.frame_type != FrameType::Dialogue.number() {
            self.count(header);
        }
        self.advance(header);
        Ok(())
    }

    /// Whether the stream is whole.
    ///
    /// # Errors
    /// `Incomplete` before STREAM_END.
    pub fn finish(&self) -> Result<(), StreamError> {
        if self.ended { Ok(()) } else { Err(self.locate(StreamErrorReason::Incomplete)) }
    }

    /// What the MANIFEST of the open section on `channel` has to say now.
    #[must_use]
    pub fn section_digest(&self, channel: u32) -> Option<SectionDigest> {
        self.section(channel).ok().map(|s| s.digest)
    }

    /// What STREAM_END has to say now.
    #[must_use]
    pub fn stream_digest(&self) -> SectionDigest {
        self.total
    }

    /// What the ROUND_END of the open memory section on `channel` has to say now, as a round that is not final.
    #[must_use]
    pub fn round(&self, channel: u32) -> Option<RoundEnd> {
        let section = self.section(channel).ok().filter(|s| s.kind == Some(SectionKind::Memory))?;
        Some(RoundEnd { round: section.round, is_final: false, pages: section.pages, bytes: section.bytes })
    }

    fn check_crc(&self, header: &FrameHeader, computed: u32) -> Result<(), StreamErrorReason> {
        if self.limits.same(header.payload_crc, computed) { Ok(()) } else { Err(StreamErrorReason::PayloadChecksum) }
    }

    fn open_section(&mut self, channel: u32, kind: Option<SectionKind>) {
        let digest = SectionDigest::new();
        let section = Section { kind, closed: false, digest, round: 0, pages: 0, bytes: 0, final_round: false };
        self.sections.insert(channel, section);
        self.open += 1;
    }

    fn close_section(&mut self, channel: u32) {
        if let Some(section) = self.sections.get_mut(&channel) {
            section.closed = true;
            self.open = self.open.saturating_sub(1);
        }
    }

    fn end_round(&mut self, channel: u32, round: &RoundEnd) -> Result<(), StreamErrorReason> {
        let Some(section) = self.sections.get_mut(&channel) else {
            return Err(StreamErrorReason::ChannelNotOpen(channel));
        };
        if round.round != section.round {
            return Err(StreamErrorReason::RoundOrder(channel));
        }
        if (round.pages, round.bytes) != (section.pages, section.bytes) {
            return Err(StreamErrorReason::RoundMismatch(channel));
        }
        // Fewer rounds than frames, and those are counted in 32 bits.
        section.round = section.round.wrapping_add(1);
        (section.pages, section.bytes) = (0, 0);
        section.final_round = round.is_final;
        Ok(())
    }

    fn count_pages(&mut self, header: &FrameHeader, summary: &PagesSummary) {
        if let Some(section) = self.sections.get_mut(&header.channel) {
            section.pages = section.pages.saturating_add(summary.pages);
            section.bytes = section.bytes.saturating_add(summary.data_bytes);
        }
        self.count(header);
    }

    /// Adds a frame to the digests it belongs to. A MANIFEST is in that of the stream only.
    fn count(&mut self, header: &FrameHeader) {
        if let Some(section) = self.sections.get_mut(&header.channel)
            && !section.closed
        {
            section.digest.add(header);
        }
        self.total.add(header);
    }

    fn advance(&mut self, header: &FrameHeader) {
        self.offset = self.offset.saturating_add(FRAME_HEADER_BYTES as u64 + u64::from(header.length));
        self.sequence = self.sequence.and_then(|s| s.checked_add(1));
    }
}
