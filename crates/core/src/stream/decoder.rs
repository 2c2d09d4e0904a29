//! [`Decoder`]: bytes in, events out.

use alloc::vec::Vec;

use super::error::{StreamError, StreamErrorReason};
use super::event::Event;
use super::frame::{FRAME_HEADER_BYTES, FrameHeader};
use super::header::{STREAM_HEADER_BYTES, StreamHeader};
use super::limits::Limits;
use super::pages::PagesRun;
use super::rules::FrameRules;

/// A push-style decoder. Bytes come in any cuts; an event is delivered once its frame is complete and checked. Memory
/// grows with the bytes that came, never with what a length announces, and never beyond one frame.
#[derive(Clone, Debug)]
pub struct Decoder {
    rules: FrameRules,
    expect: Expect,
    /// The part of what is expected that came already.
    partial: Vec<u8>,
    runs: Vec<PagesRun>,
    failed: Option<StreamError>,
}

#[derive(Clone, Copy, Debug)]
enum Expect {
    StreamHeader,
    FrameHeader,
    Payload(FrameHeader),
}

impl Expect {
    fn bytes(&self) -> usize {
        match self {
            Self::StreamHeader => STREAM_HEADER_BYTES,
            Self::FrameHeader => FRAME_HEADER_BYTES,
            Self::Payload(header) => header.length as usize,
        }
    }
}

impl Decoder {
    /// A decoder before the first byte.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            rules: FrameRules::new(limits),
            expect: Expect::StreamHeader,
            partial: Vec::new(),
            runs: Vec::new(),
            failed: None,
        }
    }

    /// Takes bytes and calls `on_event` for everything that became complete by them.
    ///
    /// # Errors
    /// [`StreamError`] for the first rule that is broken; from then on every call returns it. Events delivered before it
    /// were right.
    pub fn push(&mut self, bytes: &[u8], on_event: &mut dyn FnMut(Event<'_>)) -> Result<(), StreamError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let result = self.run(bytes, on_event);
        if let Err(error) = result {
            self.failed = Some(error);
            self.partial = Vec::new();
        }
        result
    }

    fn run(&mut self, mut bytes: &[u8], on_event: &mut dyn FnMut(Event<'_>)) -> Result<(), StreamError> {
        loop {
            let need = self.expect.bytes();
            if self.partial.is_empty()
                && let Some((piece, rest)) = bytes.split_at_checked(need)
            {
                // What came in one piece is not copied.
                bytes = rest;
                self.take(piece, on_event)?;
                continue;
            }
            let missing = need.saturating_sub(self.partial.len());
            let Some((piece, rest)) = bytes.split_at_checked(missing) else {
                self.partial.extend_from_slice(bytes);
                return Ok(());
            };
            self.partial.extend_from_slice(piece);
            bytes = rest;
            let mut whole = core::mem::take(&mut self.partial);
            self.take(&whole, on_event)?;
            whole.clear();
            self.partial = whole;
        }
    }

    fn take(&mut self, piece: &[u8], on_event: &mut dyn FnMut(Event<'_>)) -> Result<(), StreamError> {
        match self.expect {
            Expect::StreamHeader => {
                let header = piece
                    .first_chunk::<STREAM_HEADER_BYTES>()
                    .ok_or(StreamErrorReason::Incomplete)
                    .and_then(|raw| StreamHeader::decode(raw, self.rules.limits()))
                    .map_err(|reason| StreamError { offset: 0, sequence: None, reason })?;
                self.expect = Expect::FrameHeader;
                on_event(Event::Header(header));
            }
            Expect::FrameHeader => {
                let raw = piece
                    .first_chunk::<FRAME_HEADER_BYTES>()
                    .ok_or_else(|| self.rules.locate(StreamErrorReason::Incomplete))?;
                self.expect = Expect::Payload(self.rules.header(raw)?.0);
            }
            Expect::Payload(header) => {
                let event = self.rules.payload(&header, piece, &mut self.runs)?;
                self.expect = Expect::FrameHeader;
                on_event(event);
            }
        }
        Ok(())
    }

    /// Whether the stream is whole: ended by STREAM_END, with nothing after it and nothing missing.
    ///
    /// # Errors
    /// The error that stopped the decoder, or `Incomplete`.
    pub fn finish(&self) -> Result<(), StreamError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        match self.expect {
            Expect::StreamHeader => {
                let offset = self.partial.len() as u64;
                Err(StreamError { offset, sequence: None, reason: StreamErrorReason::Incomplete })
            }
            Expect::FrameHeader if self.partial.is_empty() => self.rules.finish(),
            _ => Err(self.rules.locate(StreamErrorReason::Incomplete)),
        }
    }

    /// The rules and where the stream is in them.
    #[must_use]
    pub fn rules(&self) -> &FrameRules {
        &self.rules
    }
}
