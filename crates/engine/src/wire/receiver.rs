//! Frames on their way in.

use towline_core::stream::{
    Event, FRAME_HEADER_BYTES, FrameRules, Limits, PagesRun, STREAM_HEADER_BYTES, StreamHeader,
};
use uuid::Uuid;

use super::{header_error, stream_error};
use crate::dialogue::Message;
use crate::error::{EngineError, LinkError};
use crate::link::Link;

/// Reads one direction of a stream. Payloads come into one buffer that is used again; it grows with the bytes that really
/// come, never with what a length announces.
pub(crate) struct Receiver {
    rules: FrameRules,
    session: Option<Uuid>,
    expected: Option<Uuid>,
    buffer: Vec<u8>,
    runs: Vec<PagesRun>,
    wire_bytes: u64,
}

/// By how much the buffer grows at once.
const GROW_BYTES: usize = 1 << 20;

impl Default for Receiver {
    fn default() -> Self {
        Self::new(None)
    }
}

impl Receiver {
    /// A receiver for the stream of `expected`, or of whatever session comes.
    pub fn new(expected: Option<Uuid>) -> Self {
        Self {
            rules: FrameRules::new(Limits::connection()),
            session: None,
            expected,
            buffer: Vec::new(),
            runs: Vec::new(),
            wire_bytes: 0,
        }
    }

    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes
    }

    /// The session of the stream header, once that has come.
    pub fn session(&self) -> Option<Uuid> {
        self.session
    }

    /// The next frame, checked by all rules.
    pub fn next(&mut self, link: &mut dyn Link) -> Result<Event<'_>, EngineError> {
        if self.session.is_none() {
            let mut raw = [0; STREAM_HEADER_BYTES];
            read_exact(link, &mut raw)?;
            self.wire_bytes += raw.len() as u64;
            let header = StreamHeader::decode(&raw, self.rules.limits()).map_err(header_error)?;
            let session = Uuid::from_bytes(header.session);
            if self.expected.is_some_and(|e| e != session) {
                return Err(EngineError::Protocol {
                    during: "reading the stream header",
                    what: format!("it speaks of session {session}"),
                });
            }
            self.session = Some(session);
        }
        let mut raw = [0; FRAME_HEADER_BYTES];
        read_exact(link, &mut raw)?;
        let (header, _) = self.rules.header(&raw).map_err(stream_error)?;
        // Capped by the limits, and taken as it comes.
        let length = header.length as usize;
        let mut filled = 0;
        while filled < length {
            let end = length.min(filled.saturating_add(GROW_BYTES));
            if self.buffer.len() < end {
                self.buffer.resize(end, 0);
            }
            read_exact(link, self.buffer.get_mut(filled..end).unwrap_or_default())?;
            filled = end;
        }
        self.wire_bytes += raw.len() as u64 + u64::from(header.length);
        let payload = self.buffer.get(..length).unwrap_or_default();
        self.rules.payload(&header, payload, &mut self.runs).map_err(stream_error)
    }

    /// The next message; `None` for filler.
    pub fn message_or_filler(
        &mut self,
        link: &mut dyn Link,
        during: &'static str,
    ) -> Result<Option<Message>, EngineError> {
        match self.next(link)? {
            Event::Dialogue(json) => Message::decode(json).map(Some),
            Event::Skipped { .. } => Ok(None),
            _ => {
                Err(EngineError::Protocol { during, what: "it sent a part of the stream instead of a message".into() })
            }
        }
    }

    /// The next message.
    pub fn message(&mut self, link: &mut dyn Link, during: &'static str) -> Result<Message, EngineError> {
        loop {
            if let Some(message) = self.message_or_filler(link, during)? {
                return Ok(message);
            }
        }
    }

    /// After the peer closed the link: why it did, if it has said so.
    pub fn last_words(&mut self, link: &mut dyn Link, error: &LinkError) -> Option<LastWords> {
        if !matches!(error, LinkError::Closed { .. }) {
            return None;
        }
        // Some messages may lie before it, pings above all.
        for _ in 0..1024 {
            match self.message_or_filler(link, "looking for an abort") {
                Ok(Some(Message::Abort { code, reason })) => return Some(LastWords::Aborted { code, reason }),
                Ok(Some(Message::Refused { epoch, reason })) => return Some(LastWords::Refused { epoch, reason }),
                Ok(_) => {}
                Err(_) => return None,
            }
        }
        None
    }
}

/// Why a peer closed the link.
pub(crate) enum LastWords {
    /// It gave up.
    Aborted {
        /// Its error code.
        code: String,
        /// Its words.
        reason: String,
    },
    /// It made durable that it will never commit.
    Refused {
        /// The epoch.
        epoch: u64,
        /// Its words.
        reason: String,
    },
}

fn read_exact(link: &mut dyn Link, mut out: &mut [u8]) -> Result<(), EngineError> {
    while !out.is_empty() {
        let n = link.read(out)?;
        out = out.get_mut(n..).unwrap_or_default();
    }
    Ok(())
}
