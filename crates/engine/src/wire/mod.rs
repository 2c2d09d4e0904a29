//! Frames on a link: the rules of [`towline_core::stream`] around blocking reads and writes.

mod receiver;
mod sender;
#[cfg(test)]
mod tests;

pub(crate) use receiver::{LastWords, Receiver};
pub(crate) use sender::Sender;

use towline_core::stream::{StreamError, StreamErrorReason};

use crate::error::EngineError;

/// Channel of the memory section; 0 is the stream itself.
pub(crate) const MEMORY_CHANNEL: u32 = 1;

/// Channel of the state of the function with this index, of at most [`crate::dialogue::MAX_FUNCTIONS`].
pub(crate) fn function_channel(index: usize) -> u32 {
    2 + u32::try_from(index).unwrap_or(u32::MAX - 2)
}

/// Channel of the caller's section with this index.
pub(crate) fn section_channel(functions: usize, index: usize) -> u32 {
    function_channel(functions.saturating_add(index))
}

/// Frame type of filler for measuring bandwidth: unknown to every reader and optional, so that it is passed over.
const FILLER_TYPE: u16 = 0x7F01;

fn stream_error(error: StreamError) -> EngineError {
    EngineError::Stream(error)
}

fn header_error(reason: StreamErrorReason) -> EngineError {
    EngineError::Stream(StreamError { offset: 0, sequence: None, reason })
}
