//! [`KvmDirty`], the dirty source of a virtual machine, and [`KvmHandle`], by which its VMM tells it about slots meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use towline_core::channel::{ChannelError, DirtySink, DirtySource};
use towline_core::memory::MemoryRange;

use super::ring::Rings;
use super::slot::KvmSlot;
use super::tracker::Tracker;
use super::vm::{KvmVm, Vm, failed};
use crate::track_error::TrackError;

/// By what KVM tells the pages.
#[derive(Clone, Copy, Debug)]
pub enum KvmMode<'a> {
    /// The dirty log of each slot.
    Log,
    /// A ring a vCPU (`KVM_CAP_DIRTY_LOG_RING`, `KVM_CAP_DIRTY_LOG_RING_ACQ_REL`), which the VMM enabled before it made the first one. What KVM
    /// writes without a vCPU (arm64's interrupt tables) is in no ring; where the VMM enabled `KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP` for that, the
    /// log is read too.
    Ring {
        /// Every vCPU. They are duplicated.
        vcpus: &'a [BorrowedFd<'a>],
        /// Entries of each ring, to be checked; KVM's own number is found out anyway.
        entries: Option<u32>,
    },
}

/// What is tracked, and how.
#[derive(Clone, Copy, Debug)]
pub struct KvmOptions<'a> {
    /// Every slot that vCPUs may write.
    pub slots: &'a [KvmSlot],
    /// By what KVM tells the pages.
    pub mode: KvmMode<'a>,
    /// Enable `KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2` (with `KVM_DIRTY_LOG_INITIALLY_SET`) where there is one: pages are then watched for
    /// again in pieces, and not for all of a slot under KVM's lock. It stays on for the VM. A harvest is right with and without it.
    /// With rings it is enabled without `KVM_DIRTY_LOG_INITIALLY_SET` in any case: rings would miss what vCPUs have mapped already.
    pub manual_protect: bool,
}

/// The dirty source of a VM's vCPUs. One at a time for a VM.
///
/// [`DirtySource::start`] switches `KVM_MEM_LOG_DIRTY_PAGES` on for the slots that it is asked for, [`DirtySource::stop`] off again. It sees what
/// vCPUs write and what KVM writes on behalf of one, in pages of the host's size; not what the VMM writes by its own mapping.
/// After an error of a harvest all that is tracked has been told as dirty.
#[derive(Debug)]
pub struct KvmDirty {
    shared: Arc<Shared>,
    drainer: Option<Drainer>,
}

/// Tells a [`KvmDirty`] about slots, also while somebody else has the source itself.
#[derive(Clone, Debug)]
pub struct KvmHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    tracker: Mutex<Tracker>,
    /// Written by vCPU threads whose ring is full; in ring mode.
    full: Option<OwnedFd>,
}

impl Shared {
    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        // What a panic could leave half done is what was found and not told; the engine's thread reports the panic.
        self.tracker.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KvmDirty {
    /// Nothing is tracked before [`DirtySource::start`]. `vm` is duplicated: the VM lives as long as this and its handles do.
    ///
    /// # Safety
    /// Each slot, and each one that [`KvmHandle::add_slot`] is given later, is exactly as the VMM made it by
    /// `KVM_SET_USER_MEMORY_REGION`: with anything else this would give the guest other memory of this process. [`KvmHandle::remove_slot`]
    /// comes before the VMM deletes or changes one.
    ///
    /// # Errors
    /// [`TrackError::Argument`] and [`TrackError::Exists`] for slots that can't be; [`TrackError::Refused`] where `vm` is no VM of this
    /// process, or has not the mode.
    pub unsafe fn new(vm: BorrowedFd<'_>, options: KvmOptions<'_>) -> Result<Self, TrackError> {
        let vm = Box::new(KvmVm::new(vm)?);
        let rings = match options.mode {
            KvmMode::Log => None,
            KvmMode::Ring { vcpus, entries } => Some(Rings::new(vcpus, entries)?),
        };
        Self::over(vm, rings, options.slots, options.manual_protect)
    }

    pub(super) fn over(
        vm: Box<dyn Vm>,
        rings: Option<Rings>,
        slots: &[KvmSlot],
        manual_protect: bool,
    ) -> Result<Self, TrackError> {
        let full = match rings {
            None => None,
            Some(_) => Some(event()?),
        };
        let tracker = Mutex::new(Tracker::new(vm, rings, slots, manual_protect)?);
        Ok(Self { shared: Arc::new(Shared { tracker, full }), drainer: None })
    }

    /// A handle for the VMM.
    #[must_use]
    pub fn handle(&self) -> KvmHandle {
        KvmHandle { shared: Arc::clone(&self.shared) }
    }
}

impl KvmHandle {
    /// In ring mode, the eventfd by which a vCPU's thread says that its ring is full: after `KVM_EXIT_DIRTY_RING_FULL` it writes 1 and
    /// enters the guest again, which KVM refuses with the same exit until the rings were emptied.
    #[must_use]
    pub fn full_event(&self) -> Option<BorrowedFd<'_>> {
        self.shared.full.as_ref().map(AsFd::as_fd)
    }

    /// A slot that the VMM has just made, exactly so (see the safety of [`KvmDirty::new`]). While tracking, all of it counts as written.
    ///
    /// # Errors
    /// [`TrackError`]; then it is not tracked.
    pub fn add_slot(&self, slot: KvmSlot) -> Result<(), TrackError> {
        self.shared.tracker().add_slot(slot)
    }

    /// A slot that the VMM is about to delete or to change. While tracking, its last pages are taken first. vCPUs that run may write it
    /// after that and before it is gone; unless `quiesced` says that none does, all of it counts as written.
    ///
    /// # Errors
    /// [`TrackError::NotFound`].
    pub fn remove_slot(&self, slot: u32, quiesced: bool) -> Result<(), TrackError> {
        self.shared.tracker().remove_slot(slot, quiesced)
    }
}

impl DirtySource for KvmDirty {
    /// `page_size_bytes` is a power of two from 512 to 1 GiB; pages are told in the host's size.
    ///
    /// # Errors
    /// `State` while it tracks already, `Unsupported` where the VM has rings and the log is asked for, otherwise what KVM said.
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        let granularity = self.shared.tracker().start(ranges, page_size_bytes)?;
        if self.shared.full.is_some() {
            match Drainer::start(&self.shared) {
                Ok(drainer) => self.drainer = Some(drainer),
                Err(error) => {
                    let _ = self.shared.tracker().stop();
                    return Err(error);
                }
            }
        }
        Ok(granularity)
    }

    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        self.shared.tracker().harvest(sink)
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        // First the tracking, and then the thread that empties rings: none is left full.
        let result = self.shared.tracker().stop();
        self.drainer = None;
        result
    }
}

impl Drop for KvmDirty {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.stop();
    }
}

fn event() -> Result<OwnedFd, ChannelError> {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| failed("eventfd", errno))
}

/// Takes the number off an eventfd.
fn take(event: &OwnedFd) {
    let mut count = [0; 8];
    // EAGAIN: there is none.
    let _ = rustix::io::read(event, &mut count);
}

/// The thread that empties the rings when a vCPU can't go on.
#[derive(Debug)]
struct Drainer {
    quit: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Drainer {
    fn start(shared: &Arc<Shared>) -> Result<Self, ChannelError> {
        let quit = Arc::new(event()?);
        let (shared, ending) = (Arc::clone(shared), Arc::clone(&quit));
        let thread = std::thread::Builder::new()
            .name("towline-kvm-ring".into())
            .spawn(move || drain_when_full(&shared, &ending))
            .map_err(|error| {
                let errno = error.raw_os_error().map_or(Errno::AGAIN, Errno::from_raw_os_error);
                failed("a thread for dirty rings", errno)
            })?;
        Ok(Self { quit, thread: Some(thread) })
    }
}

impl Drop for Drainer {
    fn drop(&mut self) {
        // Fails only for a full counter, which wakes the thread as well.
        let _ = rustix::io::write(&*self.quit, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn drain_when_full(shared: &Shared, quit: &OwnedFd) {
    let Some(full) = &shared.full else { return };
    loop {
        let mut fds = [PollFd::new(quit, PollFlags::IN), PollFd::new(full, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            // Not possible with valid descriptors; vCPUs then wait for the next harvest.
            Err(_) => return,
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        if !fds[1].revents().is_empty() {
            // Before the rings are emptied: whoever writes after that is heard again.
            take(full);
            shared.tracker().drain_rings();
        }
    }
}
