//! Memory of one owner in this process, as a [`GuestMemory`]. Slow and simple: a lock around bytes.

use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use towline_core::memory::{GuestMemory, MemoryError, MemoryErrorKind, MemoryRange};

/// Zeroed memory from address 0.
pub(crate) struct HostMemory {
    bytes: RwLock<Vec<u8>>,
    len: u64,
}

impl HostMemory {
    pub(crate) fn new(len: u64) -> Self {
        Self { bytes: RwLock::new(vec![0; usize::try_from(len).unwrap_or(0)]), len }
    }

    fn shared(&self) -> RwLockReadGuard<'_, Vec<u8>> {
        self.bytes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Vec<u8>> {
        self.bytes.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unmapped(gpa: u64, len: usize) -> MemoryError {
    MemoryError { gpa, len: len as u64, kind: MemoryErrorKind::Unmapped }
}

/// Start and end of an access; the slice lookup that follows decides whether it is inside.
fn span(gpa: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(gpa).ok()?;
    Some(start..start.checked_add(len)?)
}

impl GuestMemory for HostMemory {
    fn read(&self, gpa: u64, out: &mut [u8]) -> Result<(), MemoryError> {
        let error = unmapped(gpa, out.len());
        let bytes = self.shared();
        out.copy_from_slice(span(gpa, out.len()).and_then(|span| bytes.get(span)).ok_or(error)?);
        Ok(())
    }

    fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        let error = unmapped(gpa, data.len());
        let mut bytes = self.exclusive();
        span(gpa, data.len()).and_then(|span| bytes.get_mut(span)).ok_or(error)?.copy_from_slice(data);
        Ok(())
    }

    fn load_u32(&self, gpa: u64) -> Result<u32, MemoryError> {
        if gpa & 3 != 0 {
            return Err(MemoryError { gpa, len: 4, kind: MemoryErrorKind::Misaligned });
        }
        let mut raw = [0; 4];
        self.read(gpa, &mut raw)?;
        Ok(u32::from_le_bytes(raw))
    }

    fn store_u32(&self, gpa: u64, value: u32) -> Result<(), MemoryError> {
        if gpa & 3 != 0 {
            return Err(MemoryError { gpa, len: 4, kind: MemoryErrorKind::Misaligned });
        }
        self.write(gpa, &value.to_le_bytes())
    }

    fn ranges(&self) -> Vec<MemoryRange> {
        vec![MemoryRange { gpa: 0, len: self.len }]
    }
}
