//! The way in: `RESUMING`.

use towline_core::channel::{ChannelError, ChannelErrorKind};
use towline_core::crc::crc32c;
use towline_core::fsm::DeviceState;

use super::payload::{Epilogue, Prologue};
use crate::admin::AdminClient;
use crate::migration::{FormatIndex, Sequence, StateFormats};
use crate::state::StateHeader;

/// Takes a payload in pieces of any size. Parts go to the device as they fill; the last one is held back until the checksum
/// is right, because the device commits with it. Holds one part of the state at a time.
pub(super) struct Incoming {
    cntlid: u16,
    cap: u64,
    part_bytes: usize,
    prologue: Vec<u8>,
    accepted: Option<Accepted>,
    epilogue: Vec<u8>,
    /// After an error the state is void.
    void: bool,
}

struct Accepted {
    state_bytes: u64,
    format: FormatIndex,
    crc: u32,
    /// Bytes that went to the device.
    sent: u64,
    part: Vec<u8>,
}

impl Accepted {
    /// Bytes that are still missing.
    fn missing(&self) -> u64 {
        self.state_bytes - self.sent - self.part.len() as u64
    }
}

fn failed(kind: ChannelErrorKind, message: impl Into<String>) -> ChannelError {
    ChannelError { state: Some(DeviceState::Resuming), ..ChannelError::new(kind, message) }
}

impl Incoming {
    pub(super) fn new(client: &AdminClient, cntlid: u16, cap: u64) -> Self {
        Self {
            cntlid,
            cap,
            part_bytes: client.max_transfer_bytes() as usize,
            prologue: Vec::new(),
            accepted: None,
            epilogue: Vec::new(),
            void: false,
        }
    }

    pub(super) fn write(
        &mut self,
        client: &AdminClient,
        formats: &StateFormats,
        data: &[u8],
    ) -> Result<(), ChannelError> {
        if self.void {
            let message = "the state that was written failed before: reset the function and start again";
            return Err(failed(ChannelErrorKind::State, message));
        }
        let result = self.take(client, formats, data);
        self.void = result.is_err();
        result
    }

    fn take(&mut self, client: &AdminClient, formats: &StateFormats, mut data: &[u8]) -> Result<(), ChannelError> {
        while !data.is_empty() {
            let Some(accepted) = &mut self.accepted else {
                data = fill(&mut self.prologue, Prologue::SIZE, data);
                if let Ok(bytes) = <&[u8; Prologue::SIZE]>::try_from(self.prologue.as_slice()) {
                    self.accepted = Some(accept(bytes, self.cap, formats, self.cntlid)?);
                }
                continue;
            };
            let missing = accepted.missing();
            if missing == 0 {
                data = fill(&mut self.epilogue, Epilogue::SIZE, data);
                if !data.is_empty() {
                    let message = format!("{} bytes came after the end of the controller state", data.len());
                    return Err(failed(ChannelErrorKind::BadState, message));
                }
                continue;
            }
            // A full part can go out now, since this byte shows that it is not the last one.
            if accepted.part.len() == self.part_bytes {
                send(client, self.cntlid, accepted, false)?;
            }
            let part_end = (accepted.part.len() as u64).saturating_add(missing).min(self.part_bytes as u64) as usize;
            let before = data.len();
            let rest = fill(&mut accepted.part, part_end, data);
            let taken = data.get(..before - rest.len()).unwrap_or_default();
            accepted.crc = crc32c(accepted.crc, taken);
            data = rest;
            if accepted.sent == 0 && accepted.part.len() == part_end {
                check_header(accepted)?;
            }
        }
        Ok(())
    }

    /// Verifies what was written and lets the device commit it.
    pub(super) fn finish(&mut self, client: &AdminClient) -> Result<(), ChannelError> {
        if self.void {
            let message = "the state that was written failed before: reset the function and start again";
            return Err(failed(ChannelErrorKind::BadState, message));
        }
        // Whatever happens now, this state is used up.
        self.void = true;
        let Some(accepted) = &mut self.accepted else {
            let message = format!("the state ends after {} bytes of its prologue", self.prologue.len());
            return Err(failed(ChannelErrorKind::BadState, message));
        };
        let missing = accepted.missing();
        if missing > 0 {
            let message = format!("the state is cut short: {missing} of {} bytes are missing", accepted.state_bytes);
            return Err(failed(ChannelErrorKind::BadState, message));
        }
        match Epilogue::decode_prefix(&self.epilogue) {
            None => Err(failed(ChannelErrorKind::BadState, "the state is cut short: its checksum is missing")),
            Some(epilogue) if !epilogue.matches(accepted.crc) => {
                Err(failed(ChannelErrorKind::BadState, "the state is damaged: its checksum is wrong"))
            }
            Some(_) => send(client, self.cntlid, accepted, true),
        }
    }
}

/// Moves bytes from `data` until `buffer` has `len`; returns the rest.
fn fill<'a>(buffer: &mut Vec<u8>, len: usize, data: &'a [u8]) -> &'a [u8] {
    let n = len.saturating_sub(buffer.len()).min(data.len());
    let (now, rest) = data.split_at_checked(n).unwrap_or((data, &[]));
    buffer.extend_from_slice(now);
    rest
}

fn accept(
    bytes: &[u8; Prologue::SIZE],
    cap: u64,
    formats: &StateFormats,
    cntlid: u16,
) -> Result<Accepted, ChannelError> {
    let prologue =
        Prologue::decode(bytes, cap).map_err(|error| failed(ChannelErrorKind::BadState, error.to_string()))?;
    let Some(format) = formats.index_of(prologue.state_version, prologue.uuid.as_ref()) else {
        let uuid = prologue.uuid.map_or("none".into(), |uuid| format!("{:032x}", u128::from_be_bytes(uuid)));
        let message = format!(
            "the controlling function of controller {cntlid} does not take states of version {} with UUID {uuid}",
            prologue.state_version
        );
        return Err(failed(ChannelErrorKind::BadState, message));
    };
    let Prologue { state_bytes, .. } = prologue;
    Ok(Accepted { state_bytes, format, crc: crc32c(0, bytes), sent: 0, part: Vec::new() })
}

/// The header of the state itself has to agree with the length that was announced.
fn check_header(accepted: &Accepted) -> Result<(), ChannelError> {
    let header = StateHeader::decode_prefix(&accepted.part);
    let total = header.and_then(|header| header.total_bytes().ok());
    if header.is_none_or(|header| !header.suspended()) {
        let message = "the state is of a controller that was not suspended: it may be inconsistent";
        return Err(failed(ChannelErrorKind::BadState, message));
    }
    if total != Some(accepted.state_bytes) {
        let message = format!("the state has {} bytes, its own header says otherwise", accepted.state_bytes);
        return Err(failed(ChannelErrorKind::BadState, message));
    }
    Ok(())
}

fn send(client: &AdminClient, cntlid: u16, accepted: &mut Accepted, last: bool) -> Result<(), ChannelError> {
    let sequence = match (accepted.sent == 0, last) {
        (true, true) => Sequence::Only,
        (true, false) => Sequence::First,
        (false, true) => Sequence::Last,
        (false, false) => Sequence::Middle,
    };
    client
        .migration_set_state_part(cntlid, accepted.format, sequence, accepted.sent, &accepted.part)
        .map_err(|error| set_state_failed(error.into_channel_error(Some(DeviceState::Resuming))))?;
    accepted.sent += accepted.part.len() as u64;
    accepted.part.clear();
    Ok(())
}

/// Invalid Field from Set State means the state, or I/O queues that are still there: for the caller both are a state that
/// this function cannot take.
fn set_state_failed(error: ChannelError) -> ChannelError {
    match error.nvme_status {
        Some(0x002) => ChannelError { kind: ChannelErrorKind::BadState, ..error },
        _ => error,
    }
}
