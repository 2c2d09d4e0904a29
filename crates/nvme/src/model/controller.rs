//! One controller of the subsystem: its BAR, its worker, its life.
//!
//! Each controller has one worker thread, which sleeps until a doorbell, CC, a due fault or another controller wakes it. The
//! state behind it is locked for one command at a time. Locks are taken in this order: the controlling function's state, the
//! pools of the subsystem, another controller's state, registers.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

use towline_core::bar::BarTarget;
use towline_core::memory::GuestMemory;

use super::config::ModelError;
use super::dma::Dma;
use super::engine::{Engine, Identity, Suspension};
use super::front::{DOORBELLS, Front, Presence};
use super::interrupts::InterruptSink;
use super::signal::{Signal, lock};
use crate::status::StatusCode;

/// What a controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ControllerKind {
    /// The PF that provisions and migrates the others, and is itself never migrated.
    ControllingPf,
    /// A further PF.
    Pf,
    /// A virtual function of the controlling PF.
    Vf,
    /// A secondary controller without a function of its own: its doorbells are a page of the controlling PF's BAR.
    Siov,
}

/// Most commands between two looks at interrupts and at who waits.
const BATCH: usize = 16;

/// A controller. As a [`BarTarget`] it is its own BAR0: registers at 0, doorbells at [`DOORBELLS`]. One of kind
/// [`ControllerKind::Siov`] has no BAR; what is read there is all ones.
pub struct Controller {
    id: Arc<Identity>,
    front: Arc<Mutex<Front>>,
    engine: Mutex<Engine>,
    signal: Arc<Signal>,
    /// Others that wait for the engine; the worker lets them go first.
    waiting: AtomicUsize,
    stop: AtomicBool,
    worker: Mutex<Option<JoinHandle<()>>>,
    doorbell_page: Option<u64>,
}

impl Controller {
    pub(crate) fn start(
        id: Arc<Identity>,
        front: Arc<Mutex<Front>>,
        engine: Engine,
        signal: Arc<Signal>,
        doorbell_page: Option<u64>,
    ) -> Result<Arc<Self>, ModelError> {
        let cntlid = id.cntlid;
        let controller = Arc::new(Self {
            id,
            front,
            engine: Mutex::new(engine),
            signal,
            waiting: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            worker: Mutex::new(None),
            doorbell_page,
        });
        let run = Arc::clone(&controller);
        let thread = thread::Builder::new().name(format!("nvme-{cntlid}")).spawn(move || run.work());
        *lock(&controller.worker) = Some(thread.map_err(|source| ModelError::Thread { cntlid, source })?);
        Ok(controller)
    }

    /// Calls `f` with the controller's state, between two commands, and wakes the worker afterwards.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Engine) -> R) -> R {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let mut engine = lock(&self.engine);
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        let result = f(&mut engine);
        drop(engine);
        self.signal.set();
        result
    }

    fn work(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let mut engine = lock(&self.engine);
            let mut more = true;
            for _ in 0..BATCH {
                more = engine.step();
                if !more || self.waiting.load(Ordering::Acquire) > 0 || self.stop.load(Ordering::Acquire) {
                    break;
                }
            }
            engine.flush_interrupts();
            let deadline = engine.next_deadline();
            drop(engine);
            if !more {
                self.signal.wait(deadline);
            }
            // The lock is not fair: without this a busy worker would take it back each time.
            while self.waiting.load(Ordering::Acquire) > 0 && !self.stop.load(Ordering::Acquire) {
                thread::yield_now();
            }
        }
    }

    /// Ends the worker. Idempotent.
    pub(crate) fn close(&self) {
        self.stop.store(true, Ordering::Release);
        self.signal.set();
        let worker = lock(&self.worker).take();
        if let Some(worker) = worker {
            // A worker that panicked has nothing more to say.
            drop(worker.join());
        }
        self.with(|engine| {
            engine.attach(None, None);
            engine.go_offline(Presence::Absent);
        });
    }

    /// Controller identifier.
    pub fn cntlid(&self) -> u16 {
        self.id.cntlid
    }

    /// What it is.
    pub fn kind(&self) -> ControllerKind {
        self.id.kind
    }

    /// Virtual function number, from 1; 0 where it is no VF.
    pub fn virtual_function(&self) -> u16 {
        self.id.vfn
    }

    /// Whether it is online: always for a PF, after Virtualization Management for a secondary controller.
    pub fn online(&self) -> bool {
        lock(&self.front).presence == Presence::Online
    }

    /// Gives it guest memory and somebody who takes its interrupts. Until then no command is fetched; interrupts that became
    /// pending before are raised now.
    pub fn attach(&self, memory: Arc<dyn GuestMemory>, interrupts: Arc<dyn InterruptSink>) {
        self.with(|engine| {
            let dma = Dma::new(memory, engine.tracking.clone());
            engine.attach(Some(dma), Some(interrupts));
        });
    }

    /// Takes guest memory and interrupts away. On return no DMA is under way and none will be.
    pub fn detach(&self) {
        self.with(|engine| engine.attach(None, None));
    }

    /// Function level reset. Done on return; no DMA of commands from before happens afterwards.
    pub fn flr(&self) {
        self.with(Engine::function_reset);
    }

    /// Masks or unmasks an MSI-X vector, as the guest's table says. A vector that is pending is raised when it is unmasked.
    pub fn mask_vector(&self, vector: u16, masked: bool) {
        self.with(|engine| engine.vectors.mask(vector, masked));
    }

    /// Whether the pending bit of an MSI-X vector is set.
    pub fn vector_pending(&self, vector: u16) -> bool {
        self.with(|engine| engine.vectors.pending(vector))
    }

    /// Sets the pending bit of an MSI-X vector, as a migration brings it along. Of a suspended controller it is raised with Resume.
    pub fn set_vector_pending(&self, vector: u16) {
        self.with(|engine| engine.vectors.set_pending(vector));
    }

    /// Whether it is suspended by Migration Send.
    pub fn suspended(&self) -> bool {
        self.with(|engine| engine.suspension == Suspension::Suspended)
    }

    /// Settles the state of a suspended controller: what the host wrote so far is in it, and what it writes from here on is held until Resume,
    /// in its order, or until a reset. Reads answer as before.
    ///
    /// # Errors
    /// Controller Not Suspended: also where what the host wrote last has reset it.
    pub fn seal(&self) -> Result<(), StatusCode> {
        self.with(Engine::seal)
    }

    /// Whether [`Controller::seal`] holds what the host writes. Does not wait for anything.
    pub fn sealed(&self) -> bool {
        lock(&self.front).sealed()
    }

    /// Queue pairs (the admin queue included) and MSI-X vectors that it may use now. Does not wait for DMA.
    pub fn resources(&self) -> (u16, u16) {
        lock(&self.front).resources
    }

    /// Where in the controlling PF's BAR its doorbell page of 4096 bytes is; only for [`ControllerKind::Siov`].
    pub fn siov_doorbell_offset(&self) -> Option<u64> {
        self.doorbell_page
    }

    /// The register page (bytes 0 to [`DOORBELLS`]) as an exposure synthesises it for a function without a BAR of its own.
    /// Works for every kind.
    pub fn synthesised_registers(self: &Arc<Self>) -> Arc<dyn BarTarget> {
        Arc::new(Registers(Arc::clone(self)))
    }

    pub(crate) fn read_registers(&self, offset: u64, out: &mut [u8]) {
        lock(&self.front).read(offset, out);
    }

    fn write_at(&self, offset: u64, data: &[u8]) {
        // A write that straddles the two is two writes.
        let registers = usize::try_from(DOORBELLS.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        let (low, high) = data.split_at(registers);
        let mut work = false;
        {
            let mut front = lock(&self.front);
            if !low.is_empty() {
                work |= front.write(offset, low);
            }
            if !high.is_empty() {
                work |= front.write_doorbells(offset.max(DOORBELLS) - DOORBELLS, high);
            }
        }
        if work {
            self.signal.set();
        }
    }

    /// Writes to its doorbells, wherever they are; `offset` counts from the first.
    pub(crate) fn ring(&self, offset: u64, data: &[u8]) {
        if lock(&self.front).write_doorbells(offset, data) {
            self.signal.set();
        }
    }
}

impl BarTarget for Controller {
    fn read(&self, offset: u64, out: &mut [u8]) {
        if self.id.kind == ControllerKind::Siov {
            out.fill(0xff);
        } else {
            self.read_registers(offset, out);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if self.id.kind != ControllerKind::Siov {
            self.write_at(offset, data);
        }
    }
}

struct Registers(Arc<Controller>);

impl BarTarget for Registers {
    fn read(&self, offset: u64, out: &mut [u8]) {
        let inside = usize::try_from(DOORBELLS.saturating_sub(offset)).unwrap_or(usize::MAX).min(out.len());
        let (low, high) = out.split_at_mut(inside);
        self.0.read_registers(offset, low);
        high.fill(0xff);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let inside = usize::try_from(DOORBELLS.saturating_sub(offset)).unwrap_or(usize::MAX).min(data.len());
        let (low, _) = data.split_at(inside);
        self.0.write_at(offset, low);
    }
}
