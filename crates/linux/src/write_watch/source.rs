//! [`WriteWatch`], the dirty source of mappings of this process, and [`WatchHandle`], by which they are changed meanwhile.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use towline_core::channel::{ChannelError, DirtySink, DirtySource};
use towline_core::memory::MemoryRange;

use super::tracker::{Mappings, Tracker, WatchedRange};
use crate::memory::MappedMemory;
use crate::track_error::TrackError;

/// The dirty source of what this process writes through mappings of its own, whichever thread does, its system calls (`read`,
/// `recv`) among them.
///
/// Not seen: writes through another mapping of the same memory, or by another process; direct I/O and other DMA into memory that the
/// kernel pinned, which is seen when it is pinned and not when it is written; and pages that are taken away rather than written
/// (`MADV_REMOVE`, `fallocate(FALLOC_FL_PUNCH_HOLE)`).
/// After an error of a harvest all that is tracked has been told as dirty.
#[derive(Debug)]
pub struct WriteWatch {
    shared: Arc<Mutex<Tracker>>,
}

/// Tells a [`WriteWatch`] about ranges, also while somebody else has the source itself.
#[derive(Clone, Debug)]
pub struct WatchHandle {
    shared: Arc<Mutex<Tracker>>,
}

fn lock(shared: &Mutex<Tracker>) -> MutexGuard<'_, Tracker> {
    // What a panic could leave half done is what was found and not told; the engine's thread reports the panic.
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

impl WriteWatch {
    /// Watches mappings that the caller made; each has to be mapped and writable. The same memory may be given at several addresses,
    /// and several guest addresses for one.
    ///
    /// # Errors
    /// [`TrackError::Argument`] for what can't be watched.
    pub fn of_ranges(ranges: &[WatchedRange]) -> Result<Self, TrackError> {
        Ok(Self { shared: Arc::new(Mutex::new(Tracker::new(Mappings::Named(ranges.to_vec()))?)) })
    }

    /// Watches the mappings of `memory` itself: what goes through [`towline_core::memory::GuestMemory::write`] and the device models
    /// that use it. Regions may come and go; those that do count as written.
    ///
    /// # Errors
    /// None so far.
    pub fn of_memory(memory: &Arc<MappedMemory>) -> Result<Self, TrackError> {
        Ok(Self { shared: Arc::new(Mutex::new(Tracker::new(Mappings::Memory(Arc::clone(memory)))?)) })
    }

    /// A handle for whoever changes the mappings.
    #[must_use]
    pub fn handle(&self) -> WatchHandle {
        WatchHandle { shared: Arc::clone(&self.shared) }
    }
}

impl WatchHandle {
    /// A range that is mapped now. While tracking, all of it counts as written.
    ///
    /// # Errors
    /// [`TrackError`]; then it is not watched.
    pub fn add_range(&self, range: WatchedRange) -> Result<(), TrackError> {
        lock(&self.shared).add_range(range)
    }

    /// A range that is about to be unmapped, and that nobody writes any more through this mapping; as it was given. While tracking, its
    /// last pages are taken first. One that is unmapped without this makes the next harvest fail.
    ///
    /// # Errors
    /// [`TrackError::NotFound`].
    pub fn remove_range(&self, range: &WatchedRange) -> Result<(), TrackError> {
        lock(&self.shared).remove_range(range)
    }
}

impl DirtySource for WriteWatch {
    /// `page_size_bytes` is a power of two from 512 to 1 GiB; pages are told in the size in which they are mapped, which is 2 MiB or 1
    /// GiB on hugetlbfs.
    ///
    /// # Errors
    /// `State` while it tracks already, or where another userfaultfd has the memory; `Unsupported` where the kernel lacks what is needed
    /// (Linux 6.7) or forbids it; `Gone` for what is not mapped any more.
    fn start(&mut self, ranges: &[MemoryRange], page_size_bytes: u64) -> Result<u64, ChannelError> {
        lock(&self.shared).start(ranges, page_size_bytes)
    }

    fn harvest(&mut self, sink: &mut dyn DirtySink) -> Result<(), ChannelError> {
        lock(&self.shared).harvest(sink)
    }

    fn stop(&mut self) -> Result<(), ChannelError> {
        lock(&self.shared).stop()
    }
}
