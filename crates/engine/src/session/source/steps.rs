//! From the first pass to the last byte of device state.

use std::time::Instant;

use towline_core::channel::ReadOutcome;
use towline_core::fsm::DeviceState;

use super::{SourceSession, Step};
use crate::error::EngineError;
use crate::session::MemoryBy;
use crate::session::pages_out::RoundStats;
use crate::session::state_io::{CHUNK_BYTES, send_state};
use crate::session::{channel_error, set_state};

/// What one round of reading device state while running gave.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrecopyStats {
    /// Functions that have PRE_COPY at all.
    pub functions: usize,
    /// Bytes read and sent in this round.
    pub bytes: u64,
    /// What the devices say is left to move before pre-copy is worth ending. An estimate that may be garbage.
    pub initial_bytes_left: u64,
    /// What the devices say has changed since. An estimate that may be garbage.
    pub dirty_bytes_left: u64,
    /// What the devices expect to give once stopped. An estimate that may be garbage; `None` where one of them can't tell.
    pub stop_copy_bytes: Option<u64>,
}

/// The moment at which the last function had stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// `CLOCK_MONOTONIC` in nanoseconds when the first function was told to stop: from here on it may not execute.
    pub asked_ns: u64,
    /// `CLOCK_MONOTONIC` in nanoseconds when all had stopped.
    pub stopped_ns: u64,
}

/// The device state of all functions.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StateStats {
    /// Its bytes, pre-copy included.
    pub state_bytes: u64,
    /// Milliseconds that the devices took to give it.
    pub device_save_ms: f64,
}

/// The last pass, after the stop.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FinalStats {
    /// The pages.
    pub memory: RoundStats,
    /// Bytes of device state, all functions, pre-copy included.
    pub state_bytes: u64,
    /// Milliseconds that the devices took to give their state.
    pub device_save_ms: f64,
    /// Dirty sources whose last harvest failed: all of guest memory was sent for them.
    pub failed_sources: usize,
}

impl SourceSession {
    /// Reads and sends device state of running functions that have PRE_COPY, until each has nothing more for now, or has given what its
    /// first estimate of this call said (at least one chunk): a device that changes faster than it is read ends the call too. The first
    /// call brings them into PRE_COPY.
    ///
    /// # Errors
    /// [`EngineError::Channel`], and those of the link.
    pub fn precopy_state(&mut self) -> Result<PrecopyStats, EngineError> {
        self.expect("precopy_state", &[Step::Tracking])?;
        self.attempt(|s| {
            let start = Instant::now();
            let mut stats = PrecopyStats { stop_copy_bytes: Some(0), ..PrecopyStats::default() };
            s.chunk.resize(CHUNK_BYTES, 0);
            for (index, function) in s.config.functions.iter_mut().enumerate() {
                if !function.channel.flags().has_pre_copy() {
                    continue;
                }
                stats.functions += 1;
                let Some(digest) = s.state.get_mut(index) else { continue };
                if !digest.is_precopy {
                    set_state(function, DeviceState::PreCopy, "go to PRE_COPY")?;
                    digest.is_precopy = true;
                }
                let (mut given, mut bound) = (0_u64, None);
                let last = loop {
                    s.config.cancel.check()?;
                    // Real devices update their estimates only when they are asked between reads. A failure costs the estimate.
                    let pending = function.channel.pending().ok();
                    let estimate = pending.map_or(0, |p| p.initial_bytes.saturating_add(p.dirty_bytes));
                    let bound = *bound.get_or_insert_with(|| estimate.max(CHUNK_BYTES as u64));
                    if given >= bound {
                        break pending;
                    }
                    let outcome = function
                        .channel
                        .read(&mut s.chunk)
                        .map_err(channel_error(&function.id, "read state in PRE_COPY"))?;
                    let ReadOutcome::Bytes(n) = outcome else { break pending };
                    digest.send(&mut s.sender, s.link.as_mut(), index, &function.id, &s.chunk, n)?;
                    // A channel that gives nothing has to come to an end as well.
                    given = given.saturating_add((n as u64).max(1));
                    stats.bytes += n as u64;
                    s.pacer.pace(n as u64, &s.config.cancel)?;
                };
                if let Some(pending) = last {
                    stats.initial_bytes_left = stats.initial_bytes_left.saturating_add(pending.initial_bytes);
                    stats.dirty_bytes_left = stats.dirty_bytes_left.saturating_add(pending.dirty_bytes);
                }
                let both = stats.stop_copy_bytes.zip(last.and_then(|pending| pending.stop_copy_bytes));
                stats.stop_copy_bytes = both.map(|(sum, bytes)| sum.saturating_add(bytes));
            }
            s.timings.add("precopy-state", start);
            s.config.points.hit("source:precopy-state")?;
            Ok(stats)
        })
    }

    /// Quiesces several functions against each other: each that has P2P stops writing to the others before any is stopped.
    /// Does nothing for a single function. Can take hundreds of milliseconds on real devices.
    ///
    /// # Errors
    /// [`EngineError::Channel`].
    pub fn quiesce(&mut self) -> Result<(), EngineError> {
        self.expect("quiesce", &[Step::Tracking])?;
        self.attempt(|s| {
            let start = Instant::now();
            if s.config.functions.len() > 1 {
                for (function, digest) in s.config.functions.iter_mut().zip(&s.state) {
                    if function.channel.flags().has_p2p() {
                        let to = if digest.is_precopy { DeviceState::PreCopyP2p } else { DeviceState::RunningP2p };
                        set_state(function, to, "quiesce peer-to-peer")?;
                    }
                }
            }
            s.timings.add("quiesce", start);
            s.step = Step::Quiesced;
            s.config.points.hit("source:quiesced")
        })
    }

    /// Stops every function. Functions in PRE_COPY go to STOP_COPY, since the way by STOP would throw away what was read.
    ///
    /// # Errors
    /// [`EngineError::Channel`].
    pub fn stop(&mut self) -> Result<Stopped, EngineError> {
        self.expect("stop", &[Step::Tracking, Step::Quiesced])?;
        self.attempt(|s| {
            let start = Instant::now();
            let asked_ns = towline_linux::clock::monotonic_ns();
            for (function, digest) in s.config.functions.iter_mut().zip(&s.state) {
                let to = if digest.is_precopy { DeviceState::StopCopy } else { DeviceState::Stop };
                set_state(function, to, "stop")?;
            }
            let stopped = Stopped { asked_ns, stopped_ns: towline_linux::clock::monotonic_ns() };
            s.timings.add("stop", start);
            s.step = Step::Stopped;
            s.config.points.hit("source:stopped")?;
            Ok(stopped)
        })
    }

    /// The last harvest, after the stop, then the last pages, then the device state of every function.
    ///
    /// # Errors
    /// [`EngineError::Config`] where the ranges of guest memory are not those of the offer any more.
    /// Those of [`SourceSession::memory_pass`], and [`EngineError::Channel`].
    pub fn final_pass(&mut self) -> Result<FinalStats, EngineError> {
        self.expect("final_pass", &[Step::Stopped])?;
        self.needs("final_pass", self.terms.memory == MemoryBy::Engine)?;
        self.attempt(|s| {
            s.check_ranges()?;
            let start = Instant::now();
            // A source that fails has all of memory marked; the pass stays complete, only longer.
            let mut stats = FinalStats { failed_sources: s.harvest_stopped(), ..FinalStats::default() };
            s.timings.add("final-harvest", start);
            let start = Instant::now();
            s.round = s.round.saturating_add(1);
            stats.memory = s.send_pages(u64::MAX, true, &mut |_| {})?;
            stats.memory.skipped_hole_pages = std::mem::take(&mut s.hole_pages);
            s.sender.round_end(s.link.as_mut(), true)?;
            match s.ledger.dirty_pages() {
                0 => {}
                pages => {
                    let what = format!("the final pass is not complete: {pages} pages were not sent");
                    return Err(EngineError::Protocol { during: "the final pass", what });
                }
            }
            s.timings.add("final-memory", start);
            s.config.points.hit("source:final-memory")?;
            let state = s.send_states()?;
            stats.state_bytes = state.state_bytes;
            stats.device_save_ms = state.device_save_ms;
            Ok(stats)
        })
    }

    /// The device state of every function, after the stop, where no pages are sent: the caller moves memory, or it was passed.
    ///
    /// # Errors
    /// [`EngineError::Channel`], and those of the link; [`EngineError::Config`] where memory was passed and has other ranges by now.
    pub fn save_state(&mut self) -> Result<StateStats, EngineError> {
        self.expect("save_state", &[Step::Stopped])?;
        self.needs("save_state", self.terms.memory != MemoryBy::Engine)?;
        self.attempt(|s| {
            if s.terms.memory == MemoryBy::Passed {
                s.check_ranges()?;
            }
            s.send_states()
        })
    }

    fn send_states(&mut self) -> Result<StateStats, EngineError> {
        let mut stats = StateStats::default();
        let start = Instant::now();
        self.chunk.resize(CHUNK_BYTES, 0);
        for (index, function) in self.config.functions.iter_mut().enumerate() {
            let Some(digest) = self.state.get_mut(index) else { continue };
            let drop_last = index == 0 && self.config.points.drop_last_state;
            stats.device_save_ms += send_state(
                function,
                index,
                digest,
                &mut self.sender,
                self.link.as_mut(),
                &mut self.chunk,
                &self.config.cancel,
                drop_last.then_some(self.config.points.as_ref()),
            )?;
            stats.state_bytes += digest.bytes;
        }
        self.timings.add("final-state", start);
        self.timings.add_ms("device-save", stats.device_save_ms);
        self.step = Step::Final;
        self.config.points.hit("source:final-state")?;
        Ok(stats)
    }
}
