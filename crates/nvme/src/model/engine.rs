//! The state of one controller and its life: enable, resets, shutdown, failure. One lock holds it; the worker takes it for one
//! command at a time, so whoever else takes it sees no command half done.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use super::ControllerKind;
use super::dma::Dma;
use super::events::Events;
use super::faults::{FaultId, Faults};
use super::features::Features;
use super::front::{CSTS_RDY, Front, MPS_MAX, Presence, SHUTDOWN_COMPLETE};
use super::interrupts::{InterruptSink, Vectors};
use super::limit::Limiter;
use super::log::{ErrorLog, Stats};
use super::migrate::Staged;
use super::namespace::Namespace;
use super::queue::{CompletionQueue, Failure, Outcome, SubmissionQueue};
use super::signal::{Signal, lock};
use super::subsystem::Inner;
use super::tracking::Tracking;
use crate::command::SubmissionEntry;
use crate::status::StatusCode;

/// What never changes about a controller.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    pub cntlid: u16,
    pub kind: ControllerKind,
    /// Virtual function number, from 1; 0 where it is no VF.
    pub vfn: u16,
    /// Entries of the largest queue.
    pub max_entries: u16,
    /// Largest transfer as 2^n pages of 4096 bytes.
    pub mdts: u8,
    pub serial: String,
    pub nqn: String,
    /// Whether it has namespaces in common with others, so that CMIC says so.
    pub max_secondaries: u16,
}

/// Whether the controller processes commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    Disabled,
    Ready,
    ShutDown,
    /// CSTS.CFS.
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Suspension {
    Active,
    /// No command is fetched; those that were are being completed.
    Suspending,
    Suspended,
}

/// Tells another controller's worker that what it waited for has happened.
#[derive(Debug, Default)]
pub(crate) struct Mailbox {
    mail: Mutex<Vec<(u64, Outcome)>>,
    signal: Arc<Signal>,
}

impl Mailbox {
    pub(crate) fn new(signal: Arc<Signal>) -> Self {
        Self { mail: Mutex::new(Vec::new()), signal }
    }

    pub(crate) fn send(&self, token: u64, outcome: Outcome) {
        lock(&self.mail).push((token, outcome));
        self.signal.set();
    }

    pub(crate) fn take(&self) -> Vec<(u64, Outcome)> {
        std::mem::take(&mut *lock(&self.mail))
    }
}

/// A Suspend of the controlling function that waits for the commands that this controller had fetched.
pub(crate) struct Waiter {
    pub mailbox: Arc<Mailbox>,
    pub token: u64,
}

/// Why a fetched command is not completed yet.
#[derive(Clone, Debug)]
pub(crate) enum Parking {
    /// To be executed then.
    RunAt(Instant),
    /// To be executed once that rule is gone.
    Hang(FaultId),
    /// Executed, to be completed then.
    FinishAt(Instant, Outcome),
    /// Completed by mail.
    Mail(u64),
}

#[derive(Clone, Debug)]
pub(crate) struct Parked {
    pub sqid: u16,
    pub cqid: u16,
    pub entry: SubmissionEntry,
    pub parking: Parking,
}

pub(crate) struct Engine {
    pub id: Arc<Identity>,
    pub front: Arc<Mutex<Front>>,
    pub mailbox: Arc<Mailbox>,
    pub faults: Arc<Faults>,
    pub disks: Arc<[Namespace]>,
    /// Only the controlling function has it.
    pub subsystem: Option<Weak<Inner>>,
    /// Queue pairs, admin included, and vectors that it may use.
    pub queues: u16,
    pub vectors_max: u16,
    pub dma: Option<Dma>,
    pub sink: Option<Arc<dyn InterruptSink>>,
    pub vectors: Vectors,
    pub run: Run,
    pub page_size: u64,
    pub sqs: BTreeMap<u16, SubmissionQueue>,
    pub cqs: BTreeMap<u16, CompletionQueue>,
    /// Where the round robin over the I/O submission queues goes on.
    pub next_sq: u16,
    pub features: Features,
    /// Identifiers of outstanding asynchronous event requests, oldest first.
    pub aers: VecDeque<u16>,
    pub events: Events,
    pub parked: Vec<Parked>,
    pub next_token: u64,
    pub suspension: Suspension,
    pub waiters: Vec<Waiter>,
    pub tracking: Option<Arc<Tracking>>,
    /// Set by the controlling function: no reset of this controller lifts it, going offline does.
    pub limiter: Limiter,
    pub staged: Option<Staged>,
    /// Attached namespaces.
    pub attached: BTreeSet<u32>,
    pub stats: Stats,
    pub errors: ErrorLog,
}

impl Engine {
    /// Puts guest memory and interrupts in place, or takes them away. While there is none no command is fetched.
    pub(crate) fn attach(&mut self, dma: Option<Dma>, sink: Option<Arc<dyn InterruptSink>>) {
        self.dma = dma;
        self.sink = sink;
    }

    pub(crate) fn set_tracking(&mut self, tracking: Option<Arc<Tracking>>) {
        self.tracking = tracking.clone();
        self.dma = self.dma.take().map(|dma| dma.with_tracking(tracking));
    }

    /// Looks at what was written to CC.
    pub(crate) fn apply_registers(&mut self) {
        let events = {
            let mut front = lock(&self.front);
            if front.sealed() {
                return;
            }
            front.take_events()
        };
        if events.reset {
            self.reset();
        }
        // A shutdown of a disabled controller is over once nobody asks for it any more.
        if events.shutdown == 0 && self.run == Run::Disabled {
            lock(&self.front).set_shutdown_status(0);
        }
        if events.enable && self.run == Run::Disabled {
            self.enable();
        }
        // CC.SHN is a level and is looked at with every step; CSTS.SHST says whether it has been obeyed. An enabled controller
        // that was shut down is in another state.
        let obeyed = lock(&self.front).shutdown_status() == SHUTDOWN_COMPLETE;
        let asked = match self.run {
            Run::Ready => true,
            Run::Disabled | Run::Failed => !obeyed,
            Run::ShutDown => false,
        };
        if events.shutdown != 0 && asked {
            self.shut_down();
        }
    }

    fn enable(&mut self) {
        let mut front = lock(&self.front);
        let cc = front.cc;
        let (mps, css, ams) = (cc >> 7 & 15, cc >> 4 & 7, cc >> 11 & 7);
        let (sq_size, cq_size) = (front.aqa & 0xfff, front.aqa >> 16 & 0xfff);
        let (asq, acq) = (front.asq, front.acq);
        let page_size = 4096u64 << mps.min(MPS_MAX);
        let aligned = asq & (page_size - 1) == 0 && acq & (page_size - 1) == 0;
        if mps > MPS_MAX || css != 0 || ams != 0 || sq_size == 0 || cq_size == 0 || !aligned {
            front.fail();
            self.run = Run::Failed;
            return;
        }
        self.page_size = page_size;
        self.sqs.insert(
            0,
            SubmissionQueue { qid: 0, base: asq, entries: sq_size as u16 + 1, cqid: 0, priority: 0, head: 0, tail: 0 },
        );
        self.cqs.insert(
            0,
            CompletionQueue {
                qid: 0,
                base: acq,
                entries: cq_size as u16 + 1,
                head: 0,
                tail: 0,
                phase: true,
                vector: 0,
                interrupts: true,
                reserved: 0,
            },
        );
        self.run = Run::Ready;
        front.csts |= CSTS_RDY;
    }

    /// Everything that any reset does.
    fn clear(&mut self) {
        self.parked.clear();
        drop(self.mailbox.take());
        self.sqs.clear();
        self.cqs.clear();
        self.aers.clear();
        self.next_sq = 0;
        self.events = Events::default();
        self.features = Features::default();
        self.vectors.clear_pending();
        self.staged = None;
        self.run = Run::Disabled;
        self.suspension = Suspension::Active;
        for waiter in self.waiters.drain(..) {
            waiter.mailbox.send(waiter.token, Err(StatusCode::ControllerNotSuspended.into()));
        }
    }

    /// Controller Reset (CC.EN to 0).
    fn reset(&mut self) {
        self.clear();
        lock(&self.front).csts = 0;
        self.cascade(false);
    }

    /// Function level reset.
    pub(crate) fn function_reset(&mut self) {
        self.clear();
        self.vectors.clear();
        lock(&self.front).clear();
        self.cascade(true);
    }

    /// A reset of the controlling function takes its secondary controllers offline and ends all tracking.
    fn cascade(&mut self, function_reset: bool) {
        let inner = self.subsystem.as_ref().and_then(Weak::upgrade);
        if let Some((queues, vectors)) = inner.and_then(|inner| inner.primary_reset(function_reset)) {
            self.set_resources(queues, vectors);
        }
    }

    fn shut_down(&mut self) {
        // Nothing is cached here; what was written is made durable, as the host expects of a normal shutdown. A controller that
        // failed promises nothing any more: it only lets the host go on. CSTS.CFS stays until a reset.
        if self.run != Run::Failed {
            for disk in self.disks.iter().filter(|disk| self.attached.contains(&disk.nsid)) {
                if disk.flush().is_err() {
                    self.errors.note_internal();
                }
            }
        }
        self.parked.clear();
        if self.run == Run::Ready {
            self.run = Run::ShutDown;
        }
        lock(&self.front).set_shutdown_status(SHUTDOWN_COMPLETE);
        self.settle_suspension();
        if let Some(inner) = self.subsystem.as_ref().and_then(Weak::upgrade) {
            inner.primary_reset(false);
        }
    }

    /// CSTS.CFS: nothing more is fetched or posted until a reset.
    pub(crate) fn fail(&mut self) {
        self.run = Run::Failed;
        self.parked.clear();
        lock(&self.front).fail();
        self.settle_suspension();
    }

    /// Ends draining once nothing is left to drain.
    pub(crate) fn settle_suspension(&mut self) {
        if self.suspension == Suspension::Suspending && self.parked.is_empty() {
            self.vectors.deliver(self.sink.as_ref());
            self.suspension = Suspension::Suspended;
            for waiter in self.waiters.drain(..) {
                waiter.mailbox.send(waiter.token, Ok(0));
            }
        }
    }

    /// Settles the state of a suspended controller: it is read from here on, and nothing that the host writes changes it until Resume or
    /// a reset. What it wrote before is in it.
    ///
    /// # Errors
    /// The controller is not suspended, or what the host wrote last has ended that.
    pub(crate) fn seal(&mut self) -> Result<(), StatusCode> {
        if self.suspension == Suspension::Suspended {
            self.apply_registers();
            self.apply_doorbells();
        }
        if self.suspension != Suspension::Suspended || self.staged.is_some() {
            return Err(StatusCode::ControllerNotSuspended);
        }
        lock(&self.front).seal();
        Ok(())
    }

    /// Takes a secondary controller offline: it loses its queues and vectors, and its registers say CFS.
    /// Tracking ends: the next tenant's writes are none of who tracked the last one's.
    pub(crate) fn go_offline(&mut self, presence: Presence) {
        self.clear();
        self.set_tracking(None);
        self.limiter.clear();
        self.set_resources(0, 0);
        let mut front = lock(&self.front);
        front.clear();
        front.presence = presence;
    }

    /// Queue pairs, admin included, and vectors that it may use from here on.
    pub(crate) fn set_resources(&mut self, queues: u16, vectors: u16) {
        self.queues = queues;
        self.vectors_max = vectors;
        self.vectors.resize(vectors);
        lock(&self.front).resources = (queues, vectors);
    }

    pub(crate) fn go_online(&mut self, queues: u16, vectors: u16) {
        self.clear();
        self.set_resources(queues, vectors);
        let mut front = lock(&self.front);
        front.clear();
        front.presence = Presence::Online;
    }

    pub(crate) fn presence(&self) -> Presence {
        lock(&self.front).presence
    }

    /// Namespace `nsid` where it is attached.
    pub(crate) fn disk(&self, nsid: u32) -> Result<&Namespace, Failure> {
        let exists = self.attached.contains(&nsid).then(|| self.disks.iter().find(|disk| disk.nsid == nsid)).flatten();
        exists.ok_or(StatusCode::InvalidNamespaceOrFormat.into())
    }

    /// Largest transfer in bytes.
    pub(crate) fn max_transfer(&self) -> usize {
        4096usize << self.id.mdts.min(8)
    }
}
