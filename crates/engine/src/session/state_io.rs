//! Device state on its way out: state channel → chunker (digest) → link.

use std::time::Instant;

use towline_core::channel::ReadOutcome;
use towline_core::fsm::DeviceState;
use towline_core::stream::SectionKind;

use super::{SessionFunction, channel_error, set_state};
use crate::cancel::Cancel;
use crate::error::EngineError;
use crate::faultpoints::FaultPoints;
use crate::link::Link;
use crate::wire::{Sender, function_channel};

/// Bytes of one read of device state. QEMU found that larger ones show no improvement.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// The most device state of one function, so that a device that never says END doesn't fill the destination.
pub(crate) const MAX_STATE_BYTES: u64 = 1 << 40;

/// What was sent of one function.
#[derive(Clone, Debug, Default)]
pub(crate) struct StateDigest {
    pub is_precopy: bool,
    pub begun: bool,
    pub bytes: u64,
}

impl StateDigest {
    /// Sends `n` bytes of `chunk`.
    pub fn send(
        &mut self,
        sender: &mut Sender,
        link: &mut dyn Link,
        index: usize,
        id: &str,
        chunk: &[u8],
        n: usize,
    ) -> Result<(), EngineError> {
        let data = chunk.get(..n).ok_or(EngineError::Limit {
            what: "bytes that a channel claims to have read",
            value: n as u64,
            limit: chunk.len() as u64,
        })?;
        self.begin(sender, link, index, id)?;
        self.bytes = self.bytes.saturating_add(n as u64);
        if self.bytes > MAX_STATE_BYTES {
            return Err(EngineError::Limit {
                what: "bytes of device state",
                value: self.bytes,
                limit: MAX_STATE_BYTES,
            });
        }
        sender.state_chunk(link, function_channel(index), data)
    }

    pub fn begin(
        &mut self,
        sender: &mut Sender,
        link: &mut dyn Link,
        index: usize,
        id: &str,
    ) -> Result<(), EngineError> {
        if !self.begun {
            self.begun = true;
            sender.section_begin(link, function_channel(index), SectionKind::DeviceState, id)?;
        }
        Ok(())
    }
}

/// Reads what is left of a stopped function's state and sends it. Returns the milliseconds that the device took.
#[expect(clippy::too_many_arguments, reason = "the parts of one session, borrowed apart")]
pub(crate) fn send_state(
    function: &mut SessionFunction,
    index: usize,
    digest: &mut StateDigest,
    sender: &mut Sender,
    link: &mut dyn Link,
    chunk: &mut [u8],
    cancel: &Cancel,
    drop_last: Option<&FaultPoints>,
) -> Result<f64, EngineError> {
    let start = Instant::now();
    if !digest.is_precopy {
        set_state(function, DeviceState::StopCopy, "go to STOP_COPY")?;
    }
    let mut device = start.elapsed();
    digest.begin(sender, link, index, &function.id)?;
    // Rehearsal only: one chunk is held back, since the next read tells whether it was the last.
    let mut held: Vec<u8> = Vec::new();
    loop {
        cancel.check()?;
        let start = Instant::now();
        let outcome = function.channel.read(chunk).map_err(channel_error(&function.id, "read state in STOP_COPY"))?;
        device += start.elapsed();
        if !held.is_empty() {
            if let Some(points) = drop_last.filter(|_| outcome == ReadOutcome::End) {
                sender.lose_next();
                points.note_fired();
            }
            digest.send(sender, link, index, &function.id, &held, held.len())?;
        }
        held.clear();
        match outcome {
            ReadOutcome::Bytes(n) if drop_last.is_some() => held.extend_from_slice(chunk.get(..n).unwrap_or_default()),
            ReadOutcome::Bytes(n) => digest.send(sender, link, index, &function.id, chunk, n)?,
            ReadOutcome::End => break,
            ReadOutcome::EmptyForNow => {
                return Err(EngineError::Protocol {
                    during: "reading state in STOP_COPY",
                    what: format!(
                        "function {} says that there is nothing for now, which only PRE_COPY knows",
                        function.id
                    ),
                });
            }
        }
    }
    Ok(device.as_secs_f64() * 1000.0)
}
