//! What a stream says, and what to do with a payload.

use super::digest::SectionDigest;
use super::frame::FrameType;
use super::header::StreamHeader;
use super::pages::Pages;
use super::section::{RoundEnd, SectionBegin};

/// What the payload of a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Of this type.
    Known(FrameType),
    /// Of an unknown type or in a section of an unknown kind, and optional: check it and pass over it.
    Skip,
}

/// What a stream says, frame by frame. Borrowed bytes are valid for the length of the call that delivers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The stream began.
    Header(StreamHeader),
    /// A section began on a new channel.
    SectionBegin {
        /// Its channel.
        channel: u32,
        /// What it is.
        section: SectionBegin<'a>,
    },
    /// Opaque device state, at least one byte.
    StateChunk {
        /// The section.
        channel: u32,
        /// The bytes.
        data: &'a [u8],
    },
    /// Pages of guest memory.
    Pages {
        /// The section.
        channel: u32,
        /// Runs and bytes.
        pages: Pages<'a>,
    },
    /// Bytes of a section, perhaps none.
    SectionData {
        /// The section.
        channel: u32,
        /// The bytes.
        data: &'a [u8],
    },
    /// A round over guest memory ended; its counts were checked.
    RoundEnd {
        /// The section.
        channel: u32,
        /// The round.
        round: RoundEnd,
    },
    /// A section ended, and was what its manifest says.
    Manifest {
        /// The section.
        channel: u32,
        /// Counts and hashes of the frames before the manifest.
        digest: SectionDigest,
    },
    /// A message of the dialogue, at least one byte.
    Dialogue(
        /// The message.
        &'a [u8],
    ),
    /// An optional frame was passed over.
    Skipped {
        /// Its type.
        frame_type: u16,
        /// Its channel.
        channel: u32,
        /// Bytes of payload.
        length: u32,
    },
    /// The stream ended, and was what its end says.
    StreamEnd {
        /// Counts and hashes of the frames before it, without the dialogue.
        digest: SectionDigest,
    },
}
