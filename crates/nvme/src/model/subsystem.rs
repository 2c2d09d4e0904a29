//! The subsystem: its controllers, its namespaces, and what the controlling function hands out.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use towline_core::bar::BarTarget;

use super::config::{MAX_QUEUES_PER_FUNCTION, ModelError, SubsystemConfig};
use super::controller::{Controller, ControllerKind};
use super::engine::{Engine, Identity, Mailbox, Run, Suspension};
use super::faults::Faults;
use super::front::{Front, Presence};
use super::namespace::Namespace;
use super::parent_bar::{ParentBar, SIOV_PAGE, SIOV_PAGES};
use super::pools::{Pools, offline_presence};
use super::signal::{Signal, lock};
/// Controller identifier of the controlling PF.
pub const CONTROLLING_CNTLID: u16 = 1;
/// A subsystem with one controlling PF, further PFs, VFs and SIOV-like functions over shared namespaces in files.
pub struct Subsystem {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub config: SubsystemConfig,
    nqn: String,
    disks: Arc<[Namespace]>,
    controllers: Mutex<BTreeMap<u16, Arc<Controller>>>,
    pub pools: Mutex<Pools>,
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
        let controllers = {
            // Whoever makes a function holds the pools: none appears after this.
            let _pools = lock(&self.inner.pools);
            self.inner.closed.store(true, Ordering::Release);
            std::mem::take(&mut *lock(&self.inner.controllers))
        };
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

    pub(crate) fn first_siov(&self) -> u16 {
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
        let most = if primary { config.pf_queues.max(MAX_QUEUES_PER_FUNCTION) } else { config.max_queues_per_function };
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
            limiter: super::limit::Limiter::default(),
            staged: None,
            attached,
            stats: super::log::Stats::default(),
            errors: super::log::ErrorLog::default(),
        };
        engine.set_resources(queues, vectors);
        Controller::start(id, front, engine, signal, doorbell_page)
    }

    pub(crate) fn controller(&self, cntlid: u16) -> Option<Arc<Controller>> {
        lock(&self.controllers).get(&cntlid).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Controller>> {
        lock(&self.controllers).values().cloned().collect()
    }

    pub(crate) fn secondary_controllers(&self) -> Vec<Arc<Controller>> {
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

fn uuid_text(uuid: &[u8; 16]) -> String {
    let hex: String = uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let cut = [0..8, 8..12, 12..16, 16..20, 20..32];
    cut.into_iter().filter_map(|range| hex.get(range)).collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::resources::{Resource, VirtualizationAction, VirtualizationManagement};
    use crate::status::StatusCode;

    fn open() -> Arc<Subsystem> {
        Subsystem::open(SubsystemConfig { uuid: [7; 16], ..SubsystemConfig::default() }).unwrap()
    }

    /// A function is removed while an Assign that names it waits for the pools.
    #[test]
    fn nothing_is_assigned_to_a_function_that_is_being_removed() {
        let subsystem = open();
        let cntlid = subsystem.create_siov().unwrap();
        let inner = &subsystem.inner;
        let command = VirtualizationManagement {
            action: VirtualizationAction::Assign,
            resource: Resource::Queues,
            cntlid,
            count: 2,
        };
        let removed = thread::scope(|scope| {
            let pools = lock(&inner.pools);
            let assign = scope.spawn(|| inner.manage(&command));
            // Time enough to look the function up before the pools are free.
            thread::sleep(Duration::from_millis(100));
            let removed = lock(&inner.controllers).remove(&cntlid);
            drop(pools);
            assert_eq!(assign.join().unwrap(), Err(StatusCode::InvalidControllerIdentifier));
            removed
        });
        assert!(lock(&inner.pools).assigned.is_empty(), "resources of a function that is gone");
        removed.unwrap().close();
        // The counterpart: one that is there gets them.
        let cntlid = subsystem.create_siov().unwrap();
        assert_eq!(inner.manage(&VirtualizationManagement { cntlid, ..command }), Ok(2));
        assert_eq!(lock(&inner.pools).assigned.get(&cntlid), Some(&(2, 0)));
    }

    /// A shutdown that stays asked for is carried out once: whatever is done afterwards is not undone by it.
    #[test]
    fn a_disabled_controller_shuts_down_once() {
        let subsystem = open();
        let controller = subsystem.controlling().unwrap();
        let write_cc = |value: u32| controller.write(0x14, &value.to_le_bytes());
        let shut_down = |wanted: u32| {
            let start = Instant::now();
            while controller.with(|engine| lock(&engine.front).csts >> 2 & 3) != wanted {
                assert!(start.elapsed() < Duration::from_secs(10), "CSTS.SHST does not become {wanted}");
                thread::sleep(Duration::from_millis(1));
            }
        };
        let mark = || lock(&subsystem.inner.pools).assigned.insert(3, (2, 2));
        let marked = || !lock(&subsystem.inner.pools).assigned.is_empty();
        write_cc(1 << 14);
        shut_down(2);
        mark();
        for _ in 0..20 {
            controller.with(|_| ());
            thread::sleep(Duration::from_millis(2));
        }
        assert!(marked(), "the shutdown was carried out again");
        // Asked for anew it is carried out anew.
        write_cc(0);
        shut_down(0);
        write_cc(1 << 14);
        shut_down(2);
        assert!(!marked());
    }
}
