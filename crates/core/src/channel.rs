//! The two interfaces that carry every migration: a [`StateChannel`] brings a function's device state out and in, a
//! [`DirtySource`] tells which guest pages were written. A VFIO data_fd, NVMe Migration Send/Receive, a vfio-user
//! connection, the embedded model and a driver written in JavaScript are all behind them.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use crate::fsm::{DeviceState, MigrationFlags};
use crate::memory::MemoryRange;

/// What one read from a channel gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOutcome {
    /// So many bytes at the start of the buffer, at least one.
    Bytes(usize),
    /// Nothing more for now: only in `PRE_COPY` and `PRE_COPY_P2P` (some kernel drivers say `ENOMSG`, others read 0 there).
    EmptyForNow,
    /// The state is complete: only in `STOP_COPY`.
    End,
}

/// What a channel still has to give, in bytes. Estimates: real devices are known to report garbage, so nothing is allocated by them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    /// Bytes that have to be moved before pre-copy is worth ending (`VFIO_MIG_GET_PRECOPY_INFO` `initial_bytes`).
    pub initial_bytes: u64,
    /// Bytes that changed since (`dirty_bytes`).
    pub dirty_bytes: u64,
    /// Bytes expected in `STOP_COPY` (`VFIO_DEVICE_FEATURE_MIG_DATA_SIZE`), those of pre-copy that would be left among them; `None`
    /// where nobody can tell.
    pub stop_copy_bytes: Option<u64>,
}

/// Why a channel or a dirty source refused, in the words of the layer that knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChannelError {
    /// What kind of failure; decides what the engine does next.
    pub kind: ChannelErrorKind,
    /// `errno` of the system call that failed, where it was one.
    pub errno: Option<i32>,
    /// NVMe status (SCT << 8 | SC) of the command that failed, where it was one.
    pub nvme_status: Option<u16>,
    /// The state of the function, where it is known.
    pub state: Option<DeviceState>,
    /// What was attempted and what was wrong with it.
    pub message: String,
}

/// See [`ChannelError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChannelErrorKind {
    /// The call does not fit the state, or the arc does not exist.
    State,
    /// The device state that was written is not acceptable: truncated, foreign, of another version, corrupted.
    BadState,
    /// A count, length or offset exceeds a limit.
    Limit,
    /// The device or its controlling function failed.
    Device,
    /// The function, its controlling function or its peer is gone.
    Gone,
    /// The capability does not exist here.
    Unsupported,
    /// The call was cancelled.
    Cancelled,
}

impl ChannelError {
    /// An error of `kind` with nothing but words.
    pub fn new(kind: ChannelErrorKind, message: impl Into<String>) -> Self {
        Self { kind, errno: None, nvme_status: None, state: None, message: message.into() }
    }
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl core::error::Error for ChannelError {}

/// Carries the device state of one function.
///
/// The engine calls it from one thread at a time. [`StateChannel::set_state`] walks every intermediate arc
/// ([`crate::fsm`]); on failure the channel tells the state it really is in by [`StateChannel::state`].
pub trait StateChannel: Send {
    /// Which arcs exist.
    fn flags(&self) -> MigrationFlags;

    /// What the state bytes are, where that is known: `vfio:<driver>:<vendor>:<device>`, `hmlm:<version>:<uuid>`. Part of the
    /// offer: state goes only to a channel that says the same, or to one that says nothing to one that says nothing.
    fn format(&self) -> Option<String> {
        None
    }

    /// Whether leaving `RESUMING` refuses whatever is not a whole valid state: cut, extended, damaged or foreign. Drivers of the
    /// kernel don't all do that: `mlx5` and `virtio` take a state that was cut.
    fn verifies(&self) -> bool {
        true
    }

    /// The state the function is in now, asked from the device where it can be asked.
    ///
    /// # Errors
    /// [`ChannelErrorKind::Gone`] when nobody can tell.
    fn state(&mut self) -> Result<DeviceState, ChannelError>;

    /// Brings the function into `to`.
    ///
    /// # Errors
    /// [`ChannelErrorKind::State`] where there is no path; otherwise whatever the device said. Leaving `RESUMING` commits what
    /// was written, and fails with [`ChannelErrorKind::BadState`] where the device finds that it is not a whole valid state. A
    /// channel that [`StateChannel::verifies`] finds all of that; for any other the manifest of the stream has to.
    fn set_state(&mut self, to: DeviceState) -> Result<(), ChannelError>;

    /// Reads device state, in `PRE_COPY`, `PRE_COPY_P2P` and `STOP_COPY`.
    ///
    /// # Errors
    /// [`ChannelErrorKind::State`] in any other state, or what the device said.
    fn read(&mut self, out: &mut [u8]) -> Result<ReadOutcome, ChannelError>;

    /// Writes device state, in `RESUMING`. Byte order is kept; where the bytes are cut is free.
    ///
    /// # Errors
    /// After any error the whole state is void: reset, and start again.
    fn write(&mut self, data: &[u8]) -> Result<(), ChannelError>;

    /// What is left to read. May have side effects on real devices: alternate with [`StateChannel::read`].
    ///
    /// # Errors
    /// What the device said; the engine then plans without an estimate.
    fn pending(&mut self) -> Result<Pending, ChannelError>;

    /// Resets the function: from any state, `ERROR` included, to `RUNNING`.
    ///
    /// # Errors
    /// What the device said; the function is then lost until somebody mends it.
    fn reset(&mut self) -> Result<(), ChannelError>;
}

/// Receives what a [`DirtySource`] found.
pub trait DirtySink {
    /// `len` bytes from `gpa` were written; whole pages that they touch are dirty. Parts outside of guest memory are ignored.
    fn mark(&mut self, gpa: u64, len: u64);

    /// A bitmap: bit `n` is byte `n / 8`, bit `n % 8` (little-endian, as VFIO, iommufd and KVM write it) and stands for
    /// `base + n * page_size_bytes`, `page_size_bytes` being a power of two.
    fn merge_bitmap(&mut self, base: u64, page_size_bytes: u64, bitmap: &[u8]);
}

/// Tells which guest pages one writer wrote: a device, vCPUs, a process.
pub trait DirtySource: Send {
    /// Starts tracking `ranges`. Everything written after this returns is reported by some later harvest. Returns the
    /// granularity in bytes, a power of two, which may be coarser than asked.
    ///
    /// # Errors
    /// Whatever prevents tracking; then nothing is tracked.
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError>;

    /// Hands everything written since the last harvest to `sink` and forgets it. A last harvest, after the writer has
    /// stopped, finds everything.
    ///
    /// # Errors
    /// After an error assume that every page is dirty.
    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError>;

    /// Stops tracking. Idempotent.
    ///
    /// # Errors
    /// What the device said; tracking is then considered stopped all the same.
    fn stop(&mut self) -> Result<(), ChannelError>;
}

/// Ranges as [`DirtySource::start`] takes them, sorted and merged.
#[must_use]
pub fn normalise_ranges(ranges: &[MemoryRange]) -> Vec<MemoryRange> {
    let mut sorted: Vec<MemoryRange> = ranges.iter().copied().filter(|r| r.len > 0 && r.end().is_some()).collect();
    sorted.sort_unstable();
    let mut out: Vec<MemoryRange> = Vec::with_capacity(sorted.len());
    for r in sorted {
        match out.last_mut() {
            Some(last) if r.gpa <= last.gpa + last.len => last.len = last.len.max(r.gpa + r.len - last.gpa),
            _ => out.push(r),
        }
    }
    out
}
