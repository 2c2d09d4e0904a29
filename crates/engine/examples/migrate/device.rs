//! A device that takes a set time, and a fence that tells how long it took.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use towline_core::channel::{ChannelError, Pending, ReadOutcome, StateChannel};
use towline_core::fsm::{DeviceState, MigrationFlags};
use towline_engine::error::FenceError;
use towline_engine::fence::{Fence, Record, Role};
use towline_engine::journal::Journal;
use towline_linux::clock::monotonic_ns;
use uuid::Uuid;

/// Stretches of `CLOCK_MONOTONIC` in nanoseconds, as pairs of first and last instant.
pub type Stretches = Arc<Mutex<Vec<(u64, u64)>>>;

fn timed<T>(stretches: &Stretches, call: impl FnOnce() -> T) -> T {
    let start = monotonic_ns();
    let result = call();
    stretches.lock().unwrap().push((start, monotonic_ns()));
    result
}

#[derive(Clone, Copy, Default)]
pub struct Timing {
    pub state_bytes: usize,
    /// Before the first byte of state comes.
    pub save: Duration,
    /// When it leaves RESUMING.
    pub load: Duration,
}

/// Keeps nothing: its state is `state_bytes` bytes of a pattern, checked by whoever loads it.
pub struct Device {
    timing: Timing,
    state: DeviceState,
    moved: usize,
    pub busy: Stretches,
}

impl Device {
    pub fn new(timing: Timing, state: DeviceState, busy: &Stretches) -> Self {
        Self { timing, state, moved: 0, busy: busy.clone() }
    }
}

fn sleep(time: Duration) {
    if !time.is_zero() {
        std::thread::sleep(time);
    }
}

fn pattern(at: usize) -> u8 {
    (at % 251) as u8
}

impl StateChannel for Device {
    fn flags(&self) -> MigrationFlags {
        MigrationFlags(MigrationFlags::STOP_COPY)
    }

    fn state(&mut self) -> Result<DeviceState, ChannelError> {
        Ok(self.state)
    }

    fn set_state(&mut self, to: DeviceState) -> Result<(), ChannelError> {
        let from = std::mem::replace(&mut self.state, to);
        timed(&self.busy, || {
            if from == DeviceState::Resuming {
                assert_eq!(self.moved, self.timing.state_bytes, "not all of the device's state came");
                sleep(self.timing.load);
            }
        });
        self.moved = 0;
        Ok(())
    }

    fn read(&mut self, out: &mut [u8]) -> Result<ReadOutcome, ChannelError> {
        timed(&self.busy, || {
            if self.moved == 0 {
                sleep(self.timing.save);
            }
            let n = out.len().min(self.timing.state_bytes - self.moved);
            for (at, byte) in out[..n].iter_mut().enumerate() {
                *byte = pattern(self.moved + at);
            }
            self.moved += n;
            Ok(if n == 0 { ReadOutcome::End } else { ReadOutcome::Bytes(n) })
        })
    }

    fn write(&mut self, data: &[u8]) -> Result<(), ChannelError> {
        timed(&self.busy, || {
            let is_right = data.iter().enumerate().all(|(at, byte)| *byte == pattern(self.moved + at));
            assert!(is_right, "the device's state was damaged");
            self.moved += data.len();
            Ok(())
        })
    }

    fn pending(&mut self) -> Result<Pending, ChannelError> {
        Ok(Pending::default())
    }

    fn reset(&mut self) -> Result<(), ChannelError> {
        (self.state, self.moved) = (DeviceState::Running, 0);
        Ok(())
    }
}

/// The journal, and when it was busy.
pub struct TimedFence {
    pub journal: Journal,
    pub busy: Stretches,
}

impl Fence for TimedFence {
    fn highest_epoch(&self, functions: &[String]) -> Result<u64, FenceError> {
        self.journal.highest_epoch(functions)
    }

    fn append(&self, session: Uuid, role: Role, record: Record) -> Result<(), FenceError> {
        timed(&self.busy, || self.journal.append(session, role, record))
    }

    fn records(&self, session: Uuid, role: Role) -> Result<Vec<Record>, FenceError> {
        self.journal.records(session, role)
    }

    fn sessions(&self) -> Result<Vec<(Uuid, Role)>, FenceError> {
        self.journal.sessions()
    }
}
