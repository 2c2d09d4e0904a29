//! A virtual machine with its device: what `Vm` of `index.d.ts` does.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::boot::{self, Wanted};
use crate::bus::{Attached, Bus};
use crate::control::{ControlPage, Load};
use crate::device::bar::Bar0;
use crate::device::client::Client;
use crate::device::doorbells::Doorbells;
use crate::device::msix::Msix;
use crate::error::{Error, Result};
use crate::filter::Filter;
use crate::layout::{BAR0_ROOM, BAR4_ROOM, MAX_VCPUS, PHASE_RUNNING, Status, at, status_gpa};
use crate::machine::Machine;
use crate::ram::{Ram, RangeSpec};
use crate::records::{Kind as RecordKind, RecordLog};
use crate::throttle::Throttle;
use crate::vcpu::Vcpu;
use crate::{device, prefault, state};

/// How often the guest's answer to a request is looked for.
const LOOK: Duration = Duration::from_micros(200);

/// What a VM is made of.
pub struct VmSpec {
    pub vcpus: usize,
    pub memory: Vec<RangeSpec>,
    pub dirty_ring_entries: u32,
    pub log_fd: Option<RawFd>,
    pub host_tag: u8,
}

/// How the device is reached.
pub struct DeviceSpec {
    pub socket: String,
    pub filter: Option<Vec<u8>>,
    pub ioeventfd: bool,
    pub timeout: Duration,
}

/// What was found on connecting.
#[derive(Clone, Copy, Debug)]
pub struct DeviceInfo {
    pub bar0_bytes: u64,
    pub bar4_bytes: u64,
    pub vectors: u32,
}

/// What draining found.
#[derive(Clone, Copy, Debug)]
pub struct Drained {
    pub pending: u64,
    pub next_seq: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Nothing ran yet.
    Fresh,
    Running,
    Still,
    Closed,
}

struct State {
    phase: Phase,
    doorbells: Option<Arc<Doorbells>>,
    /// The first run in this process was, so this incarnation has its number.
    incarnated: bool,
    /// The guest is where `boot` or `restore` put it.
    placed: bool,
}

/// See the module. Fields are dropped in order: what KVM uses goes after KVM's descriptors.
pub struct Vm {
    throttle: Throttle,
    pub(crate) vcpus: Vec<Arc<Vcpu>>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) machine: Machine,
    pub(crate) control: ControlPage,
    ring_full: Arc<Mutex<Option<EventFd>>>,
    ring_entries: u32,
    state: Mutex<State>,
    /// Calls that change what runs take turns.
    turn: Mutex<()>,
    /// Last: it stays mapped until the descriptors are closed.
    _ram: Arc<Ram>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vm {
    pub fn new(spec: &VmSpec) -> Result<Self> {
        if !(1..=MAX_VCPUS).contains(&spec.vcpus) {
            return Err(Error::Argument(format!("{} vCPUs; 1 or 2 are possible", spec.vcpus)));
        }
        let ram = Arc::new(Ram::new(&spec.memory)?);
        let log = RecordLog::new(spec.log_fd, spec.host_tag)?;
        let control = ControlPage::new()?;
        let (machine, fds) = Machine::new(spec.vcpus, spec.dirty_ring_entries, &ram, control.page())?;
        let msix = Arc::new(Msix::new(Arc::clone(&machine.vm)));
        let bus = Arc::new(Bus::new(Arc::clone(&ram), msix, log));
        let ring_full = Arc::new(Mutex::new(None));
        let vcpus = fds
            .into_iter()
            .enumerate()
            .map(|(n, fd)| Vcpu::new(n, fd, Arc::clone(&ring_full)).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        let throttle = Throttle::start(vcpus.clone())?;
        let state = State { phase: Phase::Fresh, doorbells: None, incarnated: false, placed: false };
        let vm = Self {
            throttle,
            vcpus,
            bus,
            machine,
            control,
            ring_full,
            ring_entries: spec.dirty_ring_entries,
            state: Mutex::new(state),
            turn: Mutex::new(()),
            _ram: ram,
        };
        for vcpu in &vm.vcpus {
            vcpu.start(Arc::clone(&vm.bus))?;
        }
        Ok(vm)
    }

    fn open(&self) -> Result<MutexGuard<'_, State>> {
        let state = lock(&self.state);
        if state.phase == Phase::Closed { Err(Error::State("the VM is closed")) } else { Ok(state) }
    }

    /// For what needs the machine to stand still.
    fn still(&self) -> Result<MutexGuard<'_, State>> {
        let state = self.open()?;
        if state.phase == Phase::Running { Err(Error::State("the VM runs; pause it first")) } else { Ok(state) }
    }

    pub fn vm_fd(&self) -> RawFd {
        self.machine.vm.as_raw_fd()
    }

    pub fn vcpu_fds(&self) -> Vec<RawFd> {
        self.vcpus.iter().map(|v| v.raw_fd()).collect()
    }

    pub fn ram(&self) -> &Arc<Ram> {
        &self.bus.ram
    }

    pub fn ring_entries(&self) -> u32 {
        self.ring_entries
    }

    pub fn set_ring_full_event(&self, fd: Option<RawFd>) -> Result<()> {
        let _open = self.open()?;
        let event = match fd {
            None => None,
            Some(fd) if fd < 0 => return Err(Error::Argument("the eventfd is negative".into())),
            Some(fd) => {
                // SAFETY: open during the call that it was given to; it is duplicated here.
                let owned = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned().map_err(Error::system("dup"))?;
                // SAFETY: the descriptor is owned, and given away.
                Some(unsafe { std::os::fd::FromRawFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(owned)) })
            }
        };
        *lock(&self.ring_full) = event;
        Ok(())
    }

    /// Maps RAM here, and for the guest where KVM can.
    pub fn warm(&self) -> Result<()> {
        let _turn = lock(&self.turn);
        drop(self.open()?);
        self.ram().populate()?;
        let running = lock(&self.state).phase == Phase::Running;
        if !running && let Some(vcpu) = self.vcpus.first() {
            prefault::prefault(vcpu, self.ram());
        }
        Ok(())
    }

    pub fn connect(&self, spec: &DeviceSpec) -> Result<DeviceInfo> {
        let _turn = lock(&self.turn);
        drop(self.still()?);
        if self.bus.device().is_some() {
            return Err(Error::State("a device is connected already"));
        }
        let filter = spec.filter.as_deref().map(Filter::parse).transpose()?;
        let client = Arc::new(Client::connect(Path::new(&spec.socket), Arc::clone(self.ram()), spec.timeout)?);
        client.check_device()?;
        let bytes = |region: u32, room: u64| match client.region(region)?.bytes {
            bytes @ 1.. if bytes <= room => Ok(bytes),
            bytes => Err(Error::Device(format!("BAR {region} has {bytes} bytes; 1 to {room} are supported"))),
        };
        let info = DeviceInfo {
            bar0_bytes: bytes(0, BAR0_ROOM)?,
            bar4_bytes: bytes(4, BAR4_ROOM)?,
            vectors: client.vectors()?,
        };
        client.map_ram()?;
        let msix = &self.bus.msix;
        let events = msix.connect(info.vectors as usize)?;
        let bar0 = Arc::new(Bar0::new(Arc::clone(&client), info.bar0_bytes, filter));
        let rest = || {
            client.set_irqs(&events)?;
            let vm = Arc::clone(&self.machine.vm);
            let queues = self.vcpus.len() as u64;
            spec.ioeventfd.then(|| Doorbells::new(vm, Arc::clone(self.ram()), Arc::clone(&bar0), queues)).transpose()
        };
        match rest() {
            Ok(doorbells) => self.open()?.doorbells = doorbells.map(Arc::new),
            Err(e) => {
                msix.disconnect();
                return Err(e);
            }
        }
        self.bus.set_device(Some(Attached { client, bar0 }));
        Ok(info)
    }

    pub fn disconnect(&self) -> Result<()> {
        let _turn = lock(&self.turn);
        let mut state = self.still()?;
        let doorbells = state.doorbells.take();
        drop(state);
        self.release(doorbells);
        Ok(())
    }

    fn release(&self, doorbells: Option<Arc<Doorbells>>) {
        if let Some(doorbells) = doorbells {
            doorbells.close();
        }
        self.bus.msix.disconnect();
        if let Some(device) = self.bus.device() {
            self.bus.set_device(None);
            device.client.close();
        }
    }

    fn client(&self) -> Result<Arc<Client>> {
        drop(self.open()?);
        self.bus.device().map(|d| d.client).ok_or(Error::State("no device is connected"))
    }

    pub fn reset_device(&self) -> Result<()> {
        self.client()?.reset()?;
        if let Some(doorbells) = &self.open()?.doorbells {
            doorbells.forget();
        }
        Ok(())
    }

    pub fn read_config(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.client()?.read(device::CONFIG_REGION, offset, out)
    }

    pub fn write_config(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.client()?.write(device::CONFIG_REGION, offset, data)
    }

    pub fn set_filter(&self, filter: Option<&[u8]>) -> Result<()> {
        let _turn = lock(&self.turn);
        let filter = filter.map(Filter::parse).transpose()?;
        let doorbells = self.open()?.doorbells.clone();
        let device = self.bus.device().ok_or(Error::State("no device is connected"))?;
        device.bar0.set_filter(filter);
        doorbells.map_or(Ok(()), |d| d.follow_filter())
    }

    pub fn boot(&self, image: &[u8], wanted: &Wanted) -> Result<()> {
        let _turn = lock(&self.turn);
        let mut state = self.still()?;
        if state.incarnated {
            return Err(Error::State("a guest runs in this VM already"));
        }
        boot::load(self.ram(), image, wanted, self.vcpus.len(), self.machine.tsc_khz)?;
        for vcpu in &self.vcpus {
            boot::start(&vcpu.fd(), vcpu.index)?;
        }
        state.placed = true;
        Ok(())
    }

    pub fn arm_interrupts(&self) -> Result<()> {
        let _turn = lock(&self.turn);
        drop(self.open()?);
        self.bus.msix.arm()
    }

    pub fn armed(&self) -> bool {
        self.bus.msix.armed()
    }

    fn next_seq(&self) -> u64 {
        self.ram().load(status_gpa(0) + at::STATUS_NEXT_SEQ).unwrap_or(0)
    }

    /// What a vCPU's status page says.
    pub fn status(&self, vcpu: usize) -> Status {
        self.ram().read_obj(status_gpa(vcpu)).unwrap_or_default()
    }

    fn in_flight(&self) -> u64 {
        self.vcpus.iter().map(|v| self.status(v.index).in_flight).sum()
    }

    pub fn run(&self) -> Result<()> {
        let _turn = lock(&self.turn);
        let mut state = self.open()?;
        if state.phase == Phase::Running {
            return Ok(());
        }
        if !state.placed {
            return Err(Error::State("there is no guest: boot or restore one first"));
        }
        if !state.incarnated {
            self.bus.log.set_epoch(self.control.next_epoch());
            state.incarnated = true;
        }
        state.phase = Phase::Running;
        drop(state);
        self.bus.log.say(RecordKind::Started, self.next_seq(), self.in_flight())?;
        self.vcpus.iter().for_each(|v| v.run());
        Ok(())
    }

    pub fn pause(&self) -> Result<()> {
        let _turn = lock(&self.turn);
        self.pause_in_turn()
    }

    fn pause_in_turn(&self) -> Result<()> {
        let state = self.open()?;
        if state.phase != Phase::Running {
            return Ok(());
        }
        let doorbells = state.doorbells.clone();
        drop(state);
        self.vcpus.iter().for_each(|v| v.ask_still());
        self.vcpus.iter().for_each(|v| v.wait_still());
        if let Some(doorbells) = doorbells {
            doorbells.flush();
        }
        // Messages are carried out in order: once this is answered the doorbells were. A device that is gone has none.
        if let Some(device) = self.bus.device() {
            let _ = device.client.read(device::CONFIG_REGION, 0, &mut [0; 4]);
        }
        lock(&self.state).phase = Phase::Still;
        self.bus.log.say(RecordKind::Stopped, self.next_seq(), self.in_flight())
    }

    pub fn running(&self) -> bool {
        lock(&self.state).phase == Phase::Running
    }

    /// Waits until `reached`, at most so long.
    fn wait(&self, timeout: Duration, mut reached: impl FnMut() -> bool) -> Result<bool> {
        let until = Instant::now() + timeout;
        loop {
            if reached() {
                return Ok(true);
            }
            drop(self.open()?);
            if let Some(why) = self.failure() {
                return Err(Error::Device(why));
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }

    pub fn ready(&self, timeout: Duration) -> Result<()> {
        let running = || self.vcpus.iter().all(|v| self.status(v.index).phase >= PHASE_RUNNING);
        if self.wait(timeout, running)? { Ok(()) } else { Err(Error::State("the guest did not get ready in time")) }
    }

    pub fn drain(&self, timeout: Duration) -> Result<Drained> {
        if !self.running() {
            return Err(Error::State("the VM stands still; a guest has to run to be drained"));
        }
        let request = u64::from(self.control.drain());
        let done = self.wait(timeout, || self.vcpus.iter().all(|v| self.status(v.index).drained == request))?;
        let drained = Drained { pending: self.in_flight(), next_seq: self.next_seq() };
        if done {
            self.bus.log.say(RecordKind::Drained, drained.next_seq, drained.pending)?;
        }
        Ok(drained)
    }

    pub fn undrain(&self) -> Result<()> {
        drop(self.open()?);
        self.control.undrain();
        Ok(())
    }

    pub fn load(&self) -> Load {
        self.control.load()
    }

    pub fn set_load(&self, load: Load) -> Result<()> {
        drop(self.open()?);
        self.control.set_load(load)
    }

    pub fn set_throttle(&self, percent: u32) -> Result<()> {
        drop(self.open()?);
        self.throttle.set(percent)
    }

    /// See [`state`].
    pub fn save(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let _still = self.still()?;
        state::save(self)
    }

    /// See [`state`].
    pub fn restore(&self, sections: &[(String, Vec<u8>)]) -> Result<()> {
        let _turn = lock(&self.turn);
        let mut state = self.still()?;
        if state.incarnated {
            return Err(Error::State("a guest runs in this VM already"));
        }
        state.placed = false;
        state::restore(self, sections)?;
        state.placed = true;
        Ok(())
    }

    /// Why it can't go on.
    pub fn failure(&self) -> Option<String> {
        let device = || self.bus.device().and_then(|d| d.client.failure()).map(|why| format!("device: {why}"));
        let placed = lock(&self.state).placed;
        self.bus.failure().or_else(|| if placed { self.bus.guest_failure() } else { None }).or_else(device)
    }

    /// Doorbells by MMIO exit and by ioeventfd.
    pub fn doorbell_counts(&self) -> (u64, u64) {
        let rung = lock(&self.state).doorbells.as_ref().map_or(0, |d| d.rung());
        (self.bus.counters.doorbells.load(Ordering::Relaxed), rung)
    }

    pub fn close(&self) {
        // A call under way ends first; those that wait for the guest see that it closes.
        let doorbells = {
            let mut state = lock(&self.state);
            if state.phase == Phase::Closed {
                return;
            }
            state.phase = Phase::Closed;
            state.doorbells.take()
        };
        // A vCPU that waits for the log's reader is let go, too, and with it a pause that waits for the vCPU.
        self.bus.log.close();
        let _turn = lock(&self.turn);
        self.throttle.close();
        // A vCPU that waits for the device is let go.
        if let Some(device) = self.bus.device() {
            device.client.close();
        }
        self.vcpus.iter().for_each(|v| v.end());
        self.release(doorbells);
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests;
