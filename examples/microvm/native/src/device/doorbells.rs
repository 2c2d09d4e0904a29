//! Doorbells that do not exit: KVM counts the write on an eventfd, and a thread forwards what the guest left in its shadow page.
//!
//! `KVM_IOEVENTFD` does not carry the value. So the guest stores it first, at 4 * index of the page of shadow doorbells, and then rings; here the page
//! is read after the eventfd. That is a paravirtual doorbell: a guest that only rings is not served so.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::bar::{Bar0, DOORBELLS};
use crate::error::{Error, Result};
use crate::layout::{BAR0_GPA, PAGE, at, status_gpa};
use crate::ram::Ram;

const QUIT: u64 = u64::MAX;

struct Doorbell {
    index: u64,
    event: EventFd,
    /// KVM consumes writes to it.
    registered: bool,
    /// What the device was told last, as far as is known.
    last: Option<u32>,
}

impl Doorbell {
    fn offset(&self) -> u64 {
        DOORBELLS + 4 * self.index
    }

    fn address(&self) -> IoEventAddress {
        IoEventAddress::Mmio(BAR0_GPA + self.offset())
    }
}

struct Shared {
    vm: Arc<VmFd>,
    ram: Arc<Ram>,
    bar: Arc<Bar0>,
    doorbells: Mutex<Vec<Doorbell>>,
    rung: AtomicU64,
    quit: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Doorbell>> {
        self.doorbells.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forwards what was rung. Without a doorbell's eventfd being signalled nothing is done for it.
    fn forward(&self) {
        let mut doorbells = self.lock();
        for doorbell in doorbells.iter_mut() {
            // Reading resets the count; what is rung from now on signals again, so no value is missed.
            let Ok(count) = doorbell.event.read() else { continue };
            self.rung.fetch_add(count, Ordering::Relaxed);
            let Some(value) = self.value(doorbell.index) else { continue };
            if doorbell.last != Some(value) {
                doorbell.last = Some(value);
                self.bar.write(doorbell.offset(), &value.to_le_bytes());
            }
        }
    }

    fn value(&self, index: u64) -> Option<u32> {
        let page = self.ram.load::<u64>(status_gpa(0) + at::STATUS_SHADOW).filter(|p| *p != 0 && p % PAGE == 0)?;
        self.ram.load::<u32>(page.checked_add(4 * index)?)
    }

    fn unregister(&self, doorbell: &mut Doorbell) {
        if doorbell.registered && self.vm.unregister_ioevent(&doorbell.event, &doorbell.address(), NoDatamatch).is_ok()
        {
            doorbell.registered = false;
        }
    }
}

/// See the module.
pub struct Doorbells {
    shared: Arc<Shared>,
    wake: EventFd,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Doorbells {
    /// Takes over the doorbells of queues 0 to `queues` that the filter lets pass.
    pub fn new(vm: Arc<VmFd>, ram: Arc<Ram>, bar: Arc<Bar0>, queues: u64) -> Result<Self> {
        let event = || EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(Error::system("eventfd"));
        let mut doorbells = Vec::new();
        for index in 0..2 * (queues + 1) {
            doorbells.push(Doorbell { index, event: event()?, registered: false, last: None });
        }
        let epoll = Epoll::new().map_err(Error::system("epoll"))?;
        let add = |fd: RawFd, data: u64| {
            epoll
                .ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, data))
                .map_err(Error::system("epoll_ctl"))
        };
        for doorbell in &doorbells {
            add(doorbell.event.as_raw_fd(), doorbell.index)?;
        }
        let wake = event()?;
        add(wake.as_raw_fd(), QUIT)?;
        let shared = Arc::new(Shared {
            vm,
            ram,
            bar,
            doorbells: Mutex::new(doorbells),
            rung: AtomicU64::new(0),
            quit: AtomicBool::new(false),
        });
        let runs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("doorbells".into())
            .spawn(move || {
                let mut events = [EpollEvent::default(); 16];
                while !runs.quit.load(Ordering::SeqCst) {
                    match epoll.wait(-1, &mut events) {
                        Ok(_) => runs.forward(),
                        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(_) => return,
                    }
                }
            })
            .map_err(Error::system("starting a thread"))?;
        let doorbells = Self { shared, wake, thread: Mutex::new(Some(thread)) };
        doorbells.follow_filter()?;
        Ok(doorbells)
    }

    /// Gives KVM the doorbells that pass the filter as it is now, and no others.
    pub fn follow_filter(&self) -> Result<()> {
        let shared = &self.shared;
        for doorbell in shared.lock().iter_mut() {
            let wanted = shared.bar.passes_doorbell(doorbell.offset());
            if wanted && !doorbell.registered {
                shared
                    .vm
                    .register_ioevent(&doorbell.event, &doorbell.address(), NoDatamatch)
                    .map_err(Error::kvm("KVM_IOEVENTFD"))?;
                doorbell.registered = true;
            } else if !wanted {
                shared.unregister(doorbell);
            }
        }
        Ok(())
    }

    /// Forwards everything that was rung before this call.
    pub fn flush(&self) {
        self.shared.forward();
    }

    /// The controller was reset, or is another: what it was told is no longer known.
    pub fn forget(&self) {
        self.shared.lock().iter_mut().for_each(|d| d.last = None);
    }

    pub fn rung(&self) -> u64 {
        self.shared.rung.load(Ordering::Relaxed)
    }

    /// Idempotent.
    pub fn close(&self) {
        self.shared.quit.store(true, Ordering::SeqCst);
        let _ = self.wake.write(1);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
        let shared = &self.shared;
        shared.lock().iter_mut().for_each(|d| shared.unregister(d));
    }
}

impl Drop for Doorbells {
    fn drop(&mut self) {
        self.close();
    }
}
