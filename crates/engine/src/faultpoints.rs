//! Named seams for rehearsal: what goes wrong, where, on purpose. Everything is off by default.
//!
//! Each name in [`POINTS`] is hit by exactly one call in a session, so that a crash test which walks the list has
//! crashed everywhere.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};

use towline_core::memory::MemoryRange;

use crate::error::EngineError;

/// Every named point, in the order in which a migration reaches them on each side.
///
/// | point | when |
/// |---|---|
/// | `source:offered` | the offer was answered without mismatch |
/// | `source:tracking` | dirty tracking runs, nothing was sent; where memory is passed: the destination has it |
/// | `source:memory-pass` | a memory pass was sent; where memory is passed: it was |
/// | `source:precopy-state` | device state was read while running |
/// | `source:quiesced` | all functions are in P2P |
/// | `source:stopped` | all functions are stopped |
/// | `source:final-memory` | the last pages are sent |
/// | `source:final-state` | the last device state is sent |
/// | `source:stream-end` | the stream is complete |
/// | `source:prepared` | the destination has everything |
/// | `source:commit-intent` | before COMMIT-INTENT is written |
/// | `source:commit-intent-durable` | COMMIT-INTENT is durable, COMMIT is not sent |
/// | `source:commit-sent` | COMMIT is sent |
/// | `source:committed` | the destination's commit is known |
/// | `source:running` | the functions are known to run at the destination |
/// | `source:released` | the release is durable |
/// | `source:aborting` | an abort begins |
/// | `source:aborted` | the abort is durable, the functions run again |
/// | `destination:offered` | an offer was read |
/// | `destination:answered` | it was answered without mismatch |
/// | `destination:opened` | the session is in the fence |
/// | `destination:memory-pass` | a memory pass was received; where memory is passed: it is mapped |
/// | `destination:state-loading` | the first device state is about to be written |
/// | `destination:loaded` | everything is verified and loaded |
/// | `destination:prepared` | PREPARED is sent |
/// | `destination:commit-received` | COMMIT arrived, nothing is durable yet |
/// | `destination:commit-durable` | the commit is durable, COMMITTED is not sent |
/// | `destination:committed-sent` | COMMITTED is sent, nothing runs |
/// | `destination:resumed` | the functions run, RUNNING is not sent |
/// | `destination:running` | RUNNING is sent |
/// | `destination:refusal-durable` | a refusal is durable, it was not answered |
/// | `destination:aborted` | the functions are reset |
pub const POINTS: &[&str] = &[
    "source:offered",
    "source:tracking",
    "source:memory-pass",
    "source:precopy-state",
    "source:quiesced",
    "source:stopped",
    "source:final-memory",
    "source:final-state",
    "source:stream-end",
    "source:prepared",
    "source:commit-intent",
    "source:commit-intent-durable",
    "source:commit-sent",
    "source:committed",
    "source:running",
    "source:released",
    "source:aborting",
    "source:aborted",
    "destination:offered",
    "destination:answered",
    "destination:opened",
    "destination:memory-pass",
    "destination:state-loading",
    "destination:loaded",
    "destination:prepared",
    "destination:commit-received",
    "destination:commit-durable",
    "destination:committed-sent",
    "destination:resumed",
    "destination:running",
    "destination:refusal-durable",
    "destination:aborted",
];

/// Every named point of a checkpoint that a migration does not reach, in the order in which they are reached. A checkpoint passes the
/// `source:…` points up to `source:commit-intent-durable` and then `source:released` as well, a restore most of the `destination:…` ones.
///
/// | point | when |
/// |---|---|
/// | `checkpoint:created` | the file exists under its temporary name |
/// | `checkpoint:resumed` | copy: the functions run again, the file is not complete |
/// | `checkpoint:synced` | the stream is durable under the temporary name, without its commit |
/// | `checkpoint:commit-written` | the commit is in the file, durable under the temporary name |
/// | `checkpoint:renamed` | the file has its name, which is not durable yet |
/// | `checkpoint:durable` | the file is durable under its name, the release is not |
/// | `restore:checked` | the whole file was read and found right, nothing was touched |
/// | `restore:claimed` | move: the file is claimed, durably, the commit is not durable |
/// | `restore:consumed` | move: the commit is durable, and the file is marked as restored |
/// | `restore:emptied` | move: the functions run, and what is left of the file is empty |
pub const CHECKPOINT_POINTS: &[&str] = &[
    "checkpoint:created",
    "checkpoint:resumed",
    "checkpoint:synced",
    "checkpoint:commit-written",
    "checkpoint:renamed",
    "checkpoint:durable",
    "restore:checked",
    "restore:claimed",
    "restore:consumed",
    "restore:emptied",
];

fn is_point(name: &str) -> bool {
    POINTS.contains(&name) || CHECKPOINT_POINTS.contains(&name)
}

/// Called at every point that is hit.
pub type Observer = Box<dyn Fn(&'static str) + Send + Sync>;

/// What is rehearsed in one session.
#[derive(Default)]
pub struct FaultPoints {
    /// Kills this process (SIGKILL) at that point: a power failure of everything it holds.
    pub kill_at: Option<String>,
    /// Fails the call at that point, once, as if something had gone wrong right there.
    pub fail_at: Option<String>,
    /// Of the final pass, does not send the first dirty page inside this range: the destination keeps a stale one.
    pub skip_page_in: Option<MemoryRange>,
    /// Throws away what this dirty source (by name) reports.
    pub deaf_to_source: Option<String>,
    /// Throws away what devices report about this range; sources whose name begins with `extra#` are no devices'.
    pub deaf_to_range: Option<MemoryRange>,
    /// Does not send the last chunk of device state of the first function.
    pub drop_last_state: bool,
    /// Lets the source's functions run again after the destination has committed: two owners.
    pub run_after_release: bool,
    /// Told about every point.
    pub observer: Option<Observer>,
    /// Set once something was rehearsed; see [`FaultPoints::fired`].
    pub has_fired: AtomicBool,
}

impl fmt::Debug for FaultPoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultPoints")
            .field("kill_at", &self.kill_at)
            .field("fail_at", &self.fail_at)
            .finish_non_exhaustive()
    }
}

impl FaultPoints {
    /// Checks that the named points exist.
    ///
    /// # Errors
    /// [`EngineError::Config`] names the unknown one.
    pub fn check(&self) -> Result<(), EngineError> {
        for name in [&self.kill_at, &self.fail_at].into_iter().flatten() {
            if !is_point(name) {
                return Err(EngineError::Config {
                    what: format!(
                        "there is no point {name}; known are {}, {}",
                        POINTS.join(", "),
                        CHECKPOINT_POINTS.join(", ")
                    ),
                });
            }
        }
        Ok(())
    }

    /// A point was reached.
    ///
    /// # Errors
    /// [`EngineError::Rehearsed`] where that was asked for.
    pub fn hit(&self, point: &'static str) -> Result<(), EngineError> {
        debug_assert!(is_point(point), "{point} is missing from the lists of points");
        if let Some(observer) = &self.observer {
            observer(point);
        }
        if self.kill_at.as_deref() == Some(point) {
            // Nothing may run after this, no destructor either; the kernel doesn't return from it.
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        // Once: what cleans up after a failure passes other points, or the same again.
        if self.fail_at.as_deref() == Some(point) && !self.has_fired.swap(true, Ordering::AcqRel) {
            return Err(EngineError::Rehearsed { point });
        }
        Ok(())
    }

    /// Whether a rehearsed fault has really happened: a rehearsal that never fired proves nothing.
    #[must_use]
    pub fn fired(&self) -> bool {
        self.has_fired.load(Ordering::Acquire)
    }

    pub(crate) fn note_fired(&self) {
        self.has_fired.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_checked() {
        let mut sorted = [POINTS, CHECKPOINT_POINTS].concat();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), POINTS.len() + CHECKPOINT_POINTS.len());
        assert!(FaultPoints { kill_at: Some("source:nowhere".into()), ..FaultPoints::default() }.check().is_err());
        let points = FaultPoints { fail_at: Some("source:stopped".into()), ..FaultPoints::default() };
        points.check().unwrap();
        assert!(points.hit("source:offered").is_ok() && !points.fired());
        assert!(matches!(points.hit("source:stopped"), Err(EngineError::Rehearsed { point: "source:stopped" })));
        assert!(points.fired());
    }
}
