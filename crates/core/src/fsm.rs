//! The VFIO v2 migration state machine (`include/uapi/linux/vfio.h`, `drivers/vfio/vfio_main.c`).
//!
//! A user asks for a target state; the kernel walks there over arcs that the device's driver knows. The walk is decided
//! by one table of *next* states for a device that can do everything. Where a device lacks a state, the table is asked
//! again from that state as if the device stood in it already, so one table serves every capability set.

use core::fmt;

/// A device state of the VFIO v2 migration protocol, with the kernel's numbers (`enum vfio_device_mig_state`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum DeviceState {
    /// The device failed; only a reset leaves this state. Never a target.
    Error = 0,
    /// Neither runs nor does DMA; its state does not change.
    Stop = 1,
    /// Runs.
    Running = 2,
    /// Stopped, and its state can be read.
    StopCopy = 3,
    /// Stopped, and its state can be written.
    Resuming = 4,
    /// Runs, but starts no DMA to other devices.
    RunningP2p = 5,
    /// Runs, and a first part of its state can be read.
    PreCopy = 6,
    /// Both of the former.
    PreCopyP2p = 7,
}

/// A number that is no [`DeviceState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnknownState(pub u32);

impl fmt::Display for UnknownState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is no VFIO migration state (0 to 7 are known)", self.0)
    }
}

impl core::error::Error for UnknownState {}

impl TryFrom<u32> for DeviceState {
    type Error = UnknownState;

    fn try_from(number: u32) -> Result<Self, UnknownState> {
        Self::ALL.iter().copied().find(|s| *s as u32 == number).ok_or(UnknownState(number))
    }
}

impl From<DeviceState> for u32 {
    fn from(state: DeviceState) -> Self {
        state as Self
    }
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl DeviceState {
    /// Every state, in the order of the kernel's numbers.
    pub const ALL: [Self; 8] = [
        Self::Error,
        Self::Stop,
        Self::Running,
        Self::StopCopy,
        Self::Resuming,
        Self::RunningP2p,
        Self::PreCopy,
        Self::PreCopyP2p,
    ];

    /// The kernel's name without its prefix `VFIO_DEVICE_STATE_`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Stop => "STOP",
            Self::Running => "RUNNING",
            Self::StopCopy => "STOP_COPY",
            Self::Resuming => "RESUMING",
            Self::RunningP2p => "RUNNING_P2P",
            Self::PreCopy => "PRE_COPY",
            Self::PreCopyP2p => "PRE_COPY_P2P",
        }
    }

    /// Whether a device with `flags` can be asked into this state. [`DeviceState::Error`] never can.
    #[must_use]
    pub const fn is_supported(self, flags: MigrationFlags) -> bool {
        let needed = match self {
            Self::Error => return false,
            Self::Stop | Self::Running | Self::StopCopy | Self::Resuming => MigrationFlags::STOP_COPY,
            Self::RunningP2p => MigrationFlags::STOP_COPY | MigrationFlags::P2P,
            Self::PreCopy => MigrationFlags::STOP_COPY | MigrationFlags::PRE_COPY,
            Self::PreCopyP2p => MigrationFlags::STOP_COPY | MigrationFlags::P2P | MigrationFlags::PRE_COPY,
        };
        flags.0 & needed == needed
    }

    /// Whether the device may execute and do DMA in this state.
    #[must_use]
    pub const fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::RunningP2p | Self::PreCopy | Self::PreCopyP2p)
    }
}

/// The capability set of `VFIO_DEVICE_FEATURE_MIGRATION`: bit 0 STOP_COPY, bit 1 P2P, bit 2 PRE_COPY.
///
/// Bits above these are kept and mean nothing here. Without STOP_COPY nothing is supported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MigrationFlags(pub u64);

impl MigrationFlags {
    /// `VFIO_MIGRATION_STOP_COPY`.
    pub const STOP_COPY: u64 = 1;
    /// `VFIO_MIGRATION_P2P`.
    pub const P2P: u64 = 2;
    /// `VFIO_MIGRATION_PRE_COPY`.
    pub const PRE_COPY: u64 = 4;

    /// Whether STOP_COPY, the least that migrates, is there.
    #[must_use]
    pub const fn can_migrate(self) -> bool {
        self.0 & Self::STOP_COPY != 0
    }

    /// Whether there is a P2P quiescent state.
    #[must_use]
    pub const fn has_p2p(self) -> bool {
        self.can_migrate() && self.0 & Self::P2P != 0
    }

    /// Whether state can be read while the device runs.
    #[must_use]
    pub const fn has_pre_copy(self) -> bool {
        self.can_migrate() && self.0 & Self::PRE_COPY != 0
    }
}

impl fmt::Display for MigrationFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut empty = true;
        for (bit, name) in [(Self::STOP_COPY, "STOP_COPY"), (Self::P2P, "P2P"), (Self::PRE_COPY, "PRE_COPY")] {
            if self.0 & bit != 0 {
                f.write_str(if empty { "" } else { "|" })?;
                f.write_str(name)?;
                empty = false;
            }
        }
        if empty { f.write_str("none") } else { Ok(()) }
    }
}

/// The state to go to next on the way from `from` to `to`, for a device that has every state. [`DeviceState::Error`]
/// stands for "no way". Structure and semantics of `vfio_from_fsm_table` in `vfio_mig_get_next_state()`.
const fn next_state(from: DeviceState, to: DeviceState) -> DeviceState {
    use DeviceState::{Error, PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};
    match (from, to) {
        // Only a reset leaves ERROR, and nobody asks for it.
        (Error, _) | (_, Error) => Error,
        // A session that is being stopped has to end before a new one may begin: the way back must be asked for.
        (StopCopy, PreCopy | PreCopyP2p) => Error,
        // From STOP the two ends that carry data are one step away, and all that runs starts by RUNNING_P2P.
        (Stop, Stop | StopCopy | Resuming) => to,
        (Stop, Running | RunningP2p | PreCopy | PreCopyP2p) => RunningP2p,
        // Both ends that carry data have STOP as their only neighbour.
        (StopCopy, StopCopy) | (Resuming, Resuming) => to,
        (StopCopy | Resuming, _) => Stop,
        // What runs reaches everything that is stopped or quiescent by RUNNING_P2P, and pre-copy directly.
        (Running, Running | PreCopy) => to,
        (Running, Stop | StopCopy | Resuming | RunningP2p | PreCopyP2p) => RunningP2p,
        (RunningP2p, RunningP2p | Running | Stop | PreCopyP2p) => to,
        (RunningP2p, PreCopy) => Running,
        (RunningP2p, StopCopy | Resuming) => Stop,
        // Pre-copy goes on to STOP_COPY with its session alive, by its P2P twin; everything else ends the session.
        (PreCopy, PreCopy | PreCopyP2p) => to,
        (PreCopy, StopCopy) => PreCopyP2p,
        (PreCopy, Stop | Running | Resuming | RunningP2p) => Running,
        (PreCopyP2p, PreCopyP2p | PreCopy | StopCopy) => to,
        (PreCopyP2p, Stop | Running | Resuming | RunningP2p) => RunningP2p,
    }
}

/// The longest way has five states (`RESUMING` to `PRE_COPY` with every capability); there are no more than seven without `ERROR`.
const MAX_PATH: usize = 7;

/// The states on a way, the first one included.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Path {
    states: [DeviceState; MAX_PATH],
    len: usize,
}

impl Path {
    /// Every state on the way: the start first, the target last; one state where they are the same.
    #[must_use]
    pub fn states(&self) -> &[DeviceState] {
        self.states.get(..self.len).unwrap_or(&[])
    }

    /// The states to be set one after another: all but the start. Empty where the device is there already, in which
    /// case the kernel does nothing and gives no data_fd.
    #[must_use]
    pub fn steps(&self) -> &[DeviceState] {
        self.states.get(1..self.len).unwrap_or(&[])
    }

    /// The arcs, as (from, to).
    pub fn arcs(&self) -> impl Iterator<Item = (DeviceState, DeviceState)> + '_ {
        self.states().iter().copied().zip(self.steps().iter().copied())
    }
}

impl fmt::Debug for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.states()).finish()
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, state) in self.states().iter().enumerate() {
            f.write_str(if n == 0 { "" } else { " -> " })?;
            f.write_str(state.name())?;
        }
        Ok(())
    }
}

/// One arc that a driver has to implement, or `None` where the kernel answers `EINVAL`.
fn step(flags: MigrationFlags, from: DeviceState, to: DeviceState) -> Option<DeviceState> {
    if !from.is_supported(flags) || !to.is_supported(flags) {
        return None;
    }
    let mut next = next_state(from, to);
    // Skips states that the device lacks. `to` is supported and every chain of `next_state` ends in `to` or `Error`.
    while next != DeviceState::Error && !next.is_supported(flags) {
        next = next_state(next, to);
    }
    (next != DeviceState::Error).then_some(next)
}

/// The way that the kernel walks when a device with `flags` in state `from` is asked for `to`.
///
/// `None` where the kernel answers `EINVAL`: either state is not supported, or the way is blocked (from `STOP_COPY` to
/// either pre-copy state, out of `ERROR`, into `ERROR`).
#[must_use]
pub fn path(flags: MigrationFlags, from: DeviceState, to: DeviceState) -> Option<Path> {
    let mut out = Path { states: [from; MAX_PATH], len: 1 };
    let mut at = from;
    step(flags, from, to)?;
    while at != to {
        at = step(flags, at, to)?;
        *out.states.get_mut(out.len)? = at;
        out.len += 1;
    }
    Some(out)
}

/// The arcs that a driver with `flags` has to implement: those that a way takes in one step, as (from, to), in the
/// order of the kernel's numbers.
pub fn driver_arcs(flags: MigrationFlags) -> impl Iterator<Item = (DeviceState, DeviceState)> {
    let pairs = DeviceState::ALL.into_iter().flat_map(|from| DeviceState::ALL.into_iter().map(move |to| (from, to)));
    pairs.filter(move |&(from, to)| from != to && step(flags, from, to) == Some(to))
}

/// Whether the arc `from` to `to` opens a new data_fd. The arcs from pre-copy to `STOP_COPY` go on with the one that
/// is open, and leaving a state that carries data ends it.
#[must_use]
pub const fn opens_data_fd(from: DeviceState, to: DeviceState) -> bool {
    use DeviceState::{PreCopy, PreCopyP2p, Resuming, Running, RunningP2p, Stop, StopCopy};
    matches!((from, to), (Running, PreCopy) | (RunningP2p, PreCopyP2p) | (Stop, StopCopy) | (Stop, Resuming))
}
