//! The migration and tracking commands of [`AdminClient`].

use super::{AdminClient, AdminError, Data};
use crate::counts::CountError;
use crate::migration::{FormatIndex, MigrationReceive, MigrationSend, Sequence, SuspendType};
use crate::state::StateHeader;
use crate::track::{TrackRange, TrackRanges, TrackReceive, TrackSend, TrackedMemory};
use crate::wire::DecodeError;

/// The most bytes that one Track Receive is asked for: 4095 ranges.
const TRACK_RECEIVE_BYTES: u32 = 64 << 10;

fn request(command: &'static str) -> impl Fn(CountError) -> AdminError {
    move |error| AdminError::Request { command, message: error.to_string() }
}

impl AdminClient {
    /// Starts tracking the memory that controller `cntlid` writes, at a granularity of 4 KiB << `granularity`.
    ///
    /// # Errors
    /// Not Enough Resources, with what would be possible in [`AdminError::track_resources`]; Invalid Controller Identifier for
    /// the controller that the commands go to; more ranges than one command carries; or as for [`AdminClient::submit`].
    pub fn track_memory_start(&self, cntlid: u16, granularity: u8, ranges: &[TrackRange]) -> Result<(), AdminError> {
        let command = "Track Send (start tracking memory)";
        let data = TrackRanges { granularity, ranges: ranges.to_vec() }.encode().map_err(request(command))?;
        if data.len() > self.max_transfer_bytes() as usize {
            let message = format!("{} ranges, one command carries {}", ranges.len(), self.max_track_ranges());
            return Err(AdminError::Request { command, message });
        }
        let cmd = TrackSend::TrackMemory { start: true, cntlid }.encode();
        self.submit(command, &cmd, Data::FromHost(&data), self.timeouts().command).map(|_| ())
    }

    /// The most ranges that one Track Send carries.
    #[must_use]
    pub fn max_track_ranges(&self) -> usize {
        (self.max_transfer_bytes() as usize - 8) / TrackRange::SIZE
    }

    /// Stops tracking the memory of controller `cntlid`.
    ///
    /// # Errors
    /// Controller Suspended while it is suspended, or as for [`AdminClient::submit`].
    pub fn track_memory_stop(&self, cntlid: u16) -> Result<(), AdminError> {
        let command = "Track Send (stop tracking memory)";
        let cmd = TrackSend::TrackMemory { start: false, cntlid }.encode();
        // The opcode moves data to the controller. Give one that looks at it an empty list rather than nothing.
        let data = TrackRanges::default().encode().map_err(request(command))?;
        self.submit(command, &cmd, Data::FromHost(&data), self.timeouts().command).map(|_| ())
    }

    /// Takes a report of what was written. What it returns is not returned again.
    ///
    /// # Errors
    /// As for [`AdminClient::submit`], or an unusable report. In every case changes may be lost.
    pub fn track_receive(&self, cntlid: u16) -> Result<TrackedMemory, AdminError> {
        let command = "Track Receive";
        let data_bytes = u64::from(self.max_transfer_bytes().min(TRACK_RECEIVE_BYTES));
        let cmd = TrackReceive { cntlid, data_bytes }.encode().map_err(request(command))?;
        let mut bytes = vec![0; data_bytes as usize];
        self.submit(command, &cmd, Data::ToHost(&mut bytes), self.timeouts().command)?;
        let report = TrackedMemory::decode(&bytes).map_err(|source| AdminError::Answer { command, source })?;
        if report.header.cntlid != cntlid {
            let why = format!("it is about controller {}, asked for was {cntlid}", report.header.cntlid);
            return Err(AdminError::Answer { command, source: DecodeError::Invalid { what: "report", why } });
        }
        Ok(report)
    }

    /// Suspends a controller, or announces it.
    ///
    /// # Errors
    /// As for [`AdminClient::submit`].
    pub fn migration_suspend(&self, cntlid: u16, kind: SuspendType) -> Result<(), AdminError> {
        let command = match kind {
            SuspendType::Notification => "Migration Send (suspend notification)",
            SuspendType::Suspend => "Migration Send (suspend)",
        };
        let cmd = MigrationSend::Suspend { cntlid, kind, delete_queue: false }.encode().map_err(request(command))?;
        self.submit(command, &cmd, Data::None, self.timeouts().suspend).map(|_| ())
    }

    /// Resumes a suspended controller.
    ///
    /// # Errors
    /// Controller Not Suspended; Command Sequence Error where a state was begun and not finished; or as for
    /// [`AdminClient::submit`].
    pub fn migration_resume(&self, cntlid: u16) -> Result<(), AdminError> {
        let command = "Migration Send (resume)";
        let cmd = MigrationSend::Resume { cntlid }.encode().map_err(request(command))?;
        self.submit(command, &cmd, Data::None, self.timeouts().state).map(|_| ())
    }

    /// Sends one part of a controller state. `offset` and the length are multiples of 4, the length at most
    /// [`AdminClient::max_transfer_bytes`].
    ///
    /// # Errors
    /// Invalid Field where the controller has I/O queues or the state is not acceptable, Command Sequence Error where the first
    /// part is missing, or as for [`AdminClient::submit`]. After an error send the state from its start.
    pub fn migration_set_state_part(
        &self,
        cntlid: u16,
        format: FormatIndex,
        sequence: Sequence,
        offset: u64,
        data: &[u8],
    ) -> Result<(), AdminError> {
        let command = "Migration Send (set controller state)";
        let data_bytes = data.len() as u64;
        let set = MigrationSend::SetState { cntlid, sequence, format, offset, data_bytes, uuid_index: 0 };
        let cmd = set.encode().map_err(request(command))?;
        let data = if data.is_empty() { Data::None } else { Data::FromHost(data) };
        self.submit(command, &cmd, data, self.timeouts().state).map(|_| ())
    }

    /// Sends a whole controller state, in as many parts as it takes.
    ///
    /// # Errors
    /// As for [`AdminClient::migration_set_state_part`]; no state at all cannot be sent.
    pub fn migration_set_state(&self, cntlid: u16, format: FormatIndex, state: &[u8]) -> Result<(), AdminError> {
        let part_bytes = self.max_transfer_bytes() as usize;
        let parts = state.len().div_ceil(part_bytes);
        if parts == 0 {
            let (command, message) = ("Migration Send (set controller state)", "the state is empty".into());
            return Err(AdminError::Request { command, message });
        }
        let mut offset = 0;
        for (n, part) in state.chunks(part_bytes).enumerate() {
            let sequence = match (n == 0, n + 1 == parts) {
                (true, true) => Sequence::Only,
                (true, false) => Sequence::First,
                (false, true) => Sequence::Last,
                (false, false) => Sequence::Middle,
            };
            self.migration_set_state_part(cntlid, format, sequence, offset, part)?;
            offset += part.len() as u64;
        }
        Ok(())
    }

    /// Reads part of a controller state into `out`, whose length is a multiple of 4, at least 4, at most
    /// [`AdminClient::max_transfer_bytes`]. Returns whether the controller was suspended meanwhile.
    ///
    /// # Errors
    /// As for [`AdminClient::submit`].
    pub fn migration_get_state_part(
        &self,
        cntlid: u16,
        format: FormatIndex,
        offset: u64,
        out: &mut [u8],
    ) -> Result<bool, AdminError> {
        let command = "Migration Receive (get controller state)";
        let data_bytes = out.len() as u64;
        let get = MigrationReceive { cntlid, format, uuid_parameter: 0, offset, data_bytes, uuid_index: 0 };
        let cmd = get.encode().map_err(request(command))?;
        let result = self.submit(command, &cmd, Data::ToHost(out), self.timeouts().state)?;
        Ok(result & MigrationReceive::RESULT_SUSPENDED != 0)
    }

    /// Reads the header of a controller state, and whether the controller is suspended.
    ///
    /// # Errors
    /// As for [`AdminClient::submit`].
    pub fn migration_get_state_header(
        &self,
        cntlid: u16,
        format: FormatIndex,
    ) -> Result<(StateHeader, bool), AdminError> {
        let mut bytes = [0; StateHeader::SIZE];
        let suspended = self.migration_get_state_part(cntlid, format, 0, &mut bytes)?;
        Ok((StateHeader::decode(&bytes), suspended))
    }

    /// Reads a whole controller state, in as many parts as it takes. Returns it, and whether the controller was suspended
    /// throughout.
    ///
    /// # Errors
    /// As for [`AdminClient::submit`], or a state that says it is larger than [`crate::state::MAX_STATE_BYTES`].
    pub fn migration_get_state(&self, cntlid: u16, format: FormatIndex) -> Result<(Vec<u8>, bool), AdminError> {
        let command = "Migration Receive (get controller state)";
        let (header, mut suspended) = self.migration_get_state_header(cntlid, format)?;
        let total = header.total_bytes().map_err(|source| AdminError::Answer { command, source })?;
        let mut state = vec![0; total as usize];
        let mut offset = 0;
        for part in state.chunks_mut(self.max_transfer_bytes() as usize) {
            suspended &= self.migration_get_state_part(cntlid, format, offset, part)?;
            offset += part.len() as u64;
        }
        Ok((state, suspended))
    }
}
