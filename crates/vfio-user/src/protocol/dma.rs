//! DMA_MAP and DMA_UNMAP.

use super::DecodeError;
use super::fields::{Fields, words};

/// Bits of [`DmaMap::flags`].
pub mod dma_flags {
    /// The function may read it.
    pub const READ: u32 = 1;
    /// The function may write it.
    pub const WRITE: u32 = 1 << 1;
    /// The file may be mapped.
    pub const MMAP: u32 = 1 << 2;
    /// The file may be reached by reads and writes.
    pub const FILE_IO: u32 = 1 << 3;
    /// Every bit that means something.
    pub const KNOWN: u32 = READ | WRITE | MMAP | FILE_IO;
}

/// Bits of [`DmaUnmap::flags`].
pub mod unmap_flags {
    /// Everything; address and size are 0.
    pub const ALL: u32 = 1 << 1;
    /// Every bit that is obeyed here. Bit 0 would ask for a bitmap of dirty pages.
    pub const KNOWN: u32 = ALL;
}

/// A range of guest memory that a client gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaMap {
    /// See [`dma_flags`].
    pub flags: u32,
    /// Where it begins in the file that comes along, in bytes.
    pub offset: u64,
    /// First guest address.
    pub address: u64,
    /// Length in bytes, not 0.
    pub size: u64,
}

impl DmaMap {
    const BYTES: usize = 32;

    /// Decodes and checks the body of a DMA_MAP.
    ///
    /// # Errors
    /// A wrong length, unknown flags, a range that is empty or ends beyond the address space.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::exactly(body, Self::BYTES)?;
        let argsz = fields.u32()?;
        let map = Self { flags: fields.u32()?, offset: fields.u64()?, address: fields.u64()?, size: fields.u64()? };
        if (argsz as usize) < Self::BYTES {
            return Err(DecodeError::field("DMA_MAP argsz", argsz));
        }
        if map.flags & !dma_flags::KNOWN != 0 || map.flags & (dma_flags::READ | dma_flags::WRITE) == 0 {
            return Err(DecodeError::field("DMA_MAP flags", map.flags));
        }
        if map.size == 0 || map.address.checked_add(map.size).is_none() || map.offset.checked_add(map.size).is_none() {
            return Err(DecodeError::field("DMA_MAP size", map.size));
        }
        Ok(map)
    }
}

/// A range that a client takes away again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaUnmap {
    /// See [`unmap_flags`].
    pub flags: u32,
    /// First guest address.
    pub address: u64,
    /// Length in bytes.
    pub size: u64,
}

impl DmaUnmap {
    const BYTES: usize = 24;

    /// Decodes and checks the body of a DMA_UNMAP.
    ///
    /// # Errors
    /// A wrong length, flags that are not obeyed, a range that is empty without [`unmap_flags::ALL`].
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        let mut fields = Fields::exactly(body, Self::BYTES)?;
        let argsz = fields.u32()?;
        let unmap = Self { flags: fields.u32()?, address: fields.u64()?, size: fields.u64()? };
        if (argsz as usize) < Self::BYTES {
            return Err(DecodeError::field("DMA_UNMAP argsz", argsz));
        }
        if unmap.flags & !unmap_flags::KNOWN != 0 {
            return Err(DecodeError::field("DMA_UNMAP flags", unmap.flags));
        }
        if !unmap.all() && unmap.size == 0 {
            return Err(DecodeError::field("DMA_UNMAP size", unmap.size));
        }
        Ok(unmap)
    }

    /// Whether everything is meant.
    #[must_use]
    pub fn all(&self) -> bool {
        self.flags & unmap_flags::ALL != 0
    }

    /// The body of the answer: what was asked.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let numbers = [self.address, self.size].into_iter().flat_map(u64::to_le_bytes);
        words([Self::BYTES as u32, self.flags]).chain(numbers).collect()
    }
}
