//! The PCI function of a controller of the embedded subsystem, of every kind.
//!
//! A PF and a VF have a BAR of their own. A SIOV-like function has one doorbell page of its parent's BAR and nothing else: its config space,
//! its registers and its place for the doorbells are made here.

mod bar;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline_core::bar::{BarTarget, Filter, FilteredBar, NoTraps, PolicyError};
use towline_core::memory::GuestMemory;
use towline_nvme::model::{Controller, ControllerKind, InterruptSink, Subsystem};

use crate::pci::{CONFIG_REGION, ConfigSpace, FunctionDescription, MSIX_PBA_OFFSET, PciFunction};
use crate::{ExposureSection, Interrupts, SectionError, SectionIdentity};

/// The vendor of the model, which nobody who registers uses; see Identify Controller.
const VENDOR: u16 = 0x1234;
/// Devices by kind.
const DEVICE_PF: u16 = 0x7450;
const DEVICE_VF: u16 = 0x7456;
const DEVICE_SIOV: u16 = 0x7453;
/// NVM Express I/O controller (PCI Code and ID Assignment, class 01h, subclass 08h, interface 02h).
const CLASS: u32 = 0x01_0802;
const REVISION: u8 = 1;
const BAR4_BYTES: u64 = 0x2000;

/// How a controller is made a PCI function.
#[derive(Clone, Debug, Default)]
pub struct NvmeFunctionOptions {
    /// Before BAR0, for accesses of the guest. Its BAR has to be as long as the function's ([`NvmeFunction::bar0_bytes_of`]).
    pub filter: Option<Arc<Filter>>,
    /// Lets the guest map doorbells that the filter lets through. Refused: see [`NvmeFunctionError::MapDoorbells`].
    pub map_doorbells: bool,
}

/// Why a controller can't be made a PCI function so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeFunctionError {
    /// There is no such controller.
    #[error("there is no controller {cntlid}")]
    NoController {
        /// The controller identifier.
        cntlid: u16,
    },
    /// The filter is for another BAR.
    #[error("the BAR filter is for {filter_bytes} bytes, BAR 0 has {bar_bytes}")]
    FilterSize {
        /// Bytes of the filter's BAR.
        filter_bytes: u64,
        /// Bytes of the function's.
        bar_bytes: u64,
    },
    /// The policy for the doorbells of a SIOV-like function can't be compiled.
    #[error("BAR policy of the doorbells: {0}")]
    Policy(#[from] PolicyError),
    /// Doorbells in memory that a guest shares with this process would have to be polled: a write there raises no event, and the model has
    /// no thread that looks.
    #[error(
        "doorbells can't be mapped by the client: the embedded controller learns of a doorbell by the write itself, and does not poll"
    )]
    MapDoorbells,
}

struct State {
    config: ConfigSpace,
    vectors: u16,
    device: u16,
    /// Config space was brought along for a client that has not come yet.
    restored: bool,
    /// The client went while the function was sealed.
    reset_due: bool,
    client: Option<(Arc<dyn GuestMemory>, Arc<Interrupts>)>,
    /// The controller has the client's memory.
    does_dma: bool,
}

/// See the module's documentation.
pub struct NvmeFunction {
    controller: Arc<Controller>,
    bar0: Arc<dyn BarTarget>,
    bar0_bytes: u64,
    most_vectors: u16,
    state: Mutex<State>,
    /// The client has come after the state that was restored, and has yet to say that its memory is there.
    held_back: AtomicBool,
}

/// The controller, what stands for its BAR0, and how many bytes that has.
type Parts = (Arc<Controller>, Arc<dyn BarTarget>, u64);

impl NvmeFunction {
    /// Bytes of BAR0 of a controller: registers and doorbells; for the controlling PF also the doorbell pages of the SIOV-like functions.
    #[must_use]
    pub fn bar0_bytes_of(subsystem: &Subsystem, kind: ControllerKind) -> u64 {
        if kind == ControllerKind::ControllingPf { subsystem.parent_bar_bytes() } else { bar::OWN_BAR_BYTES }
    }

    /// Whether controller `cntlid` can be made a PCI function so: what [`NvmeFunction::new`] checks. Takes it from nobody.
    ///
    /// # Errors
    /// [`NvmeFunctionError`].
    pub fn check(subsystem: &Subsystem, cntlid: u16, options: &NvmeFunctionOptions) -> Result<(), NvmeFunctionError> {
        Self::parts(subsystem, cntlid, options).map(|_| ())
    }

    fn parts(subsystem: &Subsystem, cntlid: u16, options: &NvmeFunctionOptions) -> Result<Parts, NvmeFunctionError> {
        let controller = subsystem.controller(cntlid).ok_or(NvmeFunctionError::NoController { cntlid })?;
        if options.map_doorbells {
            return Err(NvmeFunctionError::MapDoorbells);
        }
        let bar0_bytes = Self::bar0_bytes_of(subsystem, controller.kind());
        let mut bar0 = bar::bar0(subsystem, &controller)?;
        if let Some(filter) = &options.filter {
            let filter_bytes = filter.bar_bytes();
            if filter_bytes != bar0_bytes {
                return Err(NvmeFunctionError::FilterSize { filter_bytes, bar_bytes: bar0_bytes });
            }
            // Nobody is asked about a trap: it answers as the filter's default for that is.
            bar0 = Arc::new(FilteredBar::new(Arc::clone(filter), bar0, Arc::new(NoTraps)));
        }
        Ok((controller, bar0, bar0_bytes))
    }

    /// Makes controller `cntlid` a PCI function. It is taken from whoever used it: its guest memory is detached, and it is reset.
    ///
    /// # Errors
    /// [`NvmeFunctionError`]; then nothing has changed.
    pub fn new(subsystem: &Subsystem, cntlid: u16, options: &NvmeFunctionOptions) -> Result<Self, NvmeFunctionError> {
        let (controller, bar0, bar0_bytes) = Self::parts(subsystem, cntlid, options)?;
        let config = subsystem.config();
        let most_vectors = match controller.kind() {
            ControllerKind::ControllingPf | ControllerKind::Pf => config.pf_vectors,
            ControllerKind::Vf | ControllerKind::Siov => config.max_vectors_per_function,
        };
        let (config, vectors, device) = describe(&controller, bar0_bytes, most_vectors);
        let (restored, reset_due, does_dma) = (false, false, false);
        let state = Mutex::new(State { config, vectors, device, restored, reset_due, client: None, does_dma });
        controller.detach();
        controller.flr();
        Ok(Self { controller, bar0, bar0_bytes, most_vectors, state, held_back: AtomicBool::new(false) })
    }

    /// The controller.
    #[must_use]
    pub fn controller(&self) -> &Arc<Controller> {
        &self.controller
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the controller the client's memory, or takes it away, as config space says.
    fn apply_dma(&self, state: &mut State) {
        let wanted = state.config.may_do_dma() && !self.held_back.load(Ordering::Acquire);
        match &state.client {
            Some((memory, interrupts)) if wanted && !state.does_dma => {
                let sink: Arc<dyn InterruptSink> = Arc::clone(interrupts) as Arc<dyn InterruptSink>;
                self.controller.attach(Arc::clone(memory), sink);
            }
            _ if !wanted && state.does_dma => self.controller.detach(),
            _ => {}
        }
        state.does_dma = wanted && state.client.is_some();
    }

    /// Config space and vectors as after power-up, with what the controller has now.
    fn describe(&self, state: &mut State) {
        (state.config, state.vectors, state.device) = describe(&self.controller, self.bar0_bytes, self.most_vectors);
    }

    fn identity(&self, state: &State) -> SectionIdentity {
        SectionIdentity {
            vendor: VENDOR,
            device: state.device,
            class_revision: CLASS << 8 | u32::from(REVISION),
            bar0_bytes: self.bar0_bytes,
            bar4_bytes: BAR4_BYTES,
            vectors: state.vectors,
        }
    }

    /// What any reset of the function does.
    fn reset_function(&self, state: &mut State) {
        state.config.reset();
        self.apply_dma(state);
        self.controller.flr();
        if let Some((_, interrupts)) = &state.client {
            interrupts.clear_pending();
        }
    }

    fn read_bar4(&self, offset: u64, out: &mut [u8]) {
        out.fill(0);
        let pending = self.lock().client.as_ref().map(|(_, interrupts)| interrupts.pending_bits()).unwrap_or_default();
        for (n, to) in out.iter_mut().enumerate() {
            let at = offset.saturating_add(n as u64).checked_sub(MSIX_PBA_OFFSET);
            *to = at.and_then(|at| usize::try_from(at).ok()).and_then(|at| pending.get(at)).copied().unwrap_or(0);
        }
    }
}

/// Config space and vectors, as many as the controller has now. One that is offline has none yet; it may get as many as one can have.
fn describe(controller: &Controller, bar0_bytes: u64, most_vectors: u16) -> (ConfigSpace, u16, u16) {
    let vectors = match controller.resources() {
        (_, 0) => most_vectors,
        (_, vectors) => vectors,
    };
    let vectors = vectors.clamp(1, 256);
    let device = match controller.kind() {
        ControllerKind::ControllingPf | ControllerKind::Pf => DEVICE_PF,
        ControllerKind::Vf => DEVICE_VF,
        ControllerKind::Siov => DEVICE_SIOV,
    };
    let description = FunctionDescription {
        vendor: VENDOR,
        device,
        revision: REVISION,
        class: CLASS,
        bar0_bytes,
        bar4_bytes: BAR4_BYTES,
        vectors,
    };
    (ConfigSpace::new(&description), vectors, device)
}

impl PciFunction for NvmeFunction {
    fn prepare(&self) {
        let (restored, reset_due) = {
            let mut state = self.lock();
            (std::mem::take(&mut state.restored), std::mem::take(&mut state.reset_due))
        };
        if restored {
            return;
        }
        if reset_due {
            self.controller.flr();
        }
        // Resources may have been assigned since the client before.
        self.describe(&mut self.lock());
    }

    fn region_bytes(&self, region: u32) -> u64 {
        match region {
            0 => self.bar0_bytes,
            4 => BAR4_BYTES,
            CONFIG_REGION => ConfigSpace::BYTES,
            _ => 0,
        }
    }

    fn vectors(&self) -> u16 {
        self.lock().vectors
    }

    fn attach(&self, memory: Arc<dyn GuestMemory>, interrupts: Arc<Interrupts>) {
        self.lock().client = Some((memory, interrupts));
    }

    fn detach(&self) {
        let mut state = self.lock();
        self.controller.detach();
        state.does_dma = false;
        state.client = None;
        state.restored = false;
        self.held_back.store(false, Ordering::Release);
        if self.controller.sealed() {
            state.reset_due = true;
        } else {
            state.config.reset();
            self.controller.flr();
        }
    }

    fn read(&self, region: u32, offset: u64, out: &mut [u8]) {
        match region {
            0 => self.bar0.read(offset, out),
            4 => self.read_bar4(offset, out),
            CONFIG_REGION => self.lock().config.read(offset, out),
            _ => out.fill(0xff),
        }
    }

    fn write(&self, region: u32, offset: u64, data: &[u8]) {
        match region {
            0 => {
                if self.held_back.swap(false, Ordering::AcqRel) {
                    self.apply_dma(&mut self.lock());
                }
                self.bar0.write(offset, data);
            }
            CONFIG_REGION => {
                let mut state = self.lock();
                if ConfigSpace::touches_command(offset, data.len()) {
                    self.held_back.store(false, Ordering::Release);
                }
                if state.config.write(offset, data).reset {
                    self.reset_function(&mut state);
                } else {
                    self.apply_dma(&mut state);
                }
            }
            // The MSI-X table is the VMM's, and the pending bits are read-only.
            _ => {}
        }
    }

    fn waits(&self, region: u32, offset: u64, data: &[u8]) -> bool {
        region == CONFIG_REGION
            && (ConfigSpace::asks_for_reset(offset, data) || self.lock().config.would_end_dma(offset, data))
    }

    fn reset(&self) {
        self.reset_function(&mut self.lock());
    }

    fn section_format(&self) -> Option<String> {
        // A controlling function migrates others.
        let migrates = self.controller.kind() != ControllerKind::ControllingPf;
        let mut state = self.lock();
        if state.client.is_none() && !state.restored && !state.reset_due && !self.controller.sealed() {
            // As the next client would find it.
            self.describe(&mut state);
        }
        migrates.then(|| self.identity(&state).to_string())
    }

    fn save_section(&self) -> Result<ExposureSection, SectionError> {
        const RUNS: SectionError =
            SectionError::NotStopped("the function runs: its section is taken once it was stopped");
        // Without the lock: a controller that runs may wait for the client, and with it for a thread that waits for the lock.
        if !self.controller.suspended() {
            return Err(RUNS);
        }
        let state = self.lock();
        self.controller.seal().map_err(|_| RUNS)?;
        let (wired, pending) = state
            .client
            .as_ref()
            .map_or_else(Default::default, |(_, interrupts)| (interrupts.wired_bits(), interrupts.pending_bits()));
        Ok(ExposureSection { identity: self.identity(&state), config: state.config.state(), wired, pending })
    }

    fn restore_section(&self, section: &ExposureSection) -> Result<(), SectionError> {
        if !self.controller.suspended() {
            let what = "the function is not stopped with a state that was loaded: its section comes after that";
            return Err(SectionError::NotStopped(what));
        }
        let mut state = self.lock();
        if state.client.is_none() {
            self.describe(&mut state);
        }
        let own = self.identity(&state);
        if section.identity != own {
            return Err(SectionError::Mismatch(format!("it is of {}, and this is {own}", section.identity)));
        }
        if let Some(at) = state.config.misfit(&section.config) {
            let what = format!("config space at {at:#x} has bits that this function does not have");
            return Err(SectionError::Mismatch(what));
        }
        // As after a reset first: a client that is there already may have set something.
        state.config.reset();
        state.config.put(&section.config);
        // Raised by Resume, and not before: whoever waits for them is not complete yet.
        section.pending_vectors().for_each(|vector| self.controller.set_vector_pending(vector));
        // Memory that is not there yet would be an error of the controller.
        state.restored = state.client.is_none();
        self.held_back.store(state.restored, Ordering::Release);
        self.apply_dma(&mut state);
        Ok(())
    }

    fn forget_section(&self) {
        let mut state = self.lock();
        state.config.reset();
        state.restored = false;
        self.held_back.store(false, Ordering::Release);
        self.apply_dma(&mut state);
    }

    fn stopped(&self) -> bool {
        self.controller.suspended()
    }

    fn sealed(&self) -> bool {
        self.controller.sealed()
    }
}
