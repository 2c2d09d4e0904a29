//! A vCPU and its thread.
//!
//! Another thread stops it by a wish, the `immediate_exit` of its run page, and a signal: whichever way it stands to `KVM_RUN` at that time, it
//! leaves or does not enter. KVM then has finished what the last exit left to do, so that its state is whole.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Bus;
use crate::error::{Error, Result};

/// `KVM_EXIT_DIRTY_RING_FULL`
const EXIT_DIRTY_RING_FULL: u32 = 31;
/// How long a vCPU with a full ring waits at most for somebody to harvest it.
const RING_PATIENCE: Duration = Duration::from_millis(10);
/// Offset of `immediate_exit` in struct kvm_run (include/uapi/linux/kvm.h).
const IMMEDIATE_EXIT: usize = 1;

/// What its thread is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Stand,
    Run,
    End,
}

struct State {
    wish: Wish,
    /// The thread is, or may be, in the guest.
    running: bool,
    /// It does not enter before then: throttled.
    held_until: Option<Instant>,
    /// Nothing makes it run again.
    broken: bool,
}

/// The page that KVM shares with the process.
struct RunPage(NonNull<u8>);

// SAFETY: the page is shared memory; only the one byte is touched, and that atomically.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

const RUN_PAGE_BYTES: usize = 4096;

impl RunPage {
    fn map(fd: RawFd) -> Result<Self> {
        // SAFETY: a fresh shared mapping of the first page of the vCPU's descriptor, which KVM documents; nothing else is touched.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RUN_PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(Error::last("mmap of a vCPU"));
        }
        NonNull::new(page.cast::<u8>()).map(Self).ok_or_else(|| Error::last("mmap of a vCPU"))
    }

    fn immediate_exit(&self) -> &AtomicU8 {
        // SAFETY: within the page, which is mapped as long as `self`; a byte has no alignment.
        unsafe { AtomicU8::from_ptr(self.0.as_ptr().add(IMMEDIATE_EXIT)) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made; nothing refers to it any more.
        unsafe { libc::munmap(self.0.as_ptr().cast(), RUN_PAGE_BYTES) };
    }
}

/// What a vCPU's thread, its controllers and whoever saves its state share.
pub struct Vcpu {
    pub index: usize,
    raw_fd: RawFd,
    /// Locked by the thread while it runs.
    fd: Mutex<VcpuFd>,
    page: RunPage,
    state: Mutex<State>,
    changed: Condvar,
    thread: Mutex<Option<JoinHandle<()>>>,
    ring_full: Arc<Mutex<Option<EventFd>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The signal that makes a vCPU leave the guest. Its handler does nothing: that it comes is enough.
fn kick_signal() -> i32 {
    extern "C" fn nothing(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    static ONCE: Once = Once::new();
    let signal = libc::SIGRTMIN() + 7;
    ONCE.call_once(|| {
        // SAFETY: the structure is all zero but for what is set, the handler touches nothing.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO;
            libc::sigaction(signal, &raw const action, std::ptr::null_mut());
        }
    });
    signal
}

impl Vcpu {
    /// Takes a vCPU; [`Vcpu::start`] gives it a thread.
    pub fn new(index: usize, fd: VcpuFd, ring_full: Arc<Mutex<Option<EventFd>>>) -> Result<Self> {
        let raw_fd = fd.as_raw_fd();
        let state = State { wish: Wish::Stand, running: false, held_until: None, broken: false };
        Ok(Self {
            index,
            raw_fd,
            page: RunPage::map(raw_fd)?,
            fd: Mutex::new(fd),
            state: Mutex::new(state),
            changed: Condvar::new(),
            thread: Mutex::new(None),
            ring_full,
        })
    }

    pub fn raw_fd(&self) -> RawFd {
        self.raw_fd
    }

    /// For reading and writing its state: waits while it runs.
    pub fn fd(&self) -> MutexGuard<'_, VcpuFd> {
        lock(&self.fd)
    }

    /// Starts its thread, which stands still at first.
    pub fn start(self: &Arc<Self>, bus: Arc<Bus>) -> Result<()> {
        // The handler has to be there before any kick.
        kick_signal();
        let vcpu = Arc::clone(self);
        let thread = std::thread::Builder::new()
            .name(format!("vcpu{}", self.index))
            .spawn(move || vcpu.work(&bus))
            .map_err(Error::system("starting a thread"))?;
        *lock(&self.thread) = Some(thread);
        Ok(())
    }

    /// Lets it run.
    pub fn run(&self) {
        let mut state = lock(&self.state);
        if state.wish != Wish::End {
            state.wish = Wish::Run;
            self.changed.notify_all();
        }
    }

    /// Asks it to stand still; [`Vcpu::wait_still`] waits for it.
    pub fn ask_still(&self) {
        let mut state = lock(&self.state);
        if state.wish == Wish::Run {
            state.wish = Wish::Stand;
        }
        self.kick(&state);
    }

    /// Returns once its thread is out of the guest. The signal is sent again meanwhile: it may have come while the thread wrote a log that blocks.
    pub fn wait_still(&self) {
        let mut state = lock(&self.state);
        while state.running && state.wish != Wish::Run {
            let (back, _) =
                self.changed.wait_timeout(state, Duration::from_millis(10)).unwrap_or_else(PoisonError::into_inner);
            state = back;
            if state.running && state.wish != Wish::Run {
                self.kick(&state);
            }
        }
    }

    /// Keeps it out of the guest until then.
    pub fn hold_until(&self, until: Instant) {
        let mut state = lock(&self.state);
        state.held_until = Some(until);
        self.kick(&state);
    }

    /// Ends its thread for good. Idempotent.
    pub fn end(&self) {
        {
            let mut state = lock(&self.state);
            state.wish = Wish::End;
            self.kick(&state);
        }
        self.wait_still();
        // Not locked while it ends: kicks look there.
        let thread = lock(&self.thread).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }

    fn kick(&self, state: &State) {
        self.changed.notify_all();
        if !state.running {
            return;
        }
        self.page.immediate_exit().store(1, Ordering::SeqCst);
        if let Some(thread) = lock(&self.thread).as_ref() {
            // SAFETY: the handle was not joined, so the thread's identifier is valid; the signal has a handler.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), kick_signal()) };
        }
    }

    fn work(&self, bus: &Bus) {
        while self.wait_for_run() {
            let result = self.enter(bus);
            let mut state = lock(&self.state);
            state.running = false;
            if let Err(why) = result {
                bus.fail(format!("vCPU {}: {why}", self.index));
                state.broken = true;
            }
            self.changed.notify_all();
        }
    }

    /// Waits until it may run, and says whether it is to go on at all.
    fn wait_for_run(&self) -> bool {
        let mut state = lock(&self.state);
        loop {
            match state.wish {
                Wish::End => return false,
                Wish::Run if !state.broken => break,
                _ => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
        state.running = true;
        true
    }

    /// Whether it goes on in the guest; waits here while it is held.
    fn goes_on(&self, bus: &Bus) -> bool {
        let mut state = lock(&self.state);
        loop {
            if state.wish != Wish::Run {
                return false;
            }
            let now = Instant::now();
            let Some(until) = state.held_until.filter(|u| *u > now) else { return true };
            let (back, _) = self.changed.wait_timeout(state, until - now).unwrap_or_else(PoisonError::into_inner);
            state = back;
            bus.counters.throttled_ns.fetch_add(now.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
    }

    /// Runs the guest until it is to stand still.
    fn enter(&self, bus: &Bus) -> std::result::Result<(), String> {
        let counters = &bus.counters;
        let count = |c: &std::sync::atomic::AtomicU64| {
            c.fetch_add(1, Ordering::Relaxed);
        };
        let mut fd = lock(&self.fd);
        loop {
            match fd.run() {
                Ok(VcpuExit::MmioRead(address, out)) => bus.mmio_read(address, out),
                Ok(VcpuExit::MmioWrite(address, data)) => bus.mmio_write(address, data),
                Ok(VcpuExit::IoOut(..)) => count(&counters.pio),
                Ok(VcpuExit::IoIn(_, out)) => {
                    count(&counters.pio);
                    out.fill(0xff);
                }
                Ok(VcpuExit::Hlt) => count(&counters.halt),
                Ok(VcpuExit::Unsupported(EXIT_DIRTY_RING_FULL)) => {
                    count(&counters.ring_full);
                    // Nothing of the guest's is under way at this exit: it may end here, too.
                    if !self.wait_for_harvest(bus) {
                        return Ok(());
                    }
                }
                Ok(VcpuExit::Shutdown) => return Err("the guest shut down (triple fault)".into()),
                Ok(VcpuExit::FailEntry(reason, _)) => return Err(format!("KVM can't enter the guest ({reason:#x})")),
                Ok(VcpuExit::InternalError) => return Err(internal_error(&mut fd)),
                Ok(VcpuExit::Intr) => count(&counters.interrupted),
                Ok(_) => count(&counters.other),
                Err(e) if e.errno() == libc::EINTR => {
                    count(&counters.interrupted);
                    // Before the wish is read: whoever changes it after sets this again.
                    self.page.immediate_exit().store(0, Ordering::SeqCst);
                    if !self.goes_on(bus) {
                        return Ok(());
                    }
                }
                Err(e) if e.errno() == libc::EAGAIN => {}
                Err(e) => return Err(format!("KVM_RUN: {}", std::io::Error::from_raw_os_error(e.errno()))),
            }
        }
    }

    /// Says that the ring is full and waits until somebody has taken notice; `false` where the vCPU is to stand still.
    fn wait_for_harvest(&self, bus: &Bus) -> bool {
        let event = lock(&self.ring_full).as_ref().and_then(|e| e.try_clone().ok());
        if let Some(event) = &event {
            let _ = event.write(1);
        }
        let until = Instant::now() + RING_PATIENCE;
        loop {
            if !self.goes_on(bus) {
                return false;
            }
            let pending = event.as_ref().is_some_and(is_readable);
            if !pending || Instant::now() >= until {
                return true;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}

/// What KVM says about an exit that is its own failure: mostly an instruction that it can't emulate.
fn internal_error(fd: &mut VcpuFd) -> String {
    let rip = fd.get_regs().map_or(0, |r| r.rip);
    // SAFETY: this member of the union is the one that belongs to KVM_EXIT_INTERNAL_ERROR.
    let internal = unsafe { fd.get_kvm_run().__bindgen_anon_1.internal };
    let data = internal.data.iter().take(internal.ndata.min(16) as usize);
    let words: Vec<String> = data.map(|w| format!("{w:#x}")).collect();
    format!("KVM reports internal error {} at {rip:#x} ({})", internal.suberror, words.join(" "))
}

/// Whether the counter of an eventfd is above 0.
fn is_readable(event: &EventFd) -> bool {
    let mut poll = libc::pollfd { fd: event.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd of this frame.
    unsafe { libc::poll(&raw mut poll, 1, 0) > 0 }
}
