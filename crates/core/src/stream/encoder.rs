//! [`Encoder`]: frames that a decoder accepts.

use alloc::vec::Vec;

use super::error::{StreamError, StreamErrorReason};
use super::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameType, OPTIONAL};
use super::header::{STREAM_HEADER_BYTES, StreamHeader};
use super::limits::Limits;
use super::pages::{PagesRun, PagesSummary, encode_pages_table};
use super::rules::FrameRules;
use super::section::SectionBegin;
use crate::crc::crc32c;

/// Writes frames by the rules that a reader checks: what a [`super::Decoder`] with the same limits would refuse is an
/// error here, and changes nothing.
///
/// Small frames are appended to a `Vec`. Those with large payloads come as a header alone, for payloads that stay where they
/// are; the frames have to reach the wire in the order in which they were made.
#[derive(Clone, Debug)]
pub struct Encoder {
    header: StreamHeader,
    rules: FrameRules,
    scratch: Vec<u8>,
}

impl Encoder {
    /// An encoder for a stream with this header.
    ///
    /// # Errors
    /// `Version` for a major version that cannot be written.
    pub fn new(header: StreamHeader, limits: Limits) -> Result<Self, StreamError> {
        if !header.is_supported() {
            let reason = StreamErrorReason::Version { major: header.major, minor: header.minor };
            return Err(StreamError { offset: 0, sequence: None, reason });
        }
        Ok(Self { header, rules: FrameRules::new(limits), scratch: Vec::new() })
    }

    /// The bytes that come first.
    #[must_use]
    pub fn stream_header(&self) -> [u8; STREAM_HEADER_BYTES] {
        self.header.encode()
    }

    /// The rules and where the stream is in them.
    #[must_use]
    pub fn rules(&self) -> &FrameRules {
        &self.rules
    }

    /// Opens a section on `channel`, which is not 0 and was not used before.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn begin_section(
        &mut self,
        channel: u32,
        section: &SectionBegin<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), StreamError> {
        let mut payload = core::mem::take(&mut self.scratch);
        payload.clear();
        let encoded = section.encode(self.rules.limits(), &mut payload).map_err(|reason| self.rules.locate(reason));
        let result = encoded.and_then(|()| self.whole(FrameType::SectionBegin.number(), 0, channel, &payload, out));
        self.scratch = payload;
        result
    }

    /// The header of a STATE_CHUNK, SECTION_DATA or DIALOGUE whose payload of `length` bytes is sent by the caller.
    /// `payload_crc` is the CRC32C of the payload.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn opaque_header(
        &mut self,
        frame_type: FrameType,
        channel: u32,
        length: u32,
        payload_crc: u32,
    ) -> Result<[u8; FRAME_HEADER_BYTES], StreamError> {
        let (header, raw) = self.make(frame_type.number(), 0, channel, length, payload_crc)?;
        self.rules.opaque_received(&header, payload_crc)?;
        Ok(raw)
    }

    /// A whole STATE_CHUNK, SECTION_DATA or DIALOGUE.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn opaque(
        &mut self,
        frame_type: FrameType,
        channel: u32,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), StreamError> {
        let length = self.length_of(payload)?;
        let raw = self.opaque_header(frame_type, channel, length, crc32c(0, payload))?;
        out.extend_from_slice(&raw);
        out.extend_from_slice(payload);
        Ok(())
    }

    /// An optional frame of a type that this version does not know, on channel 0 or in an open section.
    ///
    /// # Errors
    /// [`StreamError`]; `FrameFlags` for a known type.
    pub fn optional(
        &mut self,
        frame_type: u16,
        channel: u32,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), StreamError> {
        if FrameType::from_number(frame_type).is_some() {
            return Err(self.rules.locate(StreamErrorReason::FrameFlags(OPTIONAL)));
        }
        self.whole(frame_type, OPTIONAL, channel, payload, out)
    }

    /// The table of a PAGES frame, appended to `out`; see [`encode_pages_table`].
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn pages_table(
        &self,
        page_size_bytes: u32,
        runs: &[PagesRun],
        out: &mut Vec<u8>,
    ) -> Result<PagesSummary, StreamError> {
        encode_pages_table(page_size_bytes, runs, self.rules.limits(), out).map_err(|reason| self.rules.locate(reason))
    }

    /// The header of a PAGES frame. The caller sends it, the table and the bytes of the data runs; `payload_crc` is the
    /// CRC32C of table and data.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn pages_header(
        &mut self,
        channel: u32,
        summary: &PagesSummary,
        payload_crc: u32,
    ) -> Result<[u8; FRAME_HEADER_BYTES], StreamError> {
        let total = summary.table_bytes as u64 + summary.data_bytes;
        let limit = self.rules.limits().max_frame_bytes;
        let Ok(length) = u32::try_from(total) else {
            return Err(self.rules.locate(StreamErrorReason::FrameTooLarge { length: u32::MAX, limit }));
        };
        let (header, raw) = self.make(FrameType::Pages.number(), 0, channel, length, payload_crc)?;
        self.rules.pages_received(&header, summary, payload_crc)?;
        Ok(raw)
    }

    /// Ends a round of the memory section on `channel`. Number and counts are those of the PAGES frames since the last one.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn round_end(&mut self, channel: u32, is_final: bool, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let Some(mut round) = self.rules.round(channel) else {
            return Err(self.rules.locate(StreamErrorReason::ChannelNotOpen(channel)));
        };
        round.is_final = is_final;
        self.whole(FrameType::RoundEnd.number(), 0, channel, &round.encode(), out)
    }

    /// Closes the section on `channel`.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn manifest(&mut self, channel: u32, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let Some(digest) = self.rules.section_digest(channel) else {
            return Err(self.rules.locate(StreamErrorReason::ChannelNotOpen(channel)));
        };
        self.whole(FrameType::Manifest.number(), 0, channel, &digest.encode(), out)
    }

    /// Ends the stream. Every section is closed.
    ///
    /// # Errors
    /// [`StreamError`].
    pub fn end(&mut self, out: &mut Vec<u8>) -> Result<(), StreamError> {
        let digest = self.rules.stream_digest();
        self.whole(FrameType::StreamEnd.number(), 0, 0, &digest.encode(), out)
    }

    fn length_of(&self, payload: &[u8]) -> Result<u32, StreamError> {
        let limit = self.rules.limits().max_frame_bytes;
        u32::try_from(payload.len())
            .map_err(|_| self.rules.locate(StreamErrorReason::FrameTooLarge { length: u32::MAX, limit }))
    }

    fn make(
        &self,
        frame_type: u16,
        flags: u16,
        channel: u32,
        length: u32,
        payload_crc: u32,
    ) -> Result<(FrameHeader, [u8; FRAME_HEADER_BYTES]), StreamError> {
        let Some(sequence) = self.rules.next_sequence() else {
            return Err(self.rules.locate(StreamErrorReason::SequenceExhausted));
        };
        let header = FrameHeader { frame_type, flags, channel, sequence, length, payload_crc };
        let raw = header.encode();
        self.rules.header(&raw)?;
        Ok((header, raw))
    }

    fn whole(
        &mut self,
        frame_type: u16,
        flags: u16,
        channel: u32,
        payload: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), StreamError> {
        let length = self.length_of(payload)?;
        let (header, raw) = self.make(frame_type, flags, channel, length, crc32c(0, payload))?;
        self.rules.payload(&header, payload, &mut Vec::new())?;
        out.extend_from_slice(&raw);
        out.extend_from_slice(payload);
        Ok(())
    }
}
