//! The way out: `STOP_COPY`.

use towline_core::channel::{ChannelError, ChannelErrorKind, ReadOutcome};
use towline_core::crc::crc32c;
use towline_core::fsm::DeviceState;

use super::payload::{Epilogue, Prologue};
use crate::admin::AdminClient;
use crate::migration::FormatIndex;
use crate::state::StateHeader;

/// A read cursor over prologue, controller state and epilogue. Holds one part of the state at a time.
pub(super) struct Outgoing {
    cntlid: u16,
    format: FormatIndex,
    state_bytes: u64,
    /// Next byte of the controller state to ask for.
    offset: u64,
    crc: u32,
    /// What was made and not read yet: `buffer[at..]`.
    buffer: Vec<u8>,
    at: usize,
    epilogue_made: bool,
    part_bytes: usize,
    header: [u8; StateHeader::SIZE],
}

fn failed(kind: ChannelErrorKind, message: String) -> ChannelError {
    ChannelError { state: Some(DeviceState::StopCopy), ..ChannelError::new(kind, message) }
}

impl Outgoing {
    /// Asks for the header of the state, then reads the rest as it is asked for.
    pub(super) fn open(
        client: &AdminClient,
        cntlid: u16,
        format: FormatIndex,
        (state_version, uuid): (u16, Option<[u8; 16]>),
        cap: u64,
    ) -> Result<Self, ChannelError> {
        let stopped = |error: ChannelError| ChannelError { state: Some(DeviceState::Stop), ..error };
        let mut header = [0; StateHeader::SIZE];
        let suspended = client
            .migration_get_state_part(cntlid, format, 0, &mut header)
            .map_err(|error| error.into_channel_error(Some(DeviceState::Stop)))?;
        let parsed = StateHeader::decode(&header);
        if !suspended || !parsed.suspended() {
            return Err(stopped(not_suspended(cntlid)));
        }
        if parsed.version != state_version {
            let message = format!(
                "controller {cntlid} gives a state of version {} where version {state_version} was asked for",
                parsed.version
            );
            return Err(stopped(ChannelError::new(ChannelErrorKind::Device, message)));
        }
        let state_bytes = parsed
            .total_bytes()
            .ok()
            .filter(|bytes| *bytes <= cap)
            .ok_or_else(|| too_large(cntlid, &parsed, cap))
            .map_err(stopped)?;
        let buffer = Prologue { state_version, uuid, state_bytes }.encode().to_vec();
        let part_bytes = client.max_transfer_bytes() as usize;
        let crc = crc32c(0, &buffer);
        Ok(Self {
            cntlid,
            format,
            state_bytes,
            offset: 0,
            crc,
            buffer,
            at: 0,
            epilogue_made: false,
            part_bytes,
            header,
        })
    }

    /// Bytes that are still to be read.
    pub(super) fn remaining(&self) -> u64 {
        let buffered = (self.buffer.len() - self.at) as u64;
        let epilogue = if self.epilogue_made { 0 } else { Epilogue::SIZE as u64 };
        self.state_bytes - self.offset + buffered + epilogue
    }

    pub(super) fn read(&mut self, client: &AdminClient, out: &mut [u8]) -> Result<ReadOutcome, ChannelError> {
        if out.is_empty() {
            return Err(failed(ChannelErrorKind::Limit, "a read needs room for at least one byte".into()));
        }
        let mut filled = 0;
        loop {
            let ready = self.buffer.get(self.at..).unwrap_or_default();
            let room = out.get_mut(filled..).unwrap_or_default();
            let n = ready.len().min(room.len());
            room.iter_mut().zip(ready).for_each(|(to, from)| *to = *from);
            self.at += n;
            filled += n;
            if filled == out.len() {
                return Ok(ReadOutcome::Bytes(filled));
            }
            if self.epilogue_made {
                return Ok(if filled > 0 { ReadOutcome::Bytes(filled) } else { ReadOutcome::End });
            }
            // What was already copied is given before another command can fail.
            if filled > 0 {
                return Ok(ReadOutcome::Bytes(filled));
            }
            self.refill(client)?;
        }
    }

    fn refill(&mut self, client: &AdminClient) -> Result<(), ChannelError> {
        self.at = 0;
        if self.offset == self.state_bytes {
            self.buffer = Epilogue::new(self.crc).encode().to_vec();
            self.epilogue_made = true;
            return Ok(());
        }
        let len = (self.state_bytes - self.offset).min(self.part_bytes as u64) as usize;
        // A part that fails leaves nothing behind: the next read asks for it again.
        self.buffer.clear();
        let mut part = vec![0; len];
        let suspended = client
            .migration_get_state_part(self.cntlid, self.format, self.offset, &mut part)
            .map_err(|error| error.into_channel_error(Some(DeviceState::StopCopy)))?;
        if !suspended {
            return Err(failed(ChannelErrorKind::Device, not_suspended(self.cntlid).message));
        }
        if self.offset == 0 && !part.starts_with(&self.header) {
            let message = format!("the state of controller {} changed while it was read", self.cntlid);
            return Err(failed(ChannelErrorKind::Device, message));
        }
        self.crc = crc32c(self.crc, &part);
        self.offset += len as u64;
        self.buffer = part;
        Ok(())
    }
}

fn not_suspended(cntlid: u16) -> ChannelError {
    let message = format!("controller {cntlid} was not suspended while its state was read: it may be inconsistent");
    ChannelError::new(ChannelErrorKind::Device, message)
}

pub(super) fn too_large(cntlid: u16, header: &StateHeader, cap: u64) -> ChannelError {
    let dwords = header.nvme_dwords.saturating_add(header.vendor_dwords);
    let bytes = dwords.saturating_mul(4).saturating_add(StateHeader::SIZE as u128);
    let message = format!("controller {cntlid} says that its state has {bytes} bytes, the limit is {cap}");
    ChannelError::new(ChannelErrorKind::Limit, message)
}
