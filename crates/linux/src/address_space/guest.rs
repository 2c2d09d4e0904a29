//! [`GuestMapping`]: all of a guest's memory in an address space, for as long as this lives.

use std::sync::{Arc, Mutex, PoisonError};

use towline_core::channel::ChannelError;
use towline_core::memory::{GuestMemory, MemoryRange};

use super::{AddressSpace, Backing};
use crate::iommu_error::limit;
use crate::memory::MappedMemory;

/// Guest memory mapped for devices at its guest-physical addresses. Unmapped on drop.
#[derive(Debug)]
pub struct GuestMapping {
    space: Arc<dyn AddressSpace>,
    mapped: Mutex<Vec<MemoryRange>>,
}

impl GuestMapping {
    /// Maps every region that `memory` has now. What is read-only there is so for the device.
    ///
    /// # Errors
    /// As [`AddressSpace::map`]; nothing stays mapped then.
    pub fn new(space: Arc<dyn AddressSpace>, memory: &MappedMemory) -> Result<Self, ChannelError> {
        let mapping = Self { space, mapped: Mutex::default() };
        for range in memory.ranges() {
            mapping.add(memory, range)?;
        }
        Ok(mapping)
    }

    /// Maps a region that came later.
    ///
    /// # Errors
    /// As [`AddressSpace::map`].
    pub fn add(&self, memory: &MappedMemory, range: MemoryRange) -> Result<(), ChannelError> {
        let held = memory.hold(range.gpa, range.len).map_err(|error| limit(error.to_string()))?;
        let writable = held.is_writable();
        self.space.map(range.gpa, range.len, Backing::Memory(held), writable)?;
        self.lock().push(range);
        Ok(())
    }

    /// Unmaps one region again; before it is removed from guest memory, which waits for this.
    ///
    /// # Errors
    /// As [`AddressSpace::unmap`].
    pub fn remove(&self, range: MemoryRange) -> Result<u64, ChannelError> {
        let bytes = self.space.unmap(range.gpa, range.len)?;
        self.lock().retain(|r| *r != range);
        Ok(bytes)
    }

    /// Unmaps all that is left and returns how many bytes that was. Idempotent.
    ///
    /// # Errors
    /// The first error of [`AddressSpace::unmap`]; the others are tried all the same.
    pub fn close(&self) -> Result<u64, ChannelError> {
        let ranges = self.lock().clone();
        let (mut bytes, mut first) = (0, None);
        for range in ranges {
            match self.remove(range) {
                Ok(n) => bytes += n,
                Err(error) => first = first.or(Some(error)),
            }
        }
        first.map_or(Ok(bytes), Err)
    }

    /// The address space that this is mapped in.
    #[must_use]
    pub fn space(&self) -> &Arc<dyn AddressSpace> {
        &self.space
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<MemoryRange>> {
        self.mapped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for GuestMapping {
    fn drop(&mut self) {
        // Nobody is left to tell. What could not be unmapped stays held by the address space.
        let _ = self.close();
    }
}
