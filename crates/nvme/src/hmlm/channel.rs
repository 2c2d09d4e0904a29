//! The state channel.

use std::fmt;

use towline_core::channel::{ChannelError, ChannelErrorKind, Pending, ReadOutcome, StateChannel};
use towline_core::fsm::{DeviceState, MigrationFlags, path};

use super::incoming::Incoming;
use super::outgoing::{Outgoing, too_large};
use super::payload::{Epilogue, Prologue};
use crate::admin::{AdminClient, AdminError};
use crate::migration::{FormatIndex, StateFormats, SuspendType};
use crate::state::{MAX_STATE_BYTES, STATE_VERSION};
use crate::status::StatusCode;
use crate::vendor_state::VENDOR_STATE_UUID;

/// Resets one function: FLR for a PCI function, whatever its parent has for others. Afterwards the controller is as after
/// power-on: not suspended, without queues, without a state that was set before.
pub trait FunctionReset: Send {
    /// Resets the function and returns when that is done.
    ///
    /// # Errors
    /// What the device or the system said.
    fn reset(&mut self) -> Result<(), ChannelError>;
}

impl<F: FnMut() -> Result<(), ChannelError> + Send> FunctionReset for F {
    fn reset(&mut self) -> Result<(), ChannelError> {
        self()
    }
}

/// What an [`HmlmChannel`] is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HmlmConfig {
    /// The controlled controller.
    pub cntlid: u16,
    /// The largest controller state that is read or written, in bytes; at most [`MAX_STATE_BYTES`].
    pub max_state_bytes: u64,
    /// The format to read, by version and UUID; `None` chooses version 0 and, where they are there, the UUID of
    /// [`crate::vendor_state`] or else the first one.
    pub format: Option<(u16, Option<[u8; 16]>)>,
}

impl HmlmConfig {
    /// The defaults for a controller.
    #[must_use]
    pub fn new(cntlid: u16) -> Self {
        Self { cntlid, max_state_bytes: MAX_STATE_BYTES, format: None }
    }
}

/// Carries the state of one controlled controller by Migration Send and Migration Receive.
///
/// It has the arcs of a device without P2P and pre-copy. What it reads and writes is described in
/// [`payload`](super::payload). Between reading and writing it never holds more than one part of the state.
pub struct HmlmChannel {
    client: AdminClient,
    config: HmlmConfig,
    reset: Box<dyn FunctionReset>,
    formats: StateFormats,
    /// The format to read, and its indices on this controlling function.
    format: (u16, Option<[u8; 16]>),
    index: FormatIndex,
    state: State,
}

enum State {
    Error,
    Running,
    Stop,
    StopCopy(Outgoing),
    Resuming(Incoming),
}

impl fmt::Debug for HmlmChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HmlmChannel")
            .field("config", &self.config)
            .field("state", &self.local())
            .finish_non_exhaustive()
    }
}

impl HmlmChannel {
    /// Opens the channel of a controller. Asks the controlling function what it can do, and the controller for its state.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Unsupported`] where the controlling function does not migrate others, is the controller itself, or
    /// lacks the format; otherwise what the controlling function said.
    pub fn open(client: AdminClient, config: HmlmConfig, reset: Box<dyn FunctionReset>) -> Result<Self, ChannelError> {
        let unsupported = |message: String| ChannelError::new(ChannelErrorKind::Unsupported, message);
        let asked = |error: AdminError| error.into_channel_error(None);
        let controlling = client.identify_controller().map_err(asked)?;
        if !controlling.migrates_others() {
            let message = format!("controller {} does not have host managed live migration", controlling.cntlid);
            return Err(unsupported(message));
        }
        if controlling.cntlid == config.cntlid {
            let message = format!("controller {} migrates others and cannot be migrated itself", config.cntlid);
            return Err(unsupported(message));
        }
        let formats = client.state_formats().map_err(asked)?;
        let format = config.format.unwrap_or_else(|| {
            let ours = formats.uuids.iter().find(|uuid| **uuid == VENDOR_STATE_UUID);
            (STATE_VERSION, ours.or(formats.uuids.first()).copied())
        });
        let Some(index) = formats.index_of(format.0, format.1.as_ref()) else {
            let message = format!("controller {} does not have controller state format {format:?}", controlling.cntlid);
            return Err(unsupported(message));
        };
        let config = HmlmConfig { max_state_bytes: config.max_state_bytes.min(MAX_STATE_BYTES), ..config };
        let mut channel = Self { client, config, reset, formats, format, index, state: State::Running };
        channel.state = channel.probe().map_err(asked)?;
        Ok(channel)
    }

    /// The controlled controller.
    #[must_use]
    pub fn cntlid(&self) -> u16 {
        self.config.cntlid
    }

    /// The formats that the controlling function has: for an offer, with [`StateFormats::common`].
    #[must_use]
    pub fn formats(&self) -> &StateFormats {
        &self.formats
    }

    /// The format that is read, by version and UUID.
    #[must_use]
    pub fn format(&self) -> (u16, Option<[u8; 16]>) {
        self.format
    }

    /// Announces a suspend to the controller, which goes on; some prepare for it. Of use shortly before `STOP`.
    ///
    /// # Errors
    /// What the controlling function said.
    pub fn announce_suspend(&mut self) -> Result<(), ChannelError> {
        let state = self.local();
        let result = self.client.migration_suspend(self.config.cntlid, SuspendType::Notification);
        result.map_err(|error| error.into_channel_error(Some(state)))
    }

    fn local(&self) -> DeviceState {
        match self.state {
            State::Error => DeviceState::Error,
            State::Running => DeviceState::Running,
            State::Stop => DeviceState::Stop,
            State::StopCopy(_) => DeviceState::StopCopy,
            State::Resuming(_) => DeviceState::Resuming,
        }
    }

    /// Running or suspended, from the controller itself.
    fn probe(&self) -> Result<State, AdminError> {
        let (_, suspended) = self.client.migration_get_state_header(self.config.cntlid, self.index)?;
        Ok(if suspended { State::Stop } else { State::Running })
    }

    /// After a command of which nobody knows whether it was executed.
    fn settle(&mut self) -> DeviceState {
        self.state = self.probe().unwrap_or(State::Error);
        self.local()
    }

    fn suspend(&mut self) -> Result<(), ChannelError> {
        match self.client.migration_suspend(self.config.cntlid, SuspendType::Suspend) {
            Ok(()) => {
                self.state = State::Stop;
                Ok(())
            }
            Err(error) => {
                let state = if error.is_ambiguous() { self.settle() } else { self.local() };
                Err(error.into_channel_error(Some(state)))
            }
        }
    }

    fn resume(&mut self) -> Result<(), ChannelError> {
        match self.client.migration_resume(self.config.cntlid) {
            Ok(()) => {
                self.state = State::Running;
                Ok(())
            }
            Err(error) => {
                // Somebody reset or resumed it behind our back: it runs, but not with the state it was to run with.
                if error.is(StatusCode::ControllerNotSuspended) {
                    self.state = State::Running;
                }
                let state = if error.is_ambiguous() { self.settle() } else { self.local() };
                Err(error.into_channel_error(Some(state)))
            }
        }
    }

    fn finish_resuming(&mut self) -> Result<(), ChannelError> {
        let State::Resuming(incoming) = &mut self.state else {
            return Err(self.wrong_state("nothing is being written"));
        };
        match incoming.finish(&self.client) {
            Ok(()) => {
                self.state = State::Stop;
                Ok(())
            }
            Err(error) => {
                // Without a completion nobody knows whether the controller took the state.
                let unknown = error.nvme_status.is_none()
                    && matches!(error.kind, ChannelErrorKind::Gone | ChannelErrorKind::Device);
                if unknown {
                    self.state = State::Error;
                }
                Err(ChannelError { state: Some(self.local()), ..error })
            }
        }
    }

    /// One arc; [`path`] never gives another one than these six.
    fn arc(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        match (self.local(), to) {
            (DeviceState::Running, DeviceState::Stop) => self.suspend(),
            (DeviceState::Stop, DeviceState::Running) => self.resume(),
            (DeviceState::Stop, DeviceState::StopCopy) => {
                let Self { client, config, index, format, .. } = &*self;
                let outgoing = Outgoing::open(client, config.cntlid, *index, *format, config.max_state_bytes)?;
                self.state = State::StopCopy(outgoing);
                Ok(())
            }
            (DeviceState::StopCopy, DeviceState::Stop) => {
                self.state = State::Stop;
                Ok(())
            }
            (DeviceState::Stop, DeviceState::Resuming) => {
                let incoming = Incoming::new(&self.client, self.config.cntlid, self.config.max_state_bytes);
                self.state = State::Resuming(incoming);
                Ok(())
            }
            (DeviceState::Resuming, DeviceState::Stop) => self.finish_resuming(),
            (from, _) => Err(self.wrong_state(&format!("there is no arc from {} to {}", from.name(), to.name()))),
        }
    }

    fn wrong_state(&self, what: &str) -> ChannelError {
        let state = self.local();
        let message = format!("controller {} is in {}: {what}", self.config.cntlid, state.name());
        ChannelError { state: Some(state), ..ChannelError::new(ChannelErrorKind::State, message) }
    }
}

impl StateChannel for HmlmChannel {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags(MigrationFlags::STOP_COPY)
    }

    fn format(&self) -> Option<String> {
        let (version, uuid) = self.format;
        let uuid =
            uuid.map_or_else(|| "none".to_owned(), |uuid| uuid.iter().map(|byte| format!("{byte:02x}")).collect());
        Some(format!("hmlm:{version}:{uuid}"))
    }

    fn state(&mut self) -> Result<DeviceState, ChannelError> {
        // What was set and what is half done is only known here; whether it is suspended, the controller says.
        if matches!(self.state, State::Error | State::Resuming(_)) {
            return Ok(self.local());
        }
        match self.probe() {
            Ok(State::Stop) if matches!(self.state, State::StopCopy(_)) => {}
            Ok(state) => self.state = state,
            Err(error) => return Err(error.into_channel_error(Some(self.local()))),
        }
        Ok(self.local())
    }

    fn set_state(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        // Somebody may have reset or resumed it behind our back. A Suspend or a Resume on the way meets that by itself: the first
        // does no harm, and the second is refused. Where there is neither, the controller is asked.
        let unasked = match self.state {
            State::Running => to == DeviceState::Running,
            State::Stop | State::StopCopy(_) => to != DeviceState::Running,
            State::Error | State::Resuming(_) => false,
        };
        let from = if unasked { self.state()? } else { self.local() };
        let Some(path) = path(self.flags(), from, to) else {
            return Err(self.wrong_state(&format!("there is no way to {}", to.name())));
        };
        path.steps().iter().try_for_each(|step| self.arc(*step))
    }

    fn read(&mut self, out: &mut [u8]) -> Result<ReadOutcome, ChannelError> {
        match &mut self.state {
            State::StopCopy(outgoing) => outgoing.read(&self.client, out),
            _ => Err(self.wrong_state("device state is read in STOP_COPY")),
        }
    }

    fn write(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        match &mut self.state {
            State::Resuming(incoming) => incoming.write(&self.client, &self.formats, data),
            _ => Err(self.wrong_state("device state is written in RESUMING")),
        }
    }

    fn pending(&mut self) -> Result<Pending, ChannelError> {
        let bytes = match &self.state {
            State::StopCopy(outgoing) => outgoing.remaining(),
            State::Running | State::Stop => {
                let (header, _) = self
                    .client
                    .migration_get_state_header(self.config.cntlid, self.index)
                    .map_err(|error| error.into_channel_error(Some(self.local())))?;
                let bytes = header.total_bytes().ok().filter(|bytes| *bytes <= self.config.max_state_bytes);
                bytes.ok_or_else(|| too_large(self.config.cntlid, &header, self.config.max_state_bytes))?
                    + (Prologue::SIZE + Epilogue::SIZE) as u64
            }
            State::Resuming(_) => 0,
            State::Error => return Err(self.wrong_state("it has nothing to give")),
        };
        Ok(Pending { stop_copy_bytes: Some(bytes), ..Pending::default() })
    }

    fn reset(&mut self) -> Result<(), ChannelError> {
        // Until the reset is known to have worked, nothing about the function is.
        self.state = State::Error;
        let lost = |error: ChannelError| ChannelError { state: Some(DeviceState::Error), ..error };
        self.reset.reset().map_err(lost)?;
        match self.probe() {
            Ok(State::Running) => {
                self.state = State::Running;
                Ok(())
            }
            Ok(_) => {
                let message = format!("controller {} is still suspended after its reset", self.config.cntlid);
                Err(lost(ChannelError::new(ChannelErrorKind::Device, message)))
            }
            Err(error) => Err(error.into_channel_error(Some(DeviceState::Error))),
        }
    }
}
