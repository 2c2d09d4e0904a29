//! The subsystem: its controllers, its namespaces, and what the controlling function hands out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};

use towline_core::bar::BarTarget;

use super::config::{ModelError, SubsystemConfig};
use super::controller::{Controller, ControllerKind};
use super::engine::{Engine, Identity, Mailbox, Run, Suspension};
use super::faults::Faults;
use super::front::{DOORBELLS, Front, Presence};
use super::namespace::Namespace;
use super::signal::{Signal, lock};
use crate::resources::{
    PrimaryCapabilities, Resource, SecondaryController, VirtualizationAction, VirtualizationManagement,
};
use crate::status::StatusCode;

/// Controller identifier of the controlling PF.
pub const CONTROLLING_CNTLID: u16 = 1;
/// First doorbell page of a SIOV-like function in the controlling PF's BAR. Its own doorbells end before: 511 queue pairs.
const SIOV_PAGES: u64 = 0x1_0000;
/// Bytes of one such page.
const SIOV_PAGE: u64 = 0x1000;

/// A subsystem with one controlling PF, further PFs, VFs and SIOV-like functions over shared namespaces in files.
pub struct Subsystem {
    inner: Arc<Inner>,
}

/// What secondary controllers have been given.
#[derive(Debug, Default)]
struct Pools {
    /// Queue pairs and vectors by secondary controller.
    assigned: BTreeMap<u16, (u16, u16)>,
    /// Flexible resources of the controlling PF: now, and from the next function level reset on.
    primary: (u16, u16),
    primary_next: (u16, u16),
    num_vfs: u16,
}

pub(crate) struct Inner {
    config: SubsystemConfig,
    nqn: String,
    disks: Arc<[Namespace]>,
    controllers: Mutex<BTreeMap<u16, Arc<Controller>>>,
    pools: Mutex<Pools>,
    faults: Arc<Faults>,
    closed: AtomicBool,
}

impl Subsystem {
    /// Opens the namespaces and starts the controllers. VFs exist and are neither enabled nor online; SIOV-like functions do not
    /// exist yet.
    ///
    /// # Errors
    /// A field of `config` is out of its range, a file cannot be opened or is too short, a thread cannot be started.
    pub fn open(config: SubsystemConfig) -> Result<Arc<Self>, ModelError> {
        config.validate()?;
        let disks: Result<Vec<Namespace>, ModelError> =
            (1..).zip(&config.namespaces).map(|(nsid, disk)| Namespace::open(nsid, disk.clone())).collect();
        let inner = Arc::new(Inner {
            nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{}", uuid_text(&config.uuid)),
            disks: disks?.into(),
            controllers: Mutex::new(BTreeMap::new()),
            pools: Mutex::new(Pools::default()),
            faults: Arc::new(Faults::default()),
            closed: AtomicBool::new(false),
            config,
        });
        // Dropped on an error, it ends the workers that were started.
        let subsystem = Arc::new(Self { inner: Arc::clone(&inner) });
        let add = |cntlid: u16, kind, vfn| -> Result<(), ModelError> {
            let controller = inner.make(&inner, cntlid, kind, vfn, None)?;
            lock(&inner.controllers).insert(cntlid, controller);
            Ok(())
        };
        add(CONTROLLING_CNTLID, ControllerKind::ControllingPf, 0)?;
        for n in 0..inner.config.further_pfs {
            add(CONTROLLING_CNTLID + 1 + n, ControllerKind::Pf, 0)?;
        }
        for vfn in 1..=inner.config.max_vfs {
            add(inner.first_vf() + vfn - 1, ControllerKind::Vf, vfn)?;
        }
        Ok(subsystem)
    }

    /// Every controller, by ascending identifier.
    pub fn controllers(&self) -> Vec<Arc<Controller>> {
        lock(&self.inner.controllers).values().cloned().collect()
    }

    /// The controller with this identifier.
    pub fn controller(&self, cntlid: u16) -> Option<Arc<Controller>> {
        self.inner.controller(cntlid)
    }

    /// The controlling PF; `None` once the subsystem is closed.
    pub fn controlling(&self) -> Option<Arc<Controller>> {
        self.inner.controller(CONTROLLING_CNTLID)
    }

    /// What it was made of.
    pub fn config(&self) -> &SubsystemConfig {
        &self.inner.config
    }

    /// The NVMe Qualified Name of the subsystem.
    pub fn nqn(&self) -> &str {
        &self.inner.nqn
    }

    /// How many VFs are enabled.
    pub fn num_vfs(&self) -> u16 {
        lock(&self.inner.pools).num_vfs
    }

    /// Enables the first `count` VFs (SR-IOV NumVFs and VF Enable). They are offline until Virtualization Management brings them
    /// online. 0 disables all of them, whatever they do.
    ///
    /// # Errors
    /// More than there are, or a number other than 0 while some are enabled.
    pub fn set_num_vfs(&self, count: u16) -> Result<(), ModelError> {
        self.inner.set_num_vfs(count)
    }

    /// Makes a SIOV-like function and returns its controller identifier. It is offline.
    ///
    /// # Errors
    /// There are as many as there can be, or the subsystem is closed.
    pub fn create_siov(&self) -> Result<u16, ModelError> {
        self.inner.create_siov(&self.inner)
    }

    /// Removes a SIOV-like function, whatever it does; its resources return to the pools.
    ///
    /// # Errors
    /// There is no such controller, or it is of another kind.
    pub fn remove_siov(&self, cntlid: u16) -> Result<(), ModelError> {
        self.inner.remove_siov(cntlid)
    }

    /// BAR0 of the controlling PF with the doorbell pages of the SIOV-like functions in it
    /// ([`Controller::siov_doorbell_offset`]). A page whose function does not exist reads as zeroes and ignores writes.
    pub fn parent_bar(&self) -> Arc<dyn BarTarget> {
        Arc::new(ParentBar(Arc::downgrade(&self.inner)))
    }

    /// Length of [`Subsystem::parent_bar`] in bytes, a power of two.
    pub fn parent_bar_bytes(&self) -> u64 {
        (SIOV_PAGES + u64::from(self.inner.config.max_siov) * SIOV_PAGE).next_power_of_two()
    }

    /// Faults and rates.
    pub fn faults(&self) -> &Faults {
        &self.inner.faults
    }

    /// Ends every worker; their controllers read as all ones from then on. Idempotent, and done on drop too. Not to be called
    /// from an [`super::InterruptSink`].
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::Release);
        let controllers = std::mem::take(&mut *lock(&self.inner.controllers));
        controllers.values().for_each(|controller| controller.close());
    }
}

impl Drop for Subsystem {
    fn drop(&mut self) {
        self.close();
    }
}

impl Inner {
    fn first_vf(&self) -> u16 {
        CONTROLLING_CNTLID + 1 + self.config.further_pfs
    }

    fn first_siov(&self) -> u16 {
        self.first_vf() + self.config.max_vfs
    }

    fn make(
        &self,
        inner: &Arc<Self>,
        cntlid: u16,
        kind: ControllerKind,
        vfn: u16,
        doorbell_page: Option<u64>,
    ) -> Result<Arc<Controller>, ModelError> {
        let config = &self.config;
        let primary = matches!(kind, ControllerKind::ControllingPf | ControllerKind::Pf);
        let controlling = kind == ControllerKind::ControllingPf;
        let (queues, vectors) = if primary { (config.pf_queues, config.pf_vectors) } else { (0, 0) };
        let presence = match kind {
            ControllerKind::ControllingPf | ControllerKind::Pf => Presence::Online,
            ControllerKind::Vf => Presence::Absent,
            ControllerKind::Siov => Presence::Offline,
        };
        // As many doorbells as it could ever have.
        let most = if primary { config.pf_queues.max(MOST_PRIMARY) } else { config.max_queues_per_function };
        let front = Arc::new(Mutex::new(Front::new(presence, most, config.max_queue_entries)));
        let id = Arc::new(Identity {
            cntlid,
            kind,
            vfn,
            max_entries: config.max_queue_entries,
            mdts: config.mdts,
            serial: config.serial.clone(),
            nqn: self.nqn.clone(),
            max_secondaries: config.max_vfs + config.max_siov + config.further_pfs,
        });
        let signal = Arc::new(Signal::default());
        self.faults.register(Arc::downgrade(&signal));
        let attached = self.disks.iter().filter(|disk| primary && disk.config.shared).map(|disk| disk.nsid).collect();
        let mut engine = Engine {
            id: Arc::clone(&id),
            front: Arc::clone(&front),
            mailbox: Arc::new(Mailbox::new(Arc::clone(&signal))),
            faults: Arc::clone(&self.faults),
            disks: Arc::clone(&self.disks),
            subsystem: controlling.then(|| Arc::downgrade(inner)),
            queues,
            vectors_max: vectors,
            dma: None,
            sink: None,
            vectors: super::interrupts::Vectors::default(),
            run: Run::Disabled,
            page_size: 4096,
            sqs: BTreeMap::new(),
            cqs: BTreeMap::new(),
            next_sq: 0,
            features: super::features::Features::default(),
            aers: std::collections::VecDeque::new(),
            events: super::events::Events::default(),
            parked: Vec::new(),
            next_token: 0,
            suspension: Suspension::Active,
            waiters: Vec::new(),
            tracking: None,
            staged: None,
            attached,
            stats: super::log::Stats::default(),
            errors: super::log::ErrorLog::default(),
        };
        engine.vectors.resize(vectors);
        Controller::start(id, front, engine, signal, doorbell_page)
    }

    pub(crate) fn controller(&self, cntlid: u16) -> Option<Arc<Controller>> {
        lock(&self.controllers).get(&cntlid).cloned()
    }

    fn all(&self) -> Vec<Arc<Controller>> {
        lock(&self.controllers).values().cloned().collect()
    }

    fn secondary_controllers(&self) -> Vec<Arc<Controller>> {
        let mut all = self.all();
        all.retain(|controller| matches!(controller.kind(), ControllerKind::Vf | ControllerKind::Siov));
        all
    }

    pub(crate) fn ids(&self) -> Vec<u16> {
        lock(&self.controllers).keys().copied().collect()
    }

    /// The controllers that have `nsid` attached, the controlling one aside (whoever asks holds it).
    pub(crate) fn attached_to(&self, nsid: u32) -> Vec<u16> {
        let others = self.all().into_iter().filter(|controller| controller.cntlid() != CONTROLLING_CNTLID);
        others.filter(|other| other.with(|engine| engine.attached.contains(&nsid))).map(|c| c.cntlid()).collect()
    }

    pub(crate) fn capabilities(&self) -> PrimaryCapabilities {
        let pools = lock(&self.pools);
        let (vq, vi) = pools.used();
        PrimaryCapabilities {
            cntlid: CONTROLLING_CNTLID,
            crt: 0b11,
            vqfrt: self.config.flexible_queues,
            vqrfa: vq,
            vqrfap: pools.primary.0,
            vqprt: self.config.pf_queues,
            vqfrsm: self.config.max_queues_per_function,
            vqgran: 1,
            vifrt: self.config.flexible_vectors,
            virfa: vi,
            virfap: pools.primary.1,
            viprt: self.config.pf_vectors,
            vifrsm: self.config.max_vectors_per_function,
            vigran: 1,
            ..PrimaryCapabilities::default()
        }
    }

    pub(crate) fn secondaries(&self) -> Vec<SecondaryController> {
        let controllers = self.secondary_controllers();
        let pools = lock(&self.pools);
        let entry = |controller: &Arc<Controller>| {
            let (nvq, nvi) = pools.assigned.get(&controller.cntlid()).copied().unwrap_or_default();
            SecondaryController {
                scid: controller.cntlid(),
                pcid: CONTROLLING_CNTLID,
                scs: u8::from(controller.online()),
                vfn: controller.virtual_function(),
                nvq,
                nvi,
            }
        };
        controllers.iter().map(entry).collect()
    }

    /// Virtualization Management. Returns how many resources the command changed.
    pub(crate) fn manage(&self, command: &VirtualizationManagement) -> Result<u16, StatusCode> {
        if command.action == VirtualizationAction::AllocatePrimary {
            return self.allocate_primary(command);
        }
        let secondary =
            self.controller(command.cntlid).filter(|c| matches!(c.kind(), ControllerKind::Vf | ControllerKind::Siov));
        let secondary = secondary.ok_or(StatusCode::InvalidControllerIdentifier)?;
        let mut pools = lock(&self.pools);
        match command.action {
            VirtualizationAction::Assign => {
                if secondary.online() {
                    return Err(StatusCode::InvalidSecondaryControllerState);
                }
                self.assign(&mut pools, command)
            }
            VirtualizationAction::Offline => {
                pools.assigned.remove(&command.cntlid);
                let presence = offline_presence(&secondary, pools.num_vfs);
                secondary.with(|engine| engine.go_offline(presence));
                Ok(0)
            }
            _ => {
                let (queues, vectors) = pools.assigned.get(&command.cntlid).copied().unwrap_or_default();
                let enabled = offline_presence(&secondary, pools.num_vfs) == Presence::Offline;
                if secondary.online() {
                    return Ok(0);
                }
                // An admin queue and one for I/O, and a vector to say so.
                if queues < 2 || vectors < 1 || !enabled {
                    return Err(StatusCode::InvalidSecondaryControllerState);
                }
                secondary.with(|engine| engine.go_online(queues, vectors));
                Ok(0)
            }
        }
    }

    fn assign(&self, pools: &mut Pools, command: &VirtualizationManagement) -> Result<u16, StatusCode> {
        let (used_vq, used_vi) = pools.used();
        let (primary_vq, primary_vi) = pools.primary_claim();
        let had = pools.assigned.get(&command.cntlid).copied().unwrap_or_default();
        let (total, used, had_now, most) = match command.resource {
            Resource::Queues => {
                (self.config.flexible_queues, used_vq + primary_vq, had.0, self.config.max_queues_per_function)
            }
            Resource::Interrupts => {
                (self.config.flexible_vectors, used_vi + primary_vi, had.1, self.config.max_vectors_per_function)
            }
        };
        let free = total.saturating_sub(used) + u32::from(had_now);
        if command.count > most || u32::from(command.count) > free {
            return Err(StatusCode::InvalidNumberOfControllerResources);
        }
        let slot = pools.assigned.entry(command.cntlid).or_default();
        match command.resource {
            Resource::Queues => slot.0 = command.count,
            Resource::Interrupts => slot.1 = command.count,
        }
        Ok(command.count)
    }

    fn allocate_primary(&self, command: &VirtualizationManagement) -> Result<u16, StatusCode> {
        if command.cntlid != CONTROLLING_CNTLID {
            return Err(StatusCode::InvalidControllerIdentifier);
        }
        let mut pools = lock(&self.pools);
        let (used_vq, used_vi) = pools.used();
        let (total, used, private, most) = match command.resource {
            Resource::Queues => (self.config.flexible_queues, used_vq, self.config.pf_queues, MOST_PRIMARY),
            Resource::Interrupts => {
                (self.config.flexible_vectors, used_vi, self.config.pf_vectors, super::config::MAX_VECTORS_PER_FUNCTION)
            }
        };
        if u32::from(command.count) > total.saturating_sub(used) || command.count > most.saturating_sub(private) {
            return Err(StatusCode::InvalidNumberOfControllerResources);
        }
        match command.resource {
            Resource::Queues => pools.primary_next.0 = command.count,
            Resource::Interrupts => pools.primary_next.1 = command.count,
        }
        Ok(command.count)
    }

    /// What a reset, disable or shutdown of the controlling function does to the rest. Returns the queue pairs and vectors that the
    /// controlling function has from now on, where that changes.
    pub(crate) fn primary_reset(&self, function_reset: bool) -> Option<(u16, u16)> {
        let mut pools = lock(&self.pools);
        pools.assigned.clear();
        if function_reset {
            pools.primary = pools.primary_next;
        }
        for controller in self.all() {
            match controller.kind() {
                ControllerKind::ControllingPf => {}
                ControllerKind::Pf => controller.with(|engine| engine.set_tracking(None)),
                ControllerKind::Vf | ControllerKind::Siov => {
                    let presence = offline_presence(&controller, pools.num_vfs);
                    controller.with(|engine| {
                        engine.set_tracking(None);
                        engine.go_offline(presence);
                    });
                }
            }
        }
        let (queues, vectors) = pools.primary;
        function_reset.then_some((self.config.pf_queues + queues, self.config.pf_vectors + vectors))
    }

    fn set_num_vfs(&self, count: u16) -> Result<(), ModelError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(ModelError::Closed);
        }
        if count > self.config.max_vfs {
            return Err(ModelError::TooManyVfs { wanted: count, max: self.config.max_vfs });
        }
        let mut pools = lock(&self.pools);
        if count != 0 && pools.num_vfs != 0 && count != pools.num_vfs {
            return Err(ModelError::VfsEnabled { enabled: pools.num_vfs });
        }
        if count == pools.num_vfs {
            return Ok(());
        }
        pools.num_vfs = count;
        for controller in self.secondary_controllers() {
            if controller.kind() == ControllerKind::Vf {
                pools.assigned.remove(&controller.cntlid());
                let presence = offline_presence(&controller, count);
                controller.with(|engine| engine.go_offline(presence));
            }
        }
        Ok(())
    }

    fn create_siov(&self, inner: &Arc<Self>) -> Result<u16, ModelError> {
        // Held throughout, so that two callers do not take the same number.
        let _pools = lock(&self.pools);
        if self.closed.load(Ordering::Acquire) {
            return Err(ModelError::Closed);
        }
        let max = self.config.max_siov;
        let slot = (0..max).find(|n| self.controller(self.first_siov() + n).is_none());
        let slot = slot.ok_or(ModelError::TooManySiov { max })?;
        let cntlid = self.first_siov() + slot;
        let page = SIOV_PAGES + u64::from(slot) * SIOV_PAGE;
        let controller = self.make(inner, cntlid, ControllerKind::Siov, 0, Some(page))?;
        lock(&self.controllers).insert(cntlid, controller);
        Ok(cntlid)
    }

    fn remove_siov(&self, cntlid: u16) -> Result<(), ModelError> {
        let controller = {
            let mut pools = lock(&self.pools);
            let mut controllers = lock(&self.controllers);
            match controllers.get(&cntlid).map(|controller| controller.kind()) {
                None => return Err(ModelError::Controller { cntlid, why: "does not exist" }),
                Some(ControllerKind::Siov) => {}
                Some(_) => return Err(ModelError::Controller { cntlid, why: "is not a SIOV-like function" }),
            }
            pools.assigned.remove(&cntlid);
            controllers.remove(&cntlid)
        };
        if let Some(controller) = controller {
            controller.close();
        }
        Ok(())
    }
}

/// Most queue pairs of a PF: its own and flexible ones.
const MOST_PRIMARY: u16 = super::config::MAX_QUEUES_PER_FUNCTION;

impl Pools {
    /// Queue pairs and vectors that secondary controllers have.
    fn used(&self) -> (u32, u32) {
        let sum = |(q, v): (u32, u32), (_, (nq, nv)): (&u16, &(u16, u16))| (q + u32::from(*nq), v + u32::from(*nv));
        self.assigned.iter().fold((0, 0), sum)
    }

    /// What the controlling PF has or will have.
    fn primary_claim(&self) -> (u32, u32) {
        let most = |now: u16, next: u16| u32::from(now.max(next));
        (most(self.primary.0, self.primary_next.0), most(self.primary.1, self.primary_next.1))
    }
}

/// How a secondary controller answers while it is not online.
fn offline_presence(controller: &Controller, num_vfs: u16) -> Presence {
    if controller.kind() == ControllerKind::Vf && controller.virtual_function() > num_vfs {
        Presence::Absent
    } else {
        Presence::Offline
    }
}

fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let cut = [0..8, 8..12, 12..16, 16..20, 20..32];
    cut.into_iter().filter_map(|range| hex.get(range)).collect::<Vec<_>>().join("-")
}

struct ParentBar(Weak<Inner>);

impl ParentBar {
    /// The function whose doorbell page `offset` is in, and the offset in it.
    fn page(inner: &Inner, offset: u64) -> Option<(Arc<Controller>, u64)> {
        let at = offset.checked_sub(SIOV_PAGES)?;
        let slot = u16::try_from(at / SIOV_PAGE).ok().filter(|slot| *slot < inner.config.max_siov)?;
        Some((inner.controller(inner.first_siov() + slot)?, at % SIOV_PAGE))
    }
}

impl BarTarget for ParentBar {
    fn read(&self, offset: u64, out: &mut [u8]) {
        match self.0.upgrade().and_then(|inner| inner.controller(CONTROLLING_CNTLID)) {
            Some(controlling) if offset < DOORBELLS => controlling.read(offset, out),
            // Doorbells read as zeroes.
            Some(_) => out.fill(0),
            None => out.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(inner) = self.0.upgrade() else { return };
        if offset < SIOV_PAGES {
            if let Some(controlling) = inner.controller(CONTROLLING_CNTLID) {
                controlling.write(offset, data);
            }
        } else if let Some((controller, at)) = Self::page(&inner, offset) {
            // A write never runs on into the page of another function.
            let room = usize::try_from(SIOV_PAGE - at).unwrap_or(usize::MAX).min(data.len());
            controller.ring(at, data.split_at(room).0);
        }
    }
}
