//! One migration: all functions of one guest, their memory and the caller's sections. It commits or not as a whole.
//!
//! Both sides are driven step by step; a step out of order is [`EngineError::Misuse`] and changes nothing. A step that fails
//! before COMMIT-INTENT leaves only [`SourceSession::abort`] to do; dropping the session does it too.

mod deaf;
mod destination;
mod keeper;
mod pages_in;
mod pages_out;
mod source;
mod state_io;
mod terms;
mod timings;

use towline_core::channel::{DirtySource, StateChannel};
use towline_core::fsm::DeviceState;

use crate::error::EngineError;

pub use destination::{
    Answered, DestinationConfig, DestinationSession, DestinationTarget, Incoming, ReceiveProgress, Section,
};
pub use pages_out::RoundStats;
pub use source::{
    CommitInfo, DirtySample, FinalStats, HarvestStats, Measured, OfferOutcome, PrecopyStats, PreparedInfo, SectionOut,
    SourceConfig, SourcePages, SourceSample, SourceSession, StateStats, Stopped,
};
pub use terms::{CheckpointMode, CommitBy, MemoryBy, Terms};

pub(crate) use destination::{Expected, begun, expected, find};
pub(crate) use pages_in::PageReceiver;
pub use timings::{Phase, Timings};

/// A function that takes part in a session.
pub struct SessionFunction {
    /// The identity that it keeps through migrations.
    pub id: String,
    /// What carries its state.
    pub channel: Box<dyn StateChannel>,
}

/// A dirty source with the name that reports use for it.
pub struct NamedSource {
    /// The name, for errors and rehearsals.
    pub name: String,
    /// The source.
    pub source: Box<dyn DirtySource>,
}

/// What a function is in after a session was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionOutcome {
    /// The function.
    pub id: String,
    /// The state that it is in; `None` where nobody can tell.
    pub state: Option<DeviceState>,
    /// It had to be reset, and has lost what it was doing.
    pub was_reset: bool,
    /// What went wrong while bringing it back.
    pub error: Option<String>,
}

pub(crate) fn channel_error<'a>(
    id: &'a str,
    attempted: &'static str,
) -> impl FnOnce(towline_core::channel::ChannelError) -> EngineError + 'a {
    move |source| EngineError::Channel { function: id.to_owned(), attempted, state: source.state, source }
}

/// Sets a state; an error says what state the function is in then.
pub(crate) fn set_state(
    function: &mut SessionFunction,
    to: DeviceState,
    attempted: &'static str,
) -> Result<(), EngineError> {
    function.channel.set_state(to).map_err(|source| {
        let state = function.channel.state().ok().or(source.state);
        EngineError::Channel { function: function.id.clone(), attempted, state, source }
    })
}

/// Brings a function back to RUNNING, by a reset where nothing else helps.
pub(crate) fn bring_back(function: &mut SessionFunction) -> FunctionOutcome {
    let mut outcome = FunctionOutcome { id: function.id.clone(), state: None, was_reset: false, error: None };
    match function.channel.state() {
        Ok(DeviceState::Running) => {}
        Ok(DeviceState::Error) => outcome.error = Some("it was in ERROR".into()),
        Ok(_) | Err(_) => {
            if let Err(error) = function.channel.set_state(DeviceState::Running) {
                outcome.error = Some(error.message);
            }
        }
    }
    outcome.state = function.channel.state().ok();
    if outcome.state != Some(DeviceState::Running) {
        outcome.was_reset = true;
        if let Err(error) = function.channel.reset() {
            outcome.error = Some(error.message);
        }
        outcome.state = function.channel.state().ok();
    }
    outcome
}
