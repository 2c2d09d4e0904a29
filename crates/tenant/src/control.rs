//! Stops and starts the CPU of a tenant.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use towline_core::dirty::MarkLog;

use crate::error::TenantError;
use crate::guest::Guest;
use crate::interrupts::TenantInterrupts;
use crate::tenant::{RunOptions, Tenant};
use crate::vcpu::Vcpu;

/// The most that can be taken off a tenant's pace: it never stands still by that.
pub const MAX_THROTTLE_PERCENT: u8 = 99;

/// What its CPU is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Wish {
    Run = 0,
    Pause = 1,
    Drain = 2,
    Stop = 3,
}

/// What its CPU does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Doing {
    #[default]
    Running,
    Paused,
    Drained,
    /// The thread has ended.
    Ended,
}

/// Counters of a tenant. Those of commands go on through migrations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TenantStats {
    /// How often it was started, here or elsewhere.
    pub epoch: u32,
    /// Sequence of the next command.
    pub next_seq: u64,
    /// Commands in flight.
    pub in_flight: u64,
    /// Writes completed.
    pub writes: u64,
    /// Reads completed.
    pub reads: u64,
    /// Flushes completed.
    pub flushes: u64,
    /// Completions for commands that were not in flight.
    pub duplicates: u64,
    /// Commands that ended with an error status.
    pub errors: u64,
    /// Units that a read found other than the tenant expected.
    pub mismatches: u64,
    /// Pages that its CPU wrote in its working set.
    pub cpu_pages_written: u64,
    /// SMART polls completed.
    pub smart_polls: u64,
    /// Time of the last completion of a read, write or flush in nanoseconds of `CLOCK_MONOTONIC`; 0 before the first here.
    pub last_ack_ns: u64,
    /// Time of the first one since the last start or resumption; 0 before it.
    pub first_ack_ns: u64,
}

/// What [`TenantHandle::drain`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// Commands that were still in flight when the time was up.
    pub pending: u64,
    /// Sequence that the next command would have had.
    pub next_seq: u64,
}

#[derive(Default)]
struct Progress {
    doing: Doing,
    stats: TenantStats,
    drain_until: Option<Instant>,
    failure: Option<String>,
}

/// Shared between the handle and the thread.
pub(crate) struct Shared {
    wish: AtomicU8,
    /// Percent of its CPU's time that it does not get.
    throttle: AtomicU8,
    progress: Mutex<Progress>,
    changed: Condvar,
    pub(crate) interrupts: Arc<TenantInterrupts>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wish(&self) -> Wish {
        match self.wish.load(Ordering::SeqCst) {
            0 => Wish::Run,
            1 => Wish::Pause,
            2 => Wish::Drain,
            _ => Wish::Stop,
        }
    }

    /// The share of its pace that it may go at, 0.01 to 1.
    pub(crate) fn share(&self) -> f64 {
        f64::from(100 - self.throttle.load(Ordering::Relaxed).min(MAX_THROTTLE_PERCENT)) / 100.0
    }

    pub(crate) fn publish(&self, stats: TenantStats) {
        self.lock().stats = stats;
    }

    pub(crate) fn drain_until(&self) -> Option<Instant> {
        self.lock().drain_until
    }

    /// Says that the CPU stands still, and waits for another wish than `Pause` (or, once drained, `Drain`).
    pub(crate) fn stand_still(&self, drained: bool, stats: TenantStats) {
        let mut progress = self.lock();
        progress.stats = stats;
        progress.doing = if drained { Doing::Drained } else { Doing::Paused };
        self.changed.notify_all();
        while matches!((self.wish(), drained), (Wish::Pause, _) | (Wish::Drain, true)) {
            progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        if self.wish() != Wish::Stop {
            progress.doing = Doing::Running;
        }
    }

    fn ended(&self, failure: Option<String>) {
        let mut progress = self.lock();
        progress.doing = Doing::Ended;
        progress.failure = failure;
        self.changed.notify_all();
    }

    fn ask(&self, wish: Wish, drain_until: Option<Instant>) -> MutexGuard<'_, Progress> {
        let mut progress = self.lock();
        progress.drain_until = drain_until;
        self.wish.store(wish as u8, Ordering::SeqCst);
        self.changed.notify_all();
        self.interrupts.kick();
        progress
    }

    /// Waits until `reached`, or until it cannot come any more: the thread has ended, or somebody else asked for something else.
    fn wait_for<'a>(
        &'a self,
        mut progress: MutexGuard<'a, Progress>,
        wish: Wish,
        reached: fn(Doing) -> bool,
    ) -> MutexGuard<'a, Progress> {
        while !reached(progress.doing) && progress.doing != Doing::Ended && self.wish() == wish {
            progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        progress
    }
}

/// Tells that the thread has ended, however it did: who waits for it must not wait for ever.
struct End {
    shared: Arc<Shared>,
    failure: Option<String>,
}

impl Drop for End {
    fn drop(&mut self) {
        self.shared.ended(self.failure.take());
    }
}

/// A tenant that runs. Dropping it stops the tenant.
pub struct TenantHandle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl TenantHandle {
    pub(crate) fn start(
        tenant: Tenant,
        log: OwnedFd,
        marks: Arc<MarkLog>,
        interrupts: Arc<TenantInterrupts>,
        options: RunOptions,
    ) -> Result<Self, TenantError> {
        let shared = Arc::new(Shared {
            wish: AtomicU8::new(Wish::Run as u8),
            throttle: AtomicU8::new(0),
            progress: Mutex::default(),
            changed: Condvar::new(),
            interrupts,
        });
        let guest = Guest::new(Arc::clone(&tenant.memory), Some(marks));
        let mut vcpu = Vcpu::new(guest, tenant, log, Arc::clone(&shared), options)?;
        let end = End { shared: Arc::clone(&shared), failure: Some("the tenant's thread panicked".into()) };
        let thread = std::thread::Builder::new()
            .name("tenant-vcpu".into())
            .spawn(move || {
                // The whole guard moves in, not only the field that is assigned.
                let mut end = end;
                let result = vcpu.run();
                // The log's end is closed before anybody is told that nothing more comes.
                drop(vcpu);
                end.failure = result.err().map(|e| e.to_string());
            })
            .map_err(TenantError::Thread)?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Stops the CPU between two instructions: nothing is waited for, what is in flight stays in flight. When this returns,
    /// the tenant writes neither memory nor doorbells nor log any more. Stays so until [`TenantHandle::resume`].
    pub fn pause(&self) -> TenantStats {
        let progress = self.shared.ask(Wish::Pause, None);
        self.shared.wait_for(progress, Wish::Pause, |d| matches!(d, Doing::Paused | Doing::Drained)).stats.clone()
    }

    /// Goes on after [`TenantHandle::pause`] or [`TenantHandle::drain`].
    pub fn resume(&self) {
        drop(self.shared.ask(Wish::Run, None));
    }

    /// Takes `percent` off the pace of its CPU, of its writes to memory and of the commands that it submits: 0 for full pace, at most
    /// [`MAX_THROTTLE_PERCENT`], beyond which more is that. Not part of its state: it does not migrate.
    pub fn throttle(&self, percent: u8) {
        self.shared.throttle.store(percent.min(MAX_THROTTLE_PERCENT), Ordering::Relaxed);
    }

    /// Submits no more and waits for what is in flight, at most `timeout`; then logs how far it came and stands still.
    pub fn drain(&self, timeout: Duration) -> Drained {
        let progress = self.shared.ask(Wish::Drain, Some(Instant::now() + timeout));
        let progress = self.shared.wait_for(progress, Wish::Drain, |d| d == Doing::Drained);
        Drained { pending: progress.stats.in_flight, next_seq: progress.stats.next_seq }
    }

    /// Ends the tenant's CPU for good; nothing is waited for. Its memory stays as it is. Idempotent.
    pub fn stop(&self) -> TenantStats {
        let progress = self.shared.ask(Wish::Stop, None);
        let stats = self.shared.wait_for(progress, Wish::Stop, |d| d == Doing::Ended).stats.clone();
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A panic was already reported by the hook, and is the failure.
            let _ = thread.join();
        }
        stats
    }

    /// How far it is.
    #[must_use]
    pub fn stats(&self) -> TenantStats {
        self.shared.lock().stats.clone()
    }

    /// Why it ended by itself, where it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }
}

impl Drop for TenantHandle {
    fn drop(&mut self) {
        self.stop();
    }
}
