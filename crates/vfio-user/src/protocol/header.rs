//! The header of every message.

use super::fields::Fields;
use super::{DecodeError, HEADER_BYTES, MAX_MESSAGE_BYTES};

/// Bits of [`Header::flags`].
pub mod flags {
    /// Bits 0 to 3: the type.
    pub const TYPE: u32 = 0xf;
    /// Type: an answer.
    pub const REPLY: u32 = 1;
    /// The sender wants no answer.
    pub const NO_REPLY: u32 = 1 << 4;
    /// The command failed; `error` holds the errno.
    pub const ERROR: u32 = 1 << 5;
    /// Every bit that means something.
    pub const KNOWN: u32 = TYPE | NO_REPLY | ERROR;
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageType {
    /// A request of the sender's.
    Command,
    /// The answer to one of the receiver's.
    Reply,
}

/// The header of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Chosen by the side that sent the command; the answer has the same.
    pub id: u16,
    /// See [`super::command`].
    pub command: u16,
    /// Bytes of the whole message, 16 to [`MAX_MESSAGE_BYTES`].
    pub size: u32,
    /// See [`flags`].
    pub flags: u32,
    /// `errno` where [`flags::ERROR`] is set.
    pub error: u32,
}

impl Header {
    /// Decodes and checks a header.
    ///
    /// # Errors
    /// A size below 16 or above [`MAX_MESSAGE_BYTES`], an unknown type. Where the message ends can't be known then: the connection
    /// is of no more use. Unknown flags are no error here: see [`Header::unknown_flags`].
    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<Self, DecodeError> {
        let mut fields = Fields::exactly(bytes, HEADER_BYTES)?;
        let header = Self {
            id: fields.u16()?,
            command: fields.u16()?,
            size: fields.u32()?,
            flags: fields.u32()?,
            error: fields.u32()?,
        };
        let size = usize::try_from(header.size).unwrap_or(usize::MAX);
        if !(HEADER_BYTES..=MAX_MESSAGE_BYTES).contains(&size) {
            return Err(DecodeError::field("message size", header.size));
        }
        if header.flags & flags::TYPE > flags::REPLY {
            return Err(DecodeError::field("message type", header.flags & flags::TYPE));
        }
        Ok(header)
    }

    /// Command or answer.
    #[must_use]
    pub fn message_type(&self) -> MessageType {
        if self.flags & flags::TYPE == flags::REPLY { MessageType::Reply } else { MessageType::Command }
    }

    /// Flags that mean nothing here.
    #[must_use]
    pub fn unknown_flags(&self) -> u32 {
        self.flags & !flags::KNOWN
    }

    /// Whether the sender wants an answer.
    #[must_use]
    pub fn wants_reply(&self) -> bool {
        self.flags & flags::NO_REPLY == 0
    }

    /// Whether this answer says that the command failed.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.flags & flags::ERROR != 0
    }

    /// Bytes after the header.
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        usize::try_from(self.size).unwrap_or(usize::MAX).saturating_sub(HEADER_BYTES)
    }

    /// The header's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let bytes = self.id.to_le_bytes().into_iter().chain(self.command.to_le_bytes());
        let bytes = bytes.chain(super::fields::words([self.size, self.flags, self.error]));
        out.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
        out
    }

    /// A whole message: a header, then `parts` one after the other.
    #[must_use]
    pub fn message(id: u16, command: u16, flags: u32, parts: &[&[u8]]) -> Vec<u8> {
        let len = HEADER_BYTES + parts.iter().map(|part| part.len()).sum::<usize>();
        let size = u32::try_from(len).unwrap_or(u32::MAX);
        let mut message = Vec::with_capacity(len);
        message.extend(Self { id, command, size, flags, error: 0 }.encode());
        parts.iter().for_each(|part| message.extend_from_slice(part));
        message
    }

    /// The answer to this command.
    #[must_use]
    pub fn reply(&self, parts: &[&[u8]]) -> Vec<u8> {
        Self::message(self.id, self.command, flags::REPLY, parts)
    }

    /// The answer that this command failed.
    #[must_use]
    pub fn error_reply(&self, errno: u32) -> Vec<u8> {
        let size = HEADER_BYTES as u32;
        let flags = flags::REPLY | flags::ERROR;
        Self { id: self.id, command: self.command, size, flags, error: errno }.encode().to_vec()
    }
}
